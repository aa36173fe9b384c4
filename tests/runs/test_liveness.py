"""What a run folder tells of its process: alive, gone since a time, or silent on another machine."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from records import epoch_row, run_record, search_record

from wmlsearch.cli.search_summary import state_in_words
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.liveness import Liveness, clock, live_state

NOON = 1_800_000_000.0  # Unix seconds


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    return SearchDir.create(tmp_path / "s", search_record())


def test_a_process_that_holds_the_folder_is_alive(search: SearchDir) -> None:
    with search.locked():
        assert Liveness.of(search).process == "alive"
        assert live_state(search) == "running"
        assert Liveness.of(search).owner.startswith(f"process {os.getpid()} on ")
    assert Liveness.of(search).process == "gone"
    assert live_state(search) == "gone"
    for state in ("completed", "interrupted", "failed"):
        search.set_status(state)
        assert Liveness.of(search).process == "ended", "it recorded how it ended"
        assert live_state(search) == state


@pytest.mark.parametrize("sign", ["owner", "trials/0000/metrics.jsonl", "trials/0000/status.json"])
def test_it_is_gone_since_its_process_wrote_last(sign: str, search: SearchDir) -> None:
    """What `stop`, `sync` and `evaluate` write later does not count."""
    trial = RunDir.create(search.trial(0).path, run_record())
    trial.append(epoch_row({"epoch": 1, "val_dice": 0.5}))
    (search.path / "owner").write_text("process 7 on node3\n")
    late = [search.path / name for name in ("stop", "mlflow.json", "mlflow-problem.txt", "status.json", "test.json")]
    for file in late:
        file.touch()
    for file in search.path.rglob("*"):
        os.utime(file, (NOON, NOON))
    for file in late:
        os.utime(file, (NOON + 600, NOON + 600))
    os.utime(search.path / sign, (NOON + 60, NOON + 60))
    liveness = Liveness.of(search)
    assert (liveness.process, liveness.last_sign, liveness.owner) == ("gone", NOON + 60, "process 7 on node3")


def test_what_status_says_of_a_copy(search: SearchDir) -> None:
    """Fetched folders lack the owner; those that were copied by other means may have one of another machine."""
    with search.locked():
        pass
    assert re.fullmatch(r"its process has been gone since [^(]*", state_in_words(search))
    (search.path / "owner").write_text("process 7 on node3\n")
    assert state_in_words(search).endswith(" (it was process 7 on node3; it died, or the folder is a copy)")
    for file in (search.path / "owner", search.path / ".owner-claim"):
        file.unlink(missing_ok=True)
    assert state_in_words(search).startswith("no process has held this folder since ")
    assert state_in_words(search).endswith(" (it died, or the folder is a copy)")


def test_a_stop_does_not_wake_a_silent_process(search: SearchDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wmlsearch.runs.liveness.is_running", lambda _: True)
    (search.path / "owner").write_text("process 7 on node3\n")
    for file in search.path.iterdir():
        os.utime(file, (time.time() - 601,) * 2)
    search.request_stop()
    assert Liveness.of(search).process == "silent"
    (search.path / ".owner-claim").touch()
    assert Liveness.of(search).process == "alive"


def test_a_training_is_told_by_its_own_files(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "t", run_record())
    for file in run.path.iterdir():
        os.utime(file, (NOON, NOON))
    os.utime(run.file("status"), (NOON + 60, NOON + 60))
    assert Liveness.of(run).last_sign == NOON + 60


@pytest.mark.parametrize(
    ("host", "age_s", "process"), [("node3", 601, "silent"), ("node3", 500, "alive"), ("", 601, "alive")]
)
def test_a_lock_of_another_machine_may_be_left_of_a_dead_one(
    host: str, age_s: float, process: str, search: SearchDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wmlsearch.runs.liveness.is_running", lambda _: True)
    (search.path / "owner").write_text(f"process 7 on {host}\n" if host else "")
    for file in search.path.iterdir():
        os.utime(file, (time.time() - age_s,) * 2)
    assert Liveness.of(search).process == process


def test_the_clock_names_another_day() -> None:
    now = time.mktime((2026, 11, 28, 15, 0, 0, 0, 0, -1))
    assert clock(now - 58 * 60, now) == "14:02"
    assert clock(now - 24 * 3600, now) == "27 November 15:00"
    assert clock(now - 400 * 24 * 3600, now) == "24 October 2025 15:00"
