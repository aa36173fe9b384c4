"""The recorded tables of learning curves, table.csv and its like."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmlsearch.space import Choices, SearchSpace

HERE = Path(__file__).parent
MEASURE = "val_dice_patients_best"  # rates the result of a search, whatever signal it optimises
POOLED = "val_dice_best"  # stands for it in a table that was recorded before it existed


@dataclass(frozen=True)
class Curve:
    """A recorded configuration with the metrics of each epoch, among them its seconds."""

    values: Mapping[str, Any]
    rows: tuple[Mapping[str, float], ...]
    diverged: bool


class Curves:
    """All recorded configurations of a space."""

    def __init__(self, path: Path, space: SearchSpace) -> None:
        rows: dict[int, list[dict[str, str]]] = defaultdict(list)
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                rows[int(row["number"])].append(row)
        self.space = space
        self.recorded = set(next(iter(rows.values()))[0])  # names of the columns
        self.all = [_curve(space, sorted(rows[number], key=lambda row: int(row["epoch"]))) for number in sorted(rows)]
        self.epochs = max(len(curve.rows) for curve in self.all)
        self.best = max(row[MEASURE] for curve in self.all for row in curve.rows)
        self._branches: dict[Any, list[Curve]] = defaultdict(list)
        for curve in self.all:
            self._branches[self._branch(curve.values)].append(curve)

    def nearest(self, values: Mapping[str, Any]) -> Curve:
        """Return the recorded configuration nearest to a proposal.

        The distance is Euclidean, with each dimension scaled to 0..1; two choices differ by 0 or 1. Only configurations
        of the same branch count, that is with the same values of the hyperparameters that conditions depend on.
        """
        return min(self._branches[self._branch(values)], key=lambda curve: self._distance(curve.values, values))

    def _branch(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        parents = {parent for dimension in self.space.dimensions.values() for parent in dimension.when}
        return tuple(values[parent] for parent in sorted(parents))

    def _distance(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        total = 0.0
        for name in other:
            domain = self.space.dimensions[name].domain
            if isinstance(domain, Choices):
                total += one[name] != other[name]
            else:
                scale = math.log if domain.log else float
                total += ((scale(one[name]) - scale(other[name])) / (scale(domain.high) - scale(domain.low))) ** 2
        return math.sqrt(total)


def shipped_table() -> Curves:
    """Return the curves of table.csv."""
    return Curves(HERE / "table.csv", SearchSpace.read(HERE / "space.yaml"))


def _curve(space: SearchSpace, rows: list[dict[str, str]]) -> Curve:
    values: dict[str, Any] = {}
    for name, dimension in space.dimensions.items():
        text = rows[0][name]
        if not text:
            continue
        if isinstance(dimension.domain, Choices):
            values[name] = next(choice for choice in dimension.domain.values if str(choice) == text)
        else:
            values[name] = int(text) if dimension.domain.whole else float(text)
    diverged = rows[-1]["ended"] == "diverged"
    trained = rows[:-1] if diverged else rows
    names = [name for name in rows[0] if name not in (*space.dimensions, "number", "epoch", "ended")]
    metrics = [{name: float(row[name]) if row[name] else 0.0 for name in names} for row in trained]
    for row in metrics:
        row.setdefault(MEASURE, row[POOLED])
    return Curve(values, tuple(metrics), diverged)
