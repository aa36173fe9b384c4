"""The leaderboard of a search, from its run folders alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.names import trial_name
from wmlsearch.runs.objectives import best_epoch, front, objective_values
from wmlsearch.runs.schema import EpochRow
from wmlsearch.space import SearchSpace


@dataclass(frozen=True)
class Entry:
    """A row of the leaderboard: one training, with the metrics of its best epoch."""

    name: str
    state: str
    reason: str
    epochs: int  # trained so far
    best: EpochRow | None  # the epoch with the highest objective; None before the first
    value: float | None  # the objective at the best epoch
    config: Mapping[str, Any]  # the searched hyperparameters; without those that a condition switches off
    path: str
    parent: str = ""  # the trial from which it continued (--scheduler pbt)
    is_baseline: bool = False  # whether it is the first trial, which has the baseline configuration

    def metric(self, name: str) -> float | None:
        """Return a metric of the best epoch; None if there is none."""
        return self.best.metrics.get(name) if self.best else None

    @classmethod
    def of(cls, run: RunDir, space: SearchSpace) -> Entry:
        """Read a run folder. Raises InputError."""
        record, status, rows = run.record(), run.status(), run.rows()
        objective = record.settings.objective
        best = best_epoch(rows, objective)
        return cls(
            record.name,
            status.state,
            status.reason,
            len(rows),
            best,
            best.metrics.get(objective) if best else None,
            space.active_values(record.config),
            str(run.path),
            record.parent_name,
            record.name == trial_name(0),
        )


@dataclass(frozen=True)
class Leaderboard:
    """All trainings of a search: `trials` from best to worst, and the `finals` beside them.

    With several `objectives` the trials of the Pareto front come first, then the others, both from the highest
    `objective` (the first of several) to the lowest.
    """

    objective: str
    searched: tuple[str, ...]  # the hyperparameters that differ between trials
    trials: tuple[Entry, ...]
    finals: tuple[Entry, ...]
    objectives: tuple[str, ...] = ()  # where there are several
    front: tuple[Entry, ...] = ()  # the trials that no other beats in them

    @property
    def best(self) -> Entry | None:
        """The best trial that has a value, or None. With several objectives: the best by the first of them."""
        return next((entry for entry in self.trials if entry.value is not None), None)


def leaderboard(search: SearchDir) -> Leaderboard:
    """Read a search's folder, running or finished. Raises InputError for a damaged one."""
    record = search.record()
    space, objectives = record.space.space(), tuple(record.settings.objectives)
    entries = sorted((Entry.of(run, space) for run in search.trials()), key=lambda entry: -_or_lowest(entry.value))
    best: tuple[Entry, ...] = ()
    if objectives:
        rows = [[entry.best] if entry.best else [] for entry in entries]
        on_front = front([objective_values(row, objectives) for row in rows], objectives)
        best = tuple(entry for entry, is_best in zip(entries, on_front, strict=True) if is_best)
        entries = [*best, *(entry for entry, is_best in zip(entries, on_front, strict=True) if not is_best)]
    return Leaderboard(
        record.settings.objective,
        tuple(space.dimensions),
        tuple(entries),
        tuple(Entry.of(run, space) for run in search.finals()),
        objectives,
        best,
    )


def _or_lowest(value: float | None) -> float:
    return float("-inf") if value is None else value
