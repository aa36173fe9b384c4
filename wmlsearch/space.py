"""`SearchSpace`: the values and ranges of a hyperparameter file. All values make a point, some ranges a space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from wmlsearch.config import InputError, TrialConfig, read_yaml, short_repr, unknown_name

Value = int | float | str | bool
MAX_CHOICES = 1000  # of a hyperparameter


@dataclass(frozen=True)
class Choices:
    """One of a few values."""

    values: tuple[Value, ...]

    def sample(self, rng: np.random.Generator) -> Value:
        return self.values[int(rng.integers(len(self.values)))]

    def __contains__(self, value: object) -> bool:
        return any(isinstance(value, bool) is isinstance(choice, bool) and value == choice for choice in self.values)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole numbers if both bounds are."""

    low: int | float
    high: int | float
    log: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def sample(self, rng: np.random.Generator) -> Value:
        if self.whole and not self.log:
            return int(rng.integers(int(self.low), int(self.high) + 1))
        if self.whole:  # each whole number owns the half unit around it, so the ends get their full share
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
    """What one hyperparameter may be, and on which values of others it depends."""

    domain: Choices | Range
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def active(self, values: Mapping[str, Any]) -> bool:
        return all(values.get(parent) in allowed for parent, allowed in self.when.items())


@dataclass(frozen=True)
class SearchSpace:
    """A hyperparameter file, validated: `fixed` values and `dimensions` to search, parents before their children.

    It holds plain values only, so it can be pickled and sent to any process.
    """

    fixed: Mapping[str, Value]
    dimensions: Mapping[str, Dimension]
    source: str = "space"

    def to_mapping(self) -> dict[str, Any]:
        """The mapping of a hyperparameter file that gives this space again."""
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
        return not self.dimensions

    def single_configuration(self) -> TrialConfig:
        """The one configuration of a point. Raises InputError for a space."""
        if self.dimensions:
            raise InputError(
                f"{self.source}: a point is wanted (all values), but {', '.join(self.dimensions)} "
                f"{'are ranges' if len(self.dimensions) > 1 else 'is a range'}: use it with `wmlsearch tune`"
            )
        return TrialConfig.from_mapping(self.fixed, self.source)

    def sample(self, rng: np.random.Generator) -> dict[str, Value]:
        """Values of the active dimensions, drawn independently and uniformly (log-uniformly where said)."""
        values: dict[str, Value] = {}
        defaults = self.defaults
        for name, dimension in self.dimensions.items():
            if dimension.active({**defaults, **values}):
                values[name] = dimension.domain.sample(rng)
        return values

    @property
    def defaults(self) -> dict[str, Value]:
        """What a name has that isn't drawn: the fixed value, or else the paper's."""
        return {**TrialConfig().model_dump(), **self.fixed}

    def config(self, values: Mapping[str, Any]) -> TrialConfig:
        """The configuration made of drawn `values`, the fixed ones and the paper's. Raises InputError."""
        return TrialConfig.from_mapping({**self.fixed, **values}, self.source)

    def active_values(self, config: TrialConfig) -> dict[str, Value]:
        """The active dimensions' values of a configuration: what `config()` would need to make it."""
        whole = config.model_dump()
        return {name: whole[name] for name, dimension in self.dimensions.items() if dimension.active(whole)}

    def mismatches(self, config: TrialConfig) -> list[str]:
        """Why `config` does not lie in this space, a line for each hyperparameter; empty where it does."""
        whole, reasons = config.model_dump(), []
        for name, value in self.defaults.items():
            dimension = self.dimensions.get(name)
            if dimension is None or not dimension.active(whole):
                if whole[name] != value and _has_effect(name, whole):
                    reasons.append(f"{name} is fixed at {value}, not {whole[name]}")
            elif whole[name] not in dimension.domain:
                reasons.append(f"{name}={whole[name]} is not in {describe(dimension.domain)}")
        return reasons

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "space") -> SearchSpace:
        """Validate the mapping of a hyperparameter file. Raises InputError with all faults at once."""
        faults: list[str] = []
        fixed: dict[str, Value] = {}
        dimensions: dict[str, Dimension] = {}
        known = list(TrialConfig.model_fields)
        if len(values) > 10 * len(known):  # each unknown one is compared with all known ones
            raise InputError(f"{source}: holds {len(values)} names, but there are {len(known)} hyperparameters")
        for name, entry in values.items():
            if name not in known:
                faults.append(unknown_name(name, known))
            elif not isinstance(entry, dict):
                faults += _value_faults(name, entry)
                fixed[name] = entry
            else:
                dimension, found = _dimension(name, entry)
                faults += found
                if dimension:
                    dimensions[name] = dimension
        ordered, found = _parents_first(dimensions, {**TrialConfig().model_dump(), **fixed})
        space = cls(fixed, ordered, source)
        if faults or found:
            raise InputError(f"{source}: not a valid search space", faults + found)
        if space.is_single_configuration:
            space.single_configuration()  # rules that join several values
        else:
            _check_min_learning_rate(space)
        return space

    @classmethod
    def read(cls, name_or_path: str | Path) -> SearchSpace:
        """A hyperparameter file by path, or a shipped one by name (`paper`, `unet`, `quick`). Raises InputError."""
        path = Path(name_or_path)
        name = str(name_or_path).removesuffix(".yaml")
        ours = shipped() / f"{name}.yaml"
        if path.is_dir() and "/" not in name and ours.is_file():  # a folder that happens to be called `paper`
            path = ours
        elif not path.exists():
            path = ours
            if "/" in name or not path.is_file():
                names = ", ".join(sorted(p.stem for p in shipped().glob("*.yaml")))
                raise InputError(f"{name_or_path}: no such file, and not a shipped space: those are {names}")
        return cls.from_mapping(read_yaml(path), str(name_or_path))


