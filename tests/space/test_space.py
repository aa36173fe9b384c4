"""Search spaces: the grammar and its faults, sampling, and which configurations are inside."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmlsearch.config import TrialConfig
from wmlsearch.errors import InputError
from wmlsearch.space import (
    Choices,
    Dimension,
    Range,
    SearchSpace,
    describe,
    different_configurations,
    shipped,
)
from wmlsearch.space.effects import NEEDED, identity
from wmlsearch.workflows.new_search import space_to_search

WHOLE = {
    "depth": {"choices": [3, 4, 5]},
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "dropout": {"low": 0, "high": 0.5},
    "batch_size": {"low": 2, "high": 32, "log": True},
    "plateau_patience": {"low": 2, "high": 10, "when": {"schedule": "plateau"}},
    "warmup_fraction": {"low": 0.0, "high": 0.3, "when": {"schedule": ["cosine"], "augment": ["flip", "affine"]}},
    "schedule": {"choices": ["plateau", "cosine"]},
    "augment": {"choices": ["none", "flip"], "when": {"depth": [3, 4]}},
    "early_stop_patience": 7,
}


def faults(**values: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        SearchSpace.from_mapping(values, "my.yaml")
    assert caught.value.headline == "my.yaml: not a valid search space"
    return list(caught.value.faults)


def test_grammar() -> None:
    space = SearchSpace.from_mapping(WHOLE)
    assert dict(space.fixed) == {"early_stop_patience": 7}
    assert space.dimensions["depth"] == Dimension(Choices((3, 4, 5)))
    assert space.dimensions["learning_rate"] == Dimension(Range(1e-4, 1e-2, log=True))
    assert space.dimensions["dropout"] == Dimension(Range(0.0, 0.5))
    assert not space.dimensions["dropout"].domain.whole
    assert space.dimensions["batch_size"].domain.whole
    assert space.dimensions["plateau_patience"].when == {"schedule": ("plateau",)}
    order = list(space.dimensions)
    assert order.index("schedule") < order.index("plateau_patience")
    assert order.index("depth") < order.index("augment") < order.index("warmup_fraction")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"depth": {"low": 4, "high": 3}}, "depth: low < high must hold, but got (low=4, high=3)"),
        (
            {"depth": {"low": 3, "high": 3}},
            "depth: low < high must hold, but got (low=3, high=3); give the value itself: `depth: 3`",
        ),
        (
            {"depth": [3, 4]},
            "depth must be a valid integer, but got [3, 4]; give `{choices: [3, 4]}` to search several values",
        ),
        (
            {"norm": ("batch", "instance")},
            "norm must be batch or instance, but got ('batch', 'instance'); give `{choices: [batch, instance]}` to "
            "search several values",
        ),
        (
            {"depth": [[3], 4]},
            "depth must be a valid integer, but got [[3], 4]; give `{choices: [...]}` to search several values",
        ),
        (
            {"lesion_share": {"choices": ["none", 0.3]}},
            "lesion_share must be a valid number, but got 'none'; write `null` for no value",
        ),
        ({"dropout": "none"}, "dropout must be a valid number, but got 'none'"),
        (
            {"dropout": {"low": 0, "high": 0.5, "log": True}},
            "dropout: low > 0 must hold with log: true, but got low=0",
        ),
        ({"depth": {"low": 1, "high": 3, "log": "yes"}}, "depth: `log` must be true or false, but got 'yes'"),
        ({"depth": {"low": 1.5, "high": 3}}, "depth must be a valid integer, but got 1.5"),
        ({"depth": {"low": 2, "high": 9}}, "depth must be less than or equal to 8, but got 9"),
        ({"depth": {"low": "2", "high": 3}}, "depth: `low` and `high` must be numbers, but got (low='2', high=3)"),
        ({"depth": {"low": True, "high": 3}}, "depth: `low` and `high` must be numbers, but got (low=True, high=3)"),
        (
            {"learning_rate": {"low": 1e-4, "high": float("inf")}},
            "learning_rate must be a finite number, but got inf",
        ),
        ({"learning_rate": {"low": 1e-3, "high": 10**400}}, f"learning_rate must be a valid number, but got {10**400}"),
        ({"depth": {"low": 2}}, "depth: give a value, `choices`, or both `low` and `high`; got {'low': 2}"),
        ({"depth": {}}, "depth: give a value, `choices`, or both `low` and `high`; got {}"),
        (
            {"depth": {"low": 1, "high": 3, "step": 1}},
            "depth: unknown name 'step': valid names are choices, low, high, log, when",
        ),
        ({"depth": {"low": 1, "high": 3, "hihg": 1}}, "depth: unknown name 'hihg': did you mean 'high'?"),
        ({"depth": {"choices": []}}, "depth: `choices` must be a list of at least one value, but got []"),
        ({"depth": {"choices": 3}}, "depth: `choices` must be a list of at least one value, but got 3"),
        ({"depth": {"choices": [3, 4, 3]}}, "depth: `choices` has a value twice: [3, 4, 3]"),
        ({"dropout": {"choices": [0, 0.0]}}, "dropout: `choices` has a value twice: [0, 0.0]"),
        ({"norm": {"choices": ["batch", "layer"]}}, "norm must be batch or instance, but got 'layer'"),
        ({"depth": {"choices": [3], "low": 2}}, "depth: only `when` is allowed beside `choices`, but got low"),
        (
            {"plateau_patience": {"low": 2, "high": 9, "when": {"shedule": "plateau"}}},
            "plateau_patience: `when`: unknown name 'shedule': did you mean 'schedule'?",
        ),
        (
            {"plateau_patience": {"low": 2, "high": 9, "when": {"schedule": "plato"}}},
            "plateau_patience: `when`: schedule must be plateau, cosine, poly, step, onecycle or constant, "
            "but got 'plato'",
        ),
        (
            {"plateau_patience": {"low": 2, "high": 9, "when": "plateau"}},
            "plateau_patience: `when` must be {name: value} or {name: [values]}, but got 'plateau'",
        ),
        (
            {"plateau_patience": {"low": 2, "high": 9, "when": {"plateau_patience": 3}}},
            "`when` conditions form a cycle: plateau_patience -> plateau_patience",
        ),
        (
            {"warmup_fraction": {"low": 0.0, "high": 0.2, "when": {"schedule": "cosine"}}},
            "warmup_fraction: `when` can never hold: schedule is in [plateau], never cosine",
        ),
        (
            {
                "schedule": {"choices": ["plateau", "step"]},
                "warmup_fraction": {"low": 0.0, "high": 0.2, "when": {"schedule": ["cosine", "constant"]}},
            },
            "warmup_fraction: `when` can never hold: schedule is in [plateau, step], never cosine or constant",
        ),
        (
            {"batch_size": {"low": 2, "high": 8, "when": {"depth": 6}}, "depth": {"low": 2, "high": 5}},
            "batch_size: `when` can never hold: depth is in 2 .. 5, never 6",
        ),
        (
            {"learning_rate": {"low": 1e-6, "high": 1e-3}},
            "min_learning_rate <= learning_rate must hold, but they can be (min_learning_rate=1e-05, "
            "learning_rate=1e-06); lower one or raise the other",
        ),
        (
            {
                "schedule": {"choices": ["plateau", "cosine"]},
                "learning_rate": {"low": 1e-6, "high": 1e-3, "log": True},
                "min_learning_rate": {"low": 1e-8, "high": 1e-7, "log": True, "when": {"schedule": "cosine"}},
            },
            "min_learning_rate <= learning_rate must hold, but they can be (min_learning_rate=1e-05, "
            "learning_rate=1e-06); min_learning_rate is 1e-05, the baseline's, where its `when` does not hold: "
            "leave out this `when`, or change the other",
        ),
        (
            {"input_slices": {"low": 1, "high": 5}},
            "input_slices: must be one of 1, 3, 5, but a range from 1 to 5 holds other numbers too; give "
            "`choices: [1, 3, 5]`",
        ),
        (
            {"up_kernel": {"low": 2.0, "high": 3}},
            "up_kernel: must be one of 2, 3, but a range from 2.0 to 3 holds other numbers too; give `choices: [2, 3]`",
        ),
        ({"dropuot": 0.1, "depth": {"choices": [3]}}, "unknown name 'dropuot': did you mean 'dropout'?"),
    ],
)
def test_the_message_of_each_fault(values: dict[str, Any], expected: str) -> None:
    assert faults(**values) == [expected]


NEVER = "`when` can never hold: "


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"lesion_share": {"choices": [0.3, 0.6]}, "ema": {"choices": [0.0, 0.9], "when": {"lesion_share": None}}},
            f"ema: {NEVER}lesion_share is in [0.3, 0.6], never null",
        ),
        (
            {
                "loss": {"choices": ["bce", "bce_dice"]},
                "lesion_share": {"choices": [0.3, 0.6], "when": {"loss": "bce_dice"}},
                "ema": {"choices": [0.0, 0.9], "when": {"lesion_share": 0.5}},
            },
            f"ema: {NEVER}lesion_share is in [0.3, 0.6], or null where its `when` does not hold, never 0.5",
        ),
        (
            {
                "loss": {"choices": ["bce", "bce_dice"]},
                "dice_over": {"choices": ["batch"], "when": {"loss": "bce_dice"}},
                "ema": {"choices": [0.0, 0.9], "when": {"loss": "bce", "dice_over": "batch"}},
            },
            f"ema: {NEVER}loss bce and dice_over batch never occur together",
        ),
        (
            {
                "loss": {"choices": ["bce", "bce_dice"]},
                "lesion_share": {"choices": [0.3, 0.6], "when": {"loss": "bce_dice"}},
                "ema": {"choices": [0.0, 0.9], "when": {"loss": "bce_dice", "lesion_share": None}},
            },
            f"ema: {NEVER}loss bce_dice and lesion_share null never occur together",
        ),
        (
            {"dropout": {"low": 0.0, "high": 0.5}, "ema": {"choices": [0.0, 0.9], "when": {"dropout": [0.0, 0.1]}}},
            f"ema: {NEVER}dropout 0.0 or 0.1 asks for a number, but a number drawn from 0 .. 0.5 never equals a given "
            "one; give `choices`",
        ),
    ],
)
def test_a_condition_that_never_holds(values: dict[str, Any], expected: str) -> None:
    assert faults(**values) == [expected]
    if "together" in expected or "drawn" in expected:
        read = SearchSpace.from_record(values, "search.json")
        assert "ema" in read.dimensions, "as older versions took it"


def test_a_condition_on_the_value_that_a_hyperparameter_has_where_its_own_does_not_hold() -> None:
    space = SearchSpace.from_mapping(
        {
            "loss": {"choices": ["bce", "bce_dice"]},
            "lesion_share": {"choices": [0.3, 0.6], "when": {"loss": "bce_dice"}},
            "dropout": {"low": 0.2, "high": 0.5, "when": {"loss": "bce_dice"}},
            "ema": {"choices": [0.5, 0.9], "when": {"lesion_share": None, "dropout": 0.1}},
            "depth": {"low": 2, "high": 4, "when": {"batch_size": 3}},
            "batch_size": {"low": 2, "high": 4},
        }
    )
    drawn = [space.sample(np.random.default_rng(seed)) for seed in range(50)]
    assert {("ema" in values, values["loss"]) for values in drawn} == {(True, "bce"), (False, "bce_dice")}
    assert any("depth" in values for values in drawn)


def test_names_that_are_no_text_and_tuples_of_python() -> None:
    names = "valid names are choices, low, high, log, when"
    for values, expected in (
        ({1: 2}, "unknown name 1: valid names are input_slices, intensity, "),
        ({"depth": {1: 2, "low": 2, "high": 3}}, f"depth: unknown name 1: {names}"),
        ({"depth": {"choices": [3, 4], 1: 2}}, "depth: only `when` is allowed beside `choices`, but got 1"),
        (
            {"depth": {"choices": [3, 4], "when": {None: 2}}},
            "depth: `when`: unknown name None: valid names are input_slices, ",
        ),
    ):
        with pytest.raises(InputError) as caught:
            SearchSpace.from_mapping(values)
        assert len(caught.value.faults) == 1
        assert caught.value.faults[0].startswith(expected)
    with pytest.raises(InputError, match="unknown name 1: valid names are input_slices"):
        TrialConfig.from_mapping({1: 2})  # type: ignore[dict-item]
    space = SearchSpace.from_mapping(
        {"depth": {"choices": (3, 4)}, "ema": {"choices": (0.0, 0.9), "when": {"depth": (3,)}}}
    )
    assert space == SearchSpace.from_mapping(space.to_mapping())


def test_a_cycle_of_two_conditions() -> None:
    assert faults(
        plateau_patience={"low": 2, "high": 3, "when": {"plateau_factor": 0.5}},
        plateau_factor={"choices": [0.1, 0.5], "when": {"plateau_patience": 2}},
    ) == ["`when` conditions form a cycle: plateau_patience -> plateau_factor -> plateau_patience"]


def test_all_faults_at_once() -> None:
    assert faults(
        dropuot=0.1,
        depth={"low": 4, "high": 3},
        norm="layer",
        loss={"choices": ["bce", "bce"]},
        warmup_fraction={"low": 0.0, "high": 0.2, "when": {"schedule": "cosine"}},
    ) == [
        "unknown name 'dropuot': did you mean 'dropout'?",
        "depth: low < high must hold, but got (low=4, high=3)",
        "norm must be batch or instance, but got 'layer'",
        "loss: `choices` has a value twice: ['bce', 'bce']",
        "warmup_fraction: `when` can never hold: schedule is in [plateau], never cosine",
    ]


def test_a_range_whose_numbers_are_all_allowed() -> None:
    assert SearchSpace.from_mapping({"up_kernel": {"low": 2, "high": 3}}).domain("up_kernel") == Range(2, 3)


def test_the_folder_of_a_search_that_began_with_a_range_with_gaps_can_be_read() -> None:
    values = {"input_slices": {"low": 1, "high": 5}}
    assert SearchSpace.from_record(values, "search.json").domain("input_slices") == Range(1, 5)


def test_a_schedule_without_a_minimum_allows_any_learning_rate() -> None:
    space = SearchSpace.from_mapping(
        {"learning_rate": {"low": 1e-6, "high": 1e-3}, "schedule": {"choices": ["step", "constant"]}}
    )
    assert space.config({"learning_rate": 1e-6, "schedule": "step"}).learning_rate == 1e-6


def test_learning_rates_are_compared_where_they_occur_together() -> None:
    rates = {"low": 1e-6, "high": 1e-3, "log": True}
    minimum = {"low": 1e-8, "high": 1e-7, "log": True}
    high, high_minimum = {"low": 1e-2, "high": 1e-1}, {"low": 4e-3, "high": 5e-3}
    sgd = {"when": {"optimizer": "sgd"}}
    optimizers = {"choices": ["adam", "sgd"]}
    for values in (
        {
            "schedule": {"choices": ["constant", "cosine"]},
            "learning_rate": rates,
            "min_learning_rate": {**minimum, "when": {"schedule": "cosine"}},
        },
        {
            "schedule": {"choices": ["constant", "cosine"]},
            "learning_rate": {**rates, "when": {"schedule": "constant"}},
        },
        {"optimizer": optimizers, "learning_rate": high | sgd, "min_learning_rate": high_minimum | sgd},
        {
            "depth": {"low": 3, "high": 4},
            "learning_rate": high | {"when": {"depth": [3, 4]}},
            "min_learning_rate": 5e-3,
        },
    ):
        assert len(SearchSpace.from_mapping(values).dimensions) > 1
    assert "learning_rate is 0.001, the baseline's, where its `when` does not hold" in str(
        faults(optimizer=optimizers, learning_rate=high | sgd, min_learning_rate=5e-3)
    )
    assert faults(depth={"low": 3, "high": 5}, learning_rate=high | {"when": {"depth": [3, 4]}}, min_learning_rate=5e-3)


def test_a_space_is_refused_if_any_of_its_configurations_is() -> None:
    """Compared with all configurations of small random spaces."""
    choices: dict[str, list[Any]] = {
        "schedule": ["constant", "plateau", "cosine"],
        "optimizer": ["adam", "sgd"],
        "depth": [2, 3, 4],
        "learning_rate": [1e-5, 1e-3, 1e-1],
        "min_learning_rate": [0.0, 1e-6, 1e-4, 1e-2],
    }
    rng, counts = random.Random(0), Counter[bool | str]()  # noqa: S311 - not secret
    for _ in range(300):
        entries: dict[str, Any] = {"weight_decay": {"choices": [0.0, 1e-3]}}
        for name in rng.sample(list(choices), len(choices)):
            searched = [parent for parent in entries if parent in choices and isinstance(entries[parent], dict)]
            when = {
                parent: rng.choice(entries[parent]["choices"])
                for parent in rng.sample(searched, rng.randint(0, min(2, len(searched))))
            }
            some = rng.sample(choices[name], rng.randint(1, 3 if name != "optimizer" else 2))
            entries[name] = {"choices": some, "when": when} if when or len(some) > 1 else some[0]
        space = SearchSpace.from_record(entries, "random")
        every = list(configurations(space, {}))
        never = [name for name in space.dimensions if not any(name in values for values in every)]
        valid = all(is_valid(space, values) for values in every)
        counts["never active" if never else valid] += 1
        if never:
            assert [fault.partition(": `when` can never hold: ")[0] for fault in faults(**entries)] == never
        elif valid:
            assert SearchSpace.from_mapping(entries).dimensions == space.dimensions
        else:
            assert "min_learning_rate <= learning_rate must hold" in faults(**entries)[0]
    assert min(counts[True], counts[False], 3 * counts["never active"]) > 50, counts


def is_valid(space: SearchSpace, values: dict[str, Any]) -> bool:
    try:
        space.config(values)
    except InputError:
        return False
    return True


def configurations(space: SearchSpace, values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the values of each configuration of a space that has choices only, beside those of its first dimensions."""
    active = {name: value for name, value in values.items() if value != "inactive"}
    name = next((name for name in space.dimensions if name not in values), None)
    if name is None:
        yield active
        return
    dimension = space.dimensions[name]
    assert isinstance(dimension.domain, Choices)
    is_active = dimension.active({**space.defaults, **active})
    for value in dimension.domain.values if is_active else ("inactive",):
        yield from configurations(space, {**values, name: value})


