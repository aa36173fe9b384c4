"""Optuna distributions for the dimensions of a search space."""

from __future__ import annotations

from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from wmlsearch.space import Choices, Range, SearchSpace


def distribution(domain: Choices | Range) -> BaseDistribution:
    """Return the Optuna distribution of a dimension: what `suggest_value` records in the study."""
    if isinstance(domain, Choices):
        return CategoricalDistribution(domain.values)
    if domain.whole:
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def suggest_value(trial: Trial, name: str, domain: Choices | Range) -> Any:
    """Let the study's sampler draw a value of the dimension `name`."""
    if isinstance(domain, Choices):
        return trial.suggest_categorical(name, domain.values)
    if domain.whole:
        return trial.suggest_int(name, int(domain.low), int(domain.high), log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, log=domain.log)


def search_space(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return the distribution of each dimension of a space."""
    return {name: distribution(dimension.domain) for name, dimension in space.dimensions.items()}
