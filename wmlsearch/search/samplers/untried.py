"""Which configurations a search has tried, and a sampler that proposes others.

All trials of a search have the same seed, so a configuration that is tried again trains the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from wmlsearch.config import TrialConfig
from wmlsearch.search.distributions import search_space
from wmlsearch.space import Choices, SearchSpace, Value, different_configurations
from wmlsearch.space.effects import Identity, identity

PROPOSALS = 5  # of a sampler, before a configuration is drawn at random
RANDOM_DRAWS = 100  # from a space with too many configurations to count them, or where some values are given


class TriedConfigurations:
    """The configurations that a search has tried, and what is left of its space.

    Args:
        space: The search space.
        limit: Its configurations are counted if there are at most so many.

    Attributes:
        count: How many configurations of the space train differently; None if they are more than `limit`.
    """

    def __init__(self, space: SearchSpace, limit: int) -> None:
        self._space, self._defaults = space, space.defaults
        self._tried: set[Identity] = set()
        self._left = different_configurations(space, limit)
        self.count = None if self._left is None else len(self._left)

    def add(self, config: TrialConfig) -> None:
        """Note that a trial has this configuration."""
        tried = identity(config.model_dump())
        self._tried.add(tried)
        if self._left is not None:
            self._left.pop(tried, None)

    def __contains__(self, values: Mapping[str, Any]) -> bool:
        """Return whether a trial had this configuration, given the values of its active dimensions."""
        return identity({**self._defaults, **values}) in self._tried

    @property
    def is_complete(self) -> bool:
        """Whether each configuration of the space has been tried. Only a space that is counted can be complete."""
        return self._left is not None and not self._left

    def draw_other(self, rng: np.random.Generator, given: Mapping[str, Value] | None = None) -> dict[str, Value] | None:
        """Draw a configuration at random that was not tried, with the `given` values; None if that failed."""
        if self._left is not None and not given:
            left = list(self._left.values())
            return left[int(rng.integers(len(left)))] if left else None
        drawn = (self._space.sample(rng, given) for _ in range(RANDOM_DRAWS))
        return next((values for values in drawn if values not in self), None)


class UntriedSampler(BaseSampler):
    """Proposes what another sampler does, or, where that was tried, another configuration.

    Args:
        sampler: It is asked up to `proposals` times.
        space: The search space.
        tried: The configurations that were tried.
        rng: Draws a configuration at random where the sampler proposed none that was not tried.
        proposals: 1 if the sampler would always propose the same.
        given: Values that are decided. The sampler proposes those of the other dimensions.
    """

    def __init__(
        self,
        sampler: BaseSampler,
        space: SearchSpace,
        tried: TriedConfigurations,
        rng: np.random.Generator,
        proposals: int = PROPOSALS,
        given: Mapping[str, Value] | None = None,
    ) -> None:
        self._sampler, self._space, self._tried, self._rng, self._proposals = sampler, space, tried, rng, proposals
        self._given = given or {}
        self._distributions, self._defaults = search_space(space), space.defaults

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        for _ in range(self._proposals):
            values = self._propose(study, trial)
            if values not in self._tried:
                return values
        other = self._tried.draw_other(self._rng, self._given)
        return values if other is None else dict(other)

    def _propose(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        """Return the values of the active dimensions, given or proposed by the sampler in the order that Optuna has."""
        sampler = self._sampler
        together = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))
        values: dict[str, Any] = {}
        for name, dimension in self._space.dimensions.items():
            if not dimension.active({**self._defaults, **values}):
                continue
            if name in self._given:
                values[name] = self._given[name]
            elif isinstance(dimension.domain, Choices) and len(dimension.domain.values) == 1:
                values[name] = dimension.domain.values[0]
            elif name in together:
                values[name] = together[name]
            else:
                values[name] = sampler.sample_independent(study, trial, name, self._distributions[name])
        return values

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._sampler.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._sampler.after_trial(study, trial, state, values)
