"""What a run folder tells of its process: alive, gone since a time, or silent on another machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from records import search_record

from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.liveness import Liveness, clock

NOON = 1_800_000_000.0  # Unix seconds


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    return SearchDir.create(tmp_path / "s", search_record())


def test_a_process_that_holds_the_folder_is_alive(search: SearchDir) -> None:
    with search.locked():
        assert Liveness.of(search).process == "alive"
        assert Liveness.of(search).owner.startswith(f"process {os.getpid()} on ")
    assert Liveness.of(search).process == "gone"


def test_it_is_gone_since_the_last_file_was_written(search: SearchDir) -> None:
    """MLflow's ledger does not count: `wmlsearch sync` writes it later."""
    (search.path / "mlflow.json").write_text("{}")
    for file in search.path.iterdir():
        os.utime(file, (NOON, NOON))
    os.utime(search.path / "status.json", (NOON + 60, NOON + 60))
    os.utime(search.path / "mlflow.json", (NOON + 600, NOON + 600))
    liveness = Liveness.of(search)
    assert (liveness.process, liveness.last_sign, liveness.is_elsewhere) == ("gone", NOON + 60, False)


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
