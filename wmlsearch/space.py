"""`SearchSpace`: the content of a hyperparameter file, in which each name has one value, choices or a range."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np

from wmlsearch.config import TrialConfig, float_fields
from wmlsearch.effects import NEEDED, Identity, has_effect, identity
from wmlsearch.errors import InputError, short_repr, unknown_name
from wmlsearch.yaml_files import read_yaml

Value = int | float | str | bool | None  # None where a hyperparameter may be null
MAX_CHOICES = 1000  # of a hyperparameter
MAX_COUNTED = 10_000  # different configurations of a space
_KEYS = ("choices", "low", "high", "log", "when")  # of a searched hyperparameter in a file


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
class SearchSpace:
    """A validated hyperparameter file: `fixed` values, and `dimensions` to search.

    A dimension follows those that its condition names. A space can be pickled and sent to any process.
    """

    fixed: Mapping[str, Value]
    dimensions: Mapping[str, Dimension]
    source: str = "space"

    def to_mapping(self) -> dict[str, Any]:
        """Return the mapping of a hyperparameter file from which `from_mapping` builds this space."""
        entries: dict[str, Any] = dict(self.fixed)
        for name, dimension in self.dimensions.items():
            domain = dimension.domain
            if isinstance(domain, Choices):
                entries[name] = {"choices": list(domain.values)}
            else:
                entries[name] = {"low": domain.low, "high": domain.high, "log": domain.log}
            if dimension.when:
                entries[name]["when"] = {parent: list(values) for parent, values in dimension.when.items()}
        return entries

    @property
    def is_single_configuration(self) -> bool:
        """Whether all configurations of this space train the same, so that nothing is searched."""
        return different_configurations(self, 1) is not None

    def single_configuration(self) -> TrialConfig:
        """Return the only configuration of this space. Raises InputError if something is searched."""
        only = different_configurations(self, 1)
        if only is None:
            several = [name for name, dimension in self.dimensions.items() if not _is_single(dimension.domain)]
            several = several or list(self.dimensions)  # conditions on hyperparameters without effect
            raise InputError(
                f"{self.source}: must give each name one value, but {', '.join(several)} "
                f"{'have' if len(several) > 1 else 'has'} several; search them with `wmlsearch tune`"
            )
        return self.config(next(iter(only.values())))

    def sample(self, rng: np.random.Generator, given: Mapping[str, Value] | None = None) -> dict[str, Value]:
        """Draw values of the active dimensions, independent and uniform (log-uniform in a range with `log`).

        Those that are `given` are not drawn.
        """
        values: dict[str, Value] = {}
        defaults, given = self.defaults, given or {}
        for name, dimension in self.dimensions.items():
            if dimension.active({**defaults, **values}):
                values[name] = given[name] if name in given else dimension.domain.sample(rng)
        return values

    @property
    def defaults(self) -> dict[str, Value]:
        """The value of each name that is not searched or not active: the fixed one, or else the baseline's."""
        return {**TrialConfig().model_dump(), **self.fixed}

    def domain(self, name: str) -> Choices | Range:
        """Return the values that a hyperparameter can have; its default alone if it is not searched."""
        return self.dimensions[name].domain if name in self.dimensions else Choices((self.defaults[name],))

    def config(self, values: Mapping[str, Any]) -> TrialConfig:
        """Return the configuration of drawn `values`; other names have their defaults. Raises InputError."""
        return TrialConfig.from_mapping({**self.fixed, **values}, self.source)

    def active_values(self, config: TrialConfig) -> dict[str, Value]:
        """Return a configuration's values of the active dimensions, from which `config` builds it."""
        configured = config.model_dump()
        return {name: configured[name] for name, dimension in self.dimensions.items() if dimension.active(configured)}

    def mismatches(self, config: TrialConfig) -> list[str]:
        """Return why `config` is not in this space, one line for each hyperparameter; none if it is."""
        configured, reasons = config.model_dump(), []
        for name, value in self.defaults.items():
            dimension = self.dimensions.get(name)
            if dimension is None or not dimension.active(configured):
                if configured[name] != value and has_effect(name, configured):
                    reasons.append(f"{name} is fixed at {value}, not {configured[name]}")
            elif configured[name] not in dimension.domain:
                reasons.append(f"{name}={configured[name]} is not in {describe(dimension.domain)}")
        return reasons

    def without(self, name: str, value: Value) -> SearchSpace:
        """Return this space without one of the choices of a hyperparameter."""
        entries = self.to_mapping()
        choices = [choice for choice in entries[name]["choices"] if choice != value]
        entries[name] = {**entries[name], "choices": choices} if len(choices) > 1 else choices[0]
        return SearchSpace.from_mapping(entries, self.source)

    def with_lower_bound(self, name: str, low: int) -> SearchSpace:
        """Return this space with another lower bound of a range."""
        entries = self.to_mapping()
        high = entries[name]["high"]
        entries[name] = {**entries[name], "low": low} if low < high else high
        return SearchSpace.from_mapping(entries, self.source)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "space") -> SearchSpace:
        """Validate the mapping of a hyperparameter file. Raises InputError with all faults at once."""
        space = cls.from_record(values, source)
        if faults := [*_ranges_with_gaps(space), *_conditions_that_never_hold(space)]:
            raise InputError(f"{source}: not a valid search space", faults)
        if space.dimensions:
            _check_min_learning_rate(space)
        return space

    @classmethod
    def from_record(cls, values: Mapping[str, Any], source: str) -> SearchSpace:
        """Validate the mapping of a search that has begun. Raises InputError with all faults at once.

        Older versions did not see each way in which learning rates can contradict each other, each range that holds
        numbers which are not allowed, and each condition that never holds: such a space is read.
        """
        faults: list[str] = []
        fixed: dict[str, Value] = {}
        dimensions: dict[str, Dimension] = {}
        names = list(TrialConfig.model_fields)
        if len(values) > 10 * len(names):  # `unknown_name` compares each unknown name with all valid ones
            raise InputError(f"{source}: holds {len(values)} names, but there are {len(names)} hyperparameters")
        for name, entry in values.items():
            if name not in names:
                faults.append(unknown_name(name, names))
            elif not isinstance(entry, dict):
                faults += [f"{fault}{_advice_for_list(entry)}" for fault in _value_faults(name, entry)]
                fixed[name] = entry
            else:
                dimension, dimension_faults = _read_dimension(name, entry)
                faults += dimension_faults
                if dimension:
                    dimensions[name] = dimension
        ordered, cycle_faults = _parents_first(dimensions)
        space = cls(fixed, ordered, source)
        faults += [*_impossible_conditions(space), *cycle_faults]
        if faults:
            raise InputError(f"{source}: not a valid search space", faults)
        if not space.dimensions:
            space.single_configuration()  # checks the rules that join several values
        return space

    @classmethod
    def read(cls, name_or_path: str | Path) -> SearchSpace:
        """Read a hyperparameter file by its path, or a shipped one by its name. Raises InputError."""
        return cls.from_mapping(read_yaml(space_file(name_or_path)), str(name_or_path))


