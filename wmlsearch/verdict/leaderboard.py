"""The leaderboard of a search, from its run folders alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wmlsearch.config import TrialConfig
from wmlsearch.runs import RUNNING, RunDir, SearchDir
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
        best = max(rows, key=lambda row: _or_lowest(row[objective]), default={})
        return cls(
            about["name"],
            status.get("state", RUNNING),
            status.get("reason", ""),
            len(rows),
            best,
            best.get(objective),
            space.values_of(TrialConfig(**about["config"])),
            str(run.path),
            f"trial-{about['parent']:04d}" if "parent" in about else "",
        )


@dataclass(frozen=True)
class Leaderboard:
    """All trainings of a search: `trials` from best to worst, and the `finals` beside them."""

    objective: str
    searched: tuple[str, ...]  # the hyperparameters that differ between trials
    trials: tuple[Entry, ...]
    finals: tuple[Entry, ...]

    @property
    def best(self) -> Entry | None:
        """The best trial that has a value, or None."""
        return next((entry for entry in self.trials if entry.value is not None), None)


def leaderboard(search: SearchDir) -> Leaderboard:
    """Read a search's folder, running or finished. Raises InputError for a damaged one."""
    about = search.about()
    space = SearchSpace.of(about["space"]["values"], about["space"]["source"])
    entries = [Entry.of(run, space) for run in search.trials()]
    return Leaderboard(
        about["settings"]["objective"],
        tuple(space.dimensions),
        tuple(sorted(entries, key=lambda entry: -_or_lowest(entry.value))),
        tuple(Entry.of(run, space) for run in search.finals()),
    )


def _or_lowest(value: float | None) -> float:
    return float("-inf") if value is None else value
