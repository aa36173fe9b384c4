"""Population based training (`--scheduler pbt`): poor trials end, children of good ones go on at another rate.

Ray's own PopulationBasedTraining pauses trials and lets them go on from Tune's checkpoints. Our slots run each trial to
its end, and what a search knows is in its run folder, not in Tune. So here nobody changes course: a poor trial is
stopped, and the next one that begins is a child, which takes over the checkpoint of a good one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.names import TRIAL, trial_name
from wmlsearch.runs.schema import RunRecord
from wmlsearch.search.checkpoints import Checkpoints

# Of Ray's PopulationBasedTraining (and the paper, Jaderberg et al. 2017): from the best quarter to the worst one, and
# a rate is multiplied with one of these two. Ray rounds a quarter up; here it is rounded down, so four make the first.
QUARTER = 4
FACTORS = (0.8, 1.2)


@dataclass(frozen=True)
class Takeover:
    """What a child begins with: the first `epoch` epochs of `parent`. It takes the place of `replaces`."""

    replaces: int
    parent: int
    epoch: int


class Population:
    """Who is stopped, and whose child comes next: by what was heard, in the order in which it was heard.

    At each multiple of `grace_epochs`, a trial that is in the worst quarter of all that have come so far is stopped,
    and one of the best quarter of them is chosen as parent. The snapshots of so many are kept as the best quarter of
    all trials of the search may be: who falls behind those can't be a parent any more.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self._heard: dict[int, list[tuple[float, int]]] = {}  # epoch: (value, trial)
        self.kept: dict[int, list[int]] = {}  # epoch: trials of which it has a snapshot, best first
        self.successors: dict[int, Takeover] = {}  # by the trial that is stopped
        self.owed: list[Takeover] = []  # children that have not begun

    def compares_at(self, epoch: int) -> bool:
        return epoch % self.settings.grace_epochs == 0 and epoch < self.settings.epochs

    def hear(self, number: int, epoch: int, value: float) -> bool:
        """A trial's value after an epoch that was trained for it; returns whether it is to be stopped."""
        if not self.compares_at(epoch):
            return False
        heard = self._heard.setdefault(epoch, [])
        heard.append((value, number))
        quarter = len(heard) // QUARTER
        best = [trial for _, trial in sorted(heard, key=lambda it: it[0], reverse=True)]  # of equals who came first
        before = [*self.kept.get(epoch, ()), number]
        self.kept[epoch] = [trial for trial in best[: most_parents(self.settings.trials)] if trial in before]
        parents = [trial for trial in best[:quarter] if trial in self.kept[epoch]]
        better = sum(other > value for other, _ in heard)
        if better < len(heard) - quarter or not parents:  # among equals nobody is poor
            return False
        chance = np.random.default_rng((self.settings.seed, number, epoch))
        self.successors[number] = Takeover(number, parents[chance.integers(len(parents))], epoch)
        return True

    def owe(self, number: int) -> None:
        """A trial was stopped, and its folder says so."""
        self.owed.append(self.successors[number])

    def wants(self, number: int, epoch: int) -> bool:
        """Whether a child may yet begin with this epoch of a trial."""
        return number in self.kept.get(epoch, ()) or (number, epoch) in {(it.parent, it.epoch) for it in self.owed}

    def recall(self, search: SearchDir) -> None:
        """What the run folder says is owed: a child for each stopped trial that none has replaced."""
        trials = search.trials()
        replaced = {run.record().replaces for run in trials}
        stopped = [(run.status(), int(run.name)) for run in trials]
        self.owed = [
            Takeover(number, status.successor.parent, status.successor.epoch)
            for status, number in sorted(stopped, key=lambda entry: entry[0].ended or 0.0)
            if status.successor is not None and number not in replaced
        ]


def child_of(search: SearchDir, takeover: Takeover, number: int, seed: int) -> RunRecord:
    """Return the record of trial `number` as a child; its configuration is its parent's."""
    parent = search.trial(takeover.parent).record()
    factors = dict(parent.rate_factors)
    before = factors[max(factors)] if factors else 1.0
    chance = np.random.default_rng((seed, number, 0))
    factors[takeover.epoch + 1] = before * FACTORS[chance.integers(len(FACTORS))]
    return trial_record(search, number, parent.config).model_copy(
        update={
            "parent": takeover.parent,
            "parent_epoch": takeover.epoch,
            "replaces": takeover.replaces,
            "rate_factors": factors,
        }
    )


