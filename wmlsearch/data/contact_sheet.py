"""A sheet of prepared slices to look at: image, mask outline, and a line of text under each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wmlsearch.data.manifest import CONTACT_SHEET, IMAGES, MASKS, Manifest

TILE, GAP, TEXT = 224, 8, 20  # pixels: a picture, the space around it, the line under it
OUTLINE = (255, 92, 64)
PAPER, INK = (24, 24, 28), (222, 222, 226)


def contact_sheet(tiles: Sequence[tuple[str, np.ndarray[Any, Any], np.ndarray[Any, Any]]], title: str) -> Image.Image:
    """(text, image (S, S) uint8, mask (S, S) 0/1) each -> one RGB picture, at most six tiles in a row."""
    columns = min(6, max(1, len(tiles)))
    rows = -(-len(tiles) // columns)
    width = max(columns * (TILE + GAP) + GAP, 480)
    sheet = Image.new("RGB", (width, rows * (TILE + TEXT + GAP) + 2 * GAP + TEXT), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), _fitting(draw, title, width - 2 * GAP, 15), INK, font=ImageFont.load_default(15))
    for i, (text, image, mask) in enumerate(tiles):
        x, y = GAP + (i % columns) * (TILE + GAP), 2 * GAP + TEXT + (i // columns) * (TILE + TEXT + GAP)
        sheet.paste(_outlined(image, mask), (x, y))
        draw.text((x + 1, y + TILE + 3), _fitting(draw, text, TILE - 2, 12), INK, font=ImageFont.load_default(12))
    return sheet


def _outlined(image: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> Image.Image:
    """The image at tile size, with a line of one pixel just outside the lesions."""
    grey = Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BICUBIC).convert("RGB")
    inside = np.asarray(Image.fromarray((mask > 0).astype(np.uint8) * 255).resize((TILE, TILE))) > 127
    if mask.any() and not inside.any():  # tiny lesions on big slices
        inside = np.asarray(Image.fromarray((mask > 0).astype(np.float32)).resize((TILE, TILE))) > 0
    grown = inside.copy()
    grown[1:] |= inside[:-1]
    grown[:-1] |= inside[1:]
    grown[:, 1:] |= inside[:, :-1]
    grown[:, :-1] |= inside[:, 1:]
    pixels = np.array(grey)
    pixels[grown & ~inside] = OUTLINE
    return Image.fromarray(pixels)


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: int, size: int) -> str:
    """The text, cut with an ellipsis where it is too long for the width."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):  # a Pillow without FreeType knows Latin letters only
        text = text.encode("latin-1", "replace").decode("latin-1")
    text = text.encode("utf-8", "replace").decode("utf-8")  # file names that aren't text
    text = " ".join(text.split())  # nor one line
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = text.removesuffix("...")[:-1] + "..." if len(text) > 4 else text[:-1]
    return text


def draw_contact_sheet(manifest: Manifest, folder: Path, most: int = 24) -> None:
    """Write the prepared folder's sheet: of each volume, or of some, slices from its least to its most lesion."""
    images, masks = (np.load(folder / name, mmap_mode="r") for name in (IMAGES, MASKS))
    volumes = [int(v) for v in np.unique(np.linspace(0, len(manifest.volumes) - 1, most).round())]
    tiles = []
    for volume in volumes:
        rows = [i for i, row in enumerate(manifest.slices) if row.volume == volume and row.kept]
        rows = [i for i in rows if manifest.slices[i].lesion_pixels] or rows
        rows.sort(key=lambda i: manifest.slices[i].lesion_pixels)
        each = max(1, most // len(volumes))
        places = np.unique(np.linspace(len(rows) - 1, 0, min(each, len(rows))).round().astype(int))
        for i in sorted((rows[place] for place in places), key=lambda i: manifest.slices[i].index):
            row = manifest.slices[i]
            who = " ".join(part for part in (row.patient, row.timepoint) if part) or Path(row.source).stem
            tiles.append((f"{who} | {row.split} | slice {row.index} | {row.lesion_pixels} px", images[i], masks[i]))
    title = f"{manifest.plane}, {manifest.size} x {manifest.size}: train and validation, lesions outlined"
    contact_sheet(tiles, title).save(folder / CONTACT_SHEET)
