"""Padding far below all other grey values: the head is found and scaled as if the padding were its background."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nifti_files import cohort, voxels

from wmlsearch.data.cutting import cut
from wmlsearch.data.examine import examine
from wmlsearch.data.geometry import place_window
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.padding import Padding, find_padding
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.sources import Source
from wmlsearch.inference.preprocessing import Preprocessing, slicing_geometry


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
        ("68 % of the voxels hold -32768, far below all others: taken for padding, grey value 0", False)
    ]
    assert (air.floor, pad.floor, air.findings) == (None, 0.0, ())
    assert air.voxels_sha256 != pad.voxels_sha256, "the checksum is that of the file's voxels"
    images = {name: cut(of[name], place_window(of[name], facts[name], 24, fit, 2.5)).images for name in of}
    assert np.array_equal(images["air"], images["pad"])
    assert len(np.unique(images["pad"])) > 50, "grey levels"
    predicted = slicing_geometry(of["pad"], Preprocessing("axial", 2, 24, fit, 2.5))
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


def test_a_prepared_data_set_keeps_what_is_padding(tmp_path: Path) -> None:
    """The sealed volumes are cut with it, and data of versions without it are read."""
    raw = cohort(tmp_path / "raw", dict.fromkeys("abcdef", 20))
    for path in raw.parent.glob("*_image.nii.gz"):
        volume = nib.load(path)
        image = voxels(path)
        nib.Nifti1Image(np.where(image == 0, -32768, image), volume.affine).to_filename(path)
    prepare(raw, tmp_path / "out", PrepareOptions(size=32, jobs=1))
    manifest = Manifest.read(tmp_path / "out")
    assert {volume.floor for volume in manifest.volumes} == {0.0}
    assert "6 of 6 volumes: a grey value far below all others is taken for padding" in " ".join(manifest.notes)
    path = tmp_path / "out/manifest.json"
    content = json.loads(path.read_text())
    for volume in content["volumes"]:
        del volume["floor"]
    path.write_text(json.dumps(content))
    assert {volume.floor for volume in Manifest.read(tmp_path / "out").volumes} == {None}
