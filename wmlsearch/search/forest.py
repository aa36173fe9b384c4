"""What to try next, by a random forest over hyperparameters and epochs (`--sampler forest`).

Most trials of a frugal search are stopped after a few epochs. A sampler that learns from finished trials has little to
go by, and one that takes a stopped trial's last value for its result mixes epochs. Here the epoch is an input beside
the hyperparameters, so every learning curve counts for what it is, however long, and the forest is asked for the value
at the last epoch: the random-forest model of SMAC (Hutter et al. 2011) on partial curves. It is only a judge: of
CANDIDATES random configurations, the best by it is tried. So no region is ever left for good, and what the model gets
wrong costs little. benchmarks/search_quality compares it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor

from wmlsearch.space import Choices, Range, SearchSpace

CANDIDATES = 16
TREES = 20
LEVELS = 3  # a curve is known to the forest at the last epoch, at 1/3, 1/9, ... of it, and where it ended

Curve = Mapping[int, float]  # epoch: value


def propose(
    space: SearchSpace, past: Sequence[tuple[Mapping[str, Any], Curve]], epochs: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Values of the active dimensions for the next trial.

    Args:
        past: values and learning curve of each trial so far, in a fixed order; curves must not be empty.
        epochs: the last epoch of a whole curve.
    """
    features, targets = [], []
    for values, curve in past:
        of_trial = encode(space, values)
        for epoch in sorted(curve):
            if epoch == max(curve) or epoch in _levels(epochs):
                features.append([*of_trial, math.log(epoch)])
                targets.append(max(value for at, value in curve.items() if at <= epoch))
    forest = ExtraTreesRegressor(TREES, max_features=0.8, random_state=int(rng.integers(2**31)))
    forest.fit(features, targets)
    candidates = [space.sample(rng) for _ in range(CANDIDATES)]
    judged: NDArray[np.float64] = forest.predict([[*encode(space, it), math.log(epochs)] for it in candidates])
    return candidates[int(np.argmax(judged))]


def encode(space: SearchSpace, values: Mapping[str, Any]) -> list[float]:
    """Numbers for the forest: ranges and choices of numbers scaled to 0..1, other choices one-hot, -1 where inactive."""
    numbers: list[float] = []
    for name, dimension in space.dimensions.items():
        domain = dimension.domain
        if isinstance(domain, Choices) and not all(type(choice) in (int, float) for choice in domain.values):
            numbers += [float(values.get(name) == choice) for choice in domain.values]
            continue
        low, high, log = _bounds(domain)
        scale = math.log if log else float
        span = scale(high) - scale(low)
        numbers.append((scale(values[name]) - scale(low)) / span if name in values and span else -1.0)
    return numbers


def _bounds(domain: Choices | Range) -> tuple[float, float, bool]:
    if isinstance(domain, Range):
        return domain.low, domain.high, domain.log
    chosen = [float(value) for value in domain.values if not isinstance(value, str)]
    return min(chosen), max(chosen), False


def _levels(epochs: int) -> set[int]:
    return {max(1, round(epochs / LEVELS**power)) for power in range(20)}
