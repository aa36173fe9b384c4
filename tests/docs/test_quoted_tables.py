"""The documents quote the tables that `python -m benchmarks.verdict` and `python -m benchmarks.baseline` print."""

from __future__ import annotations

import re

import pytest
from paths import REPOSITORY

from benchmarks import baseline, thresholds
from benchmarks.search_quality import among_best, changes, early_signal, leave_one_out, searches, surrogate
from benchmarks.verdict import power_tables, rows
from benchmarks.verdict.__main__ import show_recorded

FOLDER = REPOSITORY / "benchmarks" / "verdict"
PAGE = (REPOSITORY / "docs" / "verdict.md").read_text(encoding="utf-8")
EQUAL = ("calibration", "folds", "whole path", "models")


@pytest.mark.parametrize("spread", ["assumed", "steady trainings"])
def test_power(spread: str) -> None:
    recorded = [row for row in power_tables.read_power(FOLDER / "power.csv") if row.spread == spread]
    assert power_tables.power_table(recorded) in PAGE


def test_division_of_twelve_trainings() -> None:
    assert power_tables.division_table(list(power_tables.division_rows())) in PAGE


@pytest.mark.parametrize("equal", [True, False])
def test_calibration(equal: bool) -> None:
    simulated = rows.read_csv(FOLDER / "simulated.csv")
    of_kind = [row for row in simulated if (row.table in EQUAL) == equal]
    assert rows.summary(of_kind) in PAGE
    assert not equal or all(row.holds for row in of_kind)


@pytest.mark.slow
def test_recorded_trainings(capsys: pytest.CaptureFixture[str]) -> None:
    """All bounds hold, and each row that the page quotes is printed."""
    assert show_recorded() == 0
    printed = capsys.readouterr().out.splitlines()
    section = PAGE.split("### On recorded trainings")[1].split("### ")[0]
    quoted = re.findall(r"^\|.*\|$", section, re.MULTILINE)
    assert len(quoted) > 20
    assert [line for line in quoted if line not in printed] == []


def test_the_baselines_open_values() -> None:
    page = (REPOSITORY / "docs" / "baseline.md").read_text(encoding="utf-8")
    assert baseline.table(baseline.read()) in page


def test_the_threshold_of_few_patients() -> None:
    page = (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")
    lines = thresholds.table(thresholds.recorded())
    assert "\n".join(lines) in page
    rows = [[float(cell) for cell in line.split("|")[3:6]] for line in lines[2:]]
    assert all(chosen >= half for half, _, chosen in rows), "no worse than 0.5 in any cohort"


def test_the_early_signal() -> None:
    page = (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")
    signals = early_signal.best_so_far()
    assert early_signal.table(signals) in page
    assert early_signal.signal_table() in page
    assert f"{len(signals[early_signal.PATIENTS])} configurations that a later version recorded" in page


def test_the_surrogates() -> None:
    page = (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert surrogate.table(surrogate.benchmarks()) in page


def test_default_searches_and_one_patient_left_out() -> None:
    page = (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert searches.table(searches.recorded()) in page
    assert leave_one_out.table(leave_one_out.recorded()) in page


def test_what_belongs_into_the_default_space() -> None:
    page = (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert among_best.table(among_best.tasks()) in page
    assert changes.table(changes.recorded()) in page
    assert changes.effects(changes.recorded()) in page
