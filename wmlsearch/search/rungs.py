"""The expected number of trials at each rung of a search, by the rules of its scheduler."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wmlsearch.config import BLIND_SHARE, RunSettings
from wmlsearch.search.pbt import expected_size

HYPERBAND_BRACKETS = 3  # at most
MEDIAN_NEEDS = 3  # other trials, before Ray's median rule stops one
# What the forecast assumes, by scheduler.
NOTES = {
    "median": "how many trials the median rule stops depends on how they learn; the forecast assumes that half of them "
    "train to the end"
}


@dataclass(frozen=True)
class Rung:
    """A stretch of a search, from the rung before up to `epoch`."""

    epoch: int
    trials: float  # expected to train on it
    epochs: float  # that all of its trials train on it


def rungs(
    trials: float, epochs: int, grace_epochs: int, reduction_factor: int, scheduler: str = "asha"
) -> tuple[Rung, ...]:
    """Return the rungs of a search with the expected numbers of trials.

    asha, predictive: a trial goes on if it is among the best 1 / `reduction_factor` of those that reached the rung
    before. The first one always goes on, so a small search trains more than that share. The ranks of trials are assumed
    to be independent from rung to rung. Where good trials stay good (and rungs compare best epochs so far), more of
    them go on: with 27 trials, Ray's scheduler trains half as many epochs again. Trials that stop early by themselves,
    and a first trial that is hard to beat, reduce the number. hyperband: the same in each bracket. median: see NOTES.
    """
    first = min(grace_epochs, epochs)
    if scheduler in ("asha", "predictive"):
        return _levels(_halving(trials, epochs, first, reduction_factor))
    if scheduler == "hyperband":
        return _levels(_brackets(trials, epochs, first, reduction_factor))
    if scheduler == "median":
        going_on = (trials + min(trials, MEDIAN_NEEDS)) / 2
        return _levels({epochs: going_on, first: trials})  # one level where the first is the last
    return _levels({epochs: trials})


def _levels(arrive: Mapping[int, float]) -> tuple[Rung, ...]:
    """Return rungs from the numbers of trials that reach each epoch."""
    spans = zip(sorted(arrive), [0, *sorted(arrive)], strict=False)
    return tuple(Rung(epoch, arrive[epoch], arrive[epoch] * (epoch - before)) for epoch, before in spans)


def _halving(trials: float, epochs: int, first: int, reduction_factor: int) -> dict[int, float]:
    """Return how many trials reach each rung, by its epoch."""
    arrive = {}
    for milestone in rung_epochs(epochs, first, reduction_factor):
        arrive[milestone], trials = trials, _going_on(trials, reduction_factor)
    return {**arrive, epochs: trials}


def _brackets(trials: float, epochs: int, first: int, reduction_factor: int) -> dict[int, float]:
    """Return the same for hyperband: Ray assigns trials to brackets at random, and each begins at a later rung."""
    count = hyperband_brackets(epochs, first, reduction_factor)
    weights = [math.exp(-bracket) for bracket in range(count)]  # as Ray draws, by the softmax of the numbers of rungs
    arrive: dict[int, float] = {}
    milestones = _halving(trials, epochs, first, reduction_factor)
    for bracket, weight in enumerate(weights):
        members = trials * weight / sum(weights)
        of_bracket = _halving(members, epochs, first * reduction_factor**bracket, reduction_factor)
        for epoch in milestones:
            arrive[epoch] = arrive.get(epoch, 0.0) + of_bracket.get(epoch, members)
    return arrive


def hyperband_brackets(epochs: int, first: int, reduction_factor: int) -> int:
    """Return the number of brackets: one for each rung, at most HYPERBAND_BRACKETS."""
    return min(HYPERBAND_BRACKETS, int(math.log(epochs / first) / math.log(reduction_factor)) + 1)


def _going_on(arrivals: float, reduction_factor: int) -> float:
    """Return how many of the trials that reach a rung are expected to pass it, their ranks being random."""
    passed = 0.0
    for before in range(int(np.ceil(arrivals))):
        # Ray's cutoff is the quantile 1 - 1/reduction_factor of the values before, as numpy interpolates it. A new
        # value is equally likely in each of the before + 1 gaps between them. For evenly spread values that gives:
        chance = (1 + (before - 1) / reduction_factor) / (before + 1) if before else 1.0
        passed += chance * min(1.0, arrivals - before)
    return passed


def first_rung(settings: RunSettings) -> int:
    """Return the epoch of the first rung. Without recorded trainings, predictive waits until values say something."""
    grace = settings.grace
    if settings.scheduler == "predictive" and not settings.experience:
        grace = max(grace, round(settings.epochs * BLIND_SHARE))
    return min(grace, settings.epochs)


def rung_epochs(epochs: int, first: int, reduction_factor: int) -> list[int]:
    """Return the epochs of the rungs of asha before the last epoch."""
    milestones = []
    while first < epochs:
        milestones.append(first)
        first *= reduction_factor
    return milestones


def levels_of(settings: RunSettings, trials: float | None = None) -> tuple[Rung, ...]:
    """Return the rungs of a search of `trials` trials (default: those of the settings)."""
    trials = settings.trials if trials is None else trials
    if settings.scheduler == "pbt":
        size, step = expected_size(settings) * trials / settings.trials, settings.grace
        ends = [*range(step, settings.epochs, step), settings.epochs]
        return tuple(Rung(end, size, size * (end - start)) for start, end in itertools.pairwise([0, *ends]))
    return rungs(trials, settings.epochs, first_rung(settings), settings.reduction_factor, settings.scheduler)


def rungs_within(settings: RunSettings, most_epochs: float) -> tuple[Rung, ...]:
    """Return the rungs of the search, cut to as many trials as train `most_epochs` epochs in total."""
    low, high = 0.0, float(settings.trials)
    if sum(level.epochs for level in levels_of(settings)) <= most_epochs:
        return levels_of(settings)
    for _ in range(40):  # bisection, to more digits than matter
        middle = (low + high) / 2
        spent = sum(level.epochs for level in levels_of(settings, middle))
        low, high = (low, middle) if spent > most_epochs else (middle, high)
    return levels_of(settings, low)