def space_file(name_or_path: str | Path) -> Path:
    """Return the path of a hyperparameter file, given by its path, or by its name if it is shipped (`paper`, `unet`).

    Raises InputError if there is none. A shipped file wins over a folder of the same name.
    """
    path = Path(name_or_path)
    name = str(name_or_path).removesuffix(".yaml")
    if not path.is_file() and "/" not in name and (shipped() / f"{name}.yaml").is_file():
        return shipped() / f"{name}.yaml"
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in shipped().glob("*.yaml")))
        raise InputError(f"{name_or_path}: no such file, and not one of the shipped search spaces: {names}")
    return path


def is_shipped(space: SearchSpace) -> bool:
    """Return whether a space is a shipped one by its name, with the ranges of this version."""
    name = space.source.removesuffix(".yaml")
    if "/" in name or Path(space.source).is_file() or not (shipped() / f"{name}.yaml").is_file():
        return False
    return space == SearchSpace.read(space.source)


def shipped() -> Path:
    """Return the folder of the shipped hyperparameter files: in the wheel, or `search_spaces/` of a checkout."""
    installed = Path(str(resources.files("wmlsearch"))) / "search_spaces"
    return installed if installed.is_dir() else installed.parents[1] / "search_spaces"


def describe(domain: Choices | Range) -> str:
    """Return `[3, 4, 5]` or `0.0001 .. 0.01 (log)`."""
    if isinstance(domain, Choices):
        return f"[{', '.join(map(_shown, domain.values))}]"
    return f"{domain.low:g} .. {domain.high:g}" + (" (log)" if domain.log else "")


