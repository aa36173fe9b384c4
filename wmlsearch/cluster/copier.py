"""Copies the run folder of a search to its storage while it grows: a process beside the search, as the MLflow mirror.

It may lag or fail without harm to the search: what the storage lacks is sent when it answers again.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, cast

from wmlsearch.cluster.lease import Lease, holder
from wmlsearch.cluster.run_copies import CopyWriter, LeaseLost
from wmlsearch.cluster.storage import Storage, reason
from wmlsearch.runs.folders import AnyDir, SearchDir
from wmlsearch.runs.helper_process import start_helper
from wmlsearch.runs.redaction import without_password

EVERY_S = 3.0  # between two passes
MAX_WAIT_S = 30.0  # between two attempts to reach a storage that is away
SAY_AFTER_S = 60.0  # of a storage that is away
_MODULE = "wmlsearch.cluster.copier"
_log = logging.getLogger(__name__)


class RunFolderCopier:
    """Keeps the copy of a search in its storage up to date.

    `notify(run)` returns at once. `when_copied(action)` calls `action` in another thread as soon as the storage has all
    that was in the run folder before. `close()` waits until all is copied, and returns what could not be.

    Args:
        search: The search. Its folder must exist.
        lease: The lease of this search in the storage, which this process holds.
        say: Called with a line for the user when the storage has not answered for long, and when it answers again.
    """

    def __init__(self, search: SearchDir, lease: Lease, say: Callable[[str], None]) -> None:
        self.search, self.lease, self.say, self.problem = search, lease, say, ""
        self._changed: dict[Path, None] = {}  # folders of runs
        self._actions: list[Callable[[], None]] = []
        self._condition = threading.Condition()
        self._dirty = True
        self._closing = self._abandoned = False
        self._away_since: float | None = None  # time.monotonic()
        self._said_away = False
        self._sessions = 0  # processes that were started
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._work, name="run-folder-copier", daemon=True)
        self._thread.start()

    def notify(self, run: AnyDir) -> None:
        """Copy `run` soon, because it has changed."""
        with self._condition:
            if run.path != self.search.path:
                self._changed[run.path] = None
            self._dirty = True
            self._condition.notify()

    def when_copied(self, action: Callable[[], None]) -> None:
        """Call `action` when the storage has the run folder as it is now. It is not called if the search dies before.

        Runs that changed must have been notified before.
        """
        with self._condition:
            self._actions.append(action)
            self._dirty = True
            self._condition.notify()

    def close(self, timeout_s: float = 60) -> str:
        """Copy what the storage lacks, for at most `timeout_s` or until Ctrl-C; return what went wrong, or ""."""
        with self._condition:
            self._closing = self._dirty = True
            self._condition.notify()
        waited = f"within {timeout_s:g} s"
        try:
            self._thread.join(timeout_s)
        except KeyboardInterrupt:
            waited = "before Ctrl-C"
        with self._condition:  # no other process is started from here on
            self._abandoned = True
            self._condition.notify()
            problem, process = self.problem, self._process
        if self._thread.is_alive():
            problem = problem or f"{without_password(self.lease.location)} did not receive everything {waited}"
        if process is not None:  # the run folder holds all that it copies
            process.kill()
            process.wait()
        return problem

    def _work(self) -> None:
        wait_s = 0.0
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closing or self._abandoned, timeout=wait_s)
                if self._closing and wait_s > EVERY_S:  # the storage was away
                    self._condition.wait_for(lambda: self._abandoned, timeout=1.0)
                self._condition.wait_for(lambda: self._dirty or self._abandoned)
                if self._abandoned:
                    return
                changed, self._changed = self._changed, {}
                actions, self._actions = self._actions, []
                self._dirty, closing = False, self._closing
            answer = self._ask(Request([str(path) for path in changed], last=closing))
            self._note(answer)
            if answer.lost_to:
                self.lease.lose_to(answer.lost_to)
                return
            if not answer.problem:
                for action in actions:
                    _try(action)
            with self._condition:
                if answer.problem:
                    self._changed = {**changed, **self._changed}
                    self._actions = actions + self._actions
                self._dirty = self._dirty or answer.behind or bool(answer.problem)
                if closing and (not self._dirty or os.strerror(errno.ENOSPC) in answer.problem):
                    return  # nobody makes room on a full disk within the time that close() waits
            wait_s = min(2 * max(wait_s, EVERY_S), MAX_WAIT_S) if answer.problem else EVERY_S

    def _note(self, answer: Answer) -> None:
        """Remember what went wrong, and say if the storage is away for long, or is back."""
        self.problem = answer.problem
        if not answer.problem:
            if self._said_away:
                self.say(f"{self._where} takes the copy of the run folder again")
            self._away_since, self._said_away = None, False
            return
        now = time.monotonic()
        self._away_since = self._away_since or now
        if now - self._away_since > SAY_AFTER_S and not self._said_away:
            self._said_away = True
            self.say(
                f"warning: {self._where} does not accept the copy of the run folder ({answer.problem}); the search "
                "continues, and the missing files are sent when it answers"
            )

    @property
    def _where(self) -> str:
        return without_password(self.lease.location)

    def _ask(self, request: Request) -> Answer:
        """Let the process copy, and return its answer."""
        try:
            process = self._running_process()
            _write(process, request)
            return Answer(**json.loads(cast(IO[str], process.stdout).readline()))
        except (OSError, ValueError) as error:  # the process was killed: the next attempt starts another
            self._process = None
            return Answer(problem=f"the process that copies has ended ({error})")

    def _running_process(self) -> subprocess.Popen[str]:
        """Return the process, which is started if need be. Raises OSError if it cannot, or if it is too late."""
        with self._condition:
            if self._abandoned:
                raise OSError("the copier is closed")
            if self._process is not None:
                return self._process
            process = self._process = start_helper(_MODULE)
        # Each process writes as a session of its own: it does not know what the one before has sent.
        self._sessions += 1
        lease = self.lease
        _write(
            process,
            Target(str(self.search.path), lease.location, lease.token, self._sessions, writer=str(lease.process)),
        )
        return process


def _try(action: Callable[[], None]) -> None:
    """Call `action`; the copying goes on if it fails."""
    try:
        action()
    except Exception:
        _log.exception("an action that waited for the copy of the run folder failed")


@dataclass(frozen=True)
class Target:
    """The first line to the process: what is copied, and where to."""

    search: str  # path of the run folder
    location: str  # path or URI of the storage
    lease: str  # token of the lease that the search holds
    number: int  # of this process among those of the search
    writer: str  # the process of the search, in words

    @classmethod
    def read(cls, line: str) -> Target:
        return cls(**json.loads(line))


@dataclass(frozen=True)
class Request:
    """Each further line to the process: one pass."""

    runs: list[str]  # paths of the run folders that have changed
    last: bool  # whether to look at all of them, since none will change any more

    @classmethod
    def read(cls, line: str) -> Request:
        return cls(**json.loads(line))


@dataclass(frozen=True)
class Answer:
    """A line from the process, one for each Request."""

    problem: str = ""  # why the pass failed
    lost_to: str = ""  # the other process that holds the search by now; nothing more is written
    behind: bool = False  # whether another pass has something to send already


def _write(process: subprocess.Popen[str], line: Target | Request) -> None:
    pipe = cast(IO[str], process.stdin)
    pipe.write(json.dumps(asdict(line)) + "\n")
    pipe.flush()


def serve() -> None:
    """Read a Target and then Requests from stdin, and write an Answer to each to stdout.

    The process ends at once when stdin ends, even in the middle of a pass: the process that started it is dead, and the
    search may go on elsewhere.
    """
    os.nice(19)  # trials come first
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    answers, sys.stdout = sys.stdout, sys.stderr
    if not (line := sys.stdin.readline()):
        return
    target = Target.read(line)
    writer = _writer(target)

    def work() -> None:
        while True:
            answer = _pass(writer, Request.read(lines.get()), target.location)
            print(json.dumps(asdict(answer)), file=answers, flush=True)

    threading.Thread(target=work, daemon=True).start()
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def _writer(target: Target) -> CopyWriter:
    search, place = SearchDir(Path(target.search)), Storage(target.location).below(Path(target.search).name)

    def check_lease() -> None:
        if other := holder(place, target.lease):
            raise LeaseLost(other)

    session = f"{target.lease}-{target.number}"
    return CopyWriter(search, target.location, session, target.writer, check_lease)


def _pass(writer: CopyWriter, request: Request, location: str) -> Answer:
    """Make one pass, and say how it ended."""
    try:
        if request.last:
            writer.copy_all(complete=True)
        else:
            writer.copy(Path(path) for path in request.runs)
    except LeaseLost as error:
        return Answer(problem=f"{error} runs the search now", lost_to=str(error))
    except Exception as error:  # the search must not fail because of its copy
        return Answer(problem=reason(error, location) or type(error).__name__)
    return Answer(behind=writer.is_behind)


if __name__ == "__main__":
    serve()
