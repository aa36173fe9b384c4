"""Scores of a found mask against an expert's: voxels, lesions, surfaces and volumes.

What can be added up over patients is counts (`pooled`). A ratio of 0 / 0, as of an empty mask against an empty one, is
None: not a number, to be left out of means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from wmlsearch.model.metrics import Confusion

Score = int | float | None
Masks = np.ndarray | Sequence[np.ndarray]

# Bins of lesion size, in mm3 or pixels: name, from, below. Decades, round and our choice. The lower bound is near the
# smallest lesion that counts for a diagnosis, 3 mm across (Grahl et al. 2019, doi 10.1016/j.msard.2019.01.042), which
# is 14 mm3 as a sphere.
SIZES = (("under_10", 0.0, 10.0), ("10_to_100", 10.0, 100.0), ("from_100", 100.0, math.inf))
_VOXELS = ("tp", "fp", "fn", "tn")
_LESIONS = ("lesions_expert", "lesions_predicted", "lesions_found", "lesions_false")


def label_lesions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the lesions of a mask: components of full connectivity (26 neighbours in a volume, 8 in a picture).

    Args:
        mask: (i, j, k) or (rows, columns); lesion where not 0.

    Returns:
        The number of each voxel's lesion, int32 of the mask's shape, 0 where there is none; and how many there are.
    """
    labels = np.zeros(mask.shape, np.int32)
    count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim), output=labels)
    return labels, int(count)


def score(found: Masks, expert: Masks, voxel_mm: Sequence[float] | None) -> dict[str, Score]:
    """All scores of one patient's time point.

    Args:
        found: (i, j, k) with `voxel_mm`, else (n, rows, columns): n pictures apart from each other. Pictures that
            differ in size are a list. Lesion where not 0.
        expert: the same shape.
        voxel_mm: the edges of a voxel in mm, or None for pictures, whose scale isn't known.

    Returns:
        - `tp`, `fp`, `fn`, `tn` (voxels), and from them `accuracy`, `iou`, `dice`, `precision`, `recall`.
        - `lesions_expert`, `lesions_predicted`: how many there are. `lesions_found`: those of the expert's with at
          least one voxel in the found mask; `lesions_false`: the predicted ones without any voxel in the expert's.
          From them `lesion_recall`, `lesion_precision` and their harmonic mean `lesion_f1`. One found lesion can so
          find two of the expert's. The convention is that of the WMH Segmentation Challenge for recall (Kuijf et al.
          2019, doi 10.1109/TMI.2019.2905770) and of the ISBI 2015 challenge for both, as LTPR and 1 - LFPR (Carass et
          al. 2017, doi 10.1016/j.neuroimage.2016.12.064).
        - `lesions_under_10_mm3`, `found_under_10_mm3` and so on (see `SIZES`): how many lesions of that volume the
          expert has, and how many of these are found.
        - `hd95_mm`: the larger of the two directed 95th percentiles of the distance from one surface to the other
          (surface: lesion voxels that touch background by a face, or lie at the border); None where a mask is empty.
        - `volume_ml`, `expert_volume_ml`, `volume_error_ml` (found less expert) and `volume_error_relative` (that
          over the expert's).

        For pictures the unit is a pixel and the names say so: `lesions_under_10_px`, `hd95_px`, `area_px`,
        `expert_area_px`, `area_error_px`, `area_error_relative`. A lesion ends with its picture, and `hd95_px` is the
        mean over the pictures in which neither mask is empty, `hd95_pictures` their number.

    Raises ValueError for masks that don't fit to each other or to `voxel_mm`.
    """
    pairs = _pairs(found, expert, voxel_mm)
    edges = np.ones(2) if voxel_mm is None else np.asarray(voxel_mm, np.float64)
    parts = [_part(*_cropped(one, other), edges) for one, other in pairs]
    sizes = np.concatenate([part.sizes for part in parts] or [np.zeros(0)])
    hit = np.concatenate([part.hit for part in parts] or [np.zeros(0, bool)])
    tp, fp, fn = (sum(getattr(part, name) for part in parts) for name in ("tp", "fp", "fn"))
    tn = sum(one.size for one, _ in pairs) - tp - fp - fn
    predicted = sum(part.predicted for part in parts)
    unit = "px" if voxel_mm is None else "mm3"
    false = sum(part.false for part in parts)
    bins = [(low <= sizes) & (sizes < below) for _, low, below in SIZES]
    by_size = [int(number) for inside in bins for number in (inside.sum(), hit[inside].sum())]
    numbers = (tp, fp, fn, tn, len(sizes), predicted, int(hit.sum()), false, *by_size)
    counts = dict(zip(_names(unit), numbers, strict=True))
    distances = [part.hd95 for part in parts if part.hd95 is not None]
    hd95 = float(np.mean(distances)) if distances else None
    relative = _ratio(fp - fn, tp + fn)
    measured: dict[str, Score]
    if voxel_mm is None:
        measured = {"hd95_px": hd95, "hd95_pictures": len(distances), "area_px": tp + fp, "expert_area_px": tp + fn}
        measured |= {"area_error_px": fp - fn, "area_error_relative": relative}
    else:
        ml = float(edges.prod()) / 1000
        measured = {"hd95_mm": hd95, "volume_ml": (tp + fp) * ml, "expert_volume_ml": (tp + fn) * ml}
        measured |= {"volume_error_ml": (fp - fn) * ml, "volume_error_relative": relative}
    return {**counts, **_ratios(counts), **measured}


