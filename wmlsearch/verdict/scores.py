"""Scores of a predicted mask against the expert's: Dice and other voxel ratios, lesion-wise ratios, distances, volumes.

This is the Dice of the sealed test: 2 TP / (2 TP + FP + FN) of binary masks. Its formula, with those of the other voxel
ratios, is in `Confusion` (model/metrics.py), which the training's `val_dice` uses as well. Scores of several masks
are pooled by adding up their counts (`pooled`), never by averaging ratios.

Whether a score exists depends on the expert's mask only, or means would leave out what a model gets wrong. Where the
expert has no lesion, overlap and distance say nothing and are None, whatever is predicted; the counts stay. Where the
expert has lesions and nothing is predicted, all ratios of overlap are 0 and the distance is the largest possible one.

Ignored voxels of the expert's mask are taken out of the prediction before anything is counted, as in the WMH
Segmentation Challenge: they are in no count, and a prediction that reaches into them ends there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from wmlsearch.data.labels import IGNORED
from wmlsearch.inference.postprocessing import label_lesions
from wmlsearch.model.metrics import Confusion
from wmlsearch.runs.evaluation import MaskScores, Scores

Masks = np.ndarray | Sequence[np.ndarray]

# Bins of lesion size, in mm3 or pixels: name, lower bound, upper bound. The decades are our choice. The lowest bound is
# near the smallest lesion that counts for a diagnosis, 3 mm across (Grahl et al. 2019, doi
# 10.1016/j.msard.2019.01.042), 14 mm3 as a sphere.
SIZES = (("under_10", 0.0, 10.0), ("10_to_100", 10.0, 100.0), ("from_100", 100.0, math.inf))
_VOXELS = ("tp", "fp", "fn", "tn")
_OVERLAP, _LESION_OVERLAP = ("iou", "dice", "precision", "recall"), ("lesion_precision", "lesion_recall", "lesion_f1")
_LESIONS = ("lesions_expert", "lesions_predicted", "lesions_found", "lesions_false")


def score(
    predicted: Masks,
    expert: Masks,
    voxel_mm: Sequence[float] | None,
    farthest: float | None = None,
    voxel_ml: float | None = None,
) -> MaskScores:
    """Return all scores of a predicted mask: of one volume, or of a stack of slices.

    Args:
        predicted: (i, j, k) with `voxel_mm`, else (n, rows, columns): n slices that are scored one by one. Slices that
            differ in size are a list. Lesion where not 0.
        expert: The same shape. IGNORED (data/labels.py) is ignored, lesion is all else but 0.
        voxel_mm: The edges of a voxel in mm; None for slices, whose scale is unknown.
        farthest: `hd95` where the expert has lesions and nothing is predicted, in mm or pixels: the diagonal of the
            head. None: the diagonal of the mask.
        voxel_ml: Volume of a voxel in ml. None: the product of its edges, as it is where the grid is not sheared.

    How lesions are counted: an expert's lesion is found if at least one of its voxels is predicted; a predicted lesion
    is false if it overlaps none of the expert's. One predicted lesion can thus find two. This is the convention of the
    WMH Segmentation Challenge for recall (Kuijf et al. 2019, doi 10.1109/TMI.2019.2905770), and of the ISBI 2015
    challenge for recall and precision, as LTPR and 1 - LFPR (Carass et al. 2017, doi 10.1016/j.neuroimage.2016.12.064).

    `hd95` is the larger of the two directed 95th percentiles of the distance from one surface to the other. A surface
    is made of the lesion voxels that touch background by a face, or lie at the border.

    Volumes have the fields in mm, mm3 and ml. Slices have those in pixels (`hd95_px`, `area_px`, ...): a lesion ends
    with its slice, and `hd95_px` is the mean over the `hd95_pictures` slices in which the expert has lesions.

    Raises ValueError for masks that do not match each other or `voxel_mm`.
    """
    pairs = _pairs(predicted, expert, voxel_mm)
    edges = np.ones(2) if voxel_mm is None else np.asarray(voxel_mm, np.float64)
    parts = [
        _part(
            *_cropped(pair.predicted, pair.expert),
            edges,
            float(np.linalg.norm(pair.expert.shape * edges)) if farthest is None else farthest,
            None if voxel_ml is None else 1000 * voxel_ml,
        )
        for pair in pairs
    ]
    counts = _counts(parts, sum(pair.counted for pair in pairs), "px" if voxel_mm is None else "mm3")
    distances = [part.hd95 for part in parts if part.hd95 is not None]
    hd95 = float(np.mean(distances)) if distances else None
    predicted_size, expert_size = counts["tp"] + counts["fp"], counts["tp"] + counts["fn"]
    relative = _ratio(predicted_size - expert_size, expert_size)
    measures: dict[str, float | None]
    if voxel_mm is None:
        measures = {
            "hd95_px": hd95,
            "hd95_pictures": len(distances),
            "area_px": predicted_size,
            "expert_area_px": expert_size,
            "area_error_px": predicted_size - expert_size,
            "area_error_relative": relative,
        }
    else:
        ml = float(edges.prod()) / 1000 if voxel_ml is None else voxel_ml
        measures = {
            "hd95_mm": hd95,
            "volume_ml": predicted_size * ml,
            "expert_volume_ml": expert_size * ml,
            "volume_error_ml": (predicted_size - expert_size) * ml,
            "volume_error_relative": relative,
            "volume_error_abs_ml": abs((predicted_size - expert_size) * ml),
        }
    return MaskScores.model_validate({**counts, **_ratios(counts), **measures})


def pooled(scores: Sequence[Scores]) -> Scores:
    """Add up the counts of several scores and return them with the ratios of the sums, as the paper's Table I does.

    Raises ValueError for an empty sequence, or one with scores of volumes and of slices.
    """
    units = [unit for unit in ("mm3", "px") if any(_count_names(unit)[-1] in row.model_fields_set for row in scores)]
    if len(units) != 1:
        raise ValueError(f"masks to pool must be all volumes (mm3) or all slices (px), but got {units or 'none'}")
    counts = {name: sum(int(row.value(name) or 0) for row in scores) for name in _count_names(units[0])}
    return Scores.model_validate({**counts, **_ratios(counts)})


@dataclass(frozen=True)
class _Pair:
    """The masks of one volume or one slice, bool, both without ignored voxels."""

    predicted: np.ndarray
    expert: np.ndarray
    counted: int  # voxels that are not ignored

    @classmethod
    def of(cls, predicted: np.ndarray, expert: np.ndarray) -> _Pair:
        """Return the pair of a prediction, lesion where not 0, and an expert's mask with labels."""
        ignored = expert == IGNORED
        return cls((predicted != 0) & ~ignored, (expert != 0) & ~ignored, int((~ignored).sum()))


