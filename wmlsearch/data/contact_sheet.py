"""The contact sheet of a prepared data set: slices with the outline of their masks, and a line of text under each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wmlsearch.data.findings import worst_first
from wmlsearch.data.labels import IGNORED, LESION
from wmlsearch.data.manifest import CONTACT_SHEET, IMAGES, MASKS, Manifest
from wmlsearch.data.stack import Array

TILE, GAP, TEXT = 224, 8, 20  # pixels: edge of a slice, space around it, height of the line under it
MIN_WIDTH = 480  # pixels, so that the title fits
TILES, COLUMNS = 24, 6  # at most, on the sheet and in a row
OUTLINE, IGNORED_OUTLINE = (255, 92, 64), (53, 183, 121)
WARNING = (255, 196, 0)
BACKGROUND, FOREGROUND = (24, 24, 28), (222, 222, 226)


@dataclass(frozen=True)
class Tile:
    """One slice on the sheet."""

    text: str
    image: Array  # (S, S) uint8
    mask: Array  # (S, S) BACKGROUND, LESION or IGNORED
    warning: str = ""  # what is doubtful about the volume, a few words


def draw_contact_sheet(manifest: Manifest, folder: Path) -> None:
    """Write the contact sheet of a prepared data set: train and val slices of all volumes, or of evenly spread ones.

    The worst volume of each kind of warning comes first; test patients are never shown. Each volume shows slices from
    its smallest to its largest lesion area, in anatomical order.
    """
    images, masks = (np.load(folder / name, mmap_mode="r") for name in (IMAGES, MASKS))
    warnings = _warnings(manifest)
    worst = list(dict.fromkeys(volume for volume, _ in warnings))[: TILES // 2]
    others = [v for v in range(len(manifest.volumes)) if v not in worst]
    spread = np.unique(np.linspace(0, len(others) - 1, TILES - len(worst)).round()) if others else ()
    volumes = worst + [others[int(place)] for place in spread]
    tiles = []
    for volume in volumes:
        warning = ", ".join(words for number, words in warnings if number == volume)
        for i in _example_slices(manifest, volume, max(1, TILES // len(volumes))):
            row = manifest.slices[i]
            scan = " ".join(part for part in (row.patient, row.timepoint) if part) or Path(row.source).stem
            text = f"{scan} | {row.split} | slice {row.index} | {row.lesion_pixels} px"
            tiles.append(Tile(text, images[i], masks[i], warning))
    title = f"{manifest.plane}, {manifest.size} x {manifest.size}: train and validation, lesions outlined"
    title += ", ignored regions in green" if manifest.has_ignored else ""
    _arrange(tiles, title).save(folder / CONTACT_SHEET)


def _warnings(manifest: Manifest) -> list[tuple[int, str]]:
    """Return the worst volume of each kind of warning and a few words, the most serious kind first."""
    number_of = {volume.source: number for number, volume in enumerate(manifest.volumes)}
    worst: dict[str, tuple[int, str]] = {}
    for row in worst_first(row for row in manifest.findings if row.finding.is_warning):
        if row.file in number_of:  # not a test patient
            words = f"{row.finding.kind} {row.finding.value}".strip()
            worst.setdefault(row.finding.kind, (number_of[row.file], words))
    return list(worst.values())


def _example_slices(manifest: Manifest, volume: int, limit: int) -> list[int]:
    """Return rows of the manifest: at most `limit` slices of a volume, evenly spread over their lesion areas."""
    rows = [i for i, row in enumerate(manifest.slices) if row.volume == volume and row.kept]
    rows = [i for i in rows if manifest.slices[i].lesion_pixels] or rows
    rows.sort(key=lambda i: manifest.slices[i].lesion_pixels)
    places = np.unique(np.linspace(len(rows) - 1, 0, min(limit, len(rows))).round().astype(int))
    return sorted((rows[place] for place in places), key=lambda i: manifest.slices[i].index)


def _arrange(tiles: Sequence[Tile], title: str) -> Image.Image:
    """Return the tiles in rows under a title, as one RGB picture."""
    columns = min(COLUMNS, max(1, len(tiles)))
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    above = [TEXT if any(tile.warning for tile in row) else 0 for row in rows]  # for the line of a warning
    width = max(columns * (TILE + GAP) + GAP, MIN_WIDTH)
    sheet = Image.new("RGB", (width, sum(above) + len(rows) * (TILE + TEXT + GAP) + 2 * GAP + TEXT), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), _shortened(draw, title, width - 2 * GAP, 15), FOREGROUND, font=ImageFont.load_default(15))
    y = 2 * GAP + TEXT
    for row, height in zip(rows, above, strict=True):
        y += height
        for column, tile in enumerate(row):
            x = GAP + column * (TILE + GAP)
            sheet.paste(_outlined(tile.image, tile.mask), (x, y))
            if tile.warning:
                words = _shortened(draw, f"! whole scan: {tile.warning}", TILE - 2, 12)
                draw.text((x + 1, y - TEXT + 2), words, WARNING, font=ImageFont.load_default(12))
            text = _shortened(draw, tile.text, TILE - 2, 12)
            draw.text((x + 1, y + TILE + 3), text, FOREGROUND, font=ImageFont.load_default(12))
        y += TILE + TEXT + GAP
    return sheet


def _outlined(image: Array, mask: Array) -> Image.Image:
    """Return the image at tile size, with a line of one pixel just outside the lesions and the ignored regions."""
    pixels = np.array(Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BICUBIC).convert("RGB"))
    for label, colour in ((IGNORED, IGNORED_OUTLINE), (LESION, OUTLINE)):
        pixels[_outline(mask == label)] = colour
    return Image.fromarray(pixels)


def _outline(region: Array) -> Array:
    """Return the pixels of a tile just outside a region (S, S) of bool."""
    inside = np.asarray(Image.fromarray(region.astype(np.uint8) * 255).resize((TILE, TILE))) > 127
    if region.any() and not inside.any():  # tiny lesions on large slices
        inside = np.asarray(Image.fromarray(region.astype(np.float32)).resize((TILE, TILE))) > 0
    grown = inside.copy()
    grown[1:] |= inside[:-1]
    grown[:-1] |= inside[1:]
    grown[:, 1:] |= inside[:, :-1]
    grown[:, :-1] |= inside[:, 1:]
    return grown & ~inside


def _shortened(draw: ImageDraw.ImageDraw, text: str, width: int, size: int) -> str:
    """Return the text on one line, with an ellipsis where it is too long for the width."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow without FreeType draws Latin letters only
        text = text.encode("latin-1", "replace").decode("latin-1")
    text = text.encode("utf-8", "replace").decode("utf-8")  # file names need not be text
    text = " ".join(text.split())
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = text.removesuffix("...")[:-1] + "..." if len(text) > 4 else text[:-1]
    return text
