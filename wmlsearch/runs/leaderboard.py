"""The leaderboard of a search, from its run folders alone."""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wmlsearch.config import RunSettings
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.names import trial_name
from wmlsearch.runs.objectives import best_epoch, front, objective_values
from wmlsearch.runs.schema import EXPERIENCE, RUNNING, UNFINISHED, EpochRow, RunStatus
from wmlsearch.space import SearchSpace


@dataclass(frozen=True, kw_only=True)
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
    from_experience: bool = False  # whether its configuration is one of the search's portfolio

    @property
    def origin(self) -> str:
        """Where its configuration is from, in words; "" if the sampler proposed it."""
        if self.parent:
            return f"child of {self.parent}"
        return "baseline" if self.is_baseline else "from experience" if self.from_experience else ""

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
            name=record.name,
            state=status.state,
            reason=status.reason,
            epochs=len(rows),
            best=best,
            value=best.metrics.get(objective) if best else None,
            config=space.active_values(record.config),
            path=str(run.path),
            parent=record.parent_name,
            is_baseline=record.name == trial_name(0),
            from_experience=record.origin == EXPERIENCE,
        )

    def updated(self, run: RunDir, status: RunStatus, objective: str) -> Entry:
        """Return this row with the status and the epochs that its folder has now. Raises InputError."""
        rows = run.rows()
        best = best_epoch(rows, objective)
        value = best.metrics.get(objective) if best else None
        return replace(self, state=status.state, reason=status.reason, epochs=len(rows), best=best, value=value)


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
    left_out: int = 0  # the number of trials that `trials` lacks at its end

    @property
    def best(self) -> Entry | None:
        """The best trial that has a value, or None. With several objectives: the best by the first of them."""
        return next((entry for entry in self.trials if entry.value is not None), None)


def leaderboard(search: SearchDir) -> Leaderboard:
    """Read a search's folder, running or finished. Raises InputError for a damaged one."""
    record = search.record()
    space, objectives = record.space.space(), tuple(record.settings.objectives)
    entries = sorted((Entry.of(run, space) for run in search.trials()), key=lambda entry: -_or_lowest(entry.value))
    best = tuple(_front_of(entries, objectives))
    if best:
        paths = {entry.path for entry in best}
        entries = [*best, *(entry for entry in entries if entry.path not in paths)]
    return Leaderboard(
        record.settings.objective,
        tuple(space.dimensions),
        tuple(entries),
        tuple(Entry.of(run, space) for run in search.finals()),
        objectives,
        best,
    )


class LiveLeaderboard:
    """The leaderboard of a search that runs, kept up to date trial by trial.

    A change reads the folder of one trial, and costs the same with ten trials as with ten thousand. One thread calls
    `update`; others may read at the same time.

    Args:
        search: The search. Trials that have begun are read now; unfinished ones wait to be continued.
        space: The search space.
        settings: The settings of the search.
    """

    def __init__(self, search: SearchDir, space: SearchSpace, settings: RunSettings) -> None:
        self._space, self._objective, self._objectives = space, settings.objective, tuple(settings.objectives)
        self._lock = threading.Lock()
        self._entries: dict[Path, Entry] = {}
        self._unfinished: dict[Path, Entry] = {}  # those that run, or were interrupted and may be continued
        self._waiting: set[Path] = set()  # unfinished trials of an earlier process that have not been continued
        self._ranking: list[tuple[float, int, Path]] = []  # sorted: the best first
        self._front: list[Entry] = []  # of the trials that have ended, where there are several objectives
        self._epoch_s, self._timed = 0.0, 0  # the sum over the best epochs, and their number
        for run in search.trials():
            status = run.status()
            self.update(run, status)
            if status.state in UNFINISHED:
                self._waiting.add(run.path)

    def update(self, run: RunDir, status: RunStatus) -> Entry:
        """Read the folder of a trial that has changed, and return its row. Raises InputError."""
        old = self._entries.get(run.path)
        entry = old.updated(run, status, self._objective) if old else Entry.of(run, self._space)
        with self._lock:
            if old:
                del self._ranking[bisect_left(self._ranking, _rank(run.path, old))]
                self._count_time(old, -1)
            self._entries[run.path] = entry
            insort(self._ranking, _rank(run.path, entry))
            self._count_time(entry, 1)
            self._waiting.discard(run.path)
            self._unfinished.pop(run.path, None)
            if entry.state in UNFINISHED:
                self._unfinished[run.path] = entry
            elif self._objectives:
                self._front = _front_of(
                    [*(other for other in self._front if other.path != entry.path), entry], self._objectives
                )
        return entry

    def _count_time(self, entry: Entry, times: int) -> None:
        if entry.best:
            self._epoch_s += times * (entry.metric("epoch_s") or 0.0)
            self._timed += times

    @property
    def running(self) -> list[Entry]:
        """The trials that run."""
        with self._lock:
            return [
                entry
                for path, entry in self._unfinished.items()
                if entry.state == RUNNING and path not in self._waiting
            ]

    @property
    def begun(self) -> int:
        """The number of trials that run or have ended."""
        return len(self._entries) - len(self._waiting)

    @property
    def ended(self) -> int:
        """The number of trials that have ended."""
        return self.begun - len(self.running)

    @property
    def epoch_s(self) -> float:
        """The seconds of an epoch: the mean over the best epochs of all trials, 0 before the first."""
        return self._epoch_s / max(self._timed, 1)

    def top(self, count: int) -> Leaderboard:
        """Return the leaderboard of the best `count` trials, without the final runs."""
        with self._lock:
            best = self._front_now()
            first = [self._entries[path] for _, _, path in self._ranking[: count + len(best)]]
            total = len(self._entries)
        paths = {entry.path for entry in best}
        trials = [*best, *(entry for entry in first if entry.path not in paths)][:count]
        return Leaderboard(
            self._objective,
            tuple(self._space.dimensions),
            tuple(trials),
            (),
            self._objectives,
            tuple(best),
            total - len(trials),
        )

    def _front_now(self) -> list[Entry]:
        """Return the Pareto front, from the highest first objective to the lowest.

        The values of an unfinished trial still change, so those that it dominates may come back.
        """
        unended = [entry for entry in self._unfinished.values() if entry.best]
        members = _front_of([*self._front, *unended], self._objectives)
        return sorted(members, key=lambda entry: _rank(Path(entry.path), entry))


def _rank(path: Path, entry: Entry) -> tuple[float, int, Path]:
    return -_or_lowest(entry.value), int(path.name), path


def _front_of(entries: Sequence[Entry], objectives: Sequence[str]) -> list[Entry]:
    """Return the rows on the Pareto front, in their order; none where there are not several objectives."""
    if not objectives:
        return []
    values = [objective_values([entry.best] if entry.best else [], objectives) for entry in entries]
    return [entry for entry, is_best in zip(entries, front(values, objectives), strict=True) if is_best]


def _or_lowest(value: float | None) -> float:
    return float("-inf") if value is None else value
