"""What is checked of a search space before anything starts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings
from wmlsearch.data.manifest import MANIFEST, Manifest
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.errors import InputError
from wmlsearch.space import SearchSpace, shipped, vain_values
from wmlsearch.workflows.preflight import (
    _most_demanding,
    check_budgets,
    check_data,
    note_few_configurations,
    note_no_effect,
)
from wmlsearch.workflows.search_plan import SearchRequest


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({"choices": [None]}, None),
        ({"choices": [None, 0.6, 0.3]}, 0.3),
        ({"low": 0.2, "high": 0.9}, 0.2),
        (1.0, 1.0),
        (None, None),
    ],
)
def test_a_space_is_checked_with_its_smallest_share_of_lesions(entry: Any, wanted: Any) -> None:
    space = SearchSpace.from_mapping({"depth": {"choices": [2, 4]}, "lesion_share": entry})
    config = _most_demanding(space)
    assert (config.depth, config.lesion_share) == (4, wanted)


def test_a_space_is_checked_with_z_scores_where_it_has_them() -> None:
    for entry, wanted in (({"choices": ["range", "zscore"]}, "zscore"), ("zscore", "zscore"), ("range", "range")):
        space = SearchSpace.from_mapping({"depth": {"choices": [2, 4]}, "intensity": entry})
        assert _most_demanding(space).intensity == wanted


@pytest.mark.parametrize(
    "entries",
    [
        {"min_learning_rate": 2e-3, "learning_rate": {"low": 2e-3, "high": 1e-2}},
        {"min_learning_rate": {"low": 1e-7, "high": 1e-6}, "learning_rate": 5e-6},
    ],
)
def test_learning_rates_above_or_below_the_baselines_are_no_fault(entries: dict[str, Any]) -> None:
    space = SearchSpace.from_mapping({"depth": {"choices": [2, 3]}, **entries})
    assert _most_demanding(space).depth == 3


@pytest.mark.parametrize(("trials", "final_runs"), [(1, 5), (2, 14), (4, 18)])
def test_no_epochs_are_reserved_for_final_runs_of_trials_that_there_are_not(trials: int, final_runs: int) -> None:
    """Five judgement runs of the baseline; with a candidate also two selection runs of both, and its judgement runs."""
    space, slots, needed = SearchSpace.read("quick"), Slots(1, 1, 1, 0.0), 18 * final_runs
    settings = RunSettings(epochs=18, trials=trials)
    check_budgets(space, settings.model_copy(update={"max_epochs_total": needed + 1}), slots)
    with pytest.raises(InputError, match=f"since the {final_runs} final runs may take {needed}"):
        check_budgets(space, settings.model_copy(update={"max_epochs_total": needed}), slots)


def test_a_share_of_lesions_is_checked_in_the_folds_of_all_final_runs(raw: Path, tmp_path: Path) -> None:
    """Here the training patients have lesions with each fold but the last: only its final runs would fail."""
    folder = tmp_path / "folds"
    prepare(raw, folder, PrepareOptions(size=32, fit="resize", jobs=1, folds=3))
    space = SearchSpace.from_mapping({"depth": {"choices": [2, 3]}, "lesion_share": {"choices": [None, 0.5]}})
    request = SearchRequest(space, RunSettings(), folder)
    check_data(request)
    about, last = json.loads((folder / MANIFEST).read_text()), Manifest.read(folder).folds[2]
    for row in about["slices"]:
        row["lesion_pixels"] *= row["patient"] in last
    (folder / MANIFEST).write_text(json.dumps(about))
    with pytest.raises(InputError) as caught:
        check_data(request)
    (fault,) = caught.value.faults
    assert re.fullmatch(
        r"lesion_share=0.5 needs training slices with lesions, but none of the \d+ has one where fold 2 is validated; "
        r"leave `lesion_share` out, or prepare the data again with other patients",
        fault,
    )


@pytest.mark.parametrize(
    ("values", "axis", "noted"),
    [
        ({"augment": {"choices": ["none", "flip"]}}, 0, True),
        ({"augment": {"choices": ["none", "flip"]}}, 2, False),
        ({"augment": {"choices": ["none", "flip"]}}, None, False),
        ({"augment": {"choices": ["none", "affine"]}}, 0, False),
        ({"augment": {"choices": ["none", "flip"]}, "flip_axis": "columns"}, 0, False),
        ({"augment": {"choices": ["none", "flip"]}, "input_slices": 3}, 0, False),
        ({"augment": "flip", "input_slices": {"choices": [1, 3]}}, 0, True),
    ],
)
def test_flipping_that_changes_nothing_is_noted(
    prepared: Path, values: dict[str, Any], axis: int | None, noted: bool
) -> None:
    said: list[str] = []
    space = SearchSpace.from_mapping({"depth": {"choices": [2, 3]}, **values}, "some.yaml")
    note_no_effect(space, replace(Manifest.read(prepared), axis=axis), said.append)
    assert said == noted * [
        "note: some.yaml: augment=flip changes nothing in sagittal slices with input_slices=1, since left and right "
        "are not in them; `flip_axis` columns mirrors front to back, and `affine` turns, scales and shifts"
    ]


VAIN = {"low": 2, "high": 9}
SCHEDULES = {"choices": ["plateau", "cosine", "step"]}


@pytest.mark.parametrize(
    ("values", "noted"),
    [
        ({"schedule": SCHEDULES, "plateau_patience": VAIN | {"when": {"schedule": "plateau"}}}, ""),
        ({"plateau_patience": VAIN}, ""),
        (
            {"schedule": SCHEDULES, "plateau_patience": VAIN},
            "plateau_patience has no effect beside schedule cosine or step; give it `when: {schedule: plateau}`",
        ),
        (
            {"schedule": SCHEDULES, "plateau_patience": VAIN | {"when": {"depth": 2}}},
            "plateau_patience has no effect beside schedule cosine or step; add `schedule: plateau` to its `when`",
        ),
        (
            {
                "loss": {"choices": ["bce", "dice", "tversky"], "when": {"depth": 2}},
                "dice_over": {"choices": ["slice", "batch"]},
            },
            "dice_over has no effect beside loss bce; give it `when: {loss: [dice, tversky]}`",
        ),
        (
            {"schedule": "cosine", "plateau_patience": VAIN},
            "plateau_patience has no effect beside schedule cosine; leave it out",
        ),
    ],
)
def test_what_is_searched_where_it_has_no_effect_is_noted(prepared: Path, values: dict[str, Any], noted: str) -> None:
    said: list[str] = []
    space = SearchSpace.from_mapping({"depth": {"choices": [2, 3]}, **values}, "some.yaml")
    note_no_effect(space, Manifest.read(prepared), said.append)
    assert said == [f"note: some.yaml: {noted}"] * bool(noted)


@pytest.mark.parametrize(
    ("trials", "scheduler", "noted"),
    [
        (6, "asha", ""),
        (7, "asha", "6 configurations, fewer than --trials 7, so the search ends when each of them has been tried"),
        (7, "pbt", "6 configurations, fewer than --trials 7, so trials repeat them"),
    ],
)
def test_a_space_with_fewer_configurations_than_trials_is_noted(trials: int, scheduler: str, noted: str) -> None:
    said: list[str] = []
    space = SearchSpace.from_mapping(
        {"depth": {"low": 2, "high": 4}, "norm": {"choices": ["batch", "instance"]}}, "six.yaml"
    )
    note_few_configurations(space, RunSettings.from_mapping({"trials": trials, "scheduler": scheduler}), said.append)
    assert said == [f"note: six.yaml has {noted}"] * bool(noted)


def test_shipped_spaces_search_nothing_in_vain() -> None:
    assert not any(vain_values(SearchSpace.read(file)) for file in shipped().glob("*.yaml"))


@pytest.mark.parametrize(
    ("entry", "with_lesion", "noted"),
    [({"choices": [None, 0.5]}, 1, True), ({"choices": [None, 0.5]}, 0, False), (None, 1, False), (0.5, 1, True)],
)
def test_a_share_of_lesions_that_changes_nothing_is_noted(
    prepared: Path, entry: Any, with_lesion: int, noted: bool
) -> None:
    said: list[str] = []
    space = SearchSpace.from_mapping({"depth": {"choices": [2, 3]}, "lesion_share": entry}, "some.yaml")
    manifest = Manifest.read(prepared)
    slices = [replace(row, lesion_pixels=max(row.lesion_pixels, with_lesion)) for row in manifest.slices]
    note_no_effect(space, replace(manifest, slices=slices), said.append)
    expected = (
        "note: some.yaml: lesion_share changes nothing, since all training slices have lesions; "
        "`prepare --keep brain` keeps slices without lesions too"
    )
    assert said == noted * [expected]
