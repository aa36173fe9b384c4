"""Whether the process of a search or training is alive, as its run folder tells."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from dataclasses import dataclass

from wmlsearch.runs.folders import AnyDir, SearchDir
from wmlsearch.runs.lock import OWNER_FILE, is_running, process_files
from wmlsearch.runs.schema import RUNNING

ALIVE, SILENT, GONE, ENDED = "alive", "silent", "gone", "ended"
SILENT_AFTER_S = 600.0  # without a change in the folder, the process of another machine may be gone with its machine


@dataclass(frozen=True)
class Liveness:
    """What is known of the process that holds, or held, a run folder.

    Args:
        process: ALIVE; ENDED: nobody holds the folder, and it says how the search or training ended; GONE: nobody
            holds it, though it says "running", since the process died or the folder is a copy; or SILENT: another
            machine's process holds it, and has written nothing for SILENT_AFTER_S.
        last_sign: When its process wrote into the folder last, Unix seconds.
        owner: "process 1234 on node3", or "" where the folder does not tell.
    """

    process: str
    last_sign: float
    owner: str

    @classmethod
    def of(cls, run: AnyDir) -> Liveness:
        """Read a run folder. Nothing is written."""
        owner = ""
        with contextlib.suppress(OSError, ValueError):
            owner = (run.path / OWNER_FILE).read_text(encoding="utf-8").strip()
        last_sign = _last_change(run)
        if not is_running(run.path):  # asked first: a process records the end before it lets go of the folder
            return cls(process_left(run), last_sign, owner)
        silent = time.time() - last_sign > SILENT_AFTER_S and cls(ALIVE, last_sign, owner).is_elsewhere
        return cls(SILENT if silent else ALIVE, last_sign, owner)

    @property
    def is_elsewhere(self) -> bool:
        """Whether the process is, or was, on another machine than this one."""
        host = re.search(r" on (\S+)$", self.owner)
        return host is not None and host[1] != socket.gethostname()


def process_left(run: AnyDir) -> str:
    """Return what is said of the process of a folder that nobody holds: ENDED, or GONE without a recorded end."""
    return GONE if run.state == RUNNING else ENDED


def live_state(run: AnyDir) -> str:
    """Return the state that a folder records; GONE where that is "running" and nobody holds the folder.

    A copy of a folder, fetched or made by other means, is GONE too: nothing in it tells whether its search still runs.
    """
    if run.state == RUNNING and not is_running(run.path):
        return GONE if run.state == RUNNING else run.state  # a process records the end before it lets go of the folder
    return run.state


def _last_change(run: AnyDir) -> float:
    """Return when the process of a run folder wrote there last, Unix seconds; 0 where nothing tells.

    Only files count that no other command writes: `stop`, `sync` and `evaluate` change others, perhaps much later.
    """
    parts = run.all_runs() if isinstance(run, SearchDir) else [run]
    files = [run.file("record"), *process_files(run.path)]
    files += [part.file(what) for part in parts for what in ("metrics", "status")]
    times = [0.0]
    for path in files:
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def clock(time_s: float, now_s: float | None = None) -> str:
    """Return a time as people say it, in this machine's time zone: 14:02, or 27 November 14:02 of another day."""
    moment, today = time.localtime(time_s), time.localtime(now_s)
    same_day = (moment.tm_year, moment.tm_yday) == (today.tm_year, today.tm_yday)
    year = "" if moment.tm_year == today.tm_year else f" {moment.tm_year}"
    return ("" if same_day else f"{moment.tm_mday} {time.strftime('%B', moment)}{year} ") + time.strftime(
        "%H:%M", moment
    )