def pooled(scores: Sequence[Mapping[str, Score]]) -> dict[str, Score]:
    """The counts of several `score`s added up, and the ratios of the sums: as the paper's table is made.

    Keys are those of `score` without distances, volumes and areas. Raises ValueError where there is nothing to pool, or
    both volumes and pictures.
    """
    units = [unit for unit in ("mm3", "px") if any(_names(unit)[-1] in it for it in scores)]
    if len(units) != 1:
        raise ValueError(f"masks to pool must be all volumes (mm3) or all pictures (px), but got {units or 'none'}")
    names = _names(units[0])
    counts = {name: sum(int(it[name] or 0) for it in scores) for name in names}
    return {**counts, **_ratios(counts)}


@dataclass(frozen=True)
class _Part:
    """What one volume or one picture adds."""

    tp: int
    fp: int
    fn: int
    predicted: int  # lesions
    false: int
    sizes: np.ndarray  # of the expert's lesions, (lesions,), in mm3 or pixels
    hit: np.ndarray  # whether they are found, (lesions,), bool
    hd95: float | None


def _part(found: np.ndarray, expert: np.ndarray, edges: np.ndarray) -> _Part:
    lesions, count = label_lesions(expert)
    others, predicted = label_lesions(found)
    hit = np.bincount(lesions[found], minlength=count + 1)[1:] > 0
    true = np.bincount(others[expert], minlength=predicted + 1)[1:] > 0
    tp = int((found & expert).sum())
    return _Part(
        tp=tp,
        fp=int(found.sum()) - tp,
        fn=int(expert.sum()) - tp,
        predicted=predicted,
        false=predicted - int(true.sum()),
        sizes=np.bincount(lesions[expert], minlength=count + 1)[1:] * edges.prod(),
        hit=hit,
        hd95=_hd95(found, expert, edges) if count and predicted else None,
    )


def _hd95(found: np.ndarray, expert: np.ndarray, edges: np.ndarray) -> float:
    ours, theirs = (np.argwhere(mask & ~ndimage.binary_erosion(mask)) * edges for mask in (found, expert))
    directed = [KDTree(to).query(of)[0] for of, to in ((ours, theirs), (theirs, ours))]
    return float(max(np.percentile(distances, 95) for distances in directed))


def _pairs(found: Masks, expert: Masks, voxel_mm: Sequence[float] | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """The volumes, or the pictures one by one, as bool."""
    ours, theirs = ([found], [expert]) if voxel_mm is not None else (list(found), list(expert))
    pairs = [(np.asarray(one) != 0, np.asarray(other) != 0) for one, other in zip(ours, theirs, strict=False)]
    if len(ours) != len(theirs) or any(one.shape != other.shape for one, other in pairs):
        raise ValueError(f"both masks must have the same shape, but got {_shapes(ours)} and {_shapes(theirs)}")
    dimensions = 2 if voxel_mm is None else 3
    if any(one.ndim != dimensions for one, _ in pairs):
        what = "a stack of pictures (n, rows, columns)" if voxel_mm is None else "a volume (i, j, k)"
        raise ValueError(f"each mask must be {what}, but got {_shapes(ours)}")
    if voxel_mm is not None and not (len(voxel_mm) == 3 and all(0 < edge < math.inf for edge in voxel_mm)):
        raise ValueError(f"voxel_mm must be three lengths above 0, but got {tuple(voxel_mm)}")
    return pairs


def _names(unit: str) -> tuple[str, ...]:
    """Of all counts, in mm3 or px."""
    return (*_VOXELS, *_LESIONS, *(f"{what}_{size}_{unit}" for size, _, _ in SIZES for what in ("lesions", "found")))


def _shapes(masks: Sequence[Any]) -> str:
    return ", ".join(dict.fromkeys(str(np.shape(mask)) for mask in masks)) or "nothing"


def _cropped(found: np.ndarray, expert: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both cut to the box around all lesions, which changes nothing but how long the rest takes."""
    boxes = ndimage.find_objects((found | expert).astype(np.uint8))
    box = boxes[0] if boxes else (slice(0),) * found.ndim
    return found[box], expert[box]


def _ratios(counts: Mapping[str, int]) -> dict[str, Score]:
    voxels = Confusion(*(counts[name] for name in _VOXELS))
    ratios = {name: getattr(voxels, name) for name in ("accuracy", "iou", "dice", "precision", "recall")}
    expert, predicted, found, false = (counts[name] for name in _LESIONS)
    true = predicted - false
    # 2 PR / (P + R), written so that it is 0, and no 0 / 0, where there are lesions but none overlap
    whole = found * predicted + true * expert if found else expert + predicted
    return {
        **{name: None if math.isnan(value) else value for name, value in ratios.items()},
        "lesion_precision": _ratio(true, predicted),
        "lesion_recall": _ratio(found, expert),
        "lesion_f1": _ratio(2 * found * true, whole),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
