"""Run stages one after another: each in a process of its own, with a limit and a result file.

A stage may note numbers, rows of a table and its error while it runs (`note`), so that they are kept if it is ended at
its limit. What a stage leaves behind is ended before the next one begins.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from processes import descendants, kill

NOTES = "VISIT_NOTES"  # environment variable: the file of a stage's notes
MAX_LIMIT_S = 300.0
GRACE_S = 10.0  # for a stage to end after SIGTERM, and for what it started to end after it
POLL_S = 0.05
LINES = 30  # of the end of the log, in the result
PASSED, FAILED, TIMED_OUT, INTERRUPTED = "passed", "failed", "timed out", "interrupted"
FORMAT = 1
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux's prctl


@dataclass(frozen=True)
class Stage:
    """A command and its limit."""

    name: str  # of its files
    what: str  # in the table
    command: tuple[str, ...]
    limit_s: float

    def __post_init__(self) -> None:
        if not 0 < self.limit_s <= MAX_LIMIT_S:
            raise ValueError(f"0 < limit_s <= {MAX_LIMIT_S:g} must hold, but got {self.limit_s} for {self.name}")


@dataclass(frozen=True)
class Machine:
    """Where the stages run."""

    card: str  # name and number of the GPUs, or "no GPU"
    versions: dict[str, str]  # by package; also python and driver


@dataclass(frozen=True)
class Result:
    """`STAGE.json`."""

    stage: str
    what: str
    state: str  # PASSED, FAILED, TIMED_OUT or INTERRUPTED
    began: str  # local time, 2026-11-29 18:02:11
    seconds: float
    limit_s: float
    card: str
    versions: dict[str, str]
    numbers: dict[str, Any] = field(default_factory=dict)  # name to number, text or yes/no
    rows: list[dict[str, Any]] = field(default_factory=list)  # fields of benchmarks.table.Row
    error: str = ""  # one line; "" if it passed
    left_behind: list[str] = field(default_factory=list)  # commands that the stage left running, which were killed
    lines: list[str] = field(default_factory=list)  # the last ones of its log
    format: int = FORMAT

    def write(self, out: Path) -> None:
        """Write it into a folder, whole or not at all."""
        aside = out / f".{self.stage}.json"
        aside.write_text(json.dumps(asdict(self), indent=1) + "\n")
        os.replace(aside, out / f"{self.stage}.json")

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read a result. Fields that a later version adds are left out. Raises ValueError for what is no result."""
        try:
            values = json.loads(path.read_text())
            return cls(**{name: values[name] for name in values.keys() & {one.name for one in fields(cls)}})
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: is no result of a stage ({error}); delete it, and run the stage again") from None


def note(numbers: Mapping[str, Any] | None = None, rows: Sequence[Mapping[str, Any]] = (), error: str = "") -> None:
    """Keep numbers, rows or the error of the stage that runs in this process. Later numbers replace earlier ones."""
    if path := os.environ.get(NOTES):
        with open(path, "a") as file:
            file.write(json.dumps({"numbers": dict(numbers or {}), "rows": list(rows), "error": error}) + "\n")


def results(out: Path) -> dict[str, Result]:
    """Return the results in a folder by the name of their stage. Raises ValueError for a file that is none."""
    return {path.stem: Result.read(path) for path in sorted(out.glob("*.json")) if not path.name.startswith(".")}


