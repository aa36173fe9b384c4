"""What a shipped space becomes for a data set and for the workers of a trial."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wmlsearch.config import RunSettings
from wmlsearch.data.manifest import MANIFEST, Manifest
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.errors import InputError
from wmlsearch.space import Choices, Range, SearchSpace, is_shipped
from wmlsearch.workflows.fitted_space import space_for_data
from wmlsearch.workflows.new_search import SearchChoices, request_search
from wmlsearch.workflows.placement import LOCAL, Placement
from wmlsearch.workflows.preflight import check_data
from wmlsearch.workflows.search_plan import SearchRequest

Altered = Callable[[Callable[[dict[str, Any]], None]], Path]


@pytest.fixture
def altered(prepared: Path, tmp_path: Path) -> Altered:
    """`altered(change)` returns a copy of the prepared data set with another manifest."""

    def make(change: Callable[[dict[str, Any]], None]) -> Path:
        folder = tmp_path / "altered"
        shutil.copytree(prepared, folder)
        about = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        change(about)
        (folder / MANIFEST).write_text(json.dumps(about), encoding="utf-8")
        return folder

    return make


def of_pictures(about: dict[str, Any]) -> None:
    about["axis"] = None


def of_an_older_version(about: dict[str, Any]) -> None:
    for volume in about["volumes"]:
        volume["head_grey"] = []


DEPTH = "note: unet is searched without depth 5: it needs slices of 64 pixels, and these have 32"


def test_a_space_that_fits_is_searched_as_it_is(prepared: Path) -> None:
    said: list[str] = []
    space = SearchSpace.read("quick")
    assert space_for_data(space, prepared, 1, said.append) is space
    assert not said


def test_the_default_space_leaves_out_what_the_data_cannot_have(altered: Altered) -> None:
    def change(about: dict[str, Any]) -> None:
        of_pictures(about)
        of_an_older_version(about)

    said: list[str] = []
    folder = altered(change)
    choices = SearchChoices(
        space=SearchSpace.read("unet"), settings={"epochs": 2}, data=folder, placement=LOCAL, warm_start=()
    )
    request = request_search(choices, lambda: folder, said.append)
    assert said == [
        DEPTH,
        "note: unet is searched without intensity zscore: intensity=zscore needs the grey values of the head in each "
        "volume, which data that were prepared by an older version do not record",
        "note: unet is searched without input_slices 3: input_slices=3 needs volumes, but the data are 2-D pictures",
    ]
    assert request.space.fixed == {"input_slices": 1, "intensity": "range"}
    assert request.space.domain("depth") == Choices((3, 4))
    left = set(SearchSpace.read("unet").dimensions) - set(request.space.dimensions)
    assert left == {"input_slices", "intensity"}
    assert not is_shipped(request.space), "a report writes it as a file"
    check_data(request)


def test_batches_have_a_slice_for_each_worker(prepared: Path) -> None:
    said: list[str] = []
    about, shipped = Manifest.read(prepared), SearchSpace.read("unet")
    slices = [len(about.indices("train", kept_only=True, fold=fold)) for fold in range(about.fold_count)]
    space = space_for_data(shipped, prepared, 4, said.append)
    low = next(size for size in range(2, 17) if all(each // math.ceil(each / size) >= 4 for each in slices))
    assert space.domain("batch_size") == Range(low, 16, log=True)
    assert said == [DEPTH, f"note: unet is searched with batch_size from {low}: 4 workers share each batch"]
    by_four = Placement(workers_per_trial=4)
    check_data(SearchRequest(space, RunSettings(), prepared, by_four))
    with pytest.raises(InputError, match="cannot be trained"):
        check_data(SearchRequest(space.with_lower_bound("batch_size", 2), RunSettings(), prepared, by_four))
    too_many = space_for_data(shipped, prepared, 17, said.append)
    assert too_many.domain("batch_size") == Range(2, 16, log=True), "preflight says that no batch is large enough"
    assert shipped.with_lower_bound("batch_size", 16).fixed == {"batch_size": 16}


def test_neighbours_that_are_not_stored_are_left_out_too(raw: Path, tmp_path: Path) -> None:
    said: list[str] = []
    prepare(raw, tmp_path / "lesion", PrepareOptions(size=32, fit="resize", jobs=1, keep="lesion", folds=1))
    space = space_for_data(SearchSpace.read("unet"), tmp_path / "lesion", 1, said.append)
    assert space.domain("input_slices") == Choices((1,))
    assert space.domain("intensity") == Choices(("range", "zscore"))
    depth, note = said
    assert depth == DEPTH
    assert note.startswith("note: unet is searched without input_slices 3: input_slices=3 needs the neighbours")


def test_a_space_of_the_users_own_is_refused_instead(altered: Altered, tmp_path: Path) -> None:
    said: list[str] = []
    folder = altered(of_pictures)
    file = tmp_path / "unet.yaml"
    file.write_text("depth: {choices: [2, 3]}\ninput_slices: {choices: [1, 3]}\n", encoding="utf-8")
    space = SearchSpace.read(file)
    assert space_for_data(space, folder, 2, said.append) is space
    assert not said
    with pytest.raises(InputError) as refused:
        check_data(SearchRequest(space, RunSettings(), folder))
    assert list(refused.value.faults) == [
        "input_slices=3 needs volumes, but the data are 2-D pictures: use `input_slices` 1"
    ]


def test_a_shipped_space_is_known_by_its_name_and_its_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = SearchSpace.read("unet")
    assert is_shipped(shipped)
    assert is_shipped(SearchSpace.read("quick.yaml"))
    assert not is_shipped(shipped.without("input_slices", 3))
    assert not is_shipped(SearchSpace.from_mapping(shipped.to_mapping(), "space"))
    (tmp_path / "unet.yaml").write_text("depth: {choices: [2, 3]}\n", encoding="utf-8")
    assert not is_shipped(SearchSpace.read("unet.yaml"))


def test_a_space_without_one_choice() -> None:
    space = SearchSpace.from_mapping({"depth": {"choices": [2, 3]}, "input_slices": {"choices": [1, 3, 5]}})
    fewer = space.without("input_slices", 5)
    assert fewer.domain("input_slices") == Choices((1, 3))
    assert fewer.without("input_slices", 3).fixed == {"input_slices": 1}
    assert fewer.dimensions["depth"] == space.dimensions["depth"]
