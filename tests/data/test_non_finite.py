"""NaN and infinite voxels: around the head they are background, inside it they are refused with a position."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from wmlsearch.data.examine import VolumeFacts, examine
from wmlsearch.data.non_finite import fill_background
from wmlsearch.data.reading import load_volume
from wmlsearch.data.sources import Source

SHAPE = (20, 24, 10)


def head(offset: float = 0.0) -> np.ndarray:
    """A box of noise with a bright lesion in air of 0."""
    image = np.zeros(SHAPE, np.float32)
    image[4:16, 4:20, 1:9] = np.random.default_rng(0).normal(100 + offset, 10, (12, 16, 8))
    image[8:11, 10:13, 4:6] += 100
    return image


def source(folder: Path, image: np.ndarray, mask: np.ndarray | None = None) -> Source:
    lesion = np.zeros(SHAPE, np.uint8)
    lesion[8:11, 10:13, 4:6] = 1
    for name, array in (("image", image), ("mask", lesion if mask is None else mask)):
        nib.Nifti1Image(array, np.diag([2, 2, 3, 1])).to_filename(folder / f"{name}.nii.gz")
    return Source("p", "", folder, (folder / "image.nii.gz",), (folder / "mask.nii.gz",))


def facts_of(volume: Source) -> VolumeFacts:
    facts, faults = examine(volume, 2)
    assert faults == []
    assert facts is not None
    return facts


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
def test_around_the_head_they_are_background(missing: float, tmp_path: Path) -> None:
    wanted = facts_of(source(tmp_path, head()))
    image = head()
    image[image == 0] = missing
    facts = facts_of(source(tmp_path, image))
    share = 100 * (1 - 12 * 16 * 8 / (20 * 24 * 10))  # 68 %
    assert [one.text for one in facts.findings] == [
        f"{share:.2g} % of the voxels, around the head, are NaN or infinite: taken for background, grey value 0"
    ]
    assert not facts.findings[0].is_warning, "a note"
    assert facts.voxels_sha256 == wanted.voxels_sha256, "as if the file held 0"
    assert (facts.box, facts.low, facts.high) == (wanted.box, wanted.low, wanted.high)


def test_inside_the_head_they_are_refused_with_number_and_position(tmp_path: Path) -> None:
    image = head()
    image[image == 0] = np.nan
    image[9, 10, 4:6] = np.nan
    _, faults = examine(source(tmp_path, image), 2)
    assert faults == [
        "image.nii.gz: every voxel must be a finite number, but 2 inside the head are NaN or infinite, such as voxel "
        "(9, 10, 4) (3264 more, at the border of the volume, would be background); make it again without them, or set "
        "them to 0 if they are background"
    ]


def test_a_volume_without_a_finite_voxel(tmp_path: Path) -> None:
    _, faults = examine(source(tmp_path, np.full(SHAPE, np.nan, np.float32)), 2)
    assert faults == ["image.nii.gz: every voxel is NaN or infinite; replace the file"]


def test_a_mask_with_nan_around_the_brain(tmp_path: Path) -> None:
    mask = np.full(SHAPE, np.nan, np.float32)
    mask[4:16, 4:20, 1:9] = 0
    mask[8:11, 10:13, 4:6] = 1
    facts = facts_of(source(tmp_path, head(), mask))
    assert sum(facts.lesion) == 3 * 3 * 2
    assert [one.kind for one in facts.findings] == ["filled"]


def test_the_background_of_an_image_with_negative_values_is_its_darkest_grey() -> None:
    image = head(-100)
    image[image == 0] = np.nan
    filled = fill_background(image)
    assert filled.level == pytest.approx(np.nanpercentile(image, 0.1))
    assert np.isfinite(filled.voxels).all()
    assert np.isnan(image).any(), "the argument is unchanged"


def test_neighbours_by_a_corner_reach_the_border() -> None:
    image = np.ones((5, 5, 5), np.float32)
    for i in range(3):
        image[i, i, i] = np.nan
    assert fill_background(image).filled == 3
    image[0, 0, 0] = 1
    filled = fill_background(image)
    assert (filled.filled, filled.enclosed, filled.first_enclosed) == (0, 2, (1, 1, 1))


def test_a_finite_volume_is_returned_as_it_is() -> None:
    image = head()
    assert fill_background(image).voxels is image


def test_reading_again_gives_the_same_slices(tmp_path: Path) -> None:
    image = head()
    image[image == 0] = np.nan
    volume = source(tmp_path, image)
    assert np.array_equal(load_volume(volume, 2).pictures, load_volume(source(tmp_path, head()), 2).pictures)


def test_an_infinite_scale_is_named(tmp_path: Path) -> None:
    volume = source(tmp_path, head().astype(np.int16))
    image = nib.load(volume.image[0])
    image.header.set_slope_inter(1e37, 0)
    array = np.asarray(image.dataobj.get_unscaled()) * 10
    scaled = nib.Nifti1Image(array.astype(np.int16), image.affine)
    scaled.header["scl_slope"], scaled.header["scl_inter"] = 1e37, 0
    content = bytearray(scaled.to_bytes())
    content[112:116] = np.float32(1e37).tobytes()
    (tmp_path / "image.nii").write_bytes(content)
    _, faults = examine(Source("p", "", tmp_path, (tmp_path / "image.nii",)), 2)
    assert len(faults) == 1
    assert faults[0].startswith("image.nii: its header's scale (scl_slope 1e+37, scl_inter 0) makes ")
