"""The mirror of run folders in MLflow: a process that copies what is new. It may lag or fail without harm.

It is a separate process, because MLflow's client would keep the search's interpreter busy: sending a report takes tens
of milliseconds, handing it over takes microseconds.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, cast

from wmlsearch.errors import InputError
from wmlsearch.runs.folders import AnyDir, RunDir, SearchDir
from wmlsearch.runs.helper_process import start_helper
from wmlsearch.runs.redaction import without_password
from wmlsearch.tracking.client import connected
from wmlsearch.tracking.problems import PROBLEM_FILE, forget, why
from wmlsearch.tracking.sync import FilesMissing, Refused, push

MAX_WAIT_S = 15.0  # between two attempts to reach an MLflow that is away
# Attempts at the end that copy nothing: one request that a busy server does not answer in time must not be the last.
LAST_ATTEMPTS = 2


class Mirror:
    """Copies a search with all its runs, or a single run, to MLflow while it goes on.

    `notify(run)` returns at once. `close()` waits until all is copied, and returns what could not be.
    """

    def __init__(self, root: AnyDir, uri: str) -> None:
        self.root, self.uri, self.problem = root, uri, ""
        self._changed: dict[Path, AnyDir] = {root.path: root}
        self._condition = threading.Condition()
        self._closing = self._abandoned = False
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def notify(self, run: AnyDir) -> None:
        """Copy `run` soon, because it has changed."""
        with self._condition:
            self._changed[run.path] = run
            self._condition.notify()

    def close(self, timeout_s: float = 60) -> str:
        """Copy what is not in MLflow yet, for at most `timeout_s` or until Ctrl-C; return what went wrong, or "".

        A server that does not answer is asked once more, and then left alone.
        """
        with self._condition:
            self._changed[self.root.path] = self.root
            self._closing = True
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
            problem = problem or f"{without_password(self.uri)} did not receive everything {waited}"
        if process is not None:  # nothing is lost: run folders hold all that it copies
            process.kill()
            process.wait()
        return problem

    def _work(self) -> None:
        wait, last_attempts = 0.0, 0
        while True:
            with self._condition:
                if last_attempts:
                    self._condition.wait_for(lambda: self._abandoned, timeout=last_attempts)
                elif wait:  # MLflow was away: wait, however many runs change
                    self._condition.wait_for(lambda: self._closing, timeout=wait)
                else:
                    self._condition.wait_for(lambda: self._closing or self._changed)
                if self._abandoned:
                    return
                changed, self._changed = self._changed, {}
                closing = self._closing
            answer = self._ask(changed.values())
            incomplete = [Path(path) for path in answer.incomplete]
            self.problem = answer.problem
            wait = min(max(2 * wait, 1.0), MAX_WAIT_S) if answer.problem else 0.0
            with self._condition:
                self._changed = {**{path: changed[path] for path in incomplete}, **self._changed}
            if closing:
                last_attempts = 1 if len(incomplete) < len(changed) else last_attempts + 1
                if not answer.again or last_attempts == LAST_ATTEMPTS:
                    return

    def _ask(self, runs: Iterable[AnyDir]) -> Answer:
        """Let the process copy `runs`, and return its answer."""
        folders = [Folder.of(run) for run in runs]
        try:
            process = self._running_process()
            _write(process, Request(folders))
            return Answer(**json.loads(cast(IO[str], process.stdout).readline()))
        except (OSError, ValueError) as error:  # the process was killed: the next attempt starts another
            self._process = None
            problem = f"the mirror's process has ended ({why(error)})"
            return Answer([folder.path for folder in folders], problem, again=True)

    def _running_process(self) -> subprocess.Popen[str]:
        """Return the process, which is started if need be. Raises OSError if it cannot, or if it is too late."""
        with self._condition:
            if self._abandoned:
                raise OSError("the mirror is closed")
            if self._process is not None:
                return self._process
            process = self._process = start_helper("wmlsearch.tracking.mirror")
        _write(process, Target(self.uri, Folder.of(self.root)))
        return process


@dataclass(frozen=True)
class Folder:
    """A run folder, as the lines between a mirror and its process name it."""

    path: str
    search: bool  # whether it is a search

    @classmethod
    def of(cls, run: AnyDir) -> Folder:
        return cls(str(run.path), isinstance(run, SearchDir))

    def run(self) -> AnyDir:
        return SearchDir(Path(self.path)) if self.search else RunDir(Path(self.path))


@dataclass(frozen=True)
class Target:
    """The first line to the process: where MLflow is, and the search or run whose folders are copied."""

    uri: str
    root: Folder

    @classmethod
    def read(cls, line: str) -> Target:
        values = json.loads(line)
        return cls(values["uri"], Folder(**values["root"]))


@dataclass(frozen=True)
class Request:
    """Each further line to the process: the folders to copy."""

    runs: list[Folder]

    @classmethod
    def read(cls, line: str) -> Request:
        return cls([Folder(**values) for values in json.loads(line)["runs"]])


@dataclass(frozen=True)
class Answer:
    """A line from the process, one for each Request."""

    incomplete: list[str]  # paths of the folders that MLflow lacks something of
    problem: str  # why, or ""
    again: bool  # whether another attempt may help: MLflow did not answer, or not as expected


def _write(process: subprocess.Popen[str], line: Target | Request) -> None:
    pipe = cast(IO[str], process.stdin)
    pipe.write(json.dumps(asdict(line)) + "\n")
    pipe.flush()


def serve() -> None:
    """Read a Target and then Requests from stdin, copy the runs of each Request, and write an Answer to stdout.

    The URI is sent this way because it may hold a password, and other users can read command lines. The process ends at
    once when stdin ends, even in the middle of a run: the process that started it is dead, and the search may continue
    elsewhere with a mirror of its own.
    """
    os.nice(19)  # trials come first: Ray gives their processes a niceness of 15
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not look like an answer

    if not (line := sys.stdin.readline()):
        return
    target = Target.read(line)
    uri, root = target.uri, target.root.run()

    def work() -> None:
        while True:
            runs = [folder.run() for folder in Request.read(lines.get()).runs]
            print(json.dumps(asdict(copy(uri, root, runs))), file=answers, flush=True)

    threading.Thread(target=work, daemon=True).start()
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def copy(uri: str, root: AnyDir, runs: Iterable[AnyDir]) -> Answer:
    """Copy what MLflow lacks of `runs`, and say what it still lacks."""
    unsent, problem, files, again = list(runs), "", True, False
    try:
        with connected(uri) as client:
            for run in list(unsent):
                try:
                    push(client, uri, run, root, files=files)
                    if files:
                        unsent.remove(run)
                except FilesMissing as error:  # metrics of the other runs are sent all the same
                    problem, files = str(error), False
                except (Refused, InputError) as error:  # the other runs are sent all the same
                    problem = str(error)
                except Exception:
                    unsent.remove(run)
                    unsent.append(run)  # so that the next attempt sends the others first
                    raise
    except InputError as error:  # the store cannot be used
        problem = str(error)
    except Exception as error:  # the search must not fail because of MLflow; `wmlsearch sync` catches up
        problem, again = why(error, uri, root.path / PROBLEM_FILE), True
    if not problem:
        forget(root.path / PROBLEM_FILE)
    return Answer([str(run.path) for run in unsent], problem, again)


if __name__ == "__main__":
    serve()