def _shown(value: Value) -> str:
    """Return a value as a hyperparameter file has it."""
    return "null" if value is None else str(value)


def _value_faults(name: str, value: Any) -> list[str]:
    """Return why a hyperparameter cannot have this value, whatever the others are."""
    try:
        # without a schedule that uses min_learning_rate, which the whole space is checked for
        TrialConfig.from_mapping({"min_learning_rate": 0.0, "schedule": "constant", name: value})
    except InputError as error:
        means_null = isinstance(value, str) and value.lower() in ("none", "null") and _may_be_null(name)
        return [f"{fault}; write `null` for no value" if means_null else fault for fault in error.faults]
    return []


def _may_be_null(name: str) -> bool:
    return type(None) in get_args(TrialConfig.model_fields[name].annotation)


def _advice_for_list(entry: Any) -> str:
    """Return what to write in the place of a bare list of values, or "" for another entry."""
    if not isinstance(entry, list | tuple):
        return ""
    plain = entry and all(isinstance(value, int | float | str) for value in entry)
    text = ", ".join(value if isinstance(value, str) else short_repr(value) for value in entry) if plain else "..."
    return f"; give `{{choices: [{text if len(text) <= 100 else '...'}]}}` to search several values"


def _read_dimension(name: str, entry: dict[str, Any]) -> tuple[Dimension | None, list[str]]:
    """Return the dimension of `{choices:}` or `{low:, high:, log:}`, optional `when:`, or None and the faults."""
    when, faults = _read_conditions(name, entry.get("when", {}))
    domain, domain_faults = _read_choices(name, entry) if "choices" in entry else _read_range(name, entry)
    faults += domain_faults
    return (None if faults or domain is None else Dimension(domain, when)), faults


def _read_choices(name: str, entry: dict[str, Any]) -> tuple[Choices | None, list[str]]:
    choices, faults = entry["choices"], []
    if others := [key for key in entry if key not in ("choices", "when")]:
        faults.append(f"{name}: only `when` is allowed beside `choices`, but got {', '.join(map(str, others))}")
    if not isinstance(choices, list | tuple) or not choices:
        got = short_repr(choices)
        return None, [*faults, f"{name}: `choices` must be a list of at least one value, but got {got}"]
    if len(choices) > MAX_CHOICES:
        return None, [*faults, f"{name}: `choices` may have {MAX_CHOICES} values, but has {len(choices)}"]
    for choice in choices:
        faults += _value_faults(name, choice)
    if faults:
        return None, faults
    if _is_float(name):
        choices = [None if choice is None else float(choice) for choice in choices]
    if len({repr(choice) for choice in choices}) < len(choices):
        return None, [f"{name}: `choices` has a value twice: {short_repr(entry['choices'])}"]
    return Choices(tuple(choices)), []


def _read_range(name: str, entry: dict[str, Any]) -> tuple[Range | None, list[str]]:
    low, high, log = entry.get("low"), entry.get("high"), entry.get("log", False)
    faults = [f"{name}: {unknown_name(key, _KEYS)}" for key in entry if key not in _KEYS]
    if low is None or high is None:
        return None, [*faults, f"{name}: give a value, `choices`, or both `low` and `high`; got {short_repr(entry)}"]
    if any(type(bound) not in (int, float) for bound in (low, high)):
        got = f"(low={short_repr(low)}, high={short_repr(high)})"
        return None, [*faults, f"{name}: `low` and `high` must be numbers, but got {got}"]
    if type(log) is not bool:
        faults.append(f"{name}: `log` must be true or false, but got {short_repr(log)}")
    if low >= high:
        advice = f"; give the value itself: `{name}: {short_repr(low)}`" if low == high else ""
        faults.append(f"{name}: low < high must hold, but got (low={short_repr(low)}, high={short_repr(high)}){advice}")
    elif log and low <= 0:
        faults.append(f"{name}: low > 0 must hold with log: true, but got low={short_repr(low)}")
    for bound in (low, high):
        faults += _value_faults(name, bound)
    if faults:
        return None, faults
    return (Range(float(low), float(high), log) if _is_float(name) else Range(low, high, log)), []


def _is_float(name: str) -> bool:
    return name in float_fields(TrialConfig)


