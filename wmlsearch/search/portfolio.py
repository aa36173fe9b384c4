"""First trials from experience (`--portfolio`): a few configurations that together were good on the recorded tasks.

Chosen as the zero-shot portfolios of Auto-sklearn 2 (Feurer et al. 2022) and AutoGluon: one after the other, each the
one that most raises the mean, over tasks, of the best rank in the portfolio so far. Most configurations were recorded
on one task only, and once, so regression trees predict the rank of each on each task: from the task's recorded
trainings, by the hyperparameters that the space searches. Each tree learned from another resample of the trainings,
and counts as a possible task of its own. So a configuration that was lucky once is not preferred, and a second one is
taken where the first may be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from wmlsearch.config import TrialConfig
from wmlsearch.search.distributions import search_space
from wmlsearch.search.experience import recorded_tasks
from wmlsearch.search.outcome_model import TrainedCurve, mean_ranks
from wmlsearch.search.samplers.forest import encode
from wmlsearch.search.trees import fit_trees, predict_by_tree
from wmlsearch.space import Choices, Range, SearchSpace

TREES = 100  # of each task
APPLIES = 1 / 2  # of the hyperparameters of a recorded configuration, at least


def choose_portfolio(
    space: SearchSpace,
    size: int,
    others: Sequence[TrialConfig] = (),
    tasks: Sequence[Sequence[TrainedCurve]] | None = None,
) -> list[dict[str, Any]]:
    """Return values of hyperparameters of a space for up to `size` trials, the most promising first.

    A recorded configuration is taken into the space: a number outside of its range or choices becomes the nearest one
    inside. A hyperparameter that its task did not search, or whose recorded choice the space lacks, has the value that
    all trainings of the task had, or else the baseline's, if the space has that, and is left out otherwise. A
    configuration of which less than half applies in the space as it was recorded is not taken.

    Args:
        space: The space of the search.
        size: Maximum number of configurations. Fewer if the records have no more that differ in this space.
        others: Configurations that need no trial more: the baseline, and those of earlier searches.
        tasks: Recorded trainings of each task. None: those that ship with the package.
    """
    if tasks is None:
        tasks = [task.trained for task in recorded_tasks()]
    recorded = [list(task) for task in tasks if task]
    taken = [[in_space(space, trained) for trained in task] for task in recorded]
    candidates = [
        values
        for task, mapped in zip(recorded, taken, strict=True)
        for trained, values in zip(task, mapped, strict=True)
        if share_that_applies(space, trained.values) >= APPLIES
    ]
    candidates = list(_distinct(space, candidates, [space.active_values(config) for config in others]))
    if not candidates or size < 1:
        return []
    distributions = search_space(space)
    encoded = np.array([encode(distributions, active(space, values)) for values in candidates], np.float32)
    expected = []
    for task, mapped in zip(recorded, taken, strict=True):
        features = np.array([encode(distributions, active(space, values)) for values in mapped], np.float32)
        expected.append(_expected_ranks(features, mean_ranks(np.array([each.result for each in task])), encoded))
    return [candidates[at] for at in greedy(np.concatenate(expected), size)]


def in_space(space: SearchSpace, trained: TrainedCurve) -> dict[str, Any]:
    """Return what a recorded configuration says of the dimensions of a space, whether they are active or not."""
    otherwise, values = {**TrialConfig().model_dump(), **trained.fixed}, dict[str, Any]()
    for name, dimension in space.dimensions.items():
        domain = dimension.domain
        possible = _nearest(domain, trained.values[name]) if name in trained.values else []
        single = domain.values if isinstance(domain, Choices) and len(domain.values) == 1 else ()
        for value in (*possible, otherwise[name], *single):
            if value in domain:
                values[name] = value
                break
    return values


def active(space: SearchSpace, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the values of dimensions that are active beside the others."""
    chosen, beside = dict[str, Any](), dict(space.defaults)
    for name, dimension in space.dimensions.items():
        if name in values and dimension.active(beside):
            chosen[name] = beside[name] = values[name]
    return chosen


def share_that_applies(space: SearchSpace, recorded: Mapping[str, Any]) -> float:
    """Return the share of recorded hyperparameters that a configuration of the space can have as they were recorded."""
    return sum(value in space.domain(name) for name, value in recorded.items()) / len(recorded)


def greedy(expected: np.ndarray, size: int) -> list[int]:
    """Return the positions of candidates that together are best: each one most raises the mean of the best so far.

    Args:
        expected: The rank that each tree expects of each candidate, (trees, candidates).
        size: Number of configurations; fewer if there are fewer candidates.
    """
    chosen: list[int] = []
    best = np.zeros(len(expected))
    for _ in range(min(size, expected.shape[1])):
        mean = np.maximum(expected, best[:, None]).mean(axis=0)
        mean[chosen] = -np.inf
        chosen.append(int(np.argmax(mean)))
        best = np.maximum(best, expected[:, chosen[-1]])
    return chosen


def _expected_ranks(features: np.ndarray, final: np.ndarray, encoded: np.ndarray) -> np.ndarray:
    """Return the rank that each tree expects of each configuration asked for, (trees, configurations)."""
    count = len(features)
    draws = [np.random.default_rng(seed).integers(count, size=count) for seed in range(TREES)]
    trees = [tree for seed, at in enumerate(draws) for tree in fit_trees(features[at], final[at], [seed])]
    return predict_by_tree(trees, encoded)


def _nearest(domain: Choices | Range, value: Any) -> list[Any]:
    """Return the allowed value nearest to a recorded one, or none where a choice has no distance to others."""
    if value in domain:
        return [value]
    if not _is_number(value):
        return []
    if isinstance(domain, Range):
        inside = min(max(value, domain.low), domain.high)
        return [round(inside) if domain.whole else float(inside)]
    numbers: list[Any] = [choice for choice in domain.values if _is_number(choice)]
    return [min(numbers, key=lambda choice: _distance(choice, value))] if numbers else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _distance(one: float, other: float) -> float:
    """Return how far two numbers are apart: as a ratio where both are positive."""
    return abs(math.log(one / other)) if one > 0 and other > 0 else abs(one - other)


def _distinct(
    space: SearchSpace, candidates: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield the candidates that differ from those before, and from the `others`, in what is active.

    One that says nothing of the space would leave all to the sampler.
    """
    seen = {(), *(_key(values) for values in others)}
    for values in candidates:
        key = _key(active(space, values))
        if key not in seen:
            seen.add(key)
            yield dict(values)


def _key(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(values.items()))
