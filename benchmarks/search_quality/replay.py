"""Simulate a search without training: table.csv provides the results of proposals, and time is simulated."""

from __future__ import annotations

import csv
import heapq
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wmlsearch.space import Choices, SearchSpace

WORKERS = 4  # trials at once
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


def _curve(space: SearchSpace, rows: list[dict[str, str]]) -> Curve:
    values: dict[str, Any] = {}
    for name, dimension in space.dimensions.items():
        text = rows[0][name]
        if text and isinstance(dimension.domain, Choices):
            values[name] = next(choice for choice in dimension.domain.values if str(choice) == text)
        elif text:
            values[name] = int(text) if dimension.domain.whole else float(text)
    diverged = rows[-1]["ended"] == "diverged"
    trained = rows[:-1] if diverged else rows
    names = [name for name in rows[0] if name not in (*space.dimensions, "number", "epoch", "ended")]
    metrics = [{name: float(row[name]) if row[name] else 0.0 for name in names} for row in trained]
    for row in metrics:
        row.setdefault(MEASURE, row[POOLED])
    return Curve(values, tuple(metrics), diverged)


class Method(Protocol):
    """A search method: proposes configurations, gets the value of each epoch, and decides which trials to stop."""

    signal: str  # the metric that it optimises

    def propose(self, number: int) -> Mapping[str, Any]: ...

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Report a trial's value after an epoch that is not its last one, and return whether to stop the trial."""

    def ended(self, number: int, state: str, epoch: int, value: float | None) -> None:
        """Report that a trial has ended: completed (with the value of its last epoch), stopped or diverged."""


@dataclass
class Trace:
    """The progress of a search: (epochs of all trials so far, best value so far) at each improvement, and its time."""

    improvements: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    trials: int = 0

    def epochs_to(self, value: float) -> float:
        """Return the epochs spent until the best value was at least `value`; infinite if it never was."""
        return next((epochs for epochs, best in self.improvements if best >= value), math.inf)

    def at(self, epochs: np.ndarray) -> np.ndarray:
        """The best value after so many epochs (0 before the first)."""
        spent = [0, *(epochs_ for epochs_, _ in self.improvements)]
        best = np.array([0.0, *(value for _, value in self.improvements)])
        return best[np.searchsorted(spent, epochs, side="right") - 1]


def search(method: Method, curves: Curves, max_epochs: int, enough: float) -> Trace:
    """Let `method` search on WORKERS simulated workers, until `enough` is found or `most_epochs` are spent."""
    trace, best, spent, next_number = Trace(), 0.0, 0, 0
    running: dict[int, tuple[Curve, int]] = {}
    events: list[tuple[float, int]] = []  # when a trial's next epoch ends

    def begin(now: float) -> None:
        nonlocal next_number
        number, next_number = next_number, next_number + 1
        curve = curves.nearest(method.propose(number))
        running[number] = curve, 0
        heapq.heappush(events, (now + (curve.rows[0]["epoch_s"] if curve.rows else 0.0), number))

    for _ in range(WORKERS):
        begin(0.0)
    while spent < max_epochs and best < enough:
        now, number = heapq.heappop(events)
        curve, done = running[number]
        spent, epoch = spent + 1, done + 1
        over = True
        if epoch > len(curve.rows):
            method.ended(number, "diverged", done, None)
        else:
            row = curve.rows[done]
            if row[MEASURE] > best:
                best = row[MEASURE]
                trace.improvements.append((spent, best))
            value = row[method.signal]
            if epoch == curves.epochs:
                method.ended(number, "completed", epoch, value)
            elif method.report(number, epoch, value):
                method.ended(number, "stopped", epoch, value)
            else:
                over = False
        if over:
            del running[number]
            begin(now)
        else:
            running[number] = curve, epoch
            seconds = curve.rows[min(epoch, len(curve.rows) - 1)]["epoch_s"]
            heapq.heappush(events, (now + seconds, number))
        trace.seconds = now
    trace.trials = next_number
    return trace
