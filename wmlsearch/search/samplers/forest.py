"""What to try next, judged by a random forest (`--sampler forest`).

Most trials of a frugal search are stopped after a few epochs, and their values are of different epochs. What can be
compared is how far each came, and among those that came equally far, their values: by that all trials are ranked, and
the forest learns the rank from the hyperparameters (random forests as in SMAC, Hutter et al. 2011). It is only a judge:
of a few configurations drawn at random it names the best. So no region is ever left for good, and what the forest gets
wrong costs little; benchmarks/README.md says how a sampler that trusts its model more fares.
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
MOST_PAST = 1000  # trials that the forest learns from: more make every proposal slower, and a judge of four no better

Reached = tuple[int, float]  # the epoch that a trial reached (all of them, if it ended by itself), its best value


def propose(
    space: SearchSpace, past: Sequence[tuple[Mapping[str, Any], Reached]], rng: np.random.Generator
) -> dict[str, Any]:
    """Values of the active dimensions for the next trial. `past`: the values of those that ended, in a fixed order."""
    if len(past) > MOST_PAST:
        past = [past[i] for i in np.sort(rng.choice(len(past), MOST_PAST, replace=False))]
    place = {reached: i for i, reached in enumerate(sorted({reached for _, reached in past}))}
    ranks = [place[reached] / len(place) for _, reached in past]
    seed = int(rng.integers(2**31))
    candidates = [space.sample(rng) for _ in range(CANDIDATES)]
    known, asked = ([encode(space, values) for values in its] for its in ([values for values, _ in past], candidates))
    return candidates[int(np.argmax(judge(known, ranks, asked, seed)))]


def judge(
    known: Sequence[Sequence[float]], ranks: Sequence[float], asked: Sequence[Sequence[float]], seed: int
) -> np.ndarray:
    """The ranks to expect of those `asked`: what scikit-learn's ExtraTreesRegressor(TREES, max_features=0.8) says.

    Its trees, bit for bit, without the checks around them, which take longer than small trees themselves.
    """
    chance = np.random.RandomState(seed)
    x, y, x_asked = np.array(known, np.float32), np.array(ranks)[:, None], np.array(asked, np.float32)
    total = np.zeros(len(asked))
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for _ in range(TREES):
            tree = ExtraTreeRegressor(max_features=0.8, random_state=chance.randint(np.iinfo(np.int32).max))
            total += tree.fit(x, y, check_input=False).predict(x_asked, check_input=False)
    return total / TREES


def encode(space: SearchSpace, values: Mapping[str, Any]) -> list[float]:
    """Numbers for the forest: ranges and choices of numbers from 0 to 1, other choices one-hot, -1 where inactive."""
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
