"""A stored forecast as a line, in the comparison table, and in the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from records import epoch_row, run_record, search_record
from rich.console import Console

from wmlsearch.cli.forecast_tables import forecast_comparison
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.forecast.comparison import forecast_line
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.schema import ForecastRecord
from wmlsearch.space import SearchSpace
from wmlsearch.workflows.search_lines import FORECAST_TRIALS, SearchLines

SETTINGS = RunSettings(trials=20, epochs=9)
SPACE = SearchSpace.from_mapping({"depth": {"choices": [2, 4]}})
FORECAST: dict[str, Any] = {
    "rungs": [
        {"epoch": 2, "trials": 6.0, "epochs": 12.0},
        {"epoch": 6, "trials": 3.14, "epochs": 12.5},
        {"epoch": 9, "trials": 1.97, "epochs": 6.0},
    ],
    "ends_by": "",
    "final": {"count": 1, "workers": 2, "cpus": 1, "gpus": 0.5},
    "start_s": 10.0,
    "search_s": 590.0,
    "final_runs": 2,
    "final_epochs": 18,
    "final_s": 120.0,
    "gpu_hours": 0.0,
    "disk_bytes": 130_400_000,
    "peak_memory_mb": 690.4,
    "epochs": 30.5,
    "total_s": 720.0,
}


def add(
    run: RunDir, epochs: int, state: str = "completed", about_parent: Mapping[str, int] | None = None, **more: float
) -> RunDir:
    about = {"name": run.name, "kind": "trial", "settings": SETTINGS.model_dump(), "config": TrialConfig().model_dump()}
    about |= about_parent or {}
    RunDir.create(run.path, run_record(about))
    for epoch in range(1, epochs + 1):
        run.append(epoch_row({"epoch": epoch, "val_dice_patients_best": 0.5, "val_dice": 0.5, "epoch_s": 2.0, **more}))
    run.set_status(state)
    return run


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    made = SearchDir.create(tmp_path / "s", search_record({"name": "s", "settings": SETTINGS.model_dump()}))
    made.set_forecast(ForecastRecord(**FORECAST))
    return made


def table(search: SearchDir) -> list[str]:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - what it prints is kept
    console.print(forecast_comparison(search))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_forecast_line() -> None:
    assert forecast_line(ForecastRecord(**FORECAST)) == (
        "forecast: about 12 min 0 s, 30 epochs of trials and at most 18 of 2 final runs, 130 MB of checkpoints, "
        "690 MiB a worker"
    )
    assert forecast_line(ForecastRecord(**{**FORECAST, "gpu_hours": 1.234, "ends_by": "--max-hours 0.2"})) == (
        "forecast: about 12 min 0 s, 30 epochs of trials and at most 18 of 2 final runs, 1.2 GPU-hours, "
        "130 MB of checkpoints, 690 MiB a worker, the trials end by --max-hours 0.2"
    )


def test_forecast_beside_usage(search: SearchDir) -> None:
    for number, epochs in enumerate((9, 6, 2, 2)):
        add(search.trial(number), epochs, peak_memory_mb=600.0 + number)
    assert table(search) == [
        "                            forecast   so far",
        "trials at epochs 2, 6, 9   6, 3.1, 2  4, 2, 1",
        "epochs of all trials            30.5       19",
        "time of the trials        10 min 0 s      0 s",
        "epochs of final runs      at most 18        0",
        "time of final runs         2 min 0 s        -",
        "peak memory of a worker      690 MiB  603 MiB",
        "checkpoints at most           130 MB        -",
    ]
    add(search.final("paper", 0), 9)
    search.update_usage(seconds=700.0, gpu_seconds=7200.0)
    search.update_usage(final_seconds=100.0, final_gpu_seconds=0.0, checkpoint_bytes=4_312_345)
    search.set_status("completed")
    assert table(search) == [
        "                            forecast     happened",
        "trials at epochs 2, 6, 9   6, 3.1, 2      4, 2, 1",
        "epochs of all trials            30.5           19",
        "time of the trials        10 min 0 s  11 min 40 s",
        "epochs of final runs      at most 18            9",
        "time of final runs         2 min 0 s   1 min 40 s",
        "GPU-hours                          0            2",
        "peak memory of a worker      690 MiB      603 MiB",
        "checkpoints at most           130 MB      4.31 MB",
    ]


def test_epochs_that_a_child_has_from_its_parent_were_not_trained_by_it(search: SearchDir) -> None:
    add(search.trial(0), 9)
    add(search.trial(1), 6, "stopped")
    add(search.trial(2), 9, about_parent={"parent": 0, "parent_epoch": 6, "replaces": 1})
    assert table(search)[1:3] == [
        "trials at epochs 2, 6, 9   6, 3.1, 2  2, 2, 2",
        "epochs of all trials            30.5       18",
    ]


def test_without_a_forecast_there_is_no_table(tmp_path: Path) -> None:
    assert forecast_comparison(SearchDir.create(tmp_path / "s", search_record())) is None


def test_time_left_comes_from_the_forecast_until_enough_trials_have_ended(
    search: SearchDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def follow() -> SearchLines:
        return SearchLines(search, SPACE, SETTINGS, lambda _: None)

    lines = follow()
    now[0] += 60  # the start of Ray does not count as time of trials
    lines.update(add(search.trial(0), 1, "running"))
    search.update_usage(seconds=40.0)
    assert lines.time_left_s() == 560 + 120
    now[0] += 40
    for number in range(FORECAST_TRIALS - 1):
        lines.update(add(search.trial(number), 9))
    assert lines.time_left_s() == 560 + 120
    lines.update(add(search.trial(FORECAST_TRIALS - 1), 9))
    assert lines.time_left_s() == pytest.approx(40 / FORECAST_TRIALS * (20 - FORECAST_TRIALS) + 120)
    # what a resumed search has used before is subtracted from its forecast
    search.update_usage(seconds=500.0)
    assert follow().time_left_s() == 100 + 120
    # a forecast that was too low is not used any more
    late = follow()
    search.update_usage(seconds=5000.0)
    now[0] += 100
    late.update(add(search.trial(FORECAST_TRIALS), 9))
    assert late.time_left_s() == pytest.approx(100 * (20 - FORECAST_TRIALS - 1) + 120)