def _read_conditions(name: str, when: Any) -> tuple[dict[str, tuple[Value, ...]], list[str]]:
    """Return the allowed values of each hyperparameter that `when` names, and the faults of `when`."""
    if not isinstance(when, dict):
        return {}, [f"{name}: `when` must be {{name: value}} or {{name: [values]}}, but got {short_repr(when)}"]
    conditions: dict[str, tuple[Value, ...]] = {}
    faults = []
    for parent, allowed in when.items():
        if parent not in TrialConfig.model_fields:
            faults.append(f"{name}: `when`: {unknown_name(parent, list(TrialConfig.model_fields))}")
            continue
        conditions[parent] = tuple(allowed) if isinstance(allowed, list | tuple) else (allowed,)
        if not 0 < len(conditions[parent]) <= MAX_CHOICES:
            got = len(conditions[parent])
            faults.append(f"{name}: `when`: {parent} must be one value or a list of 1 to {MAX_CHOICES}, but got {got}")
            continue
        for value in conditions[parent]:
            faults += [f"{name}: `when`: {fault}" for fault in _value_faults(parent, value)]
    return conditions, faults


def _parents_first(dimensions: dict[str, Dimension]) -> tuple[dict[str, Dimension], list[str]]:
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


def _impossible_conditions(space: SearchSpace) -> list[str]:
    """Return a fault for each condition on one hyperparameter that it never meets, whatever the others are."""
    faults = []
    for name, dimension in space.dimensions.items():
        for parent, allowed in dimension.when.items():
            domain, default = space.domain(parent), Choices((space.defaults[parent],))
            has_condition = parent in space.dimensions and space.dimensions[parent].when
            if any(value in domain or (has_condition and value in default) for value in allowed):
                continue
            otherwise = f", or {_shown(default.values[0])} where its `when` does not hold" if has_condition else ""
            faults.append(
                f"{name}: `when` can never hold: {parent} is in {describe(domain)}{otherwise}, "
                f"never {' or '.join(map(_shown, allowed))}"
            )
    return faults


def _conditions_that_never_hold(space: SearchSpace) -> list[str]:
    """Return a fault for each dimension that is active in no configuration of the space, by all conditions together."""
    faults = []
    for name, dimension in space.dimensions.items():
        if not dimension.when or any(name not in inactive for inactive, _ in _cases(space, [name])):
            continue
        asked = [f"{parent} {' or '.join(map(_shown, allowed))}" for parent, allowed in dimension.when.items()]
        ranges = [parent for parent in dimension.when if _is_continuous(space.domain(parent))]
        if ranges:
            rule = f"a number drawn from {describe(space.domain(ranges[0]))} never equals a given one; give `choices`"
            faults.append(f"{name}: `when` can never hold: {' and '.join(asked)} asks for a number, but {rule}")
        else:
            faults.append(f"{name}: `when` can never hold: {' and '.join(asked)} never occur together")
    return faults


def _is_continuous(domain: Choices | Range) -> bool:
    """Return whether a domain is a range in which a single number has no probability."""
    return isinstance(domain, Range) and not domain.whole


def _ranges_with_gaps(space: SearchSpace) -> list[str]:
    """Return a fault for each range of a hyperparameter that allows only some of the numbers between its bounds."""
    faults = []
    for name, dimension in space.dimensions.items():
        domain, annotation = dimension.domain, TrialConfig.model_fields[name].annotation
        if not isinstance(domain, Range) or get_origin(annotation) is not Literal:
            continue
        allowed = [value for value in get_args(annotation) if domain.low <= value <= domain.high]
        if not domain.whole or len(allowed) < domain.high - domain.low + 1:
            faults.append(
                f"{name}: must be one of {', '.join(map(str, get_args(annotation)))}, but a range from {domain.low} to "
                f"{domain.high} holds other numbers too; give `choices: {allowed}`"
            )
    return faults


def _check_min_learning_rate(space: SearchSpace) -> None:
    """Refuse a space with a configuration whose `min_learning_rate` is above its learning rate. Raises InputError."""
    _, schedules = NEEDED["min_learning_rate"]
    for values_of in _values_together(space, ("schedule", "learning_rate", "min_learning_rate")):
        lowest, highest_minimum = (
            min(_numbers(values_of["learning_rate"])),
            max(_numbers(values_of["min_learning_rate"])),
        )
        if highest_minimum <= lowest or not any(schedule in schedules for schedule in values_of["schedule"]):
            continue
        advice = "lower one or raise the other"
        for name, value in (("learning_rate", lowest), ("min_learning_rate", highest_minimum)):
            if value not in space.domain(name):
                advice = (
                    f"{name} is {value:g}, the baseline's, where its `when` does not hold: "
                    "leave out this `when`, or change the other"
                )
        raise InputError(
            f"{space.source}: not a valid search space",
            [
                f"min_learning_rate <= learning_rate must hold, but they can be "
                f"(min_learning_rate={highest_minimum:g}, learning_rate={lowest:g}); {advice}"
            ],
        )