@dataclass(frozen=True)
class _Part:
    """The counts of one volume or one slice."""

    tp: int
    fp: int
    fn: int
    predicted: int  # lesions
    false: int  # predicted lesions that overlap none of the expert's
    sizes: np.ndarray  # (lesions,), of the expert's lesions, in mm3 or pixels
    hit: np.ndarray  # (lesions,), bool: whether the prediction overlaps the expert's lesion
    hd95: float | None


def _part(
    predicted: np.ndarray, expert: np.ndarray, edges: np.ndarray, farthest: float, voxel_size: float | None = None
) -> _Part:
    """Return the counts; `voxel_size`, in mm3 or pixels, is the product of the edges where it is not given."""
    expert_labels, expert_count = label_lesions(expert)
    labels, count = label_lesions(predicted)
    hit = np.bincount(expert_labels[predicted], minlength=expert_count + 1)[1:] > 0
    true = np.bincount(labels[expert], minlength=count + 1)[1:] > 0
    tp = int((predicted & expert).sum())
    distance = _hd95(predicted, expert, edges) if expert_count and count else farthest
    size = edges.prod() if voxel_size is None else voxel_size
    return _Part(
        tp=tp,
        fp=int(predicted.sum()) - tp,
        fn=int(expert.sum()) - tp,
        predicted=count,
        false=count - int(true.sum()),
        sizes=np.bincount(expert_labels[expert], minlength=expert_count + 1)[1:] * size,
        hit=hit,
        hd95=distance if expert_count else None,
    )


