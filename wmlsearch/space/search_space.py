"""`SearchSpace`: the content of a hyperparameter file, in which each name has one value, choices or a range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wmlsearch.config import TrialConfig
from wmlsearch.errors import InputError, unknown_name
from wmlsearch.space.conditions import parents_first
from wmlsearch.space.configurations import different_configurations
from wmlsearch.space.domains import Choices, Dimension, Dimensions, Value, describe, is_single
from wmlsearch.space.effects import has_effect
from wmlsearch.space.entries import advice_for_list, read_dimension, value_faults
from wmlsearch.space.faults import (
    conditions_that_never_hold,
    impossible_conditions,
    learning_rate_faults,
    ranges_with_gaps,
)
from wmlsearch.space.shipped_files import shipped, space_file
from wmlsearch.space.yaml_files import read_yaml


@dataclass(frozen=True)
class SearchSpace(Dimensions):
    """A validated hyperparameter file: `fixed` values, and `dimensions` to search.

    A space can be pickled and sent to any process.
    """

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
            several = [name for name, dimension in self.dimensions.items() if not is_single(dimension.domain)]
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
        faults = [*ranges_with_gaps(space), *conditions_that_never_hold(space)]
        if space.dimensions and not faults:
            faults = learning_rate_faults(space)
        if faults:
            raise InputError(f"{source}: not a valid search space", faults)
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
                faults += [f"{fault}{advice_for_list(entry)}" for fault in value_faults(name, entry)]
                fixed[name] = entry
            else:
                dimension, dimension_faults = read_dimension(name, entry)
                faults += dimension_faults
                if dimension:
                    dimensions[name] = dimension
        ordered, cycle_faults = parents_first(dimensions)
        space = cls(fixed, ordered, source)
        faults += [*impossible_conditions(space), *cycle_faults]
        if faults:
            raise InputError(f"{source}: not a valid search space", faults)
        if not space.dimensions:
            space.single_configuration()  # checks the rules that join several values
        return space

    @classmethod
    def read(cls, name_or_path: str | Path) -> SearchSpace:
        """Read a hyperparameter file by its path, or a shipped one by its name. Raises InputError."""
        return cls.from_mapping(read_yaml(space_file(name_or_path)), str(name_or_path))


def is_shipped(space: SearchSpace) -> bool:
    """Return whether a space is a shipped one by its name, with the ranges of this version."""
    name = space.source.removesuffix(".yaml")
    if "/" in name or Path(space.source).is_file() or not (shipped() / f"{name}.yaml").is_file():
        return False
    return space == SearchSpace.read(space.source)