def trial_record(search: SearchDir, number: int, config: TrialConfig) -> RunRecord:
    """Return the record of a new trial of a search."""
    record = search.record()
    return RunRecord(
        name=trial_name(number),
        kind=TRIAL,
        config=config,
        settings=record.settings,
        data=record.data,
        versions=record.versions,
    )


class Snapshots:
    """The checkpoints that children may begin with: kept while the population wants them, then deleted."""

    def __init__(self, population: Population, search: SearchDir, place: Callable[[RunDir], str]) -> None:
        """With what a search that died has left."""
        self.population, self.search, self.place = population, search, place
        self._kept: dict[int, set[int]] = {}  # epoch: trials
        for run in search.trials():
            with self._of(int(run.name)) as its:
                for epoch in its.snapshots():
                    self._kept.setdefault(epoch, set()).add(int(run.name))
        for epoch, numbers in population.kept.items():  # of a search that was complete none are left
            population.kept[epoch] = [number for number in numbers if number in self._kept.get(epoch, ())]
        for epoch in self._kept:
            self._settle(epoch)

    def heard(self, number: int, epoch: int) -> None:
        """A trial was heard: if the population has no use for its snapshot, or for another now, it goes."""
        if self.population.compares_at(epoch):
            self._kept.setdefault(epoch, set()).add(number)
            self._settle(epoch)

    def take_over(self, number: int) -> Takeover | None:
        """Put a snapshot where trial `number` begins; it is owed until `begun`. None if no child is owed."""
        for takeover in list(self.population.owed):
            with self._of(number) as its:
                if its.take_over(self.place(self.search.trial(takeover.parent)), takeover.epoch):
                    return takeover
            self.population.owed.remove(takeover)  # of a search that was complete: nothing is left to begin with
        return None

    def begun(self, takeover: Takeover) -> None:
        """The child has its folder."""
        self.population.owed.remove(takeover)
        self._settle(takeover.epoch)

    def clear(self) -> None:
        """Nothing will begin any more."""
        for epoch, numbers in self._kept.items():
            self._delete(epoch, numbers)
        self._kept.clear()

    def _settle(self, epoch: int) -> None:
        wanted = {number for number in self._kept.get(epoch, ()) if self.population.wants(number, epoch)}
        self._delete(epoch, self._kept.get(epoch, set()) - wanted)
        self._kept[epoch] = wanted

    def _delete(self, epoch: int, numbers: set[int]) -> None:
        for number in sorted(numbers):
            with self._of(number) as its:
                its.delete_snapshot(epoch)

    @contextlib.contextmanager
    def _of(self, number: int) -> Iterator[Checkpoints]:
        its = Checkpoints(self.place(self.search.trial(number)))
        try:
            yield its
        finally:
            its.close()


def most_parents(trials: int) -> int:
    """How many may be chosen from at a comparison to which so many have come."""
    return max(1, trials // QUARTER)


def most_snapshots(settings: RunSettings, at_once: int) -> int:
    """So many snapshots are kept at most: of the best at each comparison; of each of the `at_once` trials that run, the
    one that was not heard yet, and the one that its successor begins with."""
    if settings.scheduler != "pbt":
        return 0
    return comparisons(settings) * most_parents(settings.trials) + 2 * at_once


def comparisons(settings: RunSettings) -> int:
    """How often a trial that goes through all epochs is compared with others."""
    return (settings.epochs - 1) // settings.grace_epochs


def expected_size(settings: RunSettings) -> float:
    """How many trials are expected to come to each comparison.

    Each that is stopped has a successor, so it is the same number at each. How trials rank is taken as new each time.
    """
    low, high = 0.0, float(settings.trials)
    for _ in range(60):
        middle = (low + high) / 2
        # the n-th that comes is in the worst quarter of n by a chance of (n // 4) / n
        stopped = sum((n // QUARTER) / n * min(1.0, middle - n + 1) for n in range(1, int(np.ceil(middle)) + 1))
        if middle + comparisons(settings) * stopped > settings.trials:
            high = middle
        else:
            low = middle
    return high
