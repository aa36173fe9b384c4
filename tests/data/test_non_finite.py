"""NaN and infinite voxels: around the head they are background, inside it they are refused with a position."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nifti_files import cohort

from wmlsearch.data import seen_patients
from wmlsearch.data.cutting import cut, expert_mask
from wmlsearch.data.examine import VolumeFacts, examine
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.non_finite import fill_background
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.reading import load_volume
from wmlsearch.data.sealed_test import Opener, open_sealed_test
from wmlsearch.data.sources import Source
from wmlsearch.errors import InputError
from wmlsearch.inference.preprocessing import Preprocessing, slicing_geometry

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
        f"{share:.2g} % of the voxels, around the head, are NaN or infinite: treated as background, grey value 0"
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
        "(9, 10, 4) (3264 more, at the border of the volume, would be background); make it again without them, or "
        "give --nan-background if they are background"
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


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_without_a_value_through_the_head_are_refused(axis: int, tmp_path: Path) -> None:
    image = head()
    np.moveaxis(image, axis, 0)[5:7] = np.nan
    _, faults = examine(source(tmp_path, image, np.zeros(SHAPE, np.uint8)), 2)
    assert faults == [
        "image.nii.gz: NaN or infinite voxels go through the head: some of the slices 5 to 6 along axis "
        f"{axis} show little or none of it, and those on both sides show more; make the image again without "
        "them, or give --nan-background if they are background"
    ]


def test_a_brain_with_a_deep_fissure_in_nan_is_taken(tmp_path: Path) -> None:
    """Two halves that are joined by a bridge: the slices between them have 0.4 of the largest slice's voxels."""
    image = np.full((21, 24, 10), np.nan, np.float32)
    image[2:19, 4:14, 1:9] = np.random.default_rng(0).normal(100, 10, (17, 10, 8))
    image[10, 8:, :] = np.nan  # 4 of 10 rows are left
    assert fill_background(image).cut is None
    image[10] = np.nan
    cut = fill_background(image).cut
    assert cut is not None
    assert (cut.axis, cut.first, cut.last) == (0, 10, 10)


def test_specks_outside_the_head_are_not_its_other_side() -> None:
    image = np.full((20, 24, 10), np.nan, np.float32)
    image[4:12, 4:20, 1:9] = 100
    image[18, 0, 0] = 1
    assert fill_background(image).cut is None


def test_lesions_without_values_are_refused(tmp_path: Path) -> None:
    image = head()
    image[:11] = np.nan
    _, faults = examine(source(tmp_path, image), 2)
    assert faults == [
        "image.nii.gz: 18 of 18 lesion voxels (100 %) lie where the image is NaN or infinite; the image is cut off, or "
        "the mask is of another scan: make the image again, or give --nan-background if they are background"
    ]
    image = head()
    image[image == 0] = np.nan
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:11, 10:13, 4:6] = 1  # one of its eight rows is outside: 6 voxels
    facts = facts_of(source(tmp_path, image, mask))
    told = [one.text for one in facts.findings if one.kind == "lesions without values"]
    assert told == ["6 of 48 lesion voxels (12 %) lie where the image is NaN or infinite; is the image cut off?"]


def test_a_mask_that_is_nan_beside_the_lesions_is_taken(tmp_path: Path) -> None:
    mask = np.full(SHAPE, np.nan, np.float32)
    mask[8:11, 10:13, 4:6] = 1  # 18 of 4800
    facts = facts_of(source(tmp_path, head(), mask))
    assert [(one.is_warning, one.text) for one in facts.findings] == [
        (False, "99.62 % of the mask's voxels, at its border, are NaN or infinite: treated as background")
    ]
    assert sum(facts.lesion) == 18


