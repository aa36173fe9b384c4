"""Population based training (`--scheduler pbt`): children of good trials replace poor trials, at another learning rate.

Ray's PopulationBasedTraining pauses trials and continues them from Tune's checkpoints. Here a worker runs each trial to
its end, and the run folder, not Tune, holds the state of a search. So no trial changes its configuration: a poor trial
is stopped, and the next trial that begins is a child, which starts from a snapshot of a good trial's checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import AnyDir, RunDir, SearchDir
from wmlsearch.runs.names import TRIAL, trial_name
from wmlsearch.runs.schema import RunRecord, SearchRecord
from wmlsearch.search.checkpoints import Checkpoints, stored_snapshots

# As in Ray's PopulationBasedTraining and Jaderberg et al. 2017: the best quarter replaces the worst quarter, and the
# learning rate is multiplied by one of the two factors. Ray rounds a quarter up; here it is rounded down, so that the
# first comparison that stops a trial is of four.
QUARTER = 4
FACTORS = (0.8, 1.2)


@dataclass(frozen=True)
class Takeover:
    """How a child begins: with the first `epoch` epochs of trial `parent`, in the place of trial `replaces`."""

    replaces: int
    parent: int
    epoch: int


class Population:
    """Decides which trials are stopped and whose children replace them, from the reports in their order.

    At each multiple of `grace_epochs`, a trial in the worst quarter of all trials that have reached this epoch is
    stopped, and one of the best quarter is drawn as parent. As many trials keep their snapshot of an epoch as the best
    quarter of all trials of the search can have: a trial that falls behind them cannot be a parent any more.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self._reported: dict[int, list[tuple[float, int]]] = {}  # by epoch: (value, trial)
        self.candidates: dict[int, list[int]] = {}  # by epoch: trials whose snapshot is kept, the best first
        self.successors: dict[int, Takeover] = {}  # by the trial that is stopped
        self.pending: list[Takeover] = []  # children that have not begun

    def compares_at(self, epoch: int) -> bool:
        """Whether trials are compared after this epoch."""
        return epoch % self.settings.grace == 0 and epoch < self.settings.epochs

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Add a trial's value after an epoch, and return whether the trial is to be stopped."""
        if not self.compares_at(epoch):
            return False
        reported = self._reported.setdefault(epoch, [])
        reported.append((value, number))
        quarter = len(reported) // QUARTER
        ranking = [trial for _, trial in sorted(reported, key=lambda entry: entry[0], reverse=True)]  # stable
        with_snapshot = [*self.candidates.get(epoch, ()), number]
        self.candidates[epoch] = [
            trial for trial in ranking[: most_parents(self.settings.trials)] if trial in with_snapshot
        ]
        parents = [trial for trial in ranking[:quarter] if trial in self.candidates[epoch]]
        better = sum(other > value for other, _ in reported)
        if better < len(reported) - quarter or not parents:  # of equal trials none is stopped
            return False
        rng = np.random.default_rng((self.settings.seed, number, epoch))
        self.successors[number] = Takeover(number, parents[rng.integers(len(parents))], epoch)
        return True

    def add_pending(self, number: int) -> None:
        """Queue the child of a stopped trial, whose folder has the status "stopped" already."""
        self.pending.append(self.successors[number])

    def needs_snapshot(self, number: int, epoch: int) -> bool:
        """Whether a child may still begin with this epoch of a trial."""
        waiting = {(takeover.parent, takeover.epoch) for takeover in self.pending}
        return number in self.candidates.get(epoch, ()) or (number, epoch) in waiting

    def restore_pending(self, search: SearchDir) -> None:
        """Queue a child for each stopped trial of the run folder that no child has replaced."""
        trials = search.trials()
        replaced = {run.record().replaces for run in trials}
        stopped = [(run.status(), int(run.name)) for run in trials]
        stopped.sort(key=lambda entry: entry[0].ended or 0.0)
        self.pending = [
            Takeover(number, status.successor.parent, status.successor.epoch)
            for status, number in stopped
            if status.successor is not None and number not in replaced
        ]


def child_record(search: SearchRecord, parent: RunRecord, takeover: Takeover, number: int, seed: int) -> RunRecord:
    """Return the record of trial `number` as a child: the configuration of its parent, and a new rate factor."""
    factors = dict(parent.rate_factors)
    latest = factors[max(factors)] if factors else 1.0
    rng = np.random.default_rng((seed, number, 0))
    factors[takeover.epoch + 1] = latest * FACTORS[rng.integers(len(FACTORS))]
    return trial_record(search, number, parent.config).model_copy(
        update={
            "parent": takeover.parent,
            "parent_epoch": takeover.epoch,
            "replaces": takeover.replaces,
            "rate_factors": factors,
        }
    )