def _counts(parts: Sequence[_Part], voxels: int, unit: str) -> dict[str, int]:
    """Add up the counts of all parts. `voxels` is the number of voxels (or pixels) of all parts that count."""
    tp, fp, fn = (sum(getattr(part, name) for part in parts) for name in ("tp", "fp", "fn"))
    sizes = np.concatenate([part.sizes for part in parts] or [np.zeros(0)])
    hit = np.concatenate([part.hit for part in parts] or [np.zeros(0, bool)])
    lesions = (len(sizes), sum(part.predicted for part in parts), int(hit.sum()), sum(part.false for part in parts))
    bins = [(low <= sizes) & (sizes < high) for _, low, high in SIZES]
    by_size = [int(count) for inside in bins for count in (inside.sum(), hit[inside].sum())]
    numbers = (tp, fp, fn, voxels - tp - fp - fn, *lesions, *by_size)
    return dict(zip(_count_names(unit), numbers, strict=True))


def _hd95(predicted: np.ndarray, expert: np.ndarray, edges: np.ndarray) -> float:
    surfaces = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) * edges for mask in (predicted, expert)]
    directed = [KDTree(to).query(points)[0] for points, to in (surfaces, surfaces[::-1])]
    return float(max(np.percentile(distances, 95) for distances in directed))


def _pairs(predicted: Masks, expert: Masks, voxel_mm: Sequence[float] | None) -> list[_Pair]:
    """Return the two masks of the volume, or of each slice."""
    stacks = ([predicted], [expert]) if voxel_mm is not None else (list(predicted), list(expert))
    arrays = [(np.asarray(one), np.asarray(other)) for one, other in zip(*stacks, strict=False)]
    if len(stacks[0]) != len(stacks[1]) or any(one.shape != other.shape for one, other in arrays):
        raise ValueError(f"both masks must have the same shape, but got {_shapes(stacks[0])} and {_shapes(stacks[1])}")
    dimensions = 2 if voxel_mm is None else 3
    if any(one.ndim != dimensions for one, _ in arrays):
        form = "a stack of slices (n, rows, columns)" if voxel_mm is None else "a volume (i, j, k)"
        raise ValueError(f"each mask must be {form}, but got {_shapes(stacks[0])}")
    if voxel_mm is not None and not (len(voxel_mm) == 3 and all(0 < edge < math.inf for edge in voxel_mm)):
        raise ValueError(f"voxel_mm must be three lengths above 0, but got {tuple(voxel_mm)}")
    return [_Pair.of(one, other) for one, other in arrays]


def _count_names(unit: str) -> tuple[str, ...]:
    """Return the names of all counts, with lesion sizes in mm3 or px."""
    return (*_VOXELS, *_LESIONS, *(f"{what}_{size}_{unit}" for size, _, _ in SIZES for what in ("lesions", "found")))


def _shapes(masks: Sequence[Masks]) -> str:
    return ", ".join(dict.fromkeys(str(np.shape(mask)) for mask in masks)) or "nothing"


def _cropped(predicted: np.ndarray, expert: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Crop both masks to the box around all lesions. Scores stay the same and are computed faster."""
    boxes = ndimage.find_objects((predicted | expert).astype(np.uint8))
    box = boxes[0] if boxes else (slice(0),) * predicted.ndim
    return predicted[box], expert[box]


def _ratios(counts: Mapping[str, int]) -> dict[str, float | None]:
    voxels = Confusion(*(counts[name] for name in _VOXELS))
    accuracy = None if math.isnan(voxels.accuracy) else voxels.accuracy
    if not counts["tp"] + counts["fn"]:
        return {"accuracy": accuracy, **dict.fromkeys((*_OVERLAP, *_LESION_OVERLAP))}
    expert, predicted, detected, false = (counts[name] for name in _LESIONS)
    true = predicted - false
    # 2 PR / (P + R), rearranged so that it is 0 rather than 0 / 0 where no lesion overlaps another
    denominator = detected * predicted + true * expert if detected else expert + predicted
    return {
        "accuracy": accuracy,
        "iou": voxels.iou,
        "dice": voxels.dice,
        "precision": voxels.precision if predicted else 0.0,
        "recall": voxels.recall,
        "lesion_precision": true / predicted if predicted else 0.0,
        "lesion_recall": _ratio(detected, expert),
        "lesion_f1": _ratio(2 * detected * true, denominator),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