def test_an_integer_in_a_condition_equals_a_float() -> None:
    space = SearchSpace.from_mapping(
        {"dropout": {"choices": [0, 0.1]}, "batch_size": {"low": 2, "high": 4, "when": {"dropout": 0}}}
    )
    assert space.dimensions["dropout"].domain == Choices((0.0, 0.1))
    assert list(space.active_values(TrialConfig(dropout=0.0, batch_size=3))) == ["dropout", "batch_size"]
    assert list(space.active_values(TrialConfig(dropout=0.1, batch_size=3))) == ["dropout"]


def test_true_is_not_one() -> None:
    assert True not in Choices((1, 2))
    assert 1 in Choices((1, 2))
    assert 1.0 in Choices((1, 2))
    assert "1" not in Choices((1, 2))
    assert True not in Range(0, 2)
    assert 1.5 not in Range(0, 2)
    assert 1.5 in Range(0.0, 2.0)


def test_a_single_configuration() -> None:
    space = SearchSpace.from_mapping({"depth": 3, "learning_rate": 1}, "p.yaml")
    assert space.is_single_configuration
    assert space.single_configuration() == TrialConfig(depth=3, learning_rate=1.0)
    for values, reason in (
        ({"depth": WHOLE["depth"]}, "depth has several"),
        (WHOLE, "augment, warmup_fraction have several"),
    ):
        space = SearchSpace.from_mapping(values, "s.yaml")
        assert not space.is_single_configuration
        with pytest.raises(InputError) as caught:
            space.single_configuration()
        start = "s.yaml: must give each name one value, but "
        assert str(caught.value).startswith(start)
        assert str(caught.value).endswith(f"{reason}; search them with `wmlsearch tune`")


