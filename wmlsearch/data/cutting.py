"""Cut a volume into prepared slices, and put predicted slices back onto the input's own grid.

Slices are brought to one in-plane spacing and to 8-bit grey values, and a square window is cut out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform
from PIL import Image

from wmlsearch.data.geometry import VolumeGeometry, size_that_holds
from wmlsearch.data.head_detection import Box
from wmlsearch.data.labels import BACKGROUND, IGNORED, LESION, MaskRule
from wmlsearch.data.reading import load_volume
from wmlsearch.data.sources import Source
from wmlsearch.data.stack import Array, Stack, VolumeFault, from_upright, upright
from wmlsearch.errors import InputError


@dataclass(frozen=True)
class CutSlices:
    """Prepared slices of one volume."""

    images: Array  # (k, size, size) uint8
    masks: Array  # (k, size, size) uint8: BACKGROUND, LESION or IGNORED
    lost: Array  # (k,) lesion pixels outside the window
    size_needed: int  # pixels: a `--size` whose window loses none; that of the geometry where none is lost


def cut(
    source: Source, geometry: VolumeGeometry, indices: Sequence[int] | None = None, rule: MaskRule | None = None
) -> CutSlices:
    """Return prepared slices of a volume.

    Args:
        source: The volume's files.
        geometry: Where the slices are cut.
        indices: Slice numbers; None for all slices.
        rule: Which values of the mask are lesions; by default all but 0.

    Raises:
        InputError: Where the files have changed since they were examined.
    """
    stack = _load_again(source, geometry, rule)
    indices = range(len(stack.pictures)) if indices is None else indices
    images = np.zeros((len(indices), geometry.size, geometry.size), np.uint8)
    masks = np.zeros_like(images)
    lost = np.zeros(len(indices), np.int64)
    size_needed = geometry.size
    background = _to_8_bit(np.float32(geometry.background), geometry)
    for row, index in enumerate(indices):
        picture = _resample(stack.pictures[index], geometry.resampled)
        images[row] = _window(_to_8_bit(picture, geometry), geometry, background)
        labels = _slice_labels(stack, index, geometry)
        if labels is not None:
            masks[row] = _window(labels, geometry, BACKGROUND)
            lost[row] = int((labels == LESION).sum()) - int((masks[row] == LESION).sum())
            if lost[row]:
                size_needed = max(size_needed, size_that_holds(_box(labels == LESION), geometry))
    return CutSlices(images, masks, lost, size_needed)


def restore(prediction: Array, geometry: VolumeGeometry) -> Array:
    """Return all slices of a volume (n, size, size) on the input's own grid: `geometry.shape`.

    Floats (probabilities) come back as float32, interpolated linearly, 0 outside the window. Whole numbers and booleans
    are masks: they come back as uint8 0/1. Without resampling, values inside the window are unchanged.

    Raises:
        ValueError: Where the prediction has another shape.
    """
    n = geometry.slices
    if prediction.shape != (n, geometry.size, geometry.size):
        raise ValueError(f"expected slices of shape {(n, geometry.size, geometry.size)}, got {prediction.shape}")
    is_mask = prediction.dtype.kind in "biu"
    pictures = np.zeros((n, *geometry.picture), np.uint8 if is_mask else np.float32)
    top, left = geometry.window
    inverse = replace(geometry, window=(-top, -left))
    for index in range(n):
        canvas = np.zeros(geometry.resampled, np.float32)
        _window(prediction[index].astype(np.float32), inverse, 0.0, canvas)
        picture = _resample(canvas, geometry.picture)
        pictures[index] = picture >= 0.5 if is_mask else picture
    return _to_input_grid(pictures, geometry)


def expert_mask(source: Source, geometry: VolumeGeometry, rule: MaskRule | None = None) -> Array:
    """Return the source's mask on the input's own grid, `geometry.shape`, uint8: BACKGROUND, LESION or IGNORED.

    Raises:
        InputError: Where the files have changed since they were examined.
        ValueError: Where the source has no mask.
    """
    stack = _load_again(source, geometry, rule)
    if stack.mask is None:
        raise ValueError(f"{source.name(source.image[0])} has no mask")
    labels = stack.mask.astype(np.uint8)
    if stack.ignored is not None:
        labels[stack.ignored] = IGNORED
    return _to_input_grid(labels, geometry)


def upright_slices(array: Array, geometry: VolumeGeometry) -> Array:
    """Return an array on the input's grid as upright slices (n, rows, columns)."""
    if geometry.axis is None:
        return array
    return upright(apply_orientation(array, axcodes2ornt(geometry.orientation)), geometry.axis)


def _load_again(source: Source, geometry: VolumeGeometry, rule: MaskRule | None) -> Stack:
    try:
        stack = load_volume(source, geometry.axis, rule, geometry.nan_background)
    except VolumeFault as fault:
        raise InputError("a file has changed since it was checked", fault.lines) from None
    if geometry.floor is None:
        return stack
    return replace(stack, pictures=np.maximum(stack.pictures, np.float32(geometry.floor)))


def _slice_labels(stack: Stack, index: int, geometry: VolumeGeometry) -> Array | None:
    """Return the resampled mask of a slice: BACKGROUND, LESION or IGNORED, uint8; None where it is empty.

    A pixel is lesion if at least half of it is, and ignored if at least half of it is lesion or ignored otherwise: no
    background appears between a lesion and an ignored region that touch.
    """
    lesion = None if stack.mask is None else stack.mask[index]
    ignored = None if stack.ignored is None else stack.ignored[index]
    if lesion is None or not (lesion.any() or (ignored is not None and ignored.any())):
        return None
    labels = (_resample(lesion, geometry.resampled) >= 0.5).astype(np.uint8)
    if ignored is not None and ignored.any():
        labels[(labels == BACKGROUND) & (_resample(lesion | ignored, geometry.resampled) >= 0.5)] = IGNORED
    return labels


def _box(region: Array) -> Box:
    """Return the box around a region (rows, columns) of bool that is not empty."""
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _to_input_grid(pictures: Array, geometry: VolumeGeometry) -> Array:
    """Return upright slices (n, rows, columns) with the axes of the input."""
    if geometry.axis is None:
        return pictures
    to_input = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(geometry.orientation))
    return np.ascontiguousarray(apply_orientation(from_upright(pictures, geometry.axis), to_input))


def _resample(picture: Array, shape: tuple[int, int]) -> Array:
    """Return a slice with another number of rows and columns, float32; smoothed where it gets smaller."""
    if picture.shape == shape:
        return picture.astype(np.float32)
    image = Image.fromarray(picture.astype(np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def _to_8_bit(values: Any, geometry: VolumeGeometry) -> Array:
    scaled = (values - geometry.low) * (255 / (geometry.high - geometry.low))
    return np.asarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _window(picture: Array, geometry: VolumeGeometry, fill: Any, canvas: Array | None = None) -> Array:
    """Return the part of a slice under the window, on a canvas (by default size x size) filled with `fill`."""
    if canvas is None:
        canvas = np.full((geometry.size, geometry.size), fill, picture.dtype)
    spans = []
    for start, available, wanted in zip(geometry.window, picture.shape, canvas.shape, strict=True):
        first, last = max(start, 0), min(start + wanted, available)
        spans.append((slice(first, max(first, last)), slice(first - start, max(first, last) - start)))
    (rows, new_rows), (columns, new_columns) = spans
    canvas[new_rows, new_columns] = picture[rows, columns]
    return canvas
