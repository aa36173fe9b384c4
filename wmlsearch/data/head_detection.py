"""Find the head in a volume's slices, its background, and the range of its grey values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wmlsearch.data.stack import Array

MIN_CONTRAST = 0.1  # share of the grey range by which a pixel of the head differs from the background
SAMPLE_SIZE = 2_000_000  # values from which percentiles of a volume are taken

Box = tuple[int, int, int, int]  # top, left, bottom, right in pixels; the last two exclusive


@dataclass(frozen=True)
class HeadRegion:
    """Where the head is, in pixels of the upright slices, and its grey values as stored."""

    box: Box  # over all slices
    background: float  # grey value around the head
    pixels: Array  # (n, rows, columns) bool: is head
    area: Array  # (n,) pixels of head per slice
    low: float  # grey value that becomes 0
    high: float  # grey value that becomes 255


def head_grey(slices: Array, head: Array, low: float, high: float) -> tuple[float, float]:
    """Return mean and standard deviation of the head's grey values in slices, as 8-bit grey values (0 to 255).

    Args:
        slices: (n, rows, columns).
        head: The head's pixels, bool of the same shape; all pixels where none is head.
        low: Grey value that becomes 0.
        high: Grey value that becomes 255.
    """
    greys = slices[head].astype(np.float64) if head.any() else slices.astype(np.float64).ravel()
    scaled = np.clip((greys - low) * (255 / (high - low)), 0, 255) if high > low else np.zeros_like(greys)
    return round(float(scaled.mean()), 4), round(float(scaled.std()), 4)


@dataclass(frozen=True)
class _Background:
    level: float  # grey value of the border
    is_white: bool  # nearer to the brightest than to the darkest grey
    contrast: float  # how far the brightest of the other pixels are from the level


def find_head(slices: Array) -> HeadRegion:
    """Return the head's region in slices (n, rows, columns).

    A black picture in a white frame is searched again inside the frame. Where the border has no uniform dark or bright
    grey, the whole picture counts as head.
    """
    box: Box = (0, 0, slices.shape[1], slices.shape[2])
    level, is_white, head, inner = 0.0, False, None, slices
    while (background := _background(inner)) is not None and (head is None or background.is_white != is_white):
        level, is_white = background.level, background.is_white
        head = np.abs(inner - level) > MIN_CONTRAST * background.contrast
        rows, columns = head.sum(axis=2).max(axis=0), head.sum(axis=1).max(axis=0)
        ys = np.flatnonzero(rows >= max(2, 0.01 * len(columns)))
        xs = np.flatnonzero(columns >= max(2, 0.01 * len(rows)))
        if not len(ys) or not len(xs):  # specks only
            break
        top, left, bottom, right = int(ys[0]), int(xs[0]), int(ys[-1]) + 1, int(xs[-1]) + 1
        head, inner = head[:, top:bottom, left:right], inner[:, top:bottom, left:right]
        box = (box[0] + top, box[1] + left, box[0] + bottom, box[1] + right)
        if not is_white:  # a black picture may lie in a white frame, not the other way round
            break
    if head is None:
        low, high = (float(value) for value in np.percentile(sample_values(slices), (0.1, 99.9)))
        level, head = low, np.ones_like(slices, dtype=bool)
    else:
        greys = inner[head]
        high = float(np.percentile(greys, 99.9))
        low = float(np.percentile(greys, 0.1)) if is_white else level
    if high <= low:
        low, high = float(slices.min()), float(slices.max())
    pixels = np.zeros(slices.shape, bool)
    pixels[:, box[0] : box[2], box[1] : box[3]] = head
    return HeadRegion(box, level, pixels, head.sum(axis=(1, 2)), low, high)


def _background(slices: Array) -> _Background | None:
    """Return the background by the border's pixels; None where most are not of one dark or bright grey."""
    low, high = np.percentile(sample_values(slices), (0.1, 99.9))
    if high <= low:
        low, high = slices.min(), slices.max()
    border = np.concatenate([slices[:, (0, -1), :].ravel(), slices[:, :, (0, -1)].ravel()])
    level = float(np.median(border))
    if high <= low or 0.25 < (level - low) / (high - low) < 0.75:
        return None
    if np.mean(np.abs(border - level) <= MIN_CONTRAST * (high - low)) < 0.5:
        return None
    differences = np.abs(sample_values(slices) - level)
    if not (differences > 0).any():
        differences = np.abs(slices - level)
    contrast = float(np.percentile(differences[differences > 0], 99))
    return _Background(level, bool(level - low > high - level), contrast)


def sample_values(array: Array) -> Array:
    """Return about `SAMPLE_SIZE` values, evenly spread; the step is odd, so that it does not run along a column."""
    flat = array.ravel()
    return flat[:: (flat.size // SAMPLE_SIZE) | 1]