def test_a_space_in_which_all_train_the_same_is_a_single_configuration() -> None:
    for values, config in (
        ({"depth": {"choices": [3]}}, TrialConfig(depth=3)),
        ({"depth": {"choices": [3]}, "ema": {"choices": [0.9], "when": {"depth": 3}}}, TrialConfig(depth=3, ema=0.9)),
        (
            {"schedule": "constant", "warmup_fraction": {"low": 0.1, "high": 0.2}},
            TrialConfig(schedule="constant", warmup_fraction=0.1),
        ),
    ):
        space = SearchSpace.from_mapping(values)
        assert space.is_single_configuration
        assert space.single_configuration() == config
        with pytest.raises(InputError) as caught:
            space_to_search(values)
        assert str(caught.value) == (
            "space: has a single configuration, so there is nothing to search; train it with `wmlsearch train space`"
        )
    with pytest.raises(InputError, match="but loss has several"):
        SearchSpace.from_mapping(
            {"depth": {"choices": [3]}, "loss": {"choices": ["bce", "dice"]}}
        ).single_configuration()
    with pytest.raises(InputError, match="min_learning_rate <= learning_rate must hold"):
        SearchSpace.from_mapping({"depth": {"choices": [3]}, "learning_rate": 1e-6})


def test_the_different_configurations_of_a_space() -> None:
    """Compared with all combinations of values of small random spaces, some with hyperparameters without effect."""
    choices: dict[str, list[Any]] = {
        "schedule": ["constant", "plateau", "cosine"],
        "plateau_patience": [3, 4],
        "warmup_fraction": [0.0, 0.1],
        "depth": [2, 3, 4],
        "loss": ["bce", "dice"],
        "dice_over": ["slice", "batch"],
    }
    rng, compared, cycles = random.Random(0), 0, 0  # noqa: S311 - not secret
    for _ in range(300):
        entries: dict[str, Any] = {}
        for name in rng.sample(list(choices), rng.randint(1, len(choices))):
            parents = rng.sample(list(entries), rng.randint(0, min(1, len(entries))))
            when = {parent: rng.choice(entries[parent]["choices"]) for parent in parents}
            entries[name] = {"choices": rng.sample(choices[name], rng.randint(1, len(choices[name]))), "when": when}
        space = SearchSpace.from_record(entries, "random")
        every = {identity(space.config(values).model_dump()) for values in configurations(space, {})}
        found = different_configurations(space, len(every))
        if found is None:
            cycles += 1
            assert any(NEEDED.get(parent, ("",))[0] in entries for name in entries for parent in entries[name]["when"])
            continue
        compared += 1
        assert found.keys() == every
        assert all(identity(space.config(values).model_dump()) == key for key, values in found.items())
        assert all(space.active_values(space.config(values)) == values for values in found.values())
        assert different_configurations(space, len(every) - 1) is None
    assert min(compared, cycles) > 50


