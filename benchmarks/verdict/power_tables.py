"""What differences claim (a) finds: by runs and patients, and beside the former division of the trainings."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from benchmarks.verdict.rows import markdown
from benchmarks.verdict.simulated import CHUNK, PATIENTS, RUNS, generator, in_chunks
from wmlsearch.verdict.configuration_claim import estimate
from wmlsearch.verdict.power import ASSUMED, Spread, detectable
from wmlsearch.verdict.statistics import ALPHA

COHORTS = 10_000
STEADY, UNSTEADY = Spread(run=0.007, patient=0.04, residual=0.03), Spread(run=0.07, patient=0.04, residual=0.05)
SPREADS = {"assumed": ASSUMED, "steady trainings": STEADY, "unsteady trainings": UNSTEADY}
# Twelve trainings of 18 epochs each, by the former division and by that of today with one candidate.
FORMER_RUNS, FORMER_CANDIDATES = 3, 3  # baseline and three candidates with 3 runs each; the best of them is judged
RUNS_OF_TWELVE = 4  # baseline and one candidate: 2 runs each select, 4 each are judged
AT_MOST = 0.8  # of the former smallest detectable difference


@dataclass(frozen=True)
class PowerRow:
    """The smallest detectable difference of a design, and how often it is found in simulated cohorts."""

    spread: str
    runs: int
    patients: int
    detectable: float
    found_percent: float


def power_rows(cohorts: int = COHORTS) -> Iterator[PowerRow]:
    """Yield the smallest detectable difference for each spread, number of runs and of patients."""
    for name, spread in SPREADS.items():
        for runs in RUNS:
            for patients in PATIENTS:
                difference = detectable(spread.run, spread.patient, spread.residual, runs, patients)
                share = found_share(spread, runs, patients, difference, cohorts)
                yield PowerRow(name, runs, patients, difference, 100 * share)


def read_power(path: Path) -> list[PowerRow]:
    """Return the rows of power.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            PowerRow(
                row["spread"],
                int(row["runs"]),
                int(row["patients"]),
                float(row["detectable"]),
                float(row["found_percent"]),
            )
            for row in csv.DictReader(file)
        ]


def power_table(rows: Sequence[PowerRow]) -> str:
    """Return the table of one spread: a line for each number of runs, a column for each number of patients."""
    patients = sorted({row.patients for row in rows})
    cells = [
        (f"{runs} + {runs}", *(f"{row.detectable:.3f} ({row.found_percent:.0f})" for row in by_runs))
        for runs, by_runs in groupby(rows, key=lambda row: row.runs)
    ]
    return markdown(("trainings", *(f"{number} patients" for number in patients)), cells)


def division_table(rows: Sequence[DivisionRow]) -> str:
    """Return the table of the former and today's division of twelve trainings."""
    head = ("spread", "patients", "former", "today", "ratio", "former, selection not corrected for", "ratio")
    cells = [
        (
            row.spread, row.patients, f"{row.former:.3f}", f"{row.today:.3f}", f"{row.ratio:.2f}",
            f"{row.former_uncorrected:.3f}", f"{row.ratio_uncorrected:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    return markdown(head, cells)


def found_share(
    spread: Spread, runs: int, patients: int, difference: float, cohorts: int, alpha: float = ALPHA
) -> float:
    """Return the share of simulated cohorts in which the better configuration is called better."""
    rng, better = generator("power", spread, runs, patients, round(difference, 6), alpha), 0
    for count in in_chunks(cohorts, CHUNK // (2 * runs * patients)):
        scores = rng.normal(0, spread.patient / np.sqrt(2), (2, count, 1, patients))
        scores = scores + rng.normal(0, spread.run, (2, count, runs, 1))
        scores = scores + rng.normal(0, spread.residual, (2, count, runs, patients))
        crossed = estimate(scores[0], scores[1] + difference)
        better += int(((crossed.p < alpha) & (crossed.difference > 0)).sum())
    return better / cohorts


@dataclass(frozen=True)
class DivisionRow:
    """The smallest detectable difference with twelve trainings, divided in the former way and in today's."""

    spread: str
    patients: int
    former: float  # with a level that corrects for choosing the best of three by the runs that are judged
    former_uncorrected: float
    today: float

    @property
    def ratio(self) -> float:
        """Today's part of the former one."""
        return self.today / self.former

    @property
    def ratio_uncorrected(self) -> float:
        """Today's part of the former one without correction, which calls equal configurations different too often."""
        return self.today / self.former_uncorrected


def division_rows() -> Iterator[DivisionRow]:
    """Yield the comparison of both divisions for each spread and number of patients."""
    for name, spread in SPREADS.items():
        for patients in PATIENTS:
            former, former_uncorrected, today = (
                detectable(spread.run, spread.patient, spread.residual, runs, patients, alpha)
                for runs, alpha in (
                    (FORMER_RUNS, ALPHA / FORMER_CANDIDATES),
                    (FORMER_RUNS, ALPHA),
                    (RUNS_OF_TWELVE, ALPHA),
                )
            )
            yield DivisionRow(name, patients, former, former_uncorrected, today)
