"""Scores equal slow ones that look at one voxel after another, and MONAI's, and are what masks made by hand say."""

from __future__ import annotations

import itertools
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from paths import REAL
from scipy import ndimage

from wmlsearch.verdict.scores import label_lesions, pooled
from wmlsearch.verdict.scores import score as typed_score

RATIOS = ("iou", "dice", "precision", "recall", "lesion_precision", "lesion_recall", "lesion_f1")
Voxels = set[tuple[int, ...]]


def score(found: Any, expert: Any, voxel_mm: Any) -> dict[str, Any]:
    """The scores by name: those that are set."""
    return typed_score(found, expert, voxel_mm).as_json()


def random_masks(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Two masks that overlap in part, from a few per cent of lesion to half of it."""
    rng = np.random.default_rng(seed)
    share = rng.choice([0.03, 0.1, 0.3, 0.5])
    common = rng.random(shape) < share / 2
    return common | (rng.random(shape) < share / 2), common | (rng.random(shape) < share / 2)


def voxels(mask: np.ndarray) -> Voxels:
    return {tuple(map(int, index)) for index in np.argwhere(mask)}


def lesions(mask: np.ndarray) -> list[Voxels]:
    """Flood fill over all neighbours that differ by at most 1 in each index."""
    left, found = voxels(mask), []
    while left:
        lesion, edge = set(), [left.pop()]
        while edge:
            here = edge.pop()
            lesion.add(here)
            around = {
                tuple(map(sum, zip(here, step, strict=True)))
                for step in itertools.product((-1, 0, 1), repeat=mask.ndim)
            }
            edge += around & left
            left -= around
        found.append(lesion)
    return found


def surface(mask: np.ndarray, edges: tuple[float, ...]) -> np.ndarray:
    """Lesion voxels with a face towards no lesion, (points, axes), in mm."""
    inside = voxels(mask)
    steps = [tuple(sign * int(axis == i) for i in range(mask.ndim)) for axis in range(mask.ndim) for sign in (-1, 1)]
    on = [v for v in inside if any(tuple(map(sum, zip(v, step, strict=True))) not in inside for step in steps)]
    return np.array(on) * edges


def hausdorff(found: np.ndarray, expert: np.ndarray, edges: tuple[float, ...]) -> float:
    between = np.linalg.norm(surface(found, edges)[:, None] - surface(expert, edges)[None], axis=-1)
    return float(max(np.percentile(between.min(1), 95), np.percentile(between.min(0), 95)))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("edges", [(1.0, 1.0, 1.0), (0.5, 0.7, 3.0)])
def test_a_volume_scores_as_voxel_by_voxel(seed: int, edges: tuple[float, float, float]) -> None:
    found, expert = random_masks(seed, (9, 8, 6))
    scores = score(found.astype(np.uint8) * 255, expert, edges)
    ours, theirs = lesions(found), lesions(expert)
    hit = [bool(lesion & voxels(found)) for lesion in theirs]
    false = [not lesion & voxels(expert) for lesion in ours]
    volumes = [len(lesion) * float(np.prod(edges)) for lesion in theirs]
    bins = [int(np.digitize(volume, [10, 100])) for volume in volumes]
    for name, bin in (("under_10", 0), ("10_to_100", 1), ("from_100", 2)):
        assert scores[f"lesions_{name}_mm3"] == bins.count(bin)
        assert scores[f"found_{name}_mm3"] == sum(it for it, where in zip(hit, bins, strict=True) if where == bin)
    precision, recall = 1 - sum(false) / len(ours), sum(hit) / len(theirs)
    tp, fp, fn = len(voxels(found & expert)), len(voxels(found & ~expert)), len(voxels(expert & ~found))
    expected = {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": found.size - tp - fp - fn,
        "accuracy": (found == expert).mean(),
        "iou": tp / (tp + fp + fn),
        "dice": 2 * tp / (2 * tp + fp + fn),
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
        "lesions_expert": len(theirs),
        "lesions_predicted": len(ours),
        "lesions_found": sum(hit),
        "lesions_false": sum(false),
        "lesion_precision": precision,
        "lesion_recall": recall,
        "lesion_f1": 2 * precision * recall / (precision + recall) if precision + recall else 0,
        "hd95_mm": hausdorff(found, expert, edges),
        "volume_ml": found.sum() * np.prod(edges) / 1000,
        "expert_volume_ml": sum(volumes) / 1000,
        "volume_error_ml": (found.sum() * np.prod(edges) - sum(volumes)) / 1000,
        "volume_error_relative": found.sum() / expert.sum() - 1,
        "volume_error_abs_ml": abs(found.sum() * np.prod(edges) - sum(volumes)) / 1000,
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert len(scores) == len(expected) + 6


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's, of its own code
def test_scores_equal_those_of_monai() -> None:
    from monai.metrics import compute_dice, compute_hausdorff_distance, get_confusion_matrix

    def monai(found: np.ndarray, expert: np.ndarray, spacing: list[float]) -> dict[str, float]:
        ours, theirs = (torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (found, expert))
        tp, fp, tn, fn = get_confusion_matrix(ours, theirs).flatten().tolist()
        distance = compute_hausdorff_distance(ours, theirs, include_background=True, percentile=95, spacing=spacing)
        return {
            "tp": tp,
            "fp": fp,
            "tn": tn,
            "fn": fn,
            "dice": compute_dice(ours, theirs).item(),
            "hd95": distance.item(),
        }

    for seed in range(10):
        found, expert = random_masks(seed, (12, 10, 7))
        theirs = monai(found, expert, [0.9, 1.2, 2.5])
        scores = score(found, expert, (0.9, 1.2, 2.5))
        assert {**scores, "hd95": scores["hd95_mm"]} == {**scores, **{k: pytest.approx(v) for k, v in theirs.items()}}
    found, expert = random_masks(3, (5, 12, 10))
    pictures = [
        monai(one, other, [1.0, 1.0]) for one, other in zip(found, expert, strict=True) if one.any() and other.any()
    ]
    assert score(found, expert, None)["hd95_px"] == pytest.approx(np.mean([it["hd95"] for it in pictures]))
    assert score(found, expert, None)["hd95_pictures"] == len(pictures)


def test_lesions_touch_by_corners() -> None:
    mask = np.zeros((5, 5, 5), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[1, 1, 3] = mask[4, 4, 4] = 1
    labels, count = label_lesions(mask)
    assert (labels.dtype, count) == (np.dtype(np.int32), 3)
    assert labels[0, 0, 0] == labels[1, 1, 1] != labels[1, 1, 3]
    assert label_lesions(np.eye(4))[1] == 1
    assert label_lesions(np.zeros((2, 3, 4)))[1] == 0


def test_nothing_against_nothing_is_not_a_number() -> None:
    empty = np.zeros((4, 5, 6), bool)
    for voxel_mm, distance, error in (
        ((1, 1, 1), "hd95_mm", "volume_error_relative"),
        (None, "hd95_px", "area_error_relative"),
    ):
        scores = score(empty, empty, voxel_mm)
        assert [name for name, value in scores.items() if value is None] == [*RATIOS, distance, error]
        assert (scores["tn"], scores["accuracy"]) == (120, 1)
    assert (score([], [], None)["accuracy"], score([], [], None)["lesions_expert"]) == (None, 0)


def test_an_empty_prediction_scores_zero_with_the_largest_distance() -> None:
    one = np.zeros((4, 5, 6), bool)
    one[0, 0, 0] = one[3, 4, 5] = True  # two lesions of a voxel, in corners
    missed = score(one & False, one, (1, 1, 2))
    assert [missed[name] for name in RATIOS] == [0] * len(RATIOS)
    assert missed["hd95_mm"] == pytest.approx(np.sqrt(185))  # the mask's diagonal, 4 x 5 x 12 mm
    assert typed_score(one & False, one, (1, 1, 2), farthest=150.0).hd95_mm == 150
    assert (missed["lesions_under_10_mm3"], missed["found_under_10_mm3"]) == (2, 0)
    assert (missed["volume_error_ml"], missed["volume_error_relative"]) == (-0.004, -1)


def test_without_lesions_no_prediction_has_a_ratio_or_a_distance() -> None:
    """What is left out of means depends on the expert's mask only: a false lesion is no worse there than none."""
    one = np.zeros((4, 5, 6), bool)
    one[0, 0, 0] = one[3, 4, 5] = True
    for predicted in (one, one & False):
        scores = score(predicted, one & False, (1, 1, 2))
        assert [scores[name] for name in (*RATIOS, "hd95_mm")] == [None] * (len(RATIOS) + 1)
        assert pooled([typed_score(predicted, one & False, (1, 1, 2))]).dice is None
    made_up = typed_score(one, one & False, (1, 1, 2))
    assert (made_up.has_lesions, typed_score(one, one, (1, 1, 2)).has_lesions) == (False, True)
    assert (made_up.fp, made_up.lesions_false, made_up.volume_ml, made_up.accuracy) == (2, 2, 0.004, 118 / 120)
    assert (made_up.volume_error_ml, made_up.volume_error_relative) == (0.004, None)


def test_full_against_full_and_against_a_voxel() -> None:
    full, voxel = np.ones((11, 11, 11), bool), np.zeros((11, 11, 11), bool)
    voxel[5, 5, 5] = True
    assert [score(full, full, (1, 1, 1))[name] for name in (*RATIOS, "hd95_mm")] == [1, 1, 1, 1, 1, 1, 1, 0]
    scores = score(full, voxel, (1, 1, 1))
    assert (scores["lesion_recall"], scores["lesion_precision"], scores["tn"]) == (1, 1, 0)
    assert (
        7 < float(scores["hd95_mm"] or 0) < 5 * np.sqrt(3)
    )  # from the middle to the outermost faces, edges and corners


def test_one_found_lesion_can_find_two_and_size_is_in_mm3() -> None:
    expert, found = np.zeros((3, 20, 20), bool), np.zeros((3, 20, 20), bool)
    expert[1, 1, 1:3] = True  # 2 voxels of 5 mm3: 10 mm3, the lowest of its bin
    expert[1, 1, 5] = True
    expert[1, 10:15, 10:14] = True  # 100 mm3
    expert[1, 18, 18] = True
    found[1, 1, 1:6] = True
    found[0, 18, 1] = True
    scores = score(found, expert, (5, 1, 1))
    counts = ("lesions_expert", "lesions_predicted", "lesions_found", "lesions_false")
    assert [scores[name] for name in counts] == [4, 2, 2, 1]
    assert (scores["lesion_recall"], scores["lesion_precision"], scores["lesion_f1"]) == (0.5, 0.5, 0.5)
    sizes = ("under_10", "10_to_100", "from_100")
    assert [(scores[f"found_{name}_mm3"], scores[f"lesions_{name}_mm3"]) for name in sizes] == [(1, 2), (1, 1), (0, 1)]


def test_what_must_not_change_a_score_does_not() -> None:
    found, expert = random_masks(1, (8, 9, 7))
    scores, turned = score(found, expert, (1, 1, 1)), score(expert, found, (1, 1, 1))
    assert (scores["precision"], scores["lesion_recall"]) == (turned["recall"], turned["lesion_precision"])
    assert (scores["dice"], scores["hd95_mm"], scores["lesion_f1"]) == (
        turned["dice"],
        turned["hd95_mm"],
        turned["lesion_f1"],
    )
    padded = score(np.pad(found, 3), np.pad(expert, 3), (1, 1, 1))
    assert {name for name in scores if scores[name] != padded[name]} == {"tn", "accuracy"}
    larger = score(found, expert, (2, 2, 2))
    assert larger["hd95_mm"] == 2 * float(scores["hd95_mm"] or 0)
    assert larger["volume_ml"] == 8 * float(scores["volume_ml"] or 0)


def test_pictures_stand_apart_and_are_measured_in_pixels() -> None:
    found, expert = np.zeros((3, 8, 8), bool), np.zeros((3, 8, 8), bool)
    expert[0, 2:4, 2:4] = expert[1, 2:4, 2:4] = True  # one behind the other: two lesions, unlike in a volume
    found[0, 2:4, 5:7] = found[2, 0, 0] = True
    scores = score(found, expert, None)
    assert (scores["lesions_expert"], scores["lesions_predicted"], scores["lesions_false"]) == (2, 2, 2)
    assert score(found, expert, (1, 1, 1))["lesions_expert"] == 1
    # In the first slice 3; in the second nothing is found: the slice's diagonal. The third has no lesion.
    assert (scores["hd95_px"], scores["hd95_pictures"]) == (pytest.approx((3 + 8 * np.sqrt(2)) / 2), 2)
    assert (scores["area_px"], scores["expert_area_px"], scores["area_error_px"]) == (5, 8, -3)
    assert scores["area_error_relative"] == -3 / 8
    assert not [name for name in scores if "mm" in name or "_ml" in name]
    assert scores == score(list(found), list(expert), None)
    wider = score([*found[:2], np.pad(found[2], 1)], [*expert[:2], np.pad(expert[2], 1)], None)
    assert {name for name in scores if scores[name] != wider[name]} == {"tn", "accuracy"}


def test_pooled_scores_are_those_of_all_voxels_at_once() -> None:
    pairs = [random_masks(seed, (6, 6, 6)) for seed in range(4)] + [(np.zeros((6, 6, 6), bool),) * 2]
    together = score(*(np.concatenate([np.pad(pair[i], 1) for pair in pairs]) for i in (0, 1)), (1, 1, 1))
    parts = [typed_score(np.pad(found, 1), np.pad(expert, 1), (1, 1, 1)) for found, expert in pairs]
    whole = pooled(parts).as_json()
    assert whole == {name: together[name] for name in whole}
    assert set(together) - set(whole) == {name for name in together if "volume" in name or "hd95" in name}


def test_errors_say_what_does_not_fit() -> None:
    def text(*arguments: Any) -> str:
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared below
            score(*arguments)
        return str(error.value)

    mask = np.zeros((2, 3, 4))
    assert text(mask, mask[:1], (1, 1, 1)) == "both masks must have the same shape, but got (2, 3, 4) and (1, 3, 4)"
    assert text(mask, mask[:1], None) == "both masks must have the same shape, but got (3, 4) and (3, 4)"
    assert text(mask[0], mask[0], (1, 1, 1)) == "each mask must be a volume (i, j, k), but got (3, 4)"
    assert text(mask[0], mask[0], None) == "each mask must be a stack of slices (n, rows, columns), but got (4,)"
    assert text(mask, mask, (1, 0, 1)) == "voxel_mm must be three lengths above 0, but got (1, 0, 1)"
    with pytest.raises(ValueError, match=r"all volumes \(mm3\) or all slices \(px\), but got none"):
        pooled([])
    with pytest.raises(ValueError, match=r"but got \['mm3', 'px'\]"):
        pooled([typed_score(mask, mask, (1, 1, 1)), typed_score(mask, mask, None)])


@pytest.mark.skipif(not REAL.is_dir(), reason="the real volumes (shared/data/ms-flair) are not beside this repository")
@pytest.mark.parametrize(("patient", "ml"), [("07", 1.3), ("19", 49.769), ("26", 8.227)])
def test_real_masks(patient: str, ml: float) -> None:
    image = nib.load(next(REAL.glob(f"derivatives/lesions/sub-{patient}/anat/*mask.nii.gz")))
    expert, edges = np.asarray(image.dataobj) > 0, image.header.get_zooms()
    same = score(expert, expert, edges)
    assert [same[name] for name in (*RATIOS, "hd95_mm", "volume_error_ml", "lesions_false")] == [1] * 7 + [0] * 3
    assert same["expert_volume_ml"] == pytest.approx(ml)
    grown, moved = ndimage.binary_dilation(expert, np.ones((3, 3, 3))), np.roll(expert, (3, -2), (0, 1))
    for found in (grown, moved):
        scores = score(found, expert, edges)
        assert scores["dice"] == 2 * (found & expert).sum() / (found.sum() + expert.sum())
        assert scores["hd95_mm"] == pytest.approx(by_distance_maps(found, expert, edges))
    scores = score(grown, expert, edges)
    assert (scores["recall"], scores["lesion_recall"], scores["lesion_precision"]) == (1, 1, 1)
    assert scores["volume_error_ml"] == pytest.approx((grown.sum() - expert.sum()) / 1000)


def by_distance_maps(found: np.ndarray, expert: np.ndarray, edges: tuple[float, ...]) -> float:
    box = ndimage.find_objects((found | expert).astype(np.uint8))[0]
    ours, theirs = (np.pad(mask[box], 1) for mask in (found, expert))
    ours, theirs = (mask & ~ndimage.binary_erosion(mask) for mask in (ours, theirs))
    to_ours, to_theirs = (ndimage.distance_transform_edt(~mask, sampling=edges) for mask in (ours, theirs))
    return max(np.percentile(to_theirs[ours], 95), np.percentile(to_ours[theirs], 95))


# ------------------------------------------------------------------------------------------------- ignored voxels


def test_ignored_voxels_of_a_volume_are_in_no_score() -> None:
    """Voxels of 1 x 1 x 2 mm. A prediction that reaches into an ignored region ends there, as in the WMH challenge."""
    expert = np.zeros((12, 12, 3), np.uint8)
    expert[1:3, 1, 1] = 1  # a lesion of 2 voxels, found by one of them
    expert[5:9, 5:9, 1] = 2  # 16 ignored voxels
    expert[4, 5:7, 1] = 1  # a lesion of 2 voxels beside them, missed
    predicted = np.zeros_like(expert)
    predicted[1, 1, 1] = 1
    predicted[6:8, 5:9, 1] = 1  # in the ignored region: not false
    predicted[8:11, 8, 1] = 1  # the first voxel is ignored, the others are a false lesion
    scores = score(predicted, expert, (1, 1, 2))
    assert [scores[name] for name in ("tp", "fp", "fn", "tn")] == [1, 2, 3, 12 * 12 * 3 - 16 - 6]
    assert [scores[name] for name in ("lesions_expert", "lesions_predicted", "lesions_found", "lesions_false")] == [
        2, 2, 1, 1,
    ]  # fmt: skip
    assert scores["dice"] == pytest.approx(2 / (2 + 2 + 3))
    assert (scores["precision"], scores["recall"]) == (pytest.approx(1 / 3), pytest.approx(1 / 4))
    assert (scores["volume_ml"], scores["expert_volume_ml"]) == (pytest.approx(0.006), pytest.approx(0.008))
    # Nearest of the expert's voxels for (9, 8) and (10, 8): (4, 6), at 5.39 and 6.32 mm; for (1, 1) itself. The 95th
    # percentile of 0, 5.385 and 6.325 is 6.231. The other way all are below 5.4.
    assert scores["hd95_mm"] == pytest.approx(np.percentile([0, 29**0.5, 40**0.5], 95))


def test_scores_do_not_depend_on_what_is_predicted_in_ignored_voxels() -> None:
    for seed in range(4):
        found, expert = (mask.astype(np.uint8) for mask in random_masks(seed, (9, 10, 6)))
        ignored = np.random.default_rng(seed).random(expert.shape) < 0.2
        labels = np.where(ignored, 2, expert)
        wanted = score(found & ~ignored, np.where(ignored, 0, expert), (1, 1, 3))
        for garbage in (0, 1, found):
            scores = score(np.where(ignored, garbage, found), labels, (1, 1, 3))
            assert {**scores, "tn": None, "accuracy": None} == {**wanted, "tn": None, "accuracy": None}
            assert scores["tn"] == wanted["tn"] - ignored.sum()
        slices = [score(np.where(ignored, garbage, found), labels, None) for garbage in (0, 1)]
        assert slices[0] == slices[1]


def test_a_patient_with_ignored_voxels_alone_has_no_lesions() -> None:
    expert, predicted = np.zeros((6, 6, 2), np.uint8), np.zeros((6, 6, 2), np.uint8)
    expert[1:3, 1:3, 0] = 2
    predicted[2, 1:5, 0] = 1  # two of the voxels are ignored
    scores = score(predicted, expert, (1, 1, 1))
    assert (scores["tp"], scores["fp"], scores["lesions_false"]) == (0, 2, 1)
    assert scores.get("dice") is None
    assert scores.get("hd95_mm") is None


def test_volumes_of_a_sheared_grid_use_the_volume_of_a_voxel() -> None:
    predicted, expert = np.zeros((2, 6, 6, 6), bool)
    predicted[2:4, 2:4, 2:4], expert[2:4, 2:4, 2] = True, True
    straight, sheared = (typed_score(predicted, expert, (2, 2.5, 3), voxel_ml=ml) for ml in (None, 0.012))
    assert (straight.volume_ml, straight.expert_volume_ml) == pytest.approx((8 * 0.015, 4 * 0.015))
    assert (sheared.volume_ml, sheared.expert_volume_ml) == pytest.approx((8 * 0.012, 4 * 0.012))
    assert sheared.hd95_mm == straight.hd95_mm