def test_a_range_has_too_many_configurations_where_it_has_an_effect() -> None:
    whole = SearchSpace.from_mapping({"depth": {"low": 2, "high": 4}, "norm": {"choices": ["batch", "instance"]}})
    found = different_configurations(whole, 6)
    assert found is not None
    assert len(found) == 6
    assert different_configurations(whole, 5) is None
    assert different_configurations(SearchSpace.from_mapping({"dropout": {"low": 0.1, "high": 0.2}}), 10**6) is None
    momentum = {"low": 0.1, "high": 0.2, "when": {"norm": "batch"}}
    conditional = {"norm": {"choices": ["instance", "batch"]}, "norm_momentum": momentum}
    assert different_configurations(SearchSpace.from_mapping(conditional), 10**6) is None


def test_configurations_that_differ_by_a_condition_on_a_range_without_effect() -> None:
    """Trials with a patience of 1 or 2 have another dropout; the lowest number without a condition is 3."""
    values = {
        "schedule": "constant",
        "plateau_patience": {"low": 1, "high": 20},
        "dropout": {"choices": [0.2, 0.3], "when": {"plateau_patience": [1, 2]}},
    }
    found = different_configurations(SearchSpace.from_mapping(values), 10)
    assert found is not None
    assert list(found.values()) == [
        {"plateau_patience": 1, "dropout": 0.2}, {"plateau_patience": 1, "dropout": 0.3}, {"plateau_patience": 3},
    ]  # fmt: skip
    values["plateau_patience"] = {"low": 1, "high": 2}
    found = different_configurations(SearchSpace.from_record(values, "all numbers have the condition"), 10)
    assert found is not None
    assert len(found) == 2