def shipped() -> Path:
    """The folder of the shipped hyperparameter files: inside the wheel, or `search_spaces/` of a checkout."""
    installed = Path(str(resources.files("wmlsearch"))) / "search_spaces"
    return installed if installed.is_dir() else installed.parents[1] / "search_spaces"


def describe(domain: Choices | Range) -> str:
    if isinstance(domain, Choices):
        return f"[{', '.join(str(value) for value in domain.values)}]"
    return f"{domain.low:g} .. {domain.high:g}" + (" (log)" if domain.log else "")


# Hyperparameters that mean something only under one schedule: elsewhere a difference in them is none.
_BELONGS_TO = {
    "plateau_patience": ("plateau",),
    "plateau_factor": ("plateau",),
    "warmup_fraction": ("cosine",),
    "step_fraction": ("step",),
    "step_factor": ("step",),
    "min_learning_rate": ("plateau", "cosine"),
}


def _has_effect(name: str, values: Mapping[str, Any]) -> bool:
    return name not in _BELONGS_TO or values["schedule"] in _BELONGS_TO[name]


def _value_faults(name: str, value: Any) -> list[str]:
    try:
        # under a schedule without a floor: whether floor and rate fit together is asked of the whole space
        TrialConfig.from_mapping({"min_learning_rate": 0.0, "schedule": "constant", name: value})
    except InputError as error:
        return list(error.faults)
    return []


def _dimension(name: str, entry: dict[str, Any]) -> tuple[Dimension | None, list[str]]:
    """A dimension read from `{choices: [...]}` or `{low:, high:, log:}` with an optional `when:`, and its faults."""
    rest = dict(entry)
    when, faults = _conditions(name, rest.pop("when", {}))
    if "choices" in rest:
        choices = rest.pop("choices")
        faults += [f"{name}: `choices` stands alone, but got {', '.join(rest)} beside it"] if rest else []
        if not isinstance(choices, list) or not choices:
            return None, [
                *faults,
                f"{name}: `choices` must be a list of at least one value, but got {short_repr(choices)}",
            ]
        if len(choices) > MAX_CHOICES:
            return None, [*faults, f"{name}: `choices` may have {MAX_CHOICES} values, but has {len(choices)}"]
        for choice in choices:
            faults += _value_faults(name, choice)
        # 1 and 1.0 are one value of a float hyperparameter: bring them to the type that TrialConfig gives
        as_float = isinstance(TrialConfig().model_dump()[name], float)
        typed = tuple(float(c) if as_float and type(c) is int and not faults else c for c in choices)
        if not faults and len({repr(choice) for choice in typed}) < len(typed):
            faults.append(f"{name}: `choices` has a value twice: {short_repr(choices)}")
        return (None if faults else Dimension(Choices(typed), when)), faults
    low, high, log = rest.pop("low", None), rest.pop("high", None), rest.pop("log", False)
    faults += [f"{name}: " + unknown_name(key, ["choices", "low", "high", "log", "when"]) for key in rest]
    if low is None or high is None:
        return None, [*faults, f"{name}: give a value, `choices`, or both `low` and `high`; got {short_repr(entry)}"]
    if any(type(bound) not in (int, float) for bound in (low, high)):
        got = f"(low={short_repr(low)}, high={short_repr(high)})"
        return None, [*faults, f"{name}: `low` and `high` must be numbers, but got {got}"]
    if type(log) is not bool:
        faults.append(f"{name}: `log` must be true or false, but got {short_repr(log)}")
    if low >= high:
        faults.append(f"{name}: low < high must hold, but got (low={short_repr(low)}, high={short_repr(high)})")
    elif log and low <= 0:
        faults.append(f"{name}: low > 0 must hold with log: true, but got low={short_repr(low)}")
    for bound in (low, high):
        faults += _value_faults(name, bound)
    if isinstance(TrialConfig().model_dump()[name], float) and not faults:
        low, high = float(low), float(high)
    return (None if faults else Dimension(Range(low, high, log), when)), faults