def run_stages(
    stages: Sequence[Stage],
    out: Path,
    machine: Machine,
    environment: Mapping[str, str] | None = None,
    again: Sequence[str] = (),
    stop: threading.Event | None = None,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> list[Result]:
    """Run the stages that have no result in `out` yet, and return the results of all.

    One that fails or reaches its limit ends nothing but itself. An interrupted one is run again by the next call.

    Args:
        environment: More variables for the stages' processes.
        again: Names of stages that run although they have a result.
        stop: Ends the stage that runs, as interrupted, and begins none.
        say: Gets a line when a stage begins and when it ends.
        clock: Seconds, for the limits.
    """
    stop = stop or threading.Event()
    out.mkdir(parents=True, exist_ok=True)
    ended = []
    for place, stage in enumerate(stages, 1):
        if stop.is_set():
            break
        before = results(out).get(stage.name)
        if before and before.state != INTERRUPTED and stage.name not in again:
            say(
                f"{place}/{len(stages)} {stage.name}: {before.state} on {before.began}; --again {stage.name} repeats it"
            )
            ended.append(before)
            continue
        say(f"{place}/{len(stages)} {stage.name} (at most {stage.limit_s:g} s) ...")
        result = run_stage(stage, out, machine, environment or {}, stop, clock)
        say(f"    {result.state} after {result.seconds:.0f} s{f': {result.error}' if result.error else ''}")
        ended.append(result)
    return ended


def run_stage(
    stage: Stage,
    out: Path,
    machine: Machine,
    environment: Mapping[str, str],
    stop: threading.Event,
    clock: Callable[[], float],
) -> Result:
    """Run a stage, end all that is left of it, write its result, and return it."""
    log, notes = out / f"{stage.name}.log", out / f".{stage.name}.notes"
    notes.unlink(missing_ok=True)
    others = frozenset(descendants(os.getpid()))
    began, start = time.strftime("%Y-%m-%d %H:%M:%S"), clock()
    with _orphans_adopted():
        with open(log, "wb") as output:
            process = subprocess.Popen(
                stage.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, NOTES: str(notes)},
                start_new_session=True,
            )
        while not (_ended(process) or stop.is_set() or clock() - start > stage.limit_s):
            time.sleep(POLL_S)
        if _ended(process):
            state, error = (FAILED, f"ended with status {process.returncode}") if process.returncode else (PASSED, "")
        elif stop.is_set():
            state, error = INTERRUPTED, "the visit was stopped"
        else:
            state, error = TIMED_OUT, f"not done after {stage.limit_s:g} s"
        seconds = clock() - start
        left_behind = end_all(process, others)
    numbers, rows, noted = _read_notes(notes)
    result = Result(
        stage=stage.name,
        what=stage.what,
        state=state,
        began=began,
        seconds=round(seconds, 1),
        limit_s=stage.limit_s,
        card=machine.card,
        versions=machine.versions,
        numbers=numbers,
        rows=rows,
        error=noted if noted and state == FAILED else error,
        left_behind=left_behind,
        lines=_last_lines(log),
    )
    result.write(out)
    notes.unlink(missing_ok=True)
    return result


def end_all(process: subprocess.Popen[bytes], others: frozenset[int] = frozenset()) -> list[str]:
    """End a stage's process and all that it started, also in other process groups.

    If the process still runs, SIGTERM goes to its process group first, so that it can end what it has begun.

    Args:
        others: Descendants of this process that do not belong to the stage.

    Returns:
        The commands of what a stage that had ended left running, and of what cannot be killed.
    """
    by_itself = _ended(process)
    if not by_itself:
        _signal_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while (pids := _left(process, others)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    left_behind = _commands(pids) if by_itself else []
    deadline = time.monotonic() + GRACE_S
    while pids := _left(process, others):
        _signal_group(process.pid, signal.SIGKILL)
        for pid in pids:
            kill(pid)
        if time.monotonic() > deadline:  # it waits for a device
            return left_behind + [f"{command} (cannot be killed)" for command in _commands(pids)]
        time.sleep(POLL_S)
    return left_behind


def _left(process: subprocess.Popen[bytes], others: frozenset[int]) -> list[int]:
    """Return the descendants of this process that belong to a stage, after reaping the orphans that have ended."""
    for pid in set(descendants(os.getpid())) - others - {process.pid}:
        with contextlib.suppress(ChildProcessError):  # the child of another process
            os.waitpid(pid, os.WNOHANG)
    return [
        pid for pid in descendants(os.getpid()) if pid not in others and (pid != process.pid or not _ended(process))
    ]


def _ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


def stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and Ctrl-C set from now on, instead of ending this process."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


@contextlib.contextmanager
def _orphans_adopted() -> Iterator[None]:
    """Be the parent of processes whose parent ends, so that they are found. Only on Linux."""
    control = getattr(ctypes.CDLL(None), "prctl", None)
    if control:
        control(_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        if control:
            control(_SUBREAPER, 0, 0, 0, 0)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _commands(pids: Iterable[int]) -> list[str]:
    """Return the command lines of processes, without those that have ended."""
    commands = []
    for pid in pids:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            commands += [words[:200]] if words else []
    return sorted(commands)


def _read_notes(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    numbers: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    error = ""
    for values in _whole_lines(path):
        numbers |= values["numbers"]
        rows += values["rows"]
        error = values["error"] or error
    return numbers, rows, error


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file without one that a killed process has not finished."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def _last_lines(log: Path) -> list[str]:
    with open(log, errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, LINES)]
