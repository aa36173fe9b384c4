"""A prediction to look at: the slices that show most of it, with the outline of what was found."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from wmlsearch.data.geometry import VolumeGeometry
from wmlsearch.data.stack import Array

SLICES, COLUMNS = 6, 3
TILE = 320  # pixels, the longer edge of a slice of a volume
OUTLINE = (255, 96, 48)


def draw_overlay(pictures: Array, masks: Array, geometry: VolumeGeometry) -> Image.Image:
    """Upright pictures (n, rows, columns) and their masks as one RGB image.

    Of a volume, `SLICES` slices in rows of `COLUMNS`, each with its number along the RAS+ axis (from 0), pixels made
    square; a single 2-D picture keeps its own pixels. The outline runs around what was found and covers none of it.
    """
    chosen = select_slices(masks.sum(axis=(1, 2)))
    width, height = _tile(geometry)
    across = min(COLUMNS, len(chosen))
    sheet = Image.new("RGB", (across * width, -(-len(chosen) // across) * height))
    for place, index in enumerate(chosen):
        tile = _drawn(pictures[index], masks[index], geometry, (width, height))
        if geometry.axis is not None:
            ImageDraw.Draw(tile).text((4, 2), f"slice {index}", fill="white")
        sheet.paste(tile, (place % across * width, place // across * height))
    return sheet


def select_slices(areas: Array) -> list[int]:
    """At most `SLICES` slices worth a look, ascending: those with most lesion (n,), not side by side.

    Where fewer have any, slices evenly spread over the volume join them.
    """
    n = len(areas)
    apart, chosen = max(1, n // (4 * SLICES)), list[int]()
    spread = [round((place + 1) * n / (SLICES + 1)) for place in range(SLICES)]
    full = [int(i) for i in np.argsort(-areas, kind="stable") if areas[i] > 0]
    for index in (*full, *spread, *range(n)):
        wanted = apart if index in full or index in spread else 1
        if len(chosen) < SLICES and index < n and all(abs(index - other) >= wanted for other in chosen):
            chosen.append(index)
    return sorted(chosen)


def _tile(geometry: VolumeGeometry) -> tuple[int, int]:
    """Width and height of a slice as shown."""
    rows, columns = geometry.picture
    if geometry.picture_mm is None:
        return columns, rows
    high, wide = rows * geometry.picture_mm[0], columns * geometry.picture_mm[1]
    scale = TILE / max(high, wide)
    return max(1, round(wide * scale)), max(1, round(high * scale))


def _drawn(picture: Array, mask: Array, geometry: VolumeGeometry, size: tuple[int, int]) -> Image.Image:
    grey = np.clip((picture - geometry.low) / (geometry.high - geometry.low), 0, 1) * 255
    tile = Image.fromarray(np.rint(grey).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR).convert("RGB")
    found = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    around = np.asarray(found.filter(ImageFilter.MaxFilter(3))) > np.asarray(found)
    tile.paste(OUTLINE, (0, 0), Image.fromarray(around.astype(np.uint8) * 255))
    return tile
