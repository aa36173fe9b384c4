"""A random forest proposes the next configuration (`--sampler forest`).

Most trials of a search are stopped after a few epochs, so their values are of different epochs. The forest ranks
trials by the epoch that they reached, and among equals by their best value, and learns the rank from the
hyperparameters (random forests as in SMAC, Hutter et al. 2011). It then takes the best of a few configurations drawn at
random. So no region of the space is excluded for good, and an error of the forest costs little. benchmarks/README.md
compares it with a sampler that trusts its model more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn import config_context
from sklearn.tree import ExtraTreeRegressor

from wmlsearch.space import Choices, Range, SearchSpace

CANDIDATES = 4
TREES = 20
MAX_TRIALS = 1000  # that the forest learns from: with more, proposals take longer and are no better

Outcome = tuple[int, float]  # the epoch that a trial reached (the last one, if it ended by itself), its best value


def propose(
    space: SearchSpace, trials: Sequence[tuple[Mapping[str, Any], Outcome]], rng: np.random.Generator
) -> dict[str, Any]:
    """Return values of the active dimensions for the next trial.

    Args:
        space: The search space.
        trials: The values and the outcome of each trial that has ended, in a fixed order.
        rng: Draws the candidates and seeds the forest.
    """
    if len(trials) > MAX_TRIALS:
        trials = [trials[i] for i in np.sort(rng.choice(len(trials), MAX_TRIALS, replace=False))]
    positions = {outcome: i for i, outcome in enumerate(sorted({outcome for _, outcome in trials}))}
    ranks = [positions[outcome] / len(positions) for _, outcome in trials]
    seed = int(rng.integers(2**31))
    candidates = [space.sample(rng) for _ in range(CANDIDATES)]
    features = [encode(space, values) for values, _ in trials]
    scores = predict_ranks(features, ranks, [encode(space, values) for values in candidates], seed)
    return candidates[int(np.argmax(scores))]


def predict_ranks(
    features: Sequence[Sequence[float]], ranks: Sequence[float], candidates: Sequence[Sequence[float]], seed: int
) -> np.ndarray:
    """Return the expected rank of each candidate: as scikit-learn's ExtraTreesRegressor(TREES, max_features=0.8).

    The trees are the same, bit for bit, but fitted without the checks around them, which take longer than small trees.
    """
    random = np.random.RandomState(seed)
    x, y, x_candidates = np.array(features, np.float32), np.array(ranks)[:, None], np.array(candidates, np.float32)
    total = np.zeros(len(candidates))
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for _ in range(TREES):
            tree = ExtraTreeRegressor(max_features=0.8, random_state=random.randint(np.iinfo(np.int32).max))
            total += tree.fit(x, y, check_input=False).predict(x_candidates, check_input=False)
    return total / TREES


def encode(space: SearchSpace, values: Mapping[str, Any]) -> list[float]:
    """Return numbers for the forest: ranges and numeric choices from 0 to 1, other choices one-hot, -1 if inactive."""
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
    chosen = [float(value) for value in domain.values if isinstance(value, int | float)]
    return min(chosen), max(chosen), False
