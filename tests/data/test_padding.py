"""Padding far below all other grey values: the head is found and scaled as if the padding were its background."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nifti_files import cohort, voxels

from wmlsearch.config import TrialConfig
from wmlsearch.data import examine as examine_module
from wmlsearch.data.cutting import cut
from wmlsearch.data.examine import examine
from wmlsearch.data.geometry import place_window
from wmlsearch.data.manifest import IMAGES, MANIFEST, SEALED, Manifest
from wmlsearch.data.padding import Padding, find_padding
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.sealed_test import Opener
from wmlsearch.data.slices import PreparedData
from wmlsearch.data.sources import Source
from wmlsearch.errors import InputError
from wmlsearch.inference.export import export_model, load_exported
from wmlsearch.inference.predictor import HERE, Predictions
from wmlsearch.inference.preprocessing import Preprocessing, slicing_geometry
from wmlsearch.inference.trained_model import TrainedModel, common_preprocessing
from wmlsearch.model.unet import UNet
from wmlsearch.verdict.evaluation import evaluate
from wmlsearch.workflows.provenance import data_record


def head() -> np.ndarray:
    """A box of noise with a bright lesion in air of 0."""
    image = np.zeros((20, 24, 10), np.float32)
    image[4:16, 4:20, 1:9] = np.random.default_rng(0).normal(300, 40, (12, 16, 8))
    image[8:11, 10:13, 4:6] = 600
    return image


def padded(level: float) -> np.ndarray:
    image = head()
    image[image == 0] = level
    return image


def source(folder: Path, image: np.ndarray) -> Source:
    lesion = (head() == 600).astype(np.uint8)
    folder.mkdir()
    for name, array in (("image", image), ("mask", lesion)):
        nib.Nifti1Image(array, np.diag([2, 2, 3, 1])).to_filename(folder / f"{name}.nii.gz")
    return Source("p", "", folder, (folder / "image.nii.gz",), (folder / "mask.nii.gz",))


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_a_padded_head_is_cut_as_one_in_air(tmp_path: Path, fit: str) -> None:
    of = {name: source(tmp_path / name, image) for name, image in (("air", head()), ("pad", padded(-32768)))}
    facts = {name: examined for name, one in of.items() if (examined := examine(one, 2)[0])}
    air, pad = facts["air"], facts["pad"]
    assert (pad.box, pad.low, pad.high, pad.background, pad.head_grey) == (
        air.box, air.low, air.high, air.background, air.head_grey,
    )  # fmt: skip
    assert [(one.text, one.is_warning) for one in pad.findings] == [
        ("68 % of the voxels hold -32768, far below all others: treated as padding, grey value 0", False)
    ]
    assert (air.floor, pad.floor, air.findings) == (None, 0.0, ())
    assert air.voxels_sha256 != pad.voxels_sha256, "the checksum is that of the file's voxels"
    images = {name: cut(of[name], place_window(of[name], facts[name], 24, fit, 2.5)).images for name in of}
    assert np.array_equal(images["air"], images["pad"])
    assert len(np.unique(images["pad"])) > 50, "grey levels"
    predicted = slicing_geometry(of["pad"], Preprocessing("axial", 2, 24, fit, 2.5, padding_background=True))
    assert np.array_equal(cut(of["pad"], predicted).images, images["pad"])


def test_what_is_padding() -> None:
    negative = np.where(head() == 0, -9999, (head() - 300) / 40).astype(np.float32)  # z-scores
    padding = find_padding(negative)
    assert padding is not None
    assert padding.level == -9999
    assert -4 < padding.floor < -1.5, "about the darkest of the others, which go below 0"
    rim = padded(-32768)
    rim[4:16, 4, 1:9] = np.linspace(-30000, 200, 96).reshape(12, 8)  # interpolated
    found = find_padding(rim)
    assert isinstance(found, Padding)
    assert found.floor == 0


@pytest.mark.parametrize(
    "image",
    [
        head(),  # air is 0
        padded(-500),  # below the head, but not far
        head() + 3000,  # the head lies far above 0
        np.where(np.arange(10) == 3, np.where(head() == 600, -32768, head()), head()),  # specks
        np.where(head() == 0, -32768, 1),  # nothing but the padding
        (head() - 300) / 40,
    ],
)
def test_what_is_no_padding(image: np.ndarray) -> None:
    assert find_padding(image.astype(np.float32)) is None


def padded_cohort(root: Path) -> Path:
    """Write a cohort whose heads lie in padding of -32768. Return its table."""
    raw = cohort(root, dict.fromkeys("abcdef", 20))
    for path in root.glob("*_image.nii.gz"):
        volume = nib.load(path)
        image = voxels(path)
        nib.Nifti1Image(np.where(image == 0, -32768, image), volume.affine).to_filename(path)
    return raw


def prepare_as_older_version(raw: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare data as versions did that knew no padding: it is the darkest grey, and the manifests do not name it."""
    with monkeypatch.context() as patch:
        patch.setattr(examine_module, "find_padding", lambda _: None)
        prepare(raw, out, PrepareOptions(size=32, jobs=1))
    for folder in (out / SEALED, out):
        content = json.loads((folder / MANIFEST).read_text())
        del content["padding_background"]
        for volume in content["volumes"]:
            assert volume.pop("floor") is None
        if folder == out:
            sealed = (out / SEALED / MANIFEST).read_bytes()
            content["checksums"][f"{SEALED}/{MANIFEST}"] = hashlib.sha256(sealed).hexdigest()
        (folder / MANIFEST).write_text(json.dumps(content))


