"""What is wrong with a space as a whole, though each of its entries is right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args, get_origin

from wmlsearch.config import TrialConfig
from wmlsearch.space.conditions import find_cases
from wmlsearch.space.domains import Choices, Dimensions, Range, Value, describe, is_continuous, shown
from wmlsearch.space.effects import NEEDED


def impossible_conditions(space: Dimensions) -> list[str]:
    """Return a fault for each condition on one hyperparameter that it never meets, whatever the others are."""
    faults = []
    for name, dimension in space.dimensions.items():
        for parent, allowed in dimension.when.items():
            domain, default = space.domain(parent), Choices((space.defaults[parent],))
            has_condition = parent in space.dimensions and space.dimensions[parent].when
            if any(value in domain or (has_condition and value in default) for value in allowed):
                continue
            otherwise = f", or {shown(default.values[0])} where its `when` does not hold" if has_condition else ""
            faults.append(
                f"{name}: `when` can never hold: {parent} is in {describe(domain)}{otherwise}, "
                f"never {' or '.join(map(shown, allowed))}"
            )
    return faults


def conditions_that_never_hold(space: Dimensions) -> list[str]:
    """Return a fault for each dimension that is active in no configuration of the space, by all conditions together."""
    faults = []
    for name, dimension in space.dimensions.items():
        if not dimension.when or any(name not in case.inactive for case in find_cases(space, [name])):
            continue
        asked = [f"{parent} {' or '.join(map(shown, allowed))}" for parent, allowed in dimension.when.items()]
        ranges = [parent for parent in dimension.when if is_continuous(space.domain(parent))]
        if ranges:
            rule = f"a number drawn from {describe(space.domain(ranges[0]))} never equals a given one; give `choices`"
            faults.append(f"{name}: `when` can never hold: {' and '.join(asked)} asks for a number, but {rule}")
        else:
            faults.append(f"{name}: `when` can never hold: {' and '.join(asked)} never occur together")
    return faults


def ranges_with_gaps(space: Dimensions) -> list[str]:
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


def learning_rate_faults(space: Dimensions) -> list[str]:
    """Return a fault if `min_learning_rate` is above the learning rate in a configuration of the space."""
    _, schedules = NEEDED["min_learning_rate"]
    for case in find_cases(space, ("schedule", "learning_rate", "min_learning_rate")):
        lowest = min(_numbers(case.values["learning_rate"]))
        highest_minimum = max(_numbers(case.values["min_learning_rate"]))
        if highest_minimum <= lowest or not any(schedule in schedules for schedule in case.values["schedule"]):
            continue
        advice = "lower one or raise the other"
        for name, value in (("learning_rate", lowest), ("min_learning_rate", highest_minimum)):
            if value not in space.domain(name):
                advice = (
                    f"{name} is {value:g}, the baseline's, where its `when` does not hold: "
                    "leave out this `when`, or change the other"
                )
        return [
            "min_learning_rate <= learning_rate must hold, but they can be "
            f"(min_learning_rate={highest_minimum:g}, learning_rate={lowest:g}); {advice}"
        ]
    return []


def _numbers(values: Iterable[Value]) -> list[float]:
    return [value for value in values if isinstance(value, int | float)]