def _conditions(name: str, when: Any) -> tuple[dict[str, tuple[Value, ...]], list[str]]:
    if not isinstance(when, dict):
        return {}, [f"{name}: `when` must be {{name: value}} or {{name: [values]}}, but got {short_repr(when)}"]
    conditions: dict[str, tuple[Value, ...]] = {}
    faults = []
    for parent, allowed in when.items():
        if parent not in TrialConfig.model_fields:
            faults.append(f"{name}: `when`: {unknown_name(parent, list(TrialConfig.model_fields))}")
            continue
        conditions[parent] = tuple(allowed) if isinstance(allowed, list) else (allowed,)
        if not 0 < len(conditions[parent]) <= MAX_CHOICES:
            got = len(conditions[parent])
            faults.append(f"{name}: `when`: {parent} must be one value or a list of 1 to {MAX_CHOICES}, but got {got}")
            continue
        for value in conditions[parent]:
            faults += [f"{name}: `when`: {fault}" for fault in _value_faults(parent, value)]
    return conditions, faults


def _parents_first(
    dimensions: dict[str, Dimension], defaults: Mapping[str, Any]
) -> tuple[dict[str, Dimension], list[str]]:
    """The dimensions in an order in which each stands behind those its condition names; faults of the conditions."""
    ordered: dict[str, Dimension] = {}
    faults = []
    waiting = dict(dimensions)
    while waiting:
        ready = [n for n, d in waiting.items() if not any(parent in waiting for parent in d.when)]
        if not ready:
            faults.append(f"`when` conditions run in a circle: {' -> '.join([*waiting, next(iter(waiting))])}")
            break
        for name in ready:
            dimension = ordered[name] = waiting.pop(name)
            for parent, allowed in dimension.when.items():
                possible = dimensions[parent].domain if parent in dimensions else Choices((defaults[parent],))
                if not any(value in possible for value in allowed):
                    faults.append(
                        f"{name}: `when` can never hold: {parent} is in {describe(possible)}, "
                        f"never {' or '.join(str(value) for value in allowed)}"
                    )
    return ordered, faults


def _check_min_learning_rate(space: SearchSpace) -> None:
    """The lowest learning rate must not lie below the highest floor, or some trials could not be made."""
    schedules = space.dimensions["schedule"].domain if "schedule" in space.dimensions else None
    possible = schedules.values if isinstance(schedules, Choices) else (space.defaults["schedule"],)
    if not set(possible) & set(_BELONGS_TO["min_learning_rate"]):
        return
    bounds = {}
    for name in ("learning_rate", "min_learning_rate"):
        domain = space.dimensions[name].domain if name in space.dimensions else Choices((space.defaults[name],))
        values = domain.values if isinstance(domain, Choices) else (domain.low, domain.high)
        bounds[name] = [float(value) for value in values]
    lowest, floor = min(bounds["learning_rate"]), max(bounds["min_learning_rate"])
    if floor > lowest:
        raise InputError(
            f"{space.source}: not a valid search space",
            [
                f"min_learning_rate <= learning_rate must hold, but they can be (min_learning_rate={floor:g}, "
                f"learning_rate={lowest:g}): lower one or raise the other"
            ],
        )