class SeenImages(Predictions):
    """Predicts here, and keeps the images that it was given."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []

    def probabilities(
        self, models: Sequence[TrainedModel], images: np.ndarray, head_grey: Sequence[tuple[float, float]]
    ) -> list[np.ndarray]:
        self.images.append(images)
        return HERE.probabilities(models, images, head_grey)


def test_a_prepared_data_set_keeps_what_is_padding(tmp_path: Path) -> None:
    """The sealed volumes are cut with it."""
    prepare(padded_cohort(tmp_path / "raw"), tmp_path / "out", PrepareOptions(size=32, jobs=1))
    manifest = Manifest.read(tmp_path / "out")
    assert {volume.floor for volume in manifest.volumes} == {0.0}
    assert "6 of 6 volumes: a grey value far below all others is treated as padding" in " ".join(manifest.notes)


@pytest.mark.parametrize("is_older", [False, True])
def test_images_are_scored_and_predicted_as_the_data_were_prepared(
    is_older: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of data in which padding was the darkest grey sees it so in the sealed test and in new images too."""
    raw, data = padded_cohort(tmp_path / "raw"), tmp_path / "data"
    if is_older:
        prepare_as_older_version(raw, data, monkeypatch)
    else:
        prepare(raw, data, PrepareOptions(size=32, jobs=1))
    record = data_record(data, PreparedData.open(data)).as_json()
    assert record.get("padding_background") == (None if is_older else True)
    config = TrialConfig(depth=2, base_channels=4)
    torch.manual_seed(0)
    model = TrainedModel(UNet.of(config).eval(), config, 0.5, Preprocessing.of(record, "r"), "m")
    export_model([model], tmp_path / "model")
    exported = load_exported(tmp_path / "model").members
    assert ("padding_background" in (tmp_path / "model/model.json").read_text()) != is_older

    stored, seen = np.load(data / SEALED / IMAGES), SeenImages()
    evaluate({"model": exported}, data, Opener(run="r"), predictions=seen)
    assert np.array_equal(np.concatenate(seen.images), stored)
    assert (len(np.unique(stored)) > 50) != is_older, "grey levels"
    for volume in Manifest.read(data / SEALED).volumes:
        image = Source("", "", raw.parent, (raw.parent / volume.source,))
        geometry = slicing_geometry(image, common_preprocessing(exported))
        assert (geometry.low, geometry.high, geometry.window) == (volume.low, volume.high, volume.window)
        assert (geometry.floor, geometry.head_grey) == (volume.floor, volume.head_grey)


def test_a_padded_image_suits_a_model_of_data_without_padding(tmp_path: Path) -> None:
    raw = cohort(tmp_path / "raw", dict.fromkeys("abcdef", 20))
    prepare(raw, tmp_path / "data", PrepareOptions(size=32, jobs=1))
    record = data_record(tmp_path / "data", PreparedData.open(tmp_path / "data"))
    preprocessing = Preprocessing.of(record.as_json(), "r")
    air, pad = (source(tmp_path / name, image) for name, image in (("air", head()), ("pad", padded(-32768))))
    images = [cut(one, slicing_geometry(one, preprocessing)).images for one in (air, pad)]
    assert np.array_equal(*images)


def test_what_a_model_says_of_padding() -> None:
    values: dict[str, Any] = Preprocessing("axial", 2, 24, "crop", 2.5).as_json()
    assert "padding_background" not in values
    older, newer = (Preprocessing.of(values | more, "m") for more in ({}, {"padding_background": True}))
    assert (older.padding_background, newer.padding_background) == (False, True)
    assert newer.as_json() == values | {"padding_background": True}
    assert older == newer, "networks of one data set can be used together"
    with pytest.raises(InputError) as error:
        Preprocessing.of(values | {"padding_background": "yes"}, "m")
    assert error.value.faults == ("padding_background must be true or false, but got 'yes'",)
