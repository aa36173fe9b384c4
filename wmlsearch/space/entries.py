"""The entries of a hyperparameter file: a value, choices or a range, with the conditions of `when`."""

from __future__ import annotations

from typing import Any, get_args

from wmlsearch.config import TrialConfig, float_fields
from wmlsearch.errors import InputError, short_repr, unknown_name
from wmlsearch.space.domains import Choices, Dimension, Range, Value

MAX_CHOICES = 1000  # of a hyperparameter
_KEYS = ("choices", "low", "high", "log", "when")  # of a searched hyperparameter in a file


def value_faults(name: str, value: Any) -> list[str]:
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


def advice_for_list(entry: Any) -> str:
    """Return what to write in the place of a bare list of values, or "" for another entry."""
    if not isinstance(entry, list | tuple):
        return ""
    plain = entry and all(isinstance(value, int | float | str) for value in entry)
    text = ", ".join(value if isinstance(value, str) else short_repr(value) for value in entry) if plain else "..."
    return f"; give `{{choices: [{text if len(text) <= 100 else '...'}]}}` to search several values"


def read_dimension(name: str, entry: dict[str, Any]) -> tuple[Dimension | None, list[str]]:
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
        faults += value_faults(name, choice)
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
        faults += value_faults(name, bound)
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
            faults += [f"{name}: `when`: {fault}" for fault in value_faults(parent, value)]
    return conditions, faults
