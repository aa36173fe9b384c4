"""The configurations of a space: how many train differently, and what is searched without effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from wmlsearch.space.conditions import by_effect, find_cases
from wmlsearch.space.domains import Choices, Dimensions, Range, Value
from wmlsearch.space.effects import NEEDED, Identity, has_effect, identity

MAX_COUNTED = 10_000  # different configurations of a space


class _TooManyError(Exception):
    """There are more configurations than asked for."""


def different_configurations(space: Dimensions, limit: int) -> dict[Identity, dict[str, Value]] | None:
    """Return the values of each configuration that trains otherwise than the others, None if there are over `limit`.

    More than `MAX_COUNTED` are never counted. They are values of the active dimensions, from which `SearchSpace.config`
    builds the configuration.
    """
    parents = {name: [*dimension.when, *NEEDED.get(name, ())[:1]] for name, dimension in space.dimensions.items()}
    configurations: dict[Identity, dict[str, Value]] = {}
    limit = min(limit, MAX_COUNTED)
    try:
        order = [name for name in TopologicalSorter(parents).static_order() if name in space.dimensions]
        for values in _each_configuration(space, order, {}, space.defaults, limit):
            configurations.setdefault(identity({**space.defaults, **values}), values)
            if len(configurations) > limit:
                return None
    except (CycleError, _TooManyError):  # a cycle: of a condition on a hyperparameter without effect
        return None
    return configurations


def _each_configuration(
    space: Dimensions, names: Sequence[str], values: dict[str, Value], whole: Mapping[str, Value], limit: int
) -> Iterator[dict[str, Value]]:
    """Yield `values` with each choice for the dimensions `names`: of one without effect, one value for each condition.

    Args:
        space: The space.
        names: The dimensions to choose, each after those that decide whether it is active and has an effect.
        values: Those of the dimensions before.
        whole: The same, with the defaults of all others.
        limit: Raises _TooManyError if a dimension has more values.
    """
    if not names:
        yield values
        return
    name, later = names[0], names[1:]
    dimension = space.dimensions[name]
    if not dimension.active(whole):
        yield from _each_configuration(space, later, values, whole, limit)
        return
    if has_effect(name, whole):
        choices = _values_of(dimension.domain, limit)
    else:
        allowed = {child: other.when[name] for child, other in space.dimensions.items() if name in other.when}
        choices = [group[0] for group in by_effect(dimension.domain, allowed).values()]
    for value in choices:
        yield from _each_configuration(space, later, {**values, name: value}, {**whole, name: value}, limit)


def _values_of(domain: Choices | Range, limit: int) -> Sequence[Value]:
    """Return all values of a domain. Raises _TooManyError if it has more than `limit`."""
    if isinstance(domain, Choices):
        return domain.values
    if not domain.whole or domain.high - domain.low >= limit:
        raise _TooManyError
    return range(int(domain.low), int(domain.high) + 1)


def vain_values(space: Dimensions) -> dict[str, tuple[tuple[Value, ...], bool]]:
    """Return the dimensions that are searched where they have no effect (`effects.NEEDED`).

    Each with the values of the other hyperparameter beside which that is so, and whether it has an effect anywhere.
    """
    vain: dict[str, tuple[tuple[Value, ...], bool]] = {}
    for name in space.dimensions:
        if name not in NEEDED:
            continue
        other, allowed = NEEDED[name]
        beside = {
            value: None
            for case in find_cases(space, (name, other))
            if name not in case.inactive
            for value in case.values[other]
        }
        without_effect = tuple(value for value in beside if value not in allowed)
        if without_effect:
            vain[name] = without_effect, len(without_effect) < len(beside)
    return vain
