"""The rows of the benchmark's tables."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from wmlsearch.verdict.statistics import ALPHA


@dataclass(frozen=True)
class Row:
    """How often a claim was wrong about equal things, in one setting."""

    table: str
    claim: str  # "a": configurations, "b": models
    scores: str  # their shape, or the recorded configuration
    runs: str  # of each configuration; what is compared in claim (b)
    patients: int
    cohorts: int  # simulated or replayed
    wrong: int  # cohorts in which equal things were called better or worse
    covered: int | None = None  # intervals that hold a true difference
    seed_sd: str = ""
    fold_sd: str = ""
    candidates: str = ""

    @property
    def false_percent(self) -> float:
        """Share of cohorts with a wrong claim."""
        return 100 * self.wrong / self.cohorts

    @property
    def coverage_percent(self) -> float | None:
        """Share of intervals that hold the true difference."""
        return None if self.covered is None else 100 * self.covered / self.cohorts

    @property
    def bound_percent(self) -> float:
        """The level of the test plus two standard errors of the simulation."""
        return 100 * (ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / self.cohorts))

    @property
    def holds(self) -> bool:
        """Whether the claim was wrong in no more cohorts than the bound allows."""
        return self.false_percent <= self.bound_percent


NUMBERS = ("false_percent", "bound_percent", "holds", "coverage_percent")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows, with what follows from their counts."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*(field.name for field in fields(Row)), *NUMBERS])
        for row in rows:
            writer.writerow([_cell(value) for value in (*asdict(row).values(), *(getattr(row, n) for n in NUMBERS))])


def read_csv(path: Path) -> list[Row]:
    """Return the rows that `write_csv` has written."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row(
                table=row["table"],
                claim=row["claim"],
                scores=row["scores"],
                runs=row["runs"],
                patients=int(row["patients"]),
                cohorts=int(row["cohorts"]),
                wrong=int(row["wrong"]),
                covered=int(row["covered"]) if row["covered"] else None,
                seed_sd=row["seed_sd"],
                fold_sd=row["fold_sd"],
                candidates=row["candidates"],
            )
            for row in csv.DictReader(file)
        ]


def summary(rows: Sequence[Row]) -> str:
    """Return one line for each table and shape of scores: the setting that is worst, and the smallest coverage."""
    lines = []
    for title, scores in dict.fromkeys((row.table, row.scores) for row in rows):
        group = [row for row in rows if (row.table, row.scores) == (title, scores)]
        worst = max(group, key=lambda row: row.false_percent)
        coverages = [row.coverage_percent for row in group if row.coverage_percent is not None]
        lines.append((
            f"({worst.claim})", title, scores, len(group), f"{np.mean([row.false_percent for row in group]):.1f}",
            f"{worst.false_percent:.1f}", f"{worst.bound_percent:.1f}", f"{min(coverages):.1f}" if coverages else "",
        ))  # fmt: skip
    head = (
        "claim", "simulated", "scores", "settings", "false %, mean", "false %, worst", "bound",
        "intervals that hold the truth, %, least",
    )  # fmt: skip
    return markdown(head, lines)


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else value


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [list(map(str, head)), ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
