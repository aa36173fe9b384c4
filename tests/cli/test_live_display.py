"""Leaderboards as the terminal shows them."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from processes import wait_for
from records import epoch_row, run_record, search_record
from rich.console import Console, RenderableType

from wmlsearch.cli.live_display import SearchDisplay
from wmlsearch.cli.search_summary import show_search
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.search.final_training import write_result
from wmlsearch.search.messages import TrialResult
from wmlsearch.space import SearchSpace
from wmlsearch.workflows.search_lines import SearchLines

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


def test_a_search_that_waits_for_machines_says_so(search: SearchDir) -> None:
    search.set_status("running", "machine 10.0.0.2 gets no more trials")
    search.update_usage(slots=1, slots_waiting=3)
    assert "1 slot has its machine, 3 wait for machines" in shown(search, 200)
    assert "note: machine 10.0.0.2 gets no more trials" in shown(search, 200)
    said: list[str] = []
    lines = SearchLines(search, SearchSpace.from_mapping(SPACE, "here"), RunSettings(**SETTINGS), said.append)
    lines.slots_looked = -math.inf
    lines.update(search.trial(0))
    assert said[0] == "1 slot has its machine, 3 wait for machines"
    lines.update(search.trial(0))
    search.update_usage(slots=4, slots_waiting=0)
    lines.slots_looked = -math.inf
    lines.update(search.trial(0))
    assert [line for line in said if "slot" in line] == [said[0], "all slots have their machines"]
    for usage in ({"slots": 1, "slots_waiting": 3}, {"slots": 0, "slots_waiting": 0}):  # it is interrupted meanwhile
        search.update_usage(**usage)
        lines.slots_looked = -math.inf
        lines.update(search.trial(0))
    assert [line for line in said if "slot" in line][2:] == [said[0]]
    assert not any("for machines" in line for line in shown(search, 200))


def test_a_search_that_is_still_ending_says_so(search: SearchDir) -> None:
    """A request to stop is recorded at once; the trials end within seconds, and then the report is written."""
    search.set_status("interrupted", "stopped by Ctrl-C")
    resume = f"wmlsearch tune --resume s --out {search.path.parent}"
    with search.locked():
        assert (
            shown(search, 200)[-1]
            == f"its process still ends the trials or writes the report; then continue with {resume}"
        )
    assert shown(search, 200)[-1] == f"3 of 3 trials; continue with {resume}"


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


def test_the_table_is_drawn_by_its_own_thread_and_only_after_a_change(
    search: SearchDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(width=100, force_terminal=True, file=io.StringIO())
    display = SearchDisplay(console, search, SearchSpace.from_mapping(SPACE, "here"), RunSettings(**SETTINGS))
    drawn = []
    view = display._live_view
    monkeypatch.setattr(display, "_live_view", lambda: drawn.append(1) or view())
    assert plain(display._latest_view()) == "starting Ray ..."
    add(search.trial(3), "trial-0003", "running", {"batch_size": 8}, 0.7)
    for _ in range(20):
        display.update(search.trial(3))
    assert drawn == [], "the search does not wait for it"
    text = plain(display._latest_view())
    assert "now: trial-0003 epoch 2/" in text
    lines = text.splitlines()
    assert [line.split()[:3] for line in lines if "trial-0" in line and "now" not in line] == [
        ["1", "trial-0003", "0.7000"],
        ["2", "trial-0001", "0.6000"],
        ["3", "trial-0000", "0.5000"],
        ["trial-0002", "-", "0"],
    ]
    assert any(line.startswith("paper ") for line in lines) is False, "no final run has changed"
    display.update(search.final("paper", 0))
    assert any(line.startswith("paper ") for line in plain(display._latest_view()).splitlines())
    display._latest_view()
    assert len(drawn) == 2


def test_a_live_table_on_a_terminal(search: SearchDir) -> None:
    file = io.StringIO()
    console = Console(width=100, force_terminal=True, file=file)
    display = SearchDisplay(console, search, SearchSpace.from_mapping(SPACE, "here"), RunSettings(**SETTINGS))
    with display:
        display.update(search.trial(1))
        wait_for(lambda: "trial-0001" in file.getvalue(), 30)
        display.say("a line that stays")
    assert "a line that stays" in file.getvalue()


def plain(view: RenderableType) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(view)
    return console.export_text().strip()
