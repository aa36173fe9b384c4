"""Calibration and power of the verdict.

    python -m benchmarks.verdict [--write]     simulated scores: some minutes on one core
    python -m benchmarks.verdict --recorded    the recorded scores in this folder: less than two minutes

Prints tables in Markdown. `false %` is the share of cohorts in which equal things were called better or worse, which is
to be at most 5 % plus two standard errors of the simulation. `--write` writes simulated.csv and power.csv beside this
file. The numbers are the same in each run. The exit status is 1 where a bound is exceeded.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from benchmarks.verdict import recorded, simulated
from benchmarks.verdict.cohorts import SYMMETRIC
from benchmarks.verdict.power_tables import (
    AT_MOST,
    FORMER_CANDIDATES,
    FORMER_RUNS,
    RUNS_OF_TWELVE,
    SPREADS,
    DivisionRow,
    PowerRow,
    division_rows,
    division_table,
    power_rows,
    power_table,
)
from benchmarks.verdict.rows import Row, markdown, summary, write_csv

HERE = Path(__file__).parent
COVERAGE = 93  # % of intervals that hold the truth, where scores are symmetric
FOUND = 40  # of 50 planted endings


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; return 1 where a bound is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdict", description=__doc__.splitlines()[0])
    parser.add_argument("--recorded", action="store_true", help="replay the recorded scores instead of simulating")
    parser.add_argument("--write", action="store_true", help="write simulated.csv and power.csv")
    options = parser.parse_args(arguments)
    return show_recorded() if options.recorded else show_simulated(options.write)


def show_recorded() -> int:
    """Print the tables of recorded scores."""
    networks, ensembles = recorded.read_networks(), recorded.read_ensembles()
    rows = [
        *recorded.replay_configurations(networks),
        *recorded.replay_models(ensembles, "ensembles of 5"),
        *recorded.replay_models(networks, "single networks"),
    ]
    print("## Recorded scores: equal things drawn against each other\n")
    head = ("claim", "configuration", "runs or models", "patients", "draws", "false %", "bound", "holds")
    print(markdown(head, [_recorded_cells(row) for row in rows]))
    planted = list(recorded.replay_planted(networks))
    print("\n## A planted better configuration, as much better as the detectable difference\n")
    head = (
        "configuration", "runs", "patients", "`plan` states", "found, %", "verdicts state (mean)",
        f"called better, of {recorded.ENDINGS}", "at least",
    )  # fmt: skip
    cells = [
        (
            row.configuration, row.runs, row.patients, f"{row.planned:.3f}", f"{row.found_percent:.0f}",
            f"{row.stated:.3f}", row.better, FOUND,
        )
        for row in planted
    ]  # fmt: skip
    print(markdown(head, cells))
    return int(any(not row.holds for row in rows) or any(row.better < FOUND for row in planted))


def show_simulated(write: bool = False) -> int:
    """Print the tables of simulated scores."""
    bound = [
        *_table("Claim (a), equal configurations", simulated.calibration_of_configurations()),
        *_table("Claim (a), other deviations between folds", simulated.calibration_of_folds()),
        *_table("Claim (a), the whole path: the best of several equal candidates", simulated.fresh_runs()),
        *_table("Claim (b), equal models", simulated.calibration_of_models()),
    ]
    others = [
        *_table("For comparison: the runs that choose are judged", simulated.selection_runs()),
        *_table("Equal on average only: one configuration is less steady", simulated.unequal_spread()),
        *_table("Equal on average only: a model is much worse in few patients", simulated.skewed_differences()),
    ]
    print(f"\n## Summary: equal things\n\n{summary(bound)}")
    print(f"\n## Summary: equal on average only, or judged by the runs that chose\n\n{summary(others)}")
    powers, divisions = list(power_rows()), list(division_rows())
    _show_power(powers)
    _show_divisions(divisions)
    if write:
        write_csv(HERE / "simulated.csv", [*bound, *others])
        _write_power(HERE / "power.csv", powers)
    faults = [row for row in bound if not row.holds]
    faults += [row for row in bound if row.scores == SYMMETRIC and (row.coverage_percent or 100) < COVERAGE]
    worst = max(bound, key=lambda row: row.false_percent - row.bound_percent)
    print(f"\nlargest share of false claims about equal things: {worst.false_percent:.1f} % ({_setting(worst)})")
    print(f"settings in which a bound is exceeded: {len(faults)} of {len(bound)}")
    return int(bool(faults) or any(row.ratio > AT_MOST for row in divisions))


def _table(title: str, rows: Iterable[Row]) -> list[Row]:
    """Print rows in groups that differ in the number of patients only; return all."""
    done = list(rows)
    patients = sorted({row.patients for row in done})
    print(f"\n## {title}: false % (intervals that hold the truth, %)\n")
    cells = []
    for setting, group in groupby(done, key=_setting):
        by_patients = {row.patients: row for row in group}
        cells.append((*setting, *(_percents(by_patients[number]) for number in patients)))
    head = ("scores", "seeds' sd", "folds' sd", "candidates", "runs", *(f"{number} patients" for number in patients))
    print(markdown(head, cells))
    sys.stdout.flush()
    return done


def _setting(row: Row) -> tuple[str, ...]:
    return row.scores, row.seed_sd, row.fold_sd, row.candidates, row.runs


def _percents(row: Row) -> str:
    mark = "" if row.holds else " !"
    coverage = "" if row.coverage_percent is None else f" ({row.coverage_percent:.1f})"
    return f"{row.false_percent:.1f}{coverage}{mark}"


def _recorded_cells(row: Row) -> tuple[object, ...]:
    holds = "yes" if row.holds else "no"
    percents = (f"{row.false_percent:.1f}", f"{row.bound_percent:.1f}")
    return f"({row.claim})", row.scores, row.runs, row.patients, row.cohorts, *percents, holds


def _show_power(rows: Sequence[PowerRow]) -> None:
    for name, group in groupby(rows, key=lambda row: row.spread):
        spread = SPREADS[name]
        sds = f"{spread.run:g} between runs, {spread.patient:g} between patients, {spread.residual:g} residual"
        print(
            "\n## Smallest detectable difference of Dice (% of cohorts in which it is found), "
            f"{name}: standard deviation {sds}\n"
        )
        print(power_table(list(group)))


def _show_divisions(rows: Sequence[DivisionRow]) -> None:
    print(
        f"\n## Smallest detectable difference with 12 trainings: former {FORMER_RUNS} each of baseline and "
        f"{FORMER_CANDIDATES} candidates, today 2 + 2 to select and {RUNS_OF_TWELVE} + {RUNS_OF_TWELVE} to judge\n"
    )
    print(division_table(rows))


def _write_power(path: Path, rows: Sequence[PowerRow]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            values = {"detectable": f"{row.detectable:.8f}", "found_percent": f"{row.found_percent:.1f}"}
            writer.writerow({**asdict(row), **values})


if __name__ == "__main__":
    sys.exit(main())
