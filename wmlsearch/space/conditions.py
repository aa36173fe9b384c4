"""Which hyperparameters are active together, by the conditions of a space."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from wmlsearch.config import TrialConfig
from wmlsearch.space.domains import Choices, Dimension, Dimensions, Range, Value, is_continuous


@dataclass(frozen=True)
class Case:
    """A part of a space in which the same hyperparameters are active.

    Example: `warmup_fraction` with `when: {schedule: cosine}`, and `schedule` with the choices plateau, constant and
    cosine, has two cases of `schedule`: plateau and constant, where `warmup_fraction` is inactive, and cosine.

    Attributes:
        inactive: The dimensions that have no values.
        chosen: The possible values of each hyperparameter that was asked for. Each value of one can stand beside each
            value of another.
    """

    inactive: frozenset[str] = frozenset()
    chosen: tuple[tuple[str, tuple[Value, ...]], ...] = ()

    @property
    def values(self) -> dict[str, tuple[Value, ...]]:
        """The possible values by name."""
        return dict(self.chosen)


def parents_first(dimensions: dict[str, Dimension]) -> tuple[dict[str, Dimension], list[str]]:
    """Sort dimensions so that each follows those that its condition names. Return them, and a fault for a cycle."""
    ordered: dict[str, Dimension] = {}
    waiting = dict(dimensions)
    while waiting:
        ready = [name for name, dimension in waiting.items() if not any(parent in waiting for parent in dimension.when)]
        if not ready:
            return ordered, [f"`when` conditions form a cycle: {' -> '.join([*waiting, next(iter(waiting))])}"]
        for name in ready:
            ordered[name] = waiting.pop(name)
    return ordered, []


def find_cases(space: Dimensions, names: Sequence[str]) -> Iterable[Case]:
    """Return the cases of a space that differ in the values of `names`, or in which of the dimensions are inactive.

    Only those dimensions count that are among `names`, or decide whether others that count are active. Of a range, a
    case holds the bounds and the numbers that conditions name.
    """
    needed: dict[str, Dimension] = {}  # `names` and what decides whether they are active, children before parents
    for name, dimension in reversed(list(space.dimensions.items())):
        if name in names or any(name in child.when for child in needed.values()):
            needed[name] = dimension
    cases: dict[Case, None] = {Case(): None}  # equal ones are one
    for name in [*(name for name in TrialConfig.model_fields if name not in space.dimensions), *reversed(needed)]:
        allowed = {child: dimension.when[name] for child, dimension in needed.items() if name in dimension.when}
        earlier, cases = cases, {}
        for case in earlier:
            searched = name in space.dimensions and name not in case.inactive
            domain = space.dimensions[name].domain if searched else Choices((space.defaults[name],))
            for made_inactive, values in by_effect(domain, allowed).items():
                chosen = (*case.chosen, (name, values)) if name in names else case.chosen
                cases[Case(case.inactive | made_inactive, chosen)] = None
    return cases


def by_effect(
    domain: Choices | Range, allowed: Mapping[str, tuple[Value, ...]]
) -> dict[frozenset[str], tuple[Value, ...]]:
    """Return the values of a domain by the dimensions that they make inactive.

    Of a range these are the numbers that conditions name, and the lowest and the highest of the others.

    Args:
        domain: The values of a hyperparameter.
        allowed: The values beside which each other dimension is active.
    """
    mentioned = {value: None for each in allowed.values() for value in each if value in domain}
    values = domain.values if isinstance(domain, Choices) else () if is_continuous(domain) else tuple(mentioned)
    groups: dict[frozenset[str], list[Value]] = {}
    for value in values:
        groups.setdefault(frozenset(name for name, each in allowed.items() if value not in each), []).append(value)
    if isinstance(domain, Range) and not (domain.whole and len(values) > domain.high - domain.low):  # it has others
        groups.setdefault(frozenset(allowed), []).extend(_bounds_without(domain, values))
    return {inactive: tuple(each) for inactive, each in groups.items()}


def _bounds_without(domain: Range, named: Sequence[Value]) -> tuple[int | float, int | float]:
    """Return the lowest and the highest number of a range that are not `named`; a continuous range has its bounds."""
    if not domain.whole:
        return domain.low, domain.high
    numbers = range(int(domain.low), int(domain.high) + 1)
    return next(each for each in numbers if each not in named), next(
        each for each in numbers[::-1] if each not in named
    )