def _numbers(values: Iterable[Value]) -> list[float]:
    return [value for value in values if isinstance(value, int | float)]


# A case: the inactive hyperparameters, and the possible values of the requested ones.
_Case = tuple[frozenset[str], tuple[tuple[str, tuple[Value, ...]], ...]]


def _values_together(space: SearchSpace, names: Sequence[str]) -> list[dict[str, tuple[Value, ...]]]:
    """Return the values that hyperparameters can have at the same time, by their conditions.

    Each dictionary holds values of all `names`; each value of one can stand beside each of another. Of a range it holds
    the bounds.
    """
    return [dict(chosen) for _, chosen in _cases(space, names)]


def _cases(space: SearchSpace, names: Sequence[str]) -> Iterable[_Case]:
    """Return the cases of a space that differ in the values of `names`, or in which of the dimensions are inactive.

    Only those dimensions count that are among `names`, or decide whether others that count are active.
    """
    needed: dict[str, Dimension] = {}  # `names` and what decides whether they are active, children before parents
    for name, dimension in reversed(list(space.dimensions.items())):
        if name in names or any(name in child.when for child in needed.values()):
            needed[name] = dimension
    cases: dict[_Case, None] = {(frozenset(), ()): None}  # equal ones are one
    for name in [*(name for name in TrialConfig.model_fields if name not in space.dimensions), *reversed(needed)]:
        allowed = {child: dimension.when[name] for child, dimension in needed.items() if name in dimension.when}
        earlier, cases = cases, {}
        for inactive, chosen in earlier:
            searched = name in space.dimensions and name not in inactive
            domain = space.dimensions[name].domain if searched else Choices((space.defaults[name],))
            for made_inactive, values in _by_effect(domain, allowed).items():
                cases[inactive | made_inactive, (*chosen, (name, values)) if name in names else chosen] = None
    return cases


def _by_effect(
    domain: Choices | Range, allowed: Mapping[str, tuple[Value, ...]]
) -> dict[frozenset[str], tuple[Value, ...]]:
    """Return the values of a domain by the dimensions that they make inactive.

    Of a range these are the numbers that conditions name, and the lowest and the highest of the others.

    Args:
        domain: The values of a hyperparameter.
        allowed: The values beside which each other dimension is active.
    """
    mentioned = {value: None for each in allowed.values() for value in each if value in domain}
    values = domain.values if isinstance(domain, Choices) else () if _is_continuous(domain) else tuple(mentioned)
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


class _TooManyError(Exception):
    """There are more configurations than asked for."""


def different_configurations(space: SearchSpace, limit: int) -> dict[Identity, dict[str, Value]] | None:
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
    space: SearchSpace, names: Sequence[str], values: dict[str, Value], whole: Mapping[str, Value], limit: int
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
        choices = [group[0] for group in _by_effect(dimension.domain, allowed).values()]
    for value in choices:
        yield from _each_configuration(space, later, {**values, name: value}, {**whole, name: value}, limit)


def _values_of(domain: Choices | Range, limit: int) -> Sequence[Value]:
    """Return all values of a domain. Raises _TooManyError if it has more than `limit`."""
    if isinstance(domain, Choices):
        return domain.values
    if not domain.whole or domain.high - domain.low >= limit:
        raise _TooManyError
    return range(int(domain.low), int(domain.high) + 1)


def _is_single(domain: Choices | Range) -> bool:
    return isinstance(domain, Choices) and len(domain.values) == 1


def vain_values(space: SearchSpace) -> dict[str, tuple[tuple[Value, ...], bool]]:
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
            for inactive, chosen in _cases(space, (name, other))
            if name not in inactive
            for value in dict(chosen)[other]
        }
        without_effect = tuple(value for value in beside if value not in allowed)
        if without_effect:
            vain[name] = without_effect, len(without_effect) < len(beside)
    return vain
