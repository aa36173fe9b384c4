"""How an image suits a model: what of the head its window does not show, and how it differs from the training data.

Its pixels may be coarser, and a picture may be scaled without the others of its volume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from wmlsearch.data.findings import Finding
from wmlsearch.data.geometry import VolumeGeometry, size_that_holds
from wmlsearch.data.head_detection import HeadRegion
from wmlsearch.runs.wording import percent, plural

RIM = 0.01  # a smaller share of the head outside the window is a note: it is skin, not brain
COARSE = 2.0  # edges of pixels longer than this times the model's are told


def head_outside_window(head: HeadRegion, geometry: VolumeGeometry) -> tuple[Finding, ...]:
    """Return a finding where the head reaches outside the window: nothing is predicted there.

    Args:
        head: The head's pixels in the upright slices of the image.
        geometry: Where the image is cut.
    """
    rows, columns = (
        _pixels_inside(start, geometry.size, scale, count)
        for start, scale, count in zip(geometry.window, geometry.scale, geometry.picture, strict=True)
    )
    total = int(head.area.sum())
    outside = total - int(head.pixels[:, rows, columns].sum())
    if not outside:
        return ()
    ml = geometry.voxel_ml
    amount = plural(outside, "pixel") if ml is None else f"{_rounded(outside * ml)} ml"
    share = percent(outside / total)
    needed = size_that_holds(_resampled_box(head, geometry), geometry)
    text = (
        f"{share} of the head ({amount}) lies outside the window of {geometry.size} x {geometry.size} pixels that the "
        f"model was trained on, and no lesion can be found there; prepare the data with --size {needed}, which holds "
        "this head, or with --fit resize, and train again"
    )
    kind = "outside the window" if outside >= RIM * total else "rim outside the window"
    return (Finding(kind, text, share, outside / total),)


def coarse_slices(pixel_mm: tuple[float, float] | None, spacing_mm: float | None, plane: str) -> tuple[Finding, ...]:
    """Return a warning where pixels are much coarser than those of the training data.

    Args:
        pixel_mm: Edges of the image's pixels in the slices of the model's plane; None for 2-D pictures.
        spacing_mm: Edge of the pixels that the model was trained on; None for 2-D pictures.
        plane: The plane of the training data.
    """
    if pixel_mm is None or spacing_mm is None or max(pixel_mm) <= COARSE * spacing_mm:
        return ()
    down, across = pixel_mm
    of_plane = "" if plane == "native" else f"{plane} "
    text = (
        f"pixels of {down:.3g} x {across:.3g} mm are interpolated to the {spacing_mm:.3g} mm of the model's {of_plane}"
        "slices; unless its training data were as coarse, check the masks, or train on data like this image"
    )
    return (Finding("coarse slices", text, f"{max(pixel_mm):.3g} mm", max(pixel_mm)),)


def scaled_alone(geometry: VolumeGeometry, fit: str, scaled_by: str | None) -> tuple[Finding, ...]:
    """Return a warning where the pictures of a volume were scaled together in the training data, and this one is alone.

    Args:
        geometry: Geometry of the picture.
        fit: See `Preprocessing`.
        scaled_by: See `Preprocessing`.
    """
    is_8_bit = (geometry.low, geometry.high) == (0.0, 255.0)
    scaled = [*(() if is_8_bit else ("grey values",)), *(("size",) if fit == "resize" else ())]
    if scaled_by == "picture" or not scaled:
        return ()
    condition = "" if scaled_by else ", where that was known"
    text = (
        f"{' and '.join(scaled)} {'was' if scaled == ['size'] else 'were'} scaled by this picture alone, but in the "
        f"training data and the sealed test by all pictures of the volume{condition}, so the scores of the test may "
        "not hold; predict the pictures of a volume together (docs/predicting.md)"
    )
    return (Finding("scaled alone", text),)


def _rounded(ml: float) -> str:
    """Return a volume with three digits, and never as a power of ten."""
    return f"{ml:.0f}" if ml >= 100 else f"{ml:.3g}"


def _pixels_inside(start: int, size: int, scale: float, count: int) -> slice:
    """Return which of `count` pixels of the image have their centre in the window, along one axis."""
    first, last = (math.ceil(edge / scale - 0.5) for edge in (start, start + size))
    return slice(min(max(first, 0), count), min(max(last, 0), count))


def _resampled_box(head: HeadRegion, geometry: VolumeGeometry) -> tuple[int, int, int, int]:
    (down, across), (top, left, bottom, right) = geometry.scale, head.box
    first: Sequence[int] = (math.floor(top * down), math.floor(left * across))
    last: Sequence[int] = (math.ceil(bottom * down), math.ceil(right * across))
    return first[0], first[1], last[0], last[1]