def trial_record(search: SearchRecord, number: int, config: TrialConfig) -> RunRecord:
    """Return the record of a new trial of a search."""
    return RunRecord(
        name=trial_name(number),
        kind=TRIAL,
        config=config,
        settings=search.settings,
        data=search.data,
        versions=search.versions,
    )


class Snapshots:
    """The snapshots of checkpoints that children may begin with. Those that the population no longer needs are deleted.

    It begins with the snapshots in the storage, of a search that is resumed.

    Args:
        population: Knows which snapshots are needed.
        search: The search.
        location: Returns where the checkpoints of a run are stored.
        delete: Deletes a file of a trial there.
    """

    def __init__(
        self,
        population: Population,
        search: SearchDir,
        location: Callable[[AnyDir], str],
        delete: Callable[[RunDir, str], None],
    ) -> None:
        self.population, self.search, self.location, self.delete = population, search, location, delete
        self._stored = stored_snapshots(search, location)  # by epoch: trials
        for epoch, numbers in population.candidates.items():  # a search that was complete has no snapshots
            population.candidates[epoch] = [n for n in numbers if n in self._stored.get(epoch, ())]
        for epoch in self._stored:
            self._delete_unneeded(epoch)

    def reported(self, number: int, epoch: int) -> None:
        """Delete what the population no longer needs after a trial's report of an epoch."""
        if self.population.compares_at(epoch):
            self._stored.setdefault(epoch, set()).add(number)
            self._delete_unneeded(epoch)

    def begin_child(self, number: int) -> Takeover | None:
        """Copy the snapshot of a pending child to trial `number`. It stays pending until `child_begun`.

        Returns None if no child is pending.
        """
        for takeover in list(self.population.pending):
            with self._checkpoints(number) as checkpoints:
                if checkpoints.copy_snapshot(self.location(self.search.trial(takeover.parent)), takeover.epoch):
                    return takeover
            self.population.pending.remove(takeover)  # a search that was complete has no snapshots
        return None

    def child_begun(self, takeover: Takeover) -> None:
        """Remove a child from the pending ones, once its folder exists."""
        self.population.pending.remove(takeover)
        self._delete_unneeded(takeover.epoch)

    def clear(self) -> None:
        """Delete all snapshots, once no trial can begin any more."""
        for epoch, numbers in self._stored.items():
            self._delete(epoch, numbers)
        self._stored.clear()

    def _delete_unneeded(self, epoch: int) -> None:
        needed = {number for number in self._stored.get(epoch, ()) if self.population.needs_snapshot(number, epoch)}
        self._delete(epoch, self._stored.get(epoch, set()) - needed)
        self._stored[epoch] = needed

    def _delete(self, epoch: int, numbers: set[int]) -> None:
        for number in sorted(numbers):
            run = self.search.trial(number)
            for path in run.snapshot(epoch):
                self.delete(run, path.name)

    @contextlib.contextmanager
    def _checkpoints(self, number: int) -> Iterator[Checkpoints]:
        checkpoints = Checkpoints(self.location(self.search.trial(number)))
        try:
            yield checkpoints
        finally:
            checkpoints.close()


def most_parents(trials: int) -> int:
    """Return the largest number of parents at a comparison of `trials` trials."""
    return max(1, trials // QUARTER)


def most_snapshots(settings: RunSettings, at_once: int) -> int:
    """Return the largest number of snapshots at a time.

    They are those of the candidates at each comparison and, for each of the `at_once` running trials, one that was not
    reported yet and one that its successor begins with.
    """
    if settings.scheduler != "pbt":
        return 0
    return comparisons(settings) * most_parents(settings.trials) + 2 * at_once


def comparisons(settings: RunSettings) -> int:
    """Return how often a trial that trains all epochs is compared with others."""
    return (settings.epochs - 1) // settings.grace


def expected_size(settings: RunSettings) -> float:
    """Return the expected number of trials at each comparison.

    It is the same at each one, since every stopped trial has a successor. The ranks of trials are assumed to be
    independent from one comparison to the next.
    """
    low, high = 0.0, float(settings.trials)
    for _ in range(60):
        middle = (low + high) / 2
        # the n-th trial is in the worst quarter of n with a probability of (n // 4) / n
        stopped = sum((n // QUARTER) / n * min(1.0, middle - n + 1) for n in range(1, int(np.ceil(middle)) + 1))
        if middle + comparisons(settings) * stopped > settings.trials:
            high = middle
        else:
            low = middle
    return high
