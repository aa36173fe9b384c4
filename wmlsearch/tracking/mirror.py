"""The mirror of run folders in MLflow: a process that copies what is new, and may lag or fail without harm.

It is a process of its own, since MLflow's client keeps an interpreter so busy that a search waits for it at every turn:
sending a report takes tens of milliseconds, handing it over takes microseconds.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, cast

from wmlsearch.config import InputError
from wmlsearch.runs.folders import AnyDir, RunDir, SearchDir
from wmlsearch.runs.redaction import without_password
from wmlsearch.tracking.client import connect, why
from wmlsearch.tracking.sync import FilesMissing, Refused, push

LONGEST_WAIT_S = 15.0  # for an MLflow that is away, before it is asked again


class Mirror:
    """Copies a run (a search with all its trials, or a single training) to MLflow while it goes on.

    `notify(run)` returns at once. `close()` waits for what is left, and says what could not be copied.
    """

    def __init__(self, root: AnyDir, uri: str) -> None:
        self.root, self.uri, self.problem = root, uri, ""
        self._changed: dict[Path, AnyDir] = {root.path: root}
        self._condition = threading.Condition()
        self._closing = False
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def notify(self, run: AnyDir) -> None:
        """`run` has changed."""
        with self._condition:
            self._changed[run.path] = run
            self._condition.notify()

    def close(self, timeout_s: float = 60) -> str:
        """Copy what is left, for at most `timeout_s` seconds or until Ctrl-C; returns what went wrong, or ""."""
        with self._condition:
            self._changed[self.root.path] = self.root
            self._closing = True
            self._condition.notify()
        waited = f"within {timeout_s:g} s"
        try:
            self._thread.join(timeout_s)
        except KeyboardInterrupt:
            waited = "before Ctrl-C"
        problem, process = self.problem, self._process
        if self._thread.is_alive():
            problem = problem or f"{without_password(self.uri)} has not answered {waited}"
        if process is not None:  # it holds nothing that is not in MLflow or in the run folders
            process.kill()
            process.wait()
        return problem

    def _work(self) -> None:
        wait = 0.0
        while True:
            with self._condition:
                if wait:  # MLflow was away: not before a while, however much changes
                    self._condition.wait_for(lambda: self._closing, timeout=wait)
                else:
                    self._condition.wait_for(lambda: self._closing or self._changed)
                changed, self._changed = self._changed, {}
                closing = self._closing
            try:
                left, problem = self._ask(changed.values())
            except (OSError, ValueError) as error:  # it was killed: another one takes its place
                left, problem = list(changed), f"the mirror's process has ended ({why(error)})"
                self._process = None
            self.problem = problem
            wait = min(max(2 * wait, 1.0), LONGEST_WAIT_S) if problem else 0.0
            with self._condition:
                self._changed = {**{path: changed[path] for path in left}, **self._changed}
            if closing:
                return

    def _ask(self, runs: Iterable[AnyDir]) -> tuple[list[Path], str]:
        """Let the process copy `runs`; returns the paths of those that MLflow still lacks something of, and why."""
        if self._process is None:
            self._process = _start()
            _say(self._process, {"uri": self.uri, "root": _plain(self.root)})
        _say(self._process, [_plain(run) for run in runs])
        answer = json.loads(cast(IO[str], self._process.stdout).readline())
        return [Path(path) for path in answer["left"]], answer["problem"]


def _plain(run: AnyDir) -> dict[str, Any]:
    return {"path": str(run.path), "search": isinstance(run, SearchDir)}


def _run(plain: dict[str, Any]) -> AnyDir:
    path = Path(plain["path"])
    return SearchDir(path) if plain["search"] else RunDir(path)


def _say(process: subprocess.Popen[str], what: Any) -> None:
    pipe = cast(IO[str], process.stdin)
    pipe.write(json.dumps(what) + "\n")
    pipe.flush()


def _start() -> subprocess.Popen[str]:
    here = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "wmlsearch.tracking.mirror"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,  # Ctrl-C is for the search; the mirror still has to say how that ended
    )


def serve() -> None:
    """Copy the runs that each line of the standard input names, and answer each with what is left and why.

    The first line says whose they are and where MLflow is: its address may hold a password, which others could read in
    a list of processes. Ends at once when the standard input ends, even in the middle of a run: whoever started this is
    dead, and the search may go on elsewhere with a mirror of its own.
    """
    os.nice(19)  # trials come first: Ray gives their processes a niceness of 15
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer

    if not (line := sys.stdin.readline()):
        return
    first = json.loads(line)
    uri, root = first["uri"], _run(first["root"])

    def work() -> None:
        while True:
            runs = [_run(plain) for plain in json.loads(lines.get())]
            left, problem = copy(uri, root, runs)
            print(json.dumps({"left": [str(run.path) for run in left], "problem": problem}), file=answers, flush=True)

    threading.Thread(target=work, daemon=True).start()
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def copy(uri: str, root: AnyDir, runs: Iterable[AnyDir]) -> tuple[list[AnyDir], str]:
    """Copy what MLflow lacks of `runs`; returns those that it still lacks something of, and what went wrong, or ""."""
    left, problem, files = list(runs), "", True
    try:
        client = connect(uri)
        for run in list(left):
            try:
                push(client, uri, run, root, files=files)
                if files:
                    left.remove(run)
            except FilesMissing as error:  # the rows of the other runs don't wait for them
                problem, files = str(error), False
            except Refused as error:  # nor do the other runs wait for one
                problem = str(error)
    except InputError as error:
        problem = str(error)
    except Exception as error:  # whatever MLflow does, the search goes on, and `sync` catches up
        problem = why(error, uri)
    return left, problem


if __name__ == "__main__":
    serve()
