"""Simulate a search without training: a surrogate answers proposals, and time is simulated."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from benchmarks.search_quality.surrogate import Answer, Surrogate

WORKERS = 4  # trials at once


class Method(Protocol):
    """A search method: proposes configurations, gets the value of each epoch, and decides which trials to stop."""

    def propose(self, number: int) -> Mapping[str, Any]: ...

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Report a trial's value after an epoch that is not its last one, and return whether to stop the trial."""

    def ended(self, number: int, state: str, epoch: int, value: float) -> None:
        """Report that a trial has ended with its value of its last epoch: completed or stopped."""


@dataclass
class ReplayedTrial:
    """A trial of a replayed search."""

    values: Mapping[str, Any]
    answer: Answer  # its curves to the end, of which the method sees the first `epochs`
    epochs: int = 0
    state: str = "running"

    @property
    def value(self) -> float:
        """Its highest objective so far."""
        return float(self.answer.objective[: self.epochs].max(initial=0.0))

    @property
    def network(self) -> float:
        """The sealed Dice of the weights that it keeps: those of its best epoch so far."""
        return self.answer.kept(self.epochs)


@dataclass
class Replay:
    """A replayed search. `leaders` are the trials with the highest objective so far, and the epochs spent by then."""

    trials: list[ReplayedTrial] = field(default_factory=list)
    epochs: int = 0
    leaders: list[tuple[int, ReplayedTrial]] = field(default_factory=list)
    highest: float = -1.0

    @property
    def best(self) -> ReplayedTrial:
        return self.leaders[-1][1]

    def train(self, trial: ReplayedTrial, epochs: int = 1) -> None:
        """Train a trial further."""
        trial.epochs, self.epochs = trial.epochs + epochs, self.epochs + epochs
        if trial.value > self.highest:
            self.highest = trial.value
            self.leaders.append((self.epochs, trial))


def replay(method: Method, surrogate: Surrogate, max_epochs: int, seed: int, max_trials: int | None = None) -> Replay:
    """Let `method` search on WORKERS simulated workers until `max_epochs` are spent or `max_trials` have ended.

    An epoch takes one unit of time.

    `seed` is that of the replay: with another one, trainings have other noise.
    """
    search = Replay()
    events: list[tuple[int, int]] = []  # when a trial's next epoch ends

    def begin(now: int) -> None:
        number = len(search.trials)
        if number == max_trials:
            return
        values = dict(method.propose(number))
        search.trials.append(ReplayedTrial(values, surrogate.answer(values, training_seed(seed, number))))
        heapq.heappush(events, (now + 1, number))

    for _ in range(WORKERS):
        begin(0)
    while events and search.epochs < max_epochs:
        now, number = heapq.heappop(events)
        trial = search.trials[number]
        search.train(trial)
        value = float(trial.answer.objective[trial.epochs - 1])
        if trial.epochs == surrogate.epochs:
            trial.state = "completed"
        elif method.report(number, trial.epochs, value):
            trial.state = "stopped"
        else:
            heapq.heappush(events, (now + 1, number))
            continue
        method.ended(number, trial.state, trial.epochs, value)
        begin(now)
    return search


def training_seed(seed: int, number: int) -> int:
    """Return the seed of the noise of a trial in a replay; no two are equal."""
    return seed * 10_000 + number
