"""docs/verdict.md quotes the tables that `python -m benchmarks.verdict` prints."""

from __future__ import annotations

import pytest
from paths import REPOSITORY

from benchmarks.verdict import power_tables, rows

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
