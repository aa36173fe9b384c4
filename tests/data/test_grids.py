"""Grids of images and masks: nearly equal, turned, sheared, without orientation, in other units."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from wmlsearch.data.examine import VolumeFacts, examine
from wmlsearch.data.geometry import place_window
from wmlsearch.data.grids import grid_offset, voxel_mm3
from wmlsearch.data.sources import Source

SHAPE = (20, 24, 10)
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def arrays() -> tuple[np.ndarray, np.ndarray]:
    image, mask = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.uint8)
    image[4:16, 4:20, 1:9] = np.random.default_rng(0).normal(100, 10, (12, 16, 8))
    mask[6:9, 8:11, 3:5] = 1
    return image + 100 * mask, mask


def save(path: Path, array: np.ndarray, sform: np.ndarray | None, qform: np.ndarray | None, unit: str = "mm") -> Path:
    image = nib.Nifti1Image(array, None)
    image.header.set_zooms((2.0, 2.0, 3.0))
    image.set_sform(sform, 0 if sform is None else 1)
    image.set_qform(qform, 0 if qform is None else 1)
    if qform is None:
        image.header["pixdim"][1:4] = 2, 2, 3
    image.header.set_xyzt_units(unit)
    image.to_filename(path)
    return path


def source(folder: Path, mask_affine: np.ndarray = AFFINE, affine: np.ndarray = AFFINE, unit: str = "mm") -> Source:
    image, mask = arrays()
    paths = (
        save(folder / "image.nii.gz", image, affine, None, unit),
        save(folder / "mask.nii.gz", mask, mask_affine, None),
    )
    return Source("p", "", folder, paths[:1], paths[1:])


def facts_of(volume: Source) -> VolumeFacts:
    facts, faults = examine(volume, 2)
    assert faults == []
    assert facts is not None
    return facts


def moved(mm: tuple[float, float, float]) -> np.ndarray:
    affine = AFFINE.copy()
    affine[:3, 3] += mm
    return affine


@pytest.mark.parametrize(("mm", "voxels"), [((0.9, 0, 0), "0.45"), ((0, 0.5, 0), "0.25"), ((0, 0, 1.4), "0.47")])
def test_a_mask_less_than_half_a_voxel_off_is_taken_with_a_warning(
    mm: tuple[float, float, float], voxels: str, tmp_path: Path
) -> None:
    facts = facts_of(source(tmp_path, moved(mm)))
    assert sum(facts.lesion) == 18
    assert [(one.kind, one.is_warning) for one in facts.findings] == [("grid", True)]
    assert f"lies up to {voxels} voxels from the image's" in facts.findings[0].text


@pytest.mark.parametrize(("mm", "voxels"), [((1.0, 0, 0), "0.5"), ((0, 0, 1.6), "0.533"), ((0, -8.0, 0), "4")])
def test_a_mask_half_a_voxel_off_or_more_is_refused(
    mm: tuple[float, float, float], voxels: str, tmp_path: Path
) -> None:
    _, faults = examine(source(tmp_path, moved(mm)), 2)
    assert faults == [
        "mask.nii.gz: affine must be that of image.nii.gz to half a voxel, but the grids lie up to "
        f"{voxels} voxels apart; resample the mask onto the image, or copy the image's header to it if it was drawn on "
        "this image"
    ]


def test_rounding_is_no_warning(tmp_path: Path) -> None:
    assert facts_of(source(tmp_path, moved((0.01, 0, 0)))).findings == ()


def test_a_voxel_is_measured_along_each_axis() -> None:
    affine, other = np.diag([1.0, 1.0, 10.0, 1.0]), np.diag([1.0, 1.0, 10.0, 1.0])
    other[2, 3] = 4  # mm: less than half a slice, but four times the finest edge
    assert grid_offset((8, 8, 8), affine, other) == pytest.approx(0.4)
    turned = np.diag([1.02, 1.0, 10.0, 1.0])
    assert grid_offset((51, 8, 8), affine, turned) == pytest.approx(1.0), "at the farthest corner"


def test_a_huge_translation_does_not_hide_equal_grids() -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = 1e12
    assert grid_offset((8, 8, 8), affine, affine.copy()) == 0


@pytest.mark.parametrize("axes", ["LAS", "RPS", "LPI", "SRA", "AIR", "PSL"])
def test_a_mask_with_other_axes_that_describes_the_same_grid(axes: str, tmp_path: Path) -> None:
    wanted = facts_of(source(tmp_path))
    _, mask = arrays()
    change = ornt_transform(io_orientation(AFFINE), axcodes2ornt(axes))
    turned = nib.orientations.apply_orientation(mask, change)
    save(tmp_path / "mask.nii.gz", turned, AFFINE @ inv_ornt_aff(change, mask.shape), None)
    facts = facts_of(Source("p", "", tmp_path, (tmp_path / "image.nii.gz",), (tmp_path / "mask.nii.gz",)))
    assert (facts.lesion, facts.lesion_sha256, facts.findings) == (wanted.lesion, wanted.lesion_sha256, ())


def sheared() -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 1] = 1.5  # the edge along the second axis is sqrt(2^2 + 1.5^2) = 2.5 mm, but rows are still 2 mm apart
    return affine


def test_a_sheared_grid_has_the_volume_of_its_determinant(tmp_path: Path) -> None:
    facts = facts_of(source(tmp_path, sheared(), sheared()))
    assert facts.voxel_mm == pytest.approx((2, 2.5, 3))
    assert facts.voxel_mm3 == pytest.approx(2 * 2 * 3)
    assert facts.lesion_load == pytest.approx(18 * 0.012)
    volume = Source("p", "", tmp_path, (tmp_path / "image.nii.gz",))
    geometry = place_window(volume, facts, 32, "crop", 2.0)
    assert geometry.voxel_ml == pytest.approx(0.012)
    rows, columns = geometry.scale
    assert geometry.pixel_ml == pytest.approx(0.012 / rows / columns)


def test_a_straight_grid_keeps_the_product_of_its_edges() -> None:
    assert voxel_mm3(np.diag([0.1, 0.7, 1.3, 1.0])) == float(np.prod([0.1, 0.7, 1.3]))


def test_a_header_without_orientation_is_told(tmp_path: Path) -> None:
    image, mask = arrays()
    paths = [save(tmp_path / name, array, None, None) for name, array in (("i.nii.gz", image), ("m.nii.gz", mask))]
    facts = facts_of(Source("p", "", tmp_path, (paths[0],), (paths[1],)))
    assert [one.text for one in facts.findings] == [
        "the header gives no orientation (sform_code and qform_code are 0), so its axes are taken as LAS; check left, "
        "right and the order of the slices"
    ]
    oriented = save(tmp_path / "i.nii.gz", image, AFFINE, None)
    _, faults = examine(Source("p", "", tmp_path, (oriented,), (paths[1],)), 2)
    assert len(faults) == 1
    assert faults[0].endswith(
        "its header gives no orientation, so if it was drawn on this image, copy the image's header to it"
    )


def test_sform_and_qform_that_disagree_are_told(tmp_path: Path) -> None:
    image, mask = arrays()
    flipped = np.diag([-2.0, 2.0, 3.0, 1.0])
    flipped[0, 3] = 38.0  # the same voxels, mirrored
    paths = [save(tmp_path / name, array, AFFINE, flipped) for name, array in (("i.nii.gz", image), ("m.nii.gz", mask))]
    facts = facts_of(Source("p", "", tmp_path, (paths[0],), (paths[1],)))
    assert [one.text for one in facts.findings] == [
        f"{file}the header's sform (RAS) and qform (LAS) differ by up to 19 voxels; the sform is taken; check left, "
        "right and the order of the slices"
        for file in ("", "mask: ")
    ]
    near = moved((0.9, 0, 0))  # 0.45 voxels
    paths = [save(tmp_path / name, array, AFFINE, near) for name, array in (("i.nii.gz", image), ("m.nii.gz", mask))]
    assert facts_of(Source("p", "", tmp_path, (paths[0],), (paths[1],))).findings == ()


@pytest.mark.parametrize(("unit", "factor", "name"), [("meter", 1e-3, "metres"), ("micron", 1e3, "micrometres")])
def test_units_of_the_header(unit: str, factor: float, name: str, tmp_path: Path) -> None:
    scaled = np.diag([2 * factor, 2 * factor, 3 * factor, 1.0])
    volume = source(tmp_path, AFFINE, scaled, unit)
    facts = facts_of(volume)
    assert facts.voxel_mm == pytest.approx((2, 2, 3))
    assert [one.kind for one in facts.findings] == ["units"]
    assert f"{name}, taken so; correct the header if it is wrong" in facts.findings[0].text
    wrong = facts_of(source(tmp_path, AFFINE, AFFINE, unit))
    assert wrong.voxel_mm == pytest.approx((2, 2, 3))
    assert "taken as mm, because no head has voxels of that size" in wrong.findings[0].text


@pytest.mark.parametrize("edge", [0.002, 2000.0, 1e20])
def test_voxels_of_no_head_are_refused(edge: float, tmp_path: Path) -> None:
    affine = np.diag([edge, edge, edge, 1.0])
    _, faults = examine(source(tmp_path, affine, affine), 2)
    assert [fault.split(": ")[0] for fault in faults] == ["image.nii.gz", "mask.nii.gz"]
    assert all("voxel edges must be from 0.02 to 60 mm" in fault for fault in faults)


def stored(folder: Path, array: np.ndarray) -> list[str]:
    image: Any = nib.Nifti1Image(array, AFFINE)
    image.header.set_slope_inter(1, 0)
    image.to_filename(folder / "image.nii.gz")
    return [one.kind for one in facts_of(Source("p", "", folder, (folder / "image.nii.gz",))).findings]


def test_values_that_wrapped_around_are_told(tmp_path: Path) -> None:
    image = arrays()[0] * 300  # up to about 36,000 in tissue, 60,000 in the lesion: more than int16 holds
    assert stored(tmp_path, image.astype(np.int32).astype(np.int16)) == ["wrapped"]
    assert stored(tmp_path, (image / 4).astype(np.int16)) == []
    assert stored(tmp_path, image.astype(np.uint16)) == []
    assert stored(tmp_path, (image - 30000).clip(-32768, 32767).astype(np.int32)) == []
