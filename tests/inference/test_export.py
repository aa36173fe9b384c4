"""An exported model gives bit-equal predictions elsewhere, is validated when read, and cannot run code."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wmlsearch.config import TrialConfig
from wmlsearch.errors import InputError
from wmlsearch.inference.export import export_model, load_exported
from wmlsearch.inference.preprocessing import Preprocessing
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.unet import UNet


def model(seed: int, size: int = 32) -> TrainedModel:
    torch.manual_seed(seed)
    config = TrialConfig(depth=2, base_channels=4)
    unet = UNet(config.depth, config.base_channels).to(memory_format=torch.channels_last)
    unet(torch.rand(4, 1, 32, 32))  # statistics of batch normalisation
    where = Preprocessing("axial", 2, size, "crop", 0.75)
    return TrainedModel(unet.eval(), config, 0.25 + seed / 8, where, f"trial-0003-seed{seed}", seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export_model([model(0), model(1)], tmp_path / "deep" / "model", 0.4)
    return tmp_path / "deep" / "model"


def test_export_round_trip_is_bit_equal(folder: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    exported = load_exported(folder)
    assert exported.ensemble_threshold == 0.4
    assert len(exported.members) == 2
    for seed, member in enumerate(exported.members):
        original = model(seed)
        assert np.array_equal(member.probabilities(images), original.probabilities(images))
        assert replace(member, unet=original.unet) == original
    export_model(exported.members, folder.parent / "again", exported.ensemble_threshold)
    for path in folder.iterdir():
        assert (folder.parent / "again" / path.name).read_bytes() == path.read_bytes()


def test_contents_of_an_exported_model(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "member-0.safetensors", "member-1.safetensors", "model.json",
    ]  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    about = json.loads((folder / "model.json").read_text())
    assert about["preprocessing"] == {"plane": "axial", "axis": 2, "size": 32, "fit": "crop", "spacing_mm": 0.75}
    assert [(member["name"], member["seed"], member["threshold"]) for member in about["members"]] == [
        ("trial-0003-seed0", 0, 0.25), ("trial-0003-seed1", 1, 0.375),
    ]  # fmt: skip
    assert about["members"][0]["config"] == TrialConfig(depth=2, base_channels=4).model_dump()


def test_non_empty_folder_is_not_overwritten(folder: Path) -> None:
    wanted = f"{folder}: exists already and is not an empty folder; name another OUT or remove it"
    with pytest.raises(InputError) as error:
        export_model([model(0)], folder)
    assert str(error.value) == wanted
    (folder.parent / "empty").mkdir()
    export_model([model(0)], folder.parent / "empty")
    exported = load_exported(folder.parent / "empty")
    assert (len(exported.members), exported.ensemble_threshold) == (1, None)


def test_models_of_different_data_are_refused_as_an_ensemble(tmp_path: Path) -> None:
    for other in (model(1, size=64), replace(model(1), preprocessing=None)):
        with pytest.raises(InputError, match="their training data were prepared in the same way"):
            export_model([model(0), other], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def edit(folder: Path, change: Callable[[Any], object]) -> None:
    about = json.loads((folder / "model.json").read_text())
    change(about)
    (folder / "model.json").write_text(json.dumps(about))


def test_damaged_exports_are_refused(folder: Path) -> None:
    def refused() -> str:
        with pytest.raises(InputError) as error:
            load_exported(folder)
        return str(error.value).replace(str(folder), "F")

    first, weights = folder / "model.json", folder / "member-1.safetensors"
    text, tensors, content = first.read_text(), load_file(weights), weights.read_bytes()
    for change, wanted in (
        (
            lambda document: document.update(format=3),
            "F/model.json: format must be 1 or 2, but is 3; export the model again",
        ),
        (
            lambda document: document.update(postprocessing={"mirror_averaging": 1, "smallest_lesion_mm3": -1}),
            "F/model.json: postprocessing must have mirror_averaging (true or false) and smallest_lesion_mm3 (a number "
            "from 0), but has 1 and -1; export the model again",
        ),
        (
            lambda document: document["members"][1].update(threshold=1.5),
            "F/model.json: member 1: threshold: must be a number above 0 and below 1, but got 1.5",
        ),
        (
            lambda document: document.update(ensemble_threshold=float("nan")),
            "F/model.json: ensemble_threshold: must be a number above 0 and below 1, but got nan",
        ),
        (
            lambda document: document.update(members=[]),
            "F/model.json: members must be a list of 1 to 100; export the model again",
        ),
        (
            lambda document: document.update(preprocessing=3),
            "F/model.json: preprocessing must be an object, but is 3; export the model again",
        ),
        (
            lambda document: document["preprocessing"].update(axis=0),
            "F/model.json: its preprocessing is not valid; export or train the model again\n"
            "  - axis must be 2 with plane axial, but got 0",
        ),
        (
            lambda document: document["members"][0].update(seed="0"),
            "F/model.json: member 0: needs a name (text) and a seed (number), but has 'trial-0003-seed0' and '0'; "
            "export the model again",
        ),
        (
            lambda document: document["members"][0]["config"].update(depht=3),
            "F/model.json: member 0: not a valid configuration\n  - unknown name 'depht': did you mean 'depth'?",
        ),
    ):
        edit(folder, change)
        assert refused() == wanted
        first.write_text(text)
    edit(folder, lambda document: document["members"][1]["config"].update(depth=8, base_channels=512))
    assert refused().startswith("F/member-1.safetensors: the weights do not fit the configuration\n")
    first.write_text(text)
    save_file({**tensors, "head.bias": torch.tensor([torch.inf])}, weights)
    assert refused() == (
        "F/member-1.safetensors: the weights do not fit the configuration\n  - head.bias has values that are not finite"
    )
    weights.write_bytes(content[: len(content) // 2])
    assert refused().startswith("F/member-1.safetensors: not a readable safetensors file (")
    weights.unlink()
    assert refused() == "F/member-1.safetensors: is missing; copy the whole folder, or export the model again"
    first.write_text("{")
    assert refused().startswith("F/model.json: cannot be read (")
    first.unlink()
    assert refused() == "F: not an exported model, model.json is missing; make one with `wmlsearch export`"


class _Trap:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_weights_that_were_changed_are_refused(folder: Path) -> None:
    """One bit changes a weight a little, or a lot, and the file is a valid one still."""
    weights = folder / "member-0.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_exported(folder)
    assert str(error.value) == (
        f"{weights}: is not the file that was exported, since its SHA-256 differs from that in model.json; copy the "
        "whole folder again, or export the model again"
    )
    edit(folder, lambda about: about["members"][0].pop("sha256"))
    assert len(load_exported(folder).members) == 2, "as of older versions, which wrote none"


def test_pickles_are_not_executed(folder: Path, tmp_path: Path) -> None:
    sprung, best = tmp_path / "sprung", tmp_path / "best.pt"
    pickle.loads(pickle.dumps(_Trap(sprung)))  # noqa: S301 - shows that the trap works
    sprung.unlink()
    (folder / "member-0.safetensors").write_bytes(pickle.dumps(_Trap(sprung)))
    with pytest.raises(InputError, match=r"member-0.safetensors: not a readable safetensors file"):
        load_exported(folder)
    torch.save({"format": 1, "model": _Trap(sprung)}, best)
    with pytest.raises(InputError, match=r"best.pt: not a readable checkpoint"):
        TrainedModel.load(best)
    best.write_bytes(pickle.dumps(_Trap(sprung)))
    with pytest.raises(InputError, match=r"best.pt: not a readable checkpoint"):
        TrainedModel.load(best)
    assert not sprung.exists()
