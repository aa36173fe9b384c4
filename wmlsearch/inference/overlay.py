"""An overlay of a prediction: the slices with the most lesion, and the outline of the predicted lesions."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from wmlsearch.data.geometry import VolumeGeometry
from wmlsearch.data.stack import Array

SLICES, COLUMNS = 6, 3
TILE = 320  # pixels, the longer edge of a slice of a volume
OUTLINE = (255, 96, 48)


def draw_overlay(pictures: Array, masks: Array, geometry: VolumeGeometry) -> Image.Image:
    """Return upright pictures (n, rows, columns) with their masks as one RGB image.

    For a volume: `SLICES` slices in rows of `COLUMNS`, each with its number along the RAS+ axis (from 0), with square
    pixels. A single 2-D picture keeps its own pixels. The outline runs around the lesions and covers none of them.
    """
    slices = select_slices(masks.sum(axis=(1, 2)))
    width, height = _tile_size(geometry)
    columns = min(COLUMNS, len(slices))
    sheet = Image.new("RGB", (columns * width, -(-len(slices) // columns) * height))
    for place, index in enumerate(slices):
        tile = _draw_slice(pictures[index], masks[index], geometry, (width, height))
        if geometry.axis is not None:
            ImageDraw.Draw(tile).text((4, 2), f"slice {index}", fill="white")
        sheet.paste(tile, (place % columns * width, place // columns * height))
    return sheet


def select_slices(areas: Array) -> list[int]:
    """Return at most `SLICES` slice numbers, ascending: those with the largest lesion areas (n,), not side by side.

    If fewer slices have lesions, slices evenly spread over the volume fill up the rest.
    """
    n = len(areas)
    min_distance, chosen = max(1, n // (4 * SLICES)), list[int]()
    spread = [round((k + 1) * n / (SLICES + 1)) for k in range(SLICES)]
    with_lesion = [int(i) for i in np.argsort(-areas, kind="stable") if areas[i] > 0]
    for index in (*with_lesion, *spread, *range(n)):
        distance = min_distance if index in with_lesion or index in spread else 1
        if len(chosen) < SLICES and index < n and all(abs(index - other) >= distance for other in chosen):
            chosen.append(index)
    return sorted(chosen)


def _tile_size(geometry: VolumeGeometry) -> tuple[int, int]:
    """Return the width and height of a slice in the overlay, in pixels."""
    rows, columns = geometry.picture
    if geometry.picture_mm is None:
        return columns, rows
    high, wide = rows * geometry.picture_mm[0], columns * geometry.picture_mm[1]
    scale = TILE / max(high, wide)
    return max(1, round(wide * scale)), max(1, round(high * scale))


def _draw_slice(picture: Array, mask: Array, geometry: VolumeGeometry, size: tuple[int, int]) -> Image.Image:
    grey = np.clip((picture - geometry.low) / (geometry.high - geometry.low), 0, 1) * 255
    tile = Image.fromarray(np.rint(grey).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR).convert("RGB")
    lesions = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    outline = np.asarray(lesions.filter(ImageFilter.MaxFilter(3))) > np.asarray(lesions)
    tile.paste(OUTLINE, (0, 0), Image.fromarray(outline.astype(np.uint8) * 255))
    return tile
