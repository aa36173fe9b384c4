"""Which values the best recorded configurations have: the bounds of the default space.

    python -m benchmarks.search_quality.among_best

"k of n": of n recorded configurations with the value, k are among the best tenth of their task. A value that does not
matter has a tenth of them. Best is the highest Dice of the sealed patients at the epoch with the highest objective or,
where none are sealed, the highest objective. Of real patients, each division is a task of its own, and the table has
their sum. A training that diverged before its first epoch has 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.search_quality import sealed_record
from benchmarks.search_quality.record import HERE, TASKS
from benchmarks.search_quality.sealed_tasks import SEALED_TASKS
from benchmarks.search_quality.tables import MEASURE, Curves
from benchmarks.verdict.rows import markdown
from wmlsearch.space import Range, SearchSpace

BEST = 0.1  # share of the configurations
BOUNDS: Mapping[str, tuple[float, ...]] = {  # of the rows of numbers
    "learning_rate": (0, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, np.inf),
    "batch_size": (4, 8, 17, np.inf),
    "dropout": (0, 0.1, 0.2, 0.3, 1),
}


@dataclass(frozen=True)
class Count:
    """Configurations with a value."""

    best: int
    all: int

    def __add__(self, other: Count) -> Count:
        return Count(self.best + other.best, self.all + other.all)

    def __str__(self) -> str:
        return f"{self.best} of {self.all}" if self.all else ""


@dataclass(frozen=True)
class Scored:
    """A recorded configuration, and what it reached."""

    values: Mapping[str, Any]
    score: float


def tasks() -> dict[str, list[list[Scored]]]:
    """Return the configurations of each task, by division."""
    found: dict[str, list[list[Scored]]] = {}
    for name, task in TASKS.items():
        curves = Curves(HERE / task.table, SearchSpace.read(HERE / "space.yaml")).all
        found[name] = [[Scored(each.values, max((row[MEASURE] for row in each.rows), default=0.0)) for each in curves]]
    for name, sealed_task in SEALED_TASKS.items():
        first = [training for training in sealed_record.read(name) if training.key.seed == 0]
        found[name] = [
            [Scored(each.values, each.kept) for each in first if each.key.division == division]
            for division in range(len(sealed_task.divisions))
        ]
    return found


def rows_of(name: str, values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yield label and test of each row of a hyperparameter: a function that says whether a value belongs to it."""
    if name in BOUNDS:
        for low, high in zip(BOUNDS[name], BOUNDS[name][1:], strict=False):
            label = f"from {low:g}" if high == np.inf else f"{low:g} to {high:g}"
            yield label, lambda value, low=low, high=high: low <= value < high
        return
    numbers = [value for value in values if isinstance(value, float | int)]
    others = [value for value in values if value not in numbers]
    for choice in (*sorted(set(others), key=str), *sorted(set(numbers))):
        yield "null" if choice is None else str(choice), lambda value, choice=choice: value == choice


def count(scored: Sequence[Scored], name: str, belongs: Any) -> Count:
    """Count the configurations that have a hyperparameter with a value that belongs to a row."""
    order = np.argsort([-each.score for each in scored], kind="stable")
    best = {int(place) for place in order[: round(BEST * len(scored))]}
    having = [place for place, each in enumerate(scored) if name in each.values and belongs(each.values[name])]
    return Count(len(best.intersection(having)), len(having))


def table(found: Mapping[str, list[list[Scored]]]) -> str:
    """Return a row for each choice, and each part of a range of `BOUNDS`, and a column for each task."""
    every = [each for divisions in found.values() for scored in divisions for each in scored]
    spaces = [SearchSpace.read(HERE / file) for file in ("space.yaml", sealed_record.SPACE)]
    rows = list[tuple[object, ...]]()
    for name in dict.fromkeys(name for space in spaces for name in space.dimensions):
        if name not in BOUNDS and any(isinstance(space.domain(name), Range) for space in spaces):
            continue
        values = [each.values[name] for each in every if name in each.values]
        for label, belongs in rows_of(name, values):
            counts = [
                sum((count(scored, name, belongs) for scored in divisions), Count(0, 0)) for divisions in found.values()
            ]
            if (total := sum(counts, Count(0, 0))).all:
                rows.append((f"{name} {label}", *counts, total))
    return markdown(("value", *found, "all"), rows)


if __name__ == "__main__":
    print(table(tasks()))