@pytest.mark.parametrize(
    ("box", "lesions", "warning"),
    [
        ((7, 7, 5), 0, "only 5.1 % of the mask's voxels have a finite value, and none of them is lesion; is"),
        ((12, 16, 8), 0, "only 32 % of the mask's voxels have a finite value, and none of them is lesion; is"),
        ((5, 5, 5), 8, "only 2.6 % of the mask's voxels have a finite value, too many for the lesions and too few "),
        ((5, 5, 5), 13, None),  # a tenth of 125: margins around lesions
        ((12, 16, 1), 1, None),  # 192, more than a tenth of the head's 1536
    ],
)
def test_a_mask_is_finite_in_lesions_or_in_the_head(
    box: tuple[int, int, int], lesions: int, warning: str | None, tmp_path: Path
) -> None:
    mask = np.full(SHAPE, np.nan, np.float32)
    part = np.zeros(np.prod(box), np.float32)
    part[:lesions] = 1
    mask[4 : 4 + box[0], 4 : 4 + box[1], 1 : 1 + box[2]] = part.reshape(box)
    findings = [one for one in facts_of(source(tmp_path, head(), mask)).findings if one.kind == "mask filled"]
    assert len(findings) == (warning is not None)
    assert not findings or findings[0].text.startswith(str(warning))


def test_with_the_option_they_are_background_wherever_they_are(tmp_path: Path) -> None:
    wanted = head()
    wanted[6, 6:9, 5] = 0
    image = wanted.copy()
    image[image == 0] = np.nan
    volume = source(tmp_path, image)
    assert examine(volume, 2)[0] is None
    facts, faults = examine(volume, 2, nan_background=True)
    assert (faults, facts is not None) == ([], True)
    assert facts is not None
    assert facts.voxels_sha256 == facts_of(source(tmp_path, wanted)).voxels_sha256
    (told,) = [one for one in facts.findings if one.kind == "enclosed"]
    assert told.is_warning
    assert told.text == (
        "3 voxels inside the volume, not at its border, NaN or infinite: treated as background, as "
        "--nan-background says"
    )


def test_all_that_reads_the_volumes_again_knows_of_the_option(tmp_path: Path) -> None:
    table = cohort(tmp_path / "raw", {f"p{number}": 10 + number for number in range(6)})
    for path in (tmp_path / "raw").glob("*_image.nii.gz"):
        stored = nib.load(path)
        image = np.array(stored.dataobj)
        image[image == 0] = np.nan
        image[5, 5, 3:5] = np.nan
        nib.Nifti1Image(image, stored.affine).to_filename(path)
    with pytest.raises(InputError) as raised:
        prepare(table, tmp_path / "out", PrepareOptions(size=24, plane="axial", jobs=1))
    assert "give --nan-background if they are background" in raised.value.faults[0]
    manifest = prepare(table, tmp_path / "out", PrepareOptions(size=24, plane="axial", jobs=1, nan_background=True))
    assert all(volume.nan_background for volume in manifest.volumes)
    assert any("NaN or infinite are treated as background, as requested" in line for line in manifest.warnings)
    sealed = open_sealed_test(tmp_path / "out", Opener())
    (volume, *_) = sealed.volumes()
    assert volume.nan_background
    preprocessing = Preprocessing("axial", 2, 24, "crop", manifest.spacing_mm)
    with pytest.raises(InputError) as raised:
        slicing_geometry(volume.source, preprocessing)
    assert "give --nan-background if they are background" in raised.value.faults[0]
    geometry = slicing_geometry(volume.source, preprocessing, nan_background=True)
    assert cut(volume.source, geometry).images.any()
    assert expert_mask(volume.source, geometry).any()
    facts = seen_patients._examine(tmp_path / "out", sealed.manifest.volumes[0], 2, manifest.padding_background)[1]
    assert facts.voxels_sha256 == sealed.manifest.volumes[0].voxels_sha256


def test_data_of_before_the_option_are_read(tmp_path: Path) -> None:
    table = cohort(tmp_path / "raw", {f"p{number}": 10 + number for number in range(6)})
    prepare(table, tmp_path / "out", PrepareOptions(size=24, plane="axial", jobs=1))
    path = tmp_path / "out/manifest.json"
    text = path.read_text()
    assert ', "nan_background": false' in text
    path.write_text(text.replace(', "nan_background": false', ""))
    assert not any(volume.nan_background for volume in Manifest.read(tmp_path / "out").volumes)
