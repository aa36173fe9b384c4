"""Ray dies under a search of a Python program: its caller gets an error, and the process ends only if it must."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from records import search_record

import wmlsearch
from wmlsearch.cluster import connect, watchdog
from wmlsearch.runs.early_end import EarlyEnd
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.interrupts import Interrupted, end_by_signal, signals_as_interrupts
from wmlsearch.tracking.uri import default_uri
from wmlsearch.workflows import tune as tune_workflow
from wmlsearch.workflows.observer import Observer
from wmlsearch.workflows.on_end import CommandAtEnd
from wmlsearch.workflows.placement import LOCAL

WHY = "stopped, since Ray has died (raylet)"


def on_dead_ray(search: SearchDir, say: Callable[[str], None], stay: Callable[[], Any]) -> None:
    """Do `stay` as a search that has begun, with a Ray that is dead."""
    at_end = CommandAtEnd(search, None, say)
    at_end.begun = True
    with (
        signals_as_interrupts(),
        tune_workflow._ray(search, LOCAL, default_uri(search.path.parent), Observer(say=say), at_end),
    ):
        stay()


def wait_in_steps() -> None:
    while not threading.Event().wait(0.01):
        pass


@pytest.fixture
def dead_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "ray_session", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(watchdog, "dead_servers", lambda: ["raylet"])
    monkeypatch.setattr(watchdog, "PATIENCE_AFTER_SIGNAL_S", 0.0)


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    return SearchDir.create(tmp_path / "s", search_record())


@pytest.mark.usefixtures("dead_ray")
@pytest.mark.parametrize("in_thread", [False, True])
def test_the_caller_is_interrupted_in_whatever_thread(in_thread: bool, search: SearchDir) -> None:
    lines: list[str] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            on_dead_ray(search, lines.append, wait_in_steps)
        except BaseException as error:
            errors.append(error)

    if in_thread:
        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(30)
    else:
        call()
    (error,) = errors
    assert isinstance(error, Interrupted)
    assert str(error) == WHY
    assert lines == [f"{WHY}; the run folders are kept"]
    assert search.state == "running", "its caller records the end, of the trials first"


ENDS = """
import sys, threading
from pathlib import Path
import test_dead_ray
from wmlsearch.cluster import connect, watchdog
from wmlsearch.runs.early_end import EarlyEnd
from wmlsearch.runs.folders import SearchDir
from wmlsearch.workflows import tune

tune.ATTEMPT_S = 0.2
connect.ray_session = lambda *_: test_dead_ray.contextlib.nullcontext()
watchdog.dead_servers = lambda: ["raylet"]
arguments = (SearchDir(Path(sys.argv[1])), print, threading.Lock().acquire)  # as a call into C: the second one waits
arguments[2]()
threading.Thread(target=test_dead_ray.on_dead_ray, args=arguments).start()
"""


def test_a_call_that_never_returns_ends_the_process(search: SearchDir, tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", ENDS, str(search.path)],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        f"{WHY}; the run folders are kept",
        "a call to Ray has not returned for 0.4 s, so this process ends",
        f"to resume: wmlsearch tune --resume s --out {tmp_path}",
    ], done.stderr
    assert done.returncode == 1
    assert (search.state, search.status().reason) == ("interrupted", WHY)


@pytest.mark.parametrize("begun", [False, True])
def test_a_ray_that_dies_before_the_trials(
    begun: bool, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(search: SearchDir, *_: Any) -> None:
        if begun:
            SearchDir.create(search.path, search_record())
        raise Interrupted(EarlyEnd.by_dead_ray(["raylet"]))

    monkeypatch.setattr("wmlsearch.api.searches._tune", tune)
    with pytest.raises(ConnectionError) as raised:
        wmlsearch.tune("quick", data=prepared, name="s", out=tmp_path, epochs=2)
    hint = f"wmlsearch.resume('{tmp_path}/s') continues it" if begun else "no search was started, so try again"
    assert str(raised.value) == f"{WHY}; {hint}"


def test_ctrl_c_before_the_trials_stays_one(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tune(*_: Any) -> None:
        raise Interrupted(end_by_signal(signal.SIGINT))

    monkeypatch.setattr("wmlsearch.api.searches._tune", tune)
    with pytest.raises(KeyboardInterrupt):
        wmlsearch.tune("quick", data=prepared, name="s", out=tmp_path, epochs=2)
