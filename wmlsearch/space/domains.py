"""The values that hyperparameters may have in a search space: choices, ranges and conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wmlsearch.config import TrialConfig

Value = int | float | str | bool | None  # None where a hyperparameter may be null


@dataclass(frozen=True)
class Choices:
    """A list of allowed values."""

    values: tuple[Value, ...]

    def sample(self, rng: np.random.Generator) -> Value:
        return self.values[int(rng.integers(len(self.values)))]

    def __contains__(self, value: object) -> bool:
        return any(isinstance(value, bool) is isinstance(choice, bool) and value == choice for choice in self.values)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; integers if both bounds are."""

    low: int | float
    high: int | float
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether the range holds integers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def sample(self, rng: np.random.Generator) -> Value:
        if self.whole and not self.log:
            return int(rng.integers(int(self.low), int(self.high) + 1))
        if self.whole:  # from half a unit beyond the bounds, or rounding would halve the share of both
            drawn = math.exp(rng.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5)))
            return min(max(round(drawn), int(self.low)), int(self.high))
        if self.log:
            drawn = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            drawn = rng.uniform(self.low, self.high)
        return min(max(drawn, float(self.low)), float(self.high))

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and (not self.whole or float(value).is_integer())


@dataclass(frozen=True)
class Dimension:
    """The allowed values of one hyperparameter, and the values of others under which it is active."""

    domain: Choices | Range
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def active(self, values: Mapping[str, Any]) -> bool:
        """Return whether the hyperparameter has an effect beside these values of the others."""
        return all(values.get(parent) in allowed for parent, allowed in self.when.items())


@dataclass(frozen=True)
class Dimensions:
    """The hyperparameters that are searched, and the values of all others.

    A dimension follows those that its condition names.
    """

    fixed: Mapping[str, Value]
    dimensions: Mapping[str, Dimension]

    @property
    def defaults(self) -> dict[str, Value]:
        """The value of each name that is not searched or not active: the fixed one, or else the baseline's."""
        return {**TrialConfig().model_dump(), **self.fixed}

    def domain(self, name: str) -> Choices | Range:
        """Return the values that a hyperparameter can have; its default alone if it is not searched."""
        return self.dimensions[name].domain if name in self.dimensions else Choices((self.defaults[name],))


def describe(domain: Choices | Range) -> str:
    """Return `[3, 4, 5]` or `0.0001 .. 0.01 (log)`."""
    if isinstance(domain, Choices):
        return f"[{', '.join(map(shown, domain.values))}]"
    return f"{domain.low:g} .. {domain.high:g}" + (" (log)" if domain.log else "")


def shown(value: Value) -> str:
    """Return a value as a hyperparameter file has it."""
    return "null" if value is None else str(value)


def is_continuous(domain: Choices | Range) -> bool:
    """Return whether a domain is a range in which a single number has no probability."""
    return isinstance(domain, Range) and not domain.whole


def is_single(domain: Choices | Range) -> bool:
    return isinstance(domain, Choices) and len(domain.values) == 1
