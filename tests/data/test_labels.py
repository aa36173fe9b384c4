"""Which values of a mask are lesions and which are ignored, from the file to the stored slices and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nifti_files import cohort, voxels
from PIL import Image

from wmlsearch.data.augmentation import Augmentation
from wmlsearch.data.contact_sheet import IGNORED_OUTLINE, OUTLINE, Tile, _arrange
from wmlsearch.data.cutting import cut, expert_mask
from wmlsearch.data.examine import examine
from wmlsearch.data.geometry import place_window
from wmlsearch.data.labels import IGNORED, LESION, MaskRule, files_with_label
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData
from wmlsearch.data.sources import Source
from wmlsearch.data.stack import MaskLabels, VolumeFault
from wmlsearch.errors import InputError

FAST: dict[str, Any] = {"size": 24, "plane": "axial", "jobs": 1}
PATIENTS = {f"p{number}": 20 + number for number in range(6)}


def read(values: list[float], rule: MaskRule) -> list[int]:
    """The labels that a rule gives the values."""
    mask = rule.read(np.array(values, np.float32), "m")
    labels = mask.lesion.astype(int)
    if mask.ignored is not None:
        assert not (mask.lesion & mask.ignored).any()
        labels[mask.ignored] = IGNORED
    return labels.tolist()


@pytest.mark.parametrize(
    ("rule", "labels"),
    [
        (MaskRule(lesion_labels=(1,)), [0, 1, 0, 0, 0]),
        (MaskRule(lesion_labels=(1,), ignore_labels=(2,)), [0, 1, 2, 0, 0]),
        (MaskRule(lesion_labels=(1, 3), ignore_labels=(2, 77)), [0, 1, 2, 1, 2]),
        (MaskRule(ignore_labels=(2, 3, 77)), [0, 1, 2, 2, 2]),
        (MaskRule(threshold=1.5), [0, 0, 1, 1, 1]),
        (MaskRule(threshold=0.5, ignore_labels=(2,)), [0, 1, 2, 1, 1]),
    ],
)
def test_what_each_option_makes_of_labels(rule: MaskRule, labels: list[int]) -> None:
    assert read([0, 1, 2, 3, 77], rule) == labels


def test_a_mask_without_lesions_may_hold_ignored_voxels_only() -> None:
    assert read([0, 2, 2], MaskRule(lesion_labels=(1,), ignore_labels=(2,))) == [0, 2, 2]
    assert MaskRule(lesion_labels=(1,), ignore_labels=(2,)).read(np.array([0, 1]), "m").ignored is None


@pytest.mark.parametrize("values", [[2, 2], [1, 1]])
def test_a_mask_of_one_label_only_is_refused(values: list[float]) -> None:
    with pytest.raises(VolumeFault, match="a mask must have background, but every voxel is"):
        read(values, MaskRule(lesion_labels=(1,), ignore_labels=(2,)))
    assert read([1, 2], MaskRule(lesion_labels=(2,))) == [0, 1], "a label without an option is background"


def test_a_mask_may_hold_lesions_and_ignored_voxels_only() -> None:
    assert read([1, 2, 2], MaskRule(lesion_labels=(1,), ignore_labels=(2,))) == [1, 2, 2]


def test_labels_that_begin_at_1_are_advised_on() -> None:
    with pytest.raises(VolumeFault) as raised:
        read([1, 2, 2], MaskRule())
    assert raised.value.lines == (
        "m: a mask must have background, which is 0, but holds 1, 2; if one of them is the background, name the "
        "lesions by --lesion-label (such as --lesion-label 2)",
    )


@pytest.mark.parametrize("factor", [1.0000002, 0.99999, 1.0004])
def test_labels_beside_whole_numbers_are_these_numbers(factor: float) -> None:
    values = [0, factor, 2 * factor, 0, 0]
    rule = MaskRule(lesion_labels=(1,), ignore_labels=(2,))
    assert read(values, rule) == [0, 1, 2, 0, 0]
    assert read(values, MaskRule(threshold=0.5, ignore_labels=(2,))) == [0, 1, 2, 0, 0]
    labels = MaskRule().read(np.array(values, np.float32), "m").labels
    assert labels is not None
    assert labels.voxels == ((1, 1), (2, 1)), "so the data set is asked for label options"


@pytest.mark.parametrize(
    ("values", "threshold", "lesion"),
    [
        ([0, 0.9, 0.0008, 0.3, 0.0009], 0.0005, [0, 1, 1, 1, 1]),
        ([0, 0.9993, 0.9997, 0.3, 1], 0.9995, [0, 0, 1, 0, 1]),
        ([0, 0.0002, 0.7], 0, [0, 1, 1]),
        ([0, 0.9, 1, 1.0004], 0.9999, [0, 0, 1, 1]),
        ([0, 49.9995, 50, 50.0005, 70.2], 50, [0, 0, 0, 1, 1]),
        ([-0.0004, 0, 0.0004], -0.0002, [0, 1, 1]),
        ([0, 1.0000002, 2.0000002], 1, [0, 0, 1]),  # labels that a scale in the header has made inexact
    ],
)
def test_a_threshold_compares_values_as_they_are_stored(
    values: list[float], threshold: float, lesion: list[int]
) -> None:
    assert read(values, MaskRule(threshold=threshold)) == lesion


def test_large_labels_are_less_exact_in_a_file() -> None:
    assert read([0, 12035 * 1.0000002], MaskRule(lesion_labels=(12035,))) == [0, 1]


def test_small_values_are_not_taken_for_background() -> None:
    assert read([0, 0.0004, 0.0004], MaskRule()) == [0, 1, 1]


@pytest.mark.parametrize(
    ("rule", "option"),
    [(MaskRule(lesion_labels=(1,)), "--lesion-label"), (MaskRule(ignore_labels=(2,)), "--ignore-label")],
)
def test_a_smoothed_mask_is_no_label_mask(rule: MaskRule, option: str) -> None:
    with pytest.raises(VolumeFault) as raised:
        read([0, 0.25, 0.5, 0.75, 1], rule)
    assert raised.value.lines == (
        f"m: holds 5 values, no labels (0, 0.25, 0.5, 0.75, 1), so {option} does not fit; give --mask-threshold T "
        "instead to take every value above T as lesion",
    )


def test_labels_of_an_atlas_may_be_many_where_they_are_named() -> None:
    atlas = [float(number) for number in range(200)]
    assert sum(read(atlas, MaskRule(lesion_labels=(77,)))) == 1
    with pytest.raises(VolumeFault, match="holds 300 values, no labels"):
        read([float(number) for number in range(300)], MaskRule(lesion_labels=(77,)))


def of(*files: dict[float, int]) -> list[MaskLabels]:
    return [MaskLabels(f"m{number}", tuple(sorted(voxels.items()))) for number, voxels in enumerate(files, 1)]


def test_labels_of_a_whole_data_set_are_advised_on() -> None:
    """The third mask alone could be binary: it holds 0 and 2."""
    fault = MaskRule().label_fault(of({1: 10, 2: 3}, {1: 20}, {2: 4}))
    assert fault == (
        "the masks hold label 1 in 2 of 3 masks (30 voxels), label 2 in 2 of 3 masks (7 voxels) beside the background "
        "0; give --lesion-label L for each label that is lesion, and --ignore-label L for each that is to be left out "
        "of training and scores, neither lesion nor background (as in the WMH challenge: --lesion-label 1 "
        "--ignore-label 2); labels without an option become background. Or give --mask-threshold T to take every value "
        "above T as lesion (0 where lesions are numbered)"
    )
    one = MaskRule().label_fault(of({1: 10}, {1: 20}, {2: 4}))
    assert one is not None
    assert one.startswith("the masks hold label 1 in 2 of 3 masks (30 voxels), label 2 in m3 (4 voxels) beside"), (
        "no mask alone holds two labels"
    )
    many = MaskRule().label_fault(of({float(label): 1 for label in range(1, 31)}))
    assert many is not None
    assert "label 12 in m1 (1 voxels), ... (30 labels) beside" in many


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        ([{1: 5}, {1: 3}, {}], MaskRule()),
        ([{255: 5}, {1: 3}], MaskRule()),  # both are how 8-bit masks say lesion
        ([{1: 5, 2: 1}, {2: 3}], MaskRule(ignore_labels=(2,))),
        ([{1: 5, 2: 1}], MaskRule(lesion_labels=(1,))),
        ([{1: 5, 2: 1}], MaskRule(threshold=0)),
    ],
)
def test_labels_that_are_clear(files: list[dict[float, int]], rule: MaskRule) -> None:
    assert rule.label_fault(of(*files)) is None


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        ([{1: 5, 255: 3}], MaskRule()),
        ([{1: 5}, {2: 5}, {3: 1}], MaskRule(ignore_labels=(3,))),
        ([{1: 5}, {-1: 5}], MaskRule()),
    ],
)
def test_labels_that_are_not_clear(files: list[dict[float, int]], rule: MaskRule) -> None:
    assert rule.label_fault(of(*files)) is not None


def test_labels_that_no_option_names_are_told() -> None:
    files = files_with_label(of({1: 5, 2: 1, 4: 9}, {2: 3}))
    assert files == {"1": 1, "2": 2, "4": 1}
    assert MaskRule(lesion_labels=(1,), ignore_labels=(2, 7)).notes(files) == (
        "labels of the masks that no option names are background: 4 (in 1 masks); --ignore-label leaves them out",
        "no mask holds --ignore-label 7",
    )
    assert MaskRule(lesion_labels=(1,), ignore_labels=(2, 4)).notes(files) == ()
    assert MaskRule(threshold=1).notes(files) == (
        "--mask-threshold 1 takes the labels 2, 4 of the masks for lesions; if only some of them are, give "
        "--lesion-label instead",
    )
    assert MaskRule(threshold=2).notes(files) == MaskRule().notes({"1": 3}) == ()


def test_faults_of_the_options() -> None:
    with pytest.raises(InputError) as error:
        PrepareOptions(lesion_labels=(1, 0), ignore_labels=(1.5, 1), mask_threshold=2)
    assert error.value.faults == (
        "--lesion-label must be a whole number other than 0, which is background, but got 0",
        "--ignore-label must be a whole number other than 0, which is background, but got 1.5",
        "--lesion-label and --ignore-label must differ, but both name 1; drop one",
        "--mask-threshold and --lesion-label both say which values are lesions; drop one",
    )


# --------------------------------------------------------------------------------------------------- stored slices


def volume(folder: Path, labels: np.ndarray, edges: tuple[float, float, float] = (1, 1, 1)) -> Source:
    """A bright cube with a mask of labels (i, j, k)."""
    image = np.zeros(labels.shape, np.float32)
    image[2:-2, 2:-2] = np.random.default_rng(0).normal(100, 5, image[2:-2, 2:-2].shape)
    for name, array in (("image", image), ("mask", labels)):
        nib.Nifti1Image(array, np.diag([*edges, 1])).to_filename(folder / f"{name}.nii.gz")
    return Source("p", "", folder, (folder / "image.nii.gz",), (folder / "mask.nii.gz",))


def test_lesions_are_counted_without_ignored_voxels(tmp_path: Path) -> None:
    labels = np.zeros((16, 16, 4), np.uint8)
    labels[4:7, 4:7, 1] = 1
    labels[7:9, 4:7, 1] = 2
    labels[4:8, 4:8, 2] = 2
    rule = MaskRule(lesion_labels=(1,), ignore_labels=(2,))
    source = volume(tmp_path, labels)
    facts, _ = examine(source, 2, rule)
    assert facts is not None
    assert facts.lesion == (0, 9, 0, 0)
    assert facts.lesion_load == pytest.approx(0.009)
    assert facts.labels[0].voxels == ((1.0, 9), (2.0, 22))
    geometry = place_window(source, facts, 12, "crop", 1.0)
    slices = cut(source, geometry, rule=rule)
    assert [int((mask == LESION).sum()) for mask in slices.masks] == [0, 9, 0, 0]
    assert [int((mask == IGNORED).sum()) for mask in slices.masks] == [0, 6, 16, 0]
    assert slices.lost.tolist() == [0, 0, 0, 0]
    narrow = cut(source, place_window(source, facts, 6, "crop", 1.0), rule=rule)
    assert narrow.lost.tolist() == [0, 9 - int((narrow.masks[1] == LESION).sum()), 0, 0], "of lesions only"
    assert np.array_equal(expert_mask(source, geometry, rule), labels)


def test_no_background_appears_between_a_lesion_and_an_ignored_region(tmp_path: Path) -> None:
    """Three columns become two: a pixel that is half lesion and half ignored would be neither."""
    labels = np.zeros((24, 24, 3), np.uint8)
    labels[9:12, 6:18, 1], labels[12:15, 6:18, 1] = 1, 2
    rule = MaskRule(lesion_labels=(1,), ignore_labels=(2,))
    for pixel in (1.0, 1.3, 1.5, 2.0, 2.6):
        facts, _ = examine(source := volume(tmp_path, labels), 2, rule)
        assert facts is not None
        mask = cut(source, place_window(source, facts, 24, "crop", pixel), rule=rule).masks[1]
        row = mask[int(np.flatnonzero((mask == LESION).any(axis=1)).mean())]
        inside = np.flatnonzero(row)
        assert (row[inside[0] : inside[-1] + 1] > 0).all(), row
        assert {LESION, IGNORED} <= set(row.tolist())


def test_pictures_have_labels_too(tmp_path: Path) -> None:
    files = []
    for number, values in enumerate(((1, 2), (1, 1), (2, 2))):
        mask = np.zeros((20, 20), np.uint8)
        mask[5:7, 5:7], mask[9:11, 9:11] = values
        grey = np.random.default_rng(number).integers(0, 255, (20, 20), np.uint8)
        for kind, array in (("image", grey), ("mask", mask)):
            Image.fromarray(array).save(tmp_path / f"{kind}{number}.png")
            files.append(tmp_path / f"{kind}{number}.png")
    source = Source("p", "", tmp_path, tuple(files[::2]), tuple(files[1::2]))
    facts, faults = examine(source, None, rule := MaskRule(ignore_labels=(2,)))
    assert facts is not None, faults
    assert facts.lesion == (4, 8, 0)
    masks = cut(source, place_window(source, facts, 20, "crop", None), rule=rule).masks
    assert [int((mask == IGNORED).sum()) for mask in masks] == [4, 0, 8]


# -------------------------------------------------------------------------------------------- a prepared data set


def relabel(root: Path, change: Any) -> Path:
    """Change the masks of a cohort: `change(mask, number)`."""
    for number, path in enumerate(sorted(root.glob("*_mask.nii.gz"))):
        mask = voxels(path)
        change(mask, number)
        nib.Nifti1Image(mask, nib.load(path).affine).to_filename(path)
    return root


def other_pathology(mask: np.ndarray, number: int) -> None:
    """Label 2 in slices 2 and 4 of all patients; the last one has no lesion beside it."""
    mask[10:14, 4:8, (2, 4)] = 2
    if number == 5:
        mask[mask == 1] = 0


def test_masks_with_labels_are_refused_until_their_meaning_is_given(tmp_path: Path) -> None:
    cohort(tmp_path / "raw", PATIENTS)
    relabel(tmp_path / "raw", other_pathology)
    with pytest.raises(InputError) as error:
        prepare(tmp_path / "raw" / "cohort.csv", tmp_path / "out", PrepareOptions(**FAST))
    (fault,) = error.value.faults
    assert fault.startswith("the masks hold label 1 in 5 of 6 masks (110 voxels), label 2 in 6 of 6 masks (192 voxels)")
    with pytest.raises(InputError, match=r"no mask has a lesion.* the masks hold label 1 in 5 of 6 masks"):
        prepare(tmp_path / "raw" / "cohort.csv", tmp_path / "out", PrepareOptions(**FAST, lesion_labels=(3,)))
    assert not (tmp_path / "out").exists()


def test_a_prepared_data_set_knows_its_labels(tmp_path: Path) -> None:
    cohort(tmp_path / "raw", PATIENTS)
    plain = prepare(tmp_path / "raw" / "cohort.csv", tmp_path / "plain", PrepareOptions(**FAST))
    relabel(tmp_path / "raw", other_pathology)
    options = PrepareOptions(**FAST, lesion_labels=(1,), ignore_labels=(2,))
    manifest = prepare(tmp_path / "raw" / "cohort.csv", tmp_path / "out", options)
    assert Manifest.read(tmp_path / "out") == manifest
    assert manifest.mask_rule == MaskRule(None, (1,), (2,))
    assert manifest.mask_labels == {"1": 5, "2": 6}
    assert not [warning for warning in manifest.warnings if "label" in warning]
    masks = np.load(tmp_path / "out" / "masks.npy")
    assert [row.lesion_pixels for row in manifest.slices] == [int((mask == 1).sum()) for mask in masks]
    assert [row.ignored_pixels for row in manifest.slices] == [int((mask == 2).sum()) for mask in masks]
    assert (plain.has_ignored, manifest.has_ignored) == (False, True)
    names = dict.fromkeys(row.patient for row in manifest.slices)
    assert {row.index for row in manifest.slices if row.ignored_pixels} == {2, 4}
    # fold balance and lesion shares are those of lesions alone
    lesions = sum(count.lesion_pixels for count in manifest.counts.values())
    assert lesions == 110
    assert sum(manifest.fold_loads()) == pytest.approx(
        sum(
            sum(row.lesion_pixels * 0.012 for row in manifest.slices if row.patient in fold) / len(fold)
            for fold in manifest.folds
        ),
        rel=1e-3,
    )
    assert "p5" not in names or not any(row.lesion_pixels for row in manifest.slices if row.patient == "p5")


def test_data_without_ignored_pixels_are_as_before(tmp_path: Path) -> None:
    """The same arrays and fingerprint, and no tensor for ignored pixels, whether an option was given or not."""
    cohort(tmp_path / "raw", PATIENTS)
    options = ({}, {"lesion_labels": (1.0,)}, {"ignore_labels": (2.0,)})
    made = [
        prepare(tmp_path / "raw" / "cohort.csv", tmp_path / str(number), PrepareOptions(**FAST, **option))
        for number, option in enumerate(options)
    ]
    assert len({manifest.fingerprint for manifest in made}) == 1
    assert len({manifest.checksums["masks.npy"] for manifest in made}) == 1
    train = PreparedData.open(tmp_path / "2").train
    _, labels = train.batch(torch.arange(3))
    masks, counted = train.lesions(labels)
    assert masks is labels
    assert counted is None


def test_ignored_regions_move_with_the_image() -> None:
    labels = torch.zeros(8, 1, 32, 32)
    labels[:, :, 6:14, 5:16], labels[:, :, 14:20, 10:20] = LESION, IGNORED
    images = (labels == IGNORED).float()
    flipped = Augmentation.draw("flip", 8, torch.Generator().manual_seed(1))
    moved, warped = flipped.apply(images, labels)
    assert (flipped.mirror < 0).any()
    assert torch.equal((warped == IGNORED).float(), moved.round())
    drawn = Augmentation.draw("affine", 8, torch.Generator().manual_seed(1))
    _, warped = drawn.apply(images, labels)
    assert set(warped.unique().tolist()) == {0.0, 1.0, 2.0}
    for label in (LESION, IGNORED):
        _, alone = drawn.apply(images, (labels == label).float())
        assert torch.equal((warped == label).float(), alone)


def test_the_contact_sheet_outlines_ignored_regions_in_another_colour() -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[4:10, 4:10] = LESION
    image = np.full((32, 32), 90, np.uint8)
    for label, colours in ((IGNORED, {OUTLINE, IGNORED_OUTLINE}), (LESION, {OUTLINE})):
        mask[20:26, 20:26] = label
        sheet = np.asarray(_arrange([Tile("one", image, mask)], "a title"))
        drawn = {colour for colour in (OUTLINE, IGNORED_OUTLINE) if (sheet == colour).all(axis=-1).any()}
        assert drawn == colours


def test_data_of_format_3_have_no_labels(tmp_path: Path) -> None:
    """What the format before had: no labels, no ignored pixels; and the same fingerprint."""
    cohort(tmp_path / "raw", PATIENTS)
    manifest = prepare(tmp_path / "raw" / "cohort.csv", tmp_path / "out", PrepareOptions(**FAST))
    path = tmp_path / "out" / "manifest.json"
    fields = json.loads(path.read_text())
    for name in ("lesion_labels", "ignore_labels", "mask_labels"):
        del fields[name]
    for row in fields["slices"]:
        del row["ignored_pixels"]
    path.write_text(json.dumps(fields | {"format": 3}))
    old = Manifest.read(tmp_path / "out")
    old.verify(tmp_path / "out")
    assert old == replace(manifest, format=3, mask_labels={})
    assert (old.mask_rule, old.has_ignored) == (MaskRule(), False)