def test_the_order_of_configurations_does_not_depend_on_the_hash_seed() -> None:
    """One of them is drawn by its place."""
    program = """
from wmlsearch.space import SearchSpace, different_configurations
print(different_configurations(SearchSpace.from_mapping({
    "plateau_patience": {"choices": [3, 4], "when": {"optimizer": "adam"}},
    "optimizer_epsilon": {"choices": [1e-7, 1e-8]},
    "plateau_factor": {"choices": [0.1, 0.2]},
}), 100))
"""
    first, second = (
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    )
    assert "plateau_patience" in first
    assert first == second


def test_more_configurations_than_are_counted() -> None:
    values = {"depth": {"low": 1, "high": 8}, "plateau_patience": {"low": 1, "high": 2000}}
    assert different_configurations(SearchSpace.from_mapping(values), 10**6) is None


def test_an_unknown_space_lists_the_shipped_ones() -> None:
    with pytest.raises(InputError) as caught:
        SearchSpace.read("unett")
    names = ", ".join(sorted(path.stem for path in shipped().glob("*.yaml")))
    assert str(caught.value) == f"unett: no such file, and not one of the shipped search spaces: {names}"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_samples_are_inside_and_keep_the_conditions(seed: int) -> None:
    space = SearchSpace.from_mapping(WHOLE)
    values = space.sample(np.random.default_rng(seed))
    assert values == space.sample(np.random.default_rng(seed))
    for name, value in values.items():
        assert value in space.dimensions[name].domain
    assert ("plateau_patience" in values) == (values["schedule"] == "plateau")
    assert ("augment" in values) == (values["depth"] in (3, 4))
    assert ("warmup_fraction" in values) == (values["schedule"] == "cosine" and values.get("augment") == "flip")
    config = space.config(values)
    assert config.early_stop_patience == 7
    assert space.mismatches(config) == []
    assert space.active_values(config) == values


