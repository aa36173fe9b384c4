"""Leaderboards as the terminal shows them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from records import epoch_row, run_record, search_record
from rich.console import Console

from wmlsearch.cli.live_display import SearchDisplay
from wmlsearch.cli.search_summary import show_search
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.search.final_training import write_result
from wmlsearch.search.messages import TrialResult
from wmlsearch.space import SearchSpace

SETTINGS = RunSettings(trials=3).model_dump()
DATA = {"name": "prepared", "fingerprint": "f00d", "optimistic": True}
SPACE = {"batch_size": {"choices": [4, 8]}, "schedule": {"choices": ["plateau", "cosine"]},
         "warmup_fraction": {"low": 0.0, "high": 0.2, "when": {"schedule": "cosine"}}}  # fmt: skip


def add(run: RunDir, name: str, state: str, config: dict[str, object], *dices: float) -> None:
    about = {"name": name, "kind": "trial", "model": name.partition("-seed")[0], "settings": SETTINGS, "data": DATA}
    RunDir.create(run.path, run_record({**about, "config": TrialConfig.from_mapping(config).model_dump()}))
    for epoch, dice in enumerate(dices, start=1):
        run.append(epoch_row({"epoch": epoch, "val_dice_patients_best": dice, "val_dice_best": dice / 2}))
    run.set_status(state, "" if state != "failed" else "Traceback\nValueError: no luck")


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    about = {"name": "s", "kind": "search", "settings": SETTINGS, "data": DATA}
    made = SearchDir.create(tmp_path / "s", search_record({**about, "space": {"source": "here", "values": SPACE}}))
    add(made.trial(0), "trial-0000", "completed", {"batch_size": 8}, 0.3, 0.5, 0.4)
    add(made.trial(1), "trial-0001", "stopped", {"batch_size": 4, "schedule": "cosine", "warmup_fraction": 0.1}, 0.6)
    add(made.trial(2), "trial-0002", "failed", {"batch_size": 4})
    add(made.final("paper", 0), "paper-seed0", "completed", {}, 0.2)
    made.set_status("completed")
    return made


def shown(search: SearchDir, width: int) -> list[str]:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - what it prints is kept
    show_search(console, search)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_a_wide_terminal_has_a_column_for_each_hyperparameter(search: SearchDir) -> None:
    assert shown(search, 120) == [
        "s: completed, 3 of 3 trials on prepared",
        "rank  trial       val_dice_patients_best  epochs  state                batch_size  schedule  warmup_fraction",
        "   1  trial-0001                  0.6000       1  stopped                       4    cosine              0.1",
        "   2  trial-0000                  0.5000       3  completed, baseline           8   plateau",
        "      trial-0002                       -       0  failed                        4   plateau",
        "warning: image-level split: optimistic: data on both sides of the split make results look better",
        "trial-0002 failed: ValueError: no luck",
        "final runs",
        "configuration  selection runs  mean val_dice_patients_best  standard error  judgement runs  states",
        "paper                       1                       0.2000               -               0  1 completed  "
        "baseline",
    ]


def test_a_search_that_is_still_ending_says_so(search: SearchDir) -> None:
    """A request to stop is recorded at once; the trials end within seconds, and then the report is written."""
    search.set_status("interrupted", "stopped by Ctrl-C")
    resume = f"wmlsearch tune --resume s --out {search.path.parent}"
    with search.locked():
        assert (
            shown(search, 200)[-1]
            == f"its process still ends the trials or writes the report; then go on with {resume}"
        )
    assert shown(search, 200)[-1] == f"3 of 3 trials; go on with {resume}"


def test_a_narrow_one_has_one_for_all(search: SearchDir) -> None:
    lines = shown(search, 90)
    assert lines[1].split() == ["rank", "trial", "val_dice_patients_best", "epochs", "state", "hyperparameters"]
    assert "batch_size=4" in lines[2]
    assert all(len(line) <= 90 for line in lines)


@pytest.mark.parametrize("which", ["trial", "final"])
def test_what_befell_a_run_that_goes_on_is_said_once(which: str, search: SearchDir) -> None:
    run = search.trial(3) if which == "trial" else search.final("paper", 1)
    name = "trial-0003" if which == "trial" else "paper-seed1"
    add(run, name, "running", {}, 0.1)
    console = Console(width=120, record=True, file=io.StringIO())
    display = SearchDisplay(console, search, SearchSpace.from_mapping(SPACE, "here"), RunSettings(**SETTINGS))
    display.update(run)
    assert console.export_text() == ""
    trained = {run.path}
    write_result(run, TrialResult(replayed=run.rows()), trained)
    display.update(run)
    display.update(run)
    assert console.export_text() == (
        f"{name}: its process or machine died, so a new process continues it after epoch 1\n"
    )
    write_result(run, TrialResult(replayed=[]), trained, "no report for 5 s (--trial-timeout)")
    display.update(run)
    assert console.export_text() == (
        f"{name}: no report for 5 s (--trial-timeout), so a new process continues it from the beginning\n"
    )
    run.set_status("completed")
    assert run.status().reason == ""
