"""The leaderboard of a search, from its run folders alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wmlsearch.config import TrialConfig
from wmlsearch.runs.folders import RUNNING, RunDir, SearchDir
from wmlsearch.runs.names import trial_name
from wmlsearch.runs.objectives import best_epoch, front, values_of
from wmlsearch.space import SearchSpace


@dataclass(frozen=True)
class Entry:
    """One training: the metrics of its best epoch (the one with the highest objective), and how it stands."""

    name: str
    state: str
    reason: str
    epochs: int
    best: Mapping[str, Any]  # a row of metrics.jsonl, empty before the first epoch
    value: float | None  # the objective at the best epoch
    config: Mapping[str, Any]  # the searched hyperparameters; those that a condition switches off are left out
    path: str
    parent: str = ""  # the trial whose first epochs it took over (--scheduler pbt)

    @classmethod
    def of(cls, run: RunDir, space: SearchSpace) -> Entry:
        about, status, rows = run.about(), run.status(), run.rows()
        objective = about["settings"]["objective"]
        best = best_epoch(rows, objective)
        return cls(
            about["name"],
            status.get("state", RUNNING),
            status.get("reason", ""),
            len(rows),
            best,
            best.get(objective),
            space.values_of(TrialConfig(**about["config"])),
            str(run.path),
            trial_name(about["parent"]) if "parent" in about else "",
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
    about = search.about()
    space = SearchSpace.of(about["space"]["values"], about["space"]["source"])
    entries = sorted((Entry.of(run, space) for run in search.trials()), key=lambda entry: -_or_lowest(entry.value))
    objectives = tuple(about["settings"].get("objectives", ()))
    best: tuple[Entry, ...] = ()
    if objectives:
        on_front = front([values_of([entry.best], objectives) for entry in entries], objectives)
        best = tuple(entry for entry, it in zip(entries, on_front, strict=True) if it)
        entries = [*best, *(entry for entry, it in zip(entries, on_front, strict=True) if not it)]
    return Leaderboard(
        about["settings"]["objective"],
        tuple(space.dimensions),
        tuple(entries),
        tuple(Entry.of(run, space) for run in search.finals()),
        objectives,
        best,
    )


def _or_lowest(value: float | None) -> float:
    return float("-inf") if value is None else value
