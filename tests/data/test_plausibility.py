"""Masks that cannot be masks of lesions: on phantoms, and on real scans where they are at hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from nifti_files import voxels
from paths import REAL
from PIL import Image
from scipy import ndimage

from wmlsearch.cli import main
from wmlsearch.data import plausibility
from wmlsearch.data.contact_sheet import WARNING
from wmlsearch.data.examine import examine
from wmlsearch.data.head_detection import find_head
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.plausibility import _Masked, check_mask
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.reading import load_volume
from wmlsearch.data.sources import Source, survey
from wmlsearch.data.stack import Stack

Wrong = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of (slices, mask): a wrong mask
AXIAL = 2
WRONG: dict[str, tuple[Wrong, str]] = {
    "left and right exchanged": (lambda _, mask: mask[:, :, ::-1], "flipped"),
    "slices in the other order": (lambda _, mask: mask[::-1], "flipped"),
    "front and back exchanged": (lambda _, mask: mask[:, ::-1], "flipped"),
    "turned by half a turn": (lambda _, mask: mask[:, ::-1, ::-1], "flipped"),
    "rows for columns": (lambda _, mask: mask.transpose(0, 2, 1), "flipped"),
    "a voxel aside": (lambda _, mask: np.roll(mask, 1, 2), "moved"),
    "a slice too high": (lambda _, mask: np.roll(mask, 1, 0), "moved"),
    "moved along all axes": (lambda _, mask: np.roll(mask, (-1, 5, 3), (0, 1, 2)), "moved"),
    "the whole head": (lambda slices, _: find_head(slices).pixels, "whole head"),
    "inverted": (lambda _, mask: ~mask, "inverted"),
    "everything bright": (lambda slices, _: slices > np.percentile(slices, 90), "large"),
    "dark tissue": (lambda slices, _: _darkest_of_head(slices), "dark"),
}


def _darkest_of_head(slices: np.ndarray) -> np.ndarray:
    head = find_head(slices).pixels
    return head & (slices < np.percentile(slices[head], 5))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plausibility") / "raw"
    return write_phantom(root, patients=5, timepoints=1, shape=(64, 64, 24), seed=2)


@pytest.fixture(scope="module")
def stacks(raw: Path) -> list[Stack]:
    return [load_volume(source, AXIAL) for source in survey(raw).check().sources]


def kinds(slices: np.ndarray, mask: np.ndarray, axis: int = AXIAL) -> set[str]:
    return {one.kind for one in check_mask(slices, mask, find_head(slices).pixels, axis)}


def test_true_masks_are_not_doubtful(stacks: list[Stack]) -> None:
    for stack in stacks:
        assert stack.mask is not None
        assert kinds(stack.pictures, stack.mask) == set()
        assert kinds(stack.pictures, np.zeros_like(stack.mask)) == set(), "a patient without lesions"


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_masks_are_told(wrong: str, stacks: list[Stack]) -> None:
    change, kind = WRONG[wrong]
    for stack in stacks:
        assert stack.mask is not None
        assert kind in kinds(stack.pictures, np.ascontiguousarray(change(stack.pictures, stack.mask)))


def test_masks_of_other_patients_are_told(stacks: list[Stack]) -> None:
    for number, stack in enumerate(stacks):
        other = stacks[number - 1].mask
        assert other is not None
        assert kinds(stack.pictures, other)


def single_lesions(mask: np.ndarray, largest: int) -> list[np.ndarray]:
    """Masks of one lesion each, of those with 10 voxels or more: some, from the smallest to the largest."""
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    chosen = sorted((int(sizes[i]), i) for i in range(1, count + 1) if sizes[i] >= 10)
    return [labels == i for _, i in chosen[:: max(1, len(chosen) // largest)]]


def test_single_true_lesions_are_not_doubtful(stacks: list[Stack]) -> None:
    lesions = 0
    for stack in stacks:
        assert stack.mask is not None
        for lesion in single_lesions(stack.mask, 100):
            assert kinds(stack.pictures, lesion) == set()
            lesions += 1
    assert lesions >= 10


@pytest.mark.skipif(not REAL.is_dir(), reason="the real scans are not at hand")
def test_single_real_lesions_are_not_doubtful() -> None:
    for source in survey(REAL).check().sources:
        stack = load_volume(source, AXIAL)
        assert stack.mask is not None
        for lesion in single_lesions(stack.mask, 12):
            assert kinds(stack.pictures, lesion) == set(), (source.patient, int(lesion.sum()))


def test_few_lesions_that_are_flipped_or_moved_are_told(stacks: list[Stack]) -> None:
    for stack in stacks:
        assert stack.mask is not None
        lesions = single_lesions(stack.mask, 100)
        if len(lesions) >= 3:
            few = lesions[-1] | lesions[-2] | lesions[-3]
            assert kinds(stack.pictures, few) == set()
            assert kinds(stack.pictures, np.ascontiguousarray(few[:, :, ::-1]))


def test_a_move_is_found_wherever_the_lesions_are(stacks: list[Stack]) -> None:
    stack = stacks[0]
    assert stack.mask is not None
    moved = _Masked(stack.pictures, np.roll(stack.mask, (-1, 5, 3), (0, 1, 2)), find_head(stack.pictures).pixels)
    fit, move = moved.best_move(20)
    assert move == (1, -5, -3)
    true = _Masked(stack.pictures, stack.mask, find_head(stack.pictures).pixels)
    assert fit == pytest.approx(true.fit(), rel=0.05)
    assert true.best_move(20)[1] == (0, 0, 0)


@pytest.mark.parametrize("move", [3, 4, 7])
def test_a_move_is_not_cut_off_where_the_near_search_ends(move: int) -> None:
    """A wide, smooth lesion is still brighter than its surroundings where it is moved far."""
    rows, columns = np.mgrid[:64, :64]
    distance = np.hypot(rows - 32, columns - 32)
    picture = np.where(distance < 28, 100 + 80 * np.exp(-((distance / 10) ** 2)), 0).astype(np.float32)
    pictures = np.repeat(picture[None], 12, 0) + np.random.default_rng(0).normal(0, 1, (12, 64, 64))
    lesion = np.zeros(pictures.shape, bool)
    lesion[3:9] = distance < 8
    head = pictures > 50
    moved = np.roll(lesion, move, 2)
    assert check_mask(pictures, lesion, head, AXIAL) == []
    assert _Masked(pictures, moved, head).fit() >= plausibility.DARK, "so that the search is near at first"
    (finding,) = check_mask(pictures, moved, head, AXIAL)
    assert f"where the mask is moved by {move} voxels left to right" in finding.text


def test_large_volumes_are_compared_in_parts(stacks: list[Stack], monkeypatch: pytest.MonkeyPatch) -> None:
    stack = stacks[0]
    assert stack.mask is not None
    masked = _Masked(stack.pictures, np.roll(stack.mask, (-1, 5, 3), (0, 1, 2)), find_head(stack.pictures).pixels)
    whole = masked.best_move(8)
    monkeypatch.setattr(plausibility, "MAX_TRANSFORM", 1)
    in_parts = masked.best_move(8)
    assert in_parts[1] == whole[1]
    assert in_parts[0] == pytest.approx(whole[0], rel=1e-4)


def test_ignored_voxels_are_no_surroundings(stacks: list[Stack]) -> None:
    for stack in stacks:
        assert stack.mask is not None
        head = find_head(stack.pictures).pixels
        disc = ndimage.generate_binary_structure(2, 1)[None]
        rim = ndimage.binary_dilation(stack.mask, disc, 4) & ~stack.mask & head
        pictures = stack.pictures.copy()
        pictures[rim] = pictures[stack.mask].max()
        assert check_mask(pictures, stack.mask, head, AXIAL)
        assert check_mask(pictures, stack.mask, head, AXIAL, rim) == []


@pytest.mark.skipif(not REAL.is_dir(), reason="the real scans are not at hand")
def test_real_masks() -> None:
    for source in survey(REAL).check().sources:
        stack = load_volume(source, AXIAL)
        assert stack.mask is not None
        assert kinds(stack.pictures, stack.mask) == set()
        for name in ("left and right exchanged", "slices in the other order", "a voxel aside", "the whole head"):
            change, kind = WRONG[name]
            wrong = np.ascontiguousarray(change(stack.pictures, stack.mask))
            assert kind in kinds(stack.pictures, wrong), (source.patient, name)


def change_masks(raw: Path, out: Path, change: Callable[[int, np.ndarray, np.ndarray], np.ndarray]) -> Path:
    """Copy a data set with other masks: `change(number, image, mask)`."""
    shutil.copytree(raw, out)
    for number, path in enumerate(sorted(out.glob("derivatives/**/*_mask.nii.gz"))):
        folder = out / path.relative_to(out / "derivatives/lesions").parent
        image = folder / path.name.replace("label-lesion_mask", "FLAIR")
        mask = change(number, voxels(image), voxels(path)).astype(np.uint8)
        nib.Nifti1Image(mask, nib.load(path).affine).to_filename(path)
    return out


def test_all_patients_are_named_before_anything_is_trained(raw: Path, tmp_path: Path) -> None:
    wrong = change_masks(raw, tmp_path / "raw", lambda _, image, __: image > 0.1 * image.max())
    result = CliRunner().invoke(main, ["prepare", str(wrong), str(tmp_path / "out"), "--size", "64", "--jobs", "1"])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("warning: 5 of 5 volumes: ")]
    assert len(lines) == 1
    assert "the mask covers half of the head or more; is it a mask of the head or the brain? (" in lines[0]
    assert all(f"{number:02d}/1 9" in lines[0] or f"{number:02d}/1 100 %" in lines[0] for number in range(1, 6))
    manifest = Manifest.read(tmp_path / "out")
    found = [row for row in manifest.findings if row.finding.kind != "lesions cut off"]  # three heads exceed the window
    assert [row.finding.kind for row in found] == 5 * ["whole head"], "the sealed patients too"
    assert all(volume.findings[0].kind == "whole head" for volume in manifest.volumes)


def test_the_worst_patient_of_each_warning_comes_first_on_the_contact_sheet(raw: Path, tmp_path: Path) -> None:
    plain = prepare(raw, tmp_path / "plain", PrepareOptions(size=64, jobs=1))
    last = plain.volumes[-1].masks[0]  # of the last patient who is shown
    wrong = tmp_path / "raw"
    shutil.copytree(raw, wrong)
    image = nib.load(wrong / last)
    nib.Nifti1Image(voxels(wrong / last)[::-1], image.affine).to_filename(wrong / last)
    manifest = prepare(wrong, tmp_path / "out", PrepareOptions(size=64, jobs=1))
    (line,) = manifest.warnings
    assert line.startswith(f"{manifest.volumes[-1].source}: the lesions are ")
    assert line.endswith("where the mask is turned over left to right; is the mask, or a header, flipped?")
    with Image.open(tmp_path / "out/contact_sheet.png") as sheet:
        pixels = np.asarray(sheet)
        is_told = (pixels == WARNING).all(axis=2)
    assert is_told.any()
    assert is_told[:270, :230].any(), "on the first tile"
    with Image.open(tmp_path / "plain/contact_sheet.png") as sheet:
        assert not (np.asarray(sheet) == WARNING).all(axis=2).any()


def test_equal_masks_are_told_by_both_volumes(raw: Path, tmp_path: Path) -> None:
    first: list[np.ndarray] = []

    def change(number: int, _: np.ndarray, mask: np.ndarray) -> np.ndarray:
        first.append(mask)
        return first[0] if number == 3 else mask

    manifest = prepare(change_masks(raw, tmp_path / "raw", change), tmp_path / "out", PrepareOptions(size=64, jobs=1))
    equal = {row.volume: row.finding.text for row in manifest.findings if row.finding.kind == "equal masks"}
    assert set(equal) == {"01/1", "04/1"}
    name = "derivatives/lesions/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz"
    assert equal["04/1"] == f"the mask is {name}, voxel for voxel; is one of them copied?"


def test_pseudonyms_hide_names_in_warnings(raw: Path, tmp_path: Path) -> None:
    masks: list[np.ndarray] = []

    def change(_: int, __: np.ndarray, mask: np.ndarray) -> np.ndarray:
        masks.append(mask)
        return masks[0]

    wrong = change_masks(raw, tmp_path / "raw", change)
    options = PrepareOptions(size=64, jobs=1, pseudonyms=tmp_path / "table.json")
    manifest = prepare(wrong, tmp_path / "out", options)
    assert manifest.findings
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert b"sub-01_ses-1" not in path.read_bytes()


def test_a_mask_that_is_the_image_is_refused(tmp_path: Path) -> None:
    image = np.zeros((16, 16, 8), np.float32)
    image[4:12, 4:12, 2:6] = np.random.default_rng(0).normal(100, 10, (8, 8, 4))
    binary = (image > 100).astype(np.uint8)
    for name, array in (("i", image), ("b", binary), ("b255", binary * 255)):
        nib.Nifti1Image(array, np.eye(4)).to_filename(tmp_path / f"{name}.nii.gz")

    def faults(image: str, mask: str) -> list[str]:
        source = Source("p", "", tmp_path, (tmp_path / f"{image}.nii.gz",), (tmp_path / f"{mask}.nii.gz",))
        return examine(source, 2)[1]

    assert faults("i", "i") == ["i.nii.gz: is its image i.nii.gz, voxel for voxel; name the mask of its lesions"]
    assert faults("b", "b") == ["b.nii.gz: is its image b.nii.gz, voxel for voxel; name the mask of its lesions"]
    assert faults("b255", "b") == [
        "b.nii.gz: its image b255.nii.gz has two grey values and is the mask itself; name the FLAIR image"
    ]
