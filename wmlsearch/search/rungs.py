"""How many trials of a search train how far, to be expected by the rules of its scheduler."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wmlsearch.config import RunSettings
from wmlsearch.search.pbt import expected_size

HYPERBAND_BRACKETS = 3  # at most
MEDIAN_NEEDS = 3  # trials beside one, before Ray's median rule stops it
# What the forecast takes for granted, by scheduler.
NOTES = {
    "median": "what the median rule stops depends on how trials learn; taken is that half of them go on, and to the end"
}


@dataclass(frozen=True)
class Rung:
    """A level of the search: so many trials are expected to train from the level before up to `epoch`."""

    epoch: int
    trials: float
    epochs: float  # trained on this level, by all of its trials


def rungs(
    trials: float, epochs: int, grace_epochs: int, reduction_factor: int, scheduler: str = "asha"
) -> tuple[Rung, ...]:
    """The levels of a search, with the numbers of trials to expect on each.

    asha: a trial that comes to a rung goes on if it is among the best 1 / `reduction_factor` of those that came before
    it. The first has nobody before it and goes on, so a small search trains more than that share. How trials rank is
    taken as new at each rung: where the good stay good (and rungs compare best epochs so far), Ray lets more of them go
    on (by its own scheduler with 27 trials half as many epochs again); trials that end by their own patience, and a
    first trial that is hard to beat, make it less. hyperband: the same in each of its brackets. median: see NOTES.
    """
    first = min(grace_epochs, epochs)
    if scheduler == "asha":
        return _levels(_halving(trials, epochs, first, reduction_factor))
    if scheduler == "hyperband":
        return _levels(_brackets(trials, epochs, first, reduction_factor))
    if scheduler == "median":
        going_on = (trials + min(trials, MEDIAN_NEEDS)) / 2
        return _levels({epochs: going_on, first: trials})  # one level where the first is the last
    return _levels({epochs: trials})


def _levels(arrive: Mapping[int, float]) -> tuple[Rung, ...]:
    """From the numbers of trials that come to each epoch."""
    spans = zip(sorted(arrive), [0, *sorted(arrive)], strict=False)
    return tuple(Rung(epoch, arrive[epoch], arrive[epoch] * (epoch - before)) for epoch, before in spans)


def _halving(trials: float, epochs: int, first: int, reduction_factor: int) -> dict[int, float]:
    """How many come to each rung."""
    arrive, milestone = {}, first
    while milestone < epochs:
        arrive[milestone], trials = trials, _going_on(trials, reduction_factor)
        milestone *= reduction_factor
    return {**arrive, epochs: trials}


def _brackets(trials: float, epochs: int, first: int, reduction_factor: int) -> dict[int, float]:
    """As `_halving`, with the brackets that Ray shares trials out to by chance; each begins at a later rung."""
    count = hyperband_brackets(epochs, first, reduction_factor)
    weights = [math.exp(-bracket) for bracket in range(count)]  # by the numbers of their rungs
    arrive: dict[int, float] = {}
    milestones = _halving(trials, epochs, first, reduction_factor)
    for bracket, weight in enumerate(weights):
        there = trials * weight / sum(weights)
        its = _halving(there, epochs, first * reduction_factor**bracket, reduction_factor)
        for epoch in milestones:
            arrive[epoch] = arrive.get(epoch, 0.0) + its.get(epoch, there)
    return arrive


def hyperband_brackets(epochs: int, first: int, reduction_factor: int) -> int:
    """As many first rungs to begin at as there are, and not too many."""
    return min(HYPERBAND_BRACKETS, int(math.log(epochs / first) / math.log(reduction_factor)) + 1)


def _going_on(arrivals: float, reduction_factor: int) -> float:
    """How many of them pass a rung, one after another, none known to be better than another."""
    passed = 0.0
    for before in range(int(np.ceil(arrivals))):
        # The bar is the quantile 1 - 1/reduction_factor of the values before, as numpy interpolates it. By symmetry a
        # new value is as likely in each of the before + 1 gaps; for evenly spread values that gives:
        chance = (1 + (before - 1) / reduction_factor) / (before + 1) if before else 1.0
        passed += chance * min(1.0, arrivals - before)
    return passed


def levels_of(settings: RunSettings, trials: float | None = None) -> tuple[Rung, ...]:
    """The levels of a search by its own scheduler, or of so many of its trials."""
    trials = settings.trials if trials is None else trials
    if settings.scheduler == "pbt":
        size, step = expected_size(settings) * trials / settings.trials, settings.grace_epochs
        ends = [*range(step, settings.epochs, step), settings.epochs]
        return tuple(Rung(end, size, size * (end - start)) for start, end in itertools.pairwise([0, *ends]))
    return rungs(trials, settings.epochs, settings.grace_epochs, settings.reduction_factor, settings.scheduler)


def rungs_within(settings: RunSettings, most_epochs: float) -> tuple[Rung, ...]:
    """The levels of as many of the trials as train so many epochs in all."""
    low, high = 0.0, float(settings.trials)
    if sum(level.epochs for level in levels_of(settings)) <= most_epochs:
        return levels_of(settings)
    for _ in range(40):  # halved: more than a float of this size can tell apart
        middle = (low + high) / 2
        spent = sum(level.epochs for level in levels_of(settings, middle))
        low, high = (low, middle) if spent > most_epochs else (middle, high)
    return levels_of(settings, low)