@settings(max_examples=100, deadline=None)
@given(
    low=st.integers(1, 500),
    width=st.integers(1, 500),
    log=st.booleans(),
    whole=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_drawn_value_is_in_its_range(low: int, width: int, log: bool, whole: bool, seed: int) -> None:
    domain = Range(low, low + width, log) if whole else Range(low / 700, (low + width) / 700, log)
    rng = np.random.default_rng(seed)
    for _ in range(5):
        value = domain.sample(rng)
        assert value in domain
        assert type(value) is (int if whole else float)


@pytest.mark.parametrize("log", [False, True])
def test_the_bounds_of_integers_are_drawn_as_often_as_the_rest(log: bool) -> None:
    domain, rng, n = Range(1, 4, log), np.random.default_rng(0), 20_000
    drawn = Counter(domain.sample(rng) for _ in range(n))
    edges = np.log([0.5, 1.5, 2.5, 3.5, 4.5])
    shares = np.diff(edges) / (edges[-1] - edges[0]) if log else np.full(4, 0.25)
    assert [drawn[k] / n for k in (1, 2, 3, 4)] == pytest.approx(shares, abs=0.015)


def test_log_uniform_numbers_are_uniform_in_their_logarithm() -> None:
    domain, rng = Range(1e-4, 1e-2, log=True), np.random.default_rng(0)
    drawn = np.log10([float(domain.sample(rng)) for _ in range(10_000)])
    shares, _ = np.histogram(drawn, bins=4, range=(-4, -2))
    assert shares / 10_000 == pytest.approx([0.25] * 4, abs=0.015)


def test_round_trips() -> None:
    for space in (SearchSpace.from_mapping(WHOLE, "w"), SearchSpace.read("unet"), SearchSpace.read("paper")):
        assert pickle.loads(pickle.dumps(space)) == space  # noqa: S301 - pickled above
        again = SearchSpace.from_mapping(space.to_mapping(), space.source)
        assert again == space
        assert list(again.dimensions) == list(space.dimensions)


def test_mismatches() -> None:
    space = SearchSpace.from_mapping(WHOLE)
    inside = {"early_stop_patience": 7, "schedule": "cosine", "depth": 3}
    assert space.mismatches(TrialConfig.from_mapping(inside)) == []
    assert space.mismatches(
        TrialConfig.from_mapping({**inside, "depth": 2, "learning_rate": 0.1, "batch_size": 64})
    ) == [
        "depth=2 is not in [3, 4, 5]",
        "learning_rate=0.1 is not in 0.0001 .. 0.01 (log)",
        "batch_size=64 is not in 2 .. 32 (log)",
    ]
    assert space.mismatches(TrialConfig()) == ["early_stop_patience is fixed at 7, not 10"]
    # augment is not active at depth 5, so it has the baseline's value there
    assert space.mismatches(TrialConfig.from_mapping({**inside, "depth": 5, "augment": "flip"})) == [
        "augment is fixed at none, not flip"
    ]
    # plateau_patience has no effect with another schedule
    assert space.mismatches(TrialConfig.from_mapping({**inside, "plateau_patience": 99})) == []
    assert space.mismatches(TrialConfig.from_mapping({**inside, "schedule": "plateau", "plateau_patience": 99})) == [
        "plateau_patience=99 is not in 2 .. 10"
    ]


def test_descriptions() -> None:
    assert describe(Choices(("bce", "dice"))) == "[bce, dice]"
    assert describe(Range(1e-4, 1e-2, log=True)) == "0.0001 .. 0.01 (log)"


def test_null_is_a_value_like_others_where_a_hyperparameter_may_be_null() -> None:
    space = SearchSpace.from_mapping({"lesion_share": {"choices": [None, 0.3, 1]}, "depth": {"choices": [3, 4]}})
    assert space.dimensions["lesion_share"].domain == Choices((None, 0.3, 1.0))
    assert describe(space.dimensions["lesion_share"].domain) == "[null, 0.3, 1.0]"
    assert space.mismatches(TrialConfig()) == [], "the baseline lies inside"
    assert {space.sample(np.random.default_rng(seed))["lesion_share"] for seed in range(30)} == {None, 0.3, 1.0}
    assert SearchSpace.from_mapping(space.to_mapping()) == space
    assert space.config({"lesion_share": None, "depth": 3}).lesion_share is None
    within = SearchSpace.from_mapping({"lesion_share": {"low": 0.2, "high": 1}})
    assert within.dimensions["lesion_share"].domain == Range(0.2, 1.0), "not whole numbers"
    assert SearchSpace.from_mapping({"lesion_share": None}).single_configuration() == TrialConfig()
