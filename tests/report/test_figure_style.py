"""Slices in figures: ignored regions have a colour and a legend of their own, and are in no Dice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import colors
from PIL import Image

from wmlsearch.data.labels import IGNORED, LESION
from wmlsearch.report.figure_style import (
    EXPERT_COLOUR,
    IGNORED_COLOUR,
    figure,
    ignored_legend,
    show_ignored,
    show_slice,
    slice_dice,
)


def labels_of(*, ignored: bool) -> np.ndarray:
    labels = np.zeros((16, 16), np.uint8)
    labels[2:6, 2:6] = LESION
    labels[9:13, 9:13] = IGNORED if ignored else 0
    return labels


@pytest.mark.parametrize("ignored", [True, False])
def test_ignored_regions_have_a_colour_and_a_legend(tmp_path: Path, ignored: bool) -> None:
    labels = labels_of(ignored=ignored)
    with figure(tmp_path / "one.png", 2, 2) as (canvas, grid):
        show_slice(grid[0, 0], np.zeros_like(labels), labels == LESION, EXPERT_COLOUR)
        show_ignored(grid[0, 0], labels)
        ignored_legend(canvas, labels[None])
        texts = [text.get_text() for legend in canvas.legends for text in legend.get_texts()]
    assert texts == (["ignored: in no loss and no score"] if ignored else [])
    pixels = np.asarray(Image.open(tmp_path / "one.png").convert("RGB")).reshape(-1, 3) / 255
    for colour, drawn in ((EXPERT_COLOUR, True), (IGNORED_COLOUR, ignored)):
        assert (np.abs(pixels - colors.to_rgb(colour)).max(axis=1) < 0.1).any() == drawn


def test_the_dice_of_a_slice_leaves_out_ignored_pixels() -> None:
    labels, mask = labels_of(ignored=True), np.zeros((16, 16), bool)
    mask[2:6, 2:4] = True  # 8 of 16 lesion pixels
    mask[9:14, 9:13] = True  # 16 ignored pixels, and 4 of background
    assert slice_dice(mask, labels) == pytest.approx(2 * 8 / (12 + 16))
    assert slice_dice(labels == IGNORED, np.where(labels == LESION, 0, labels)) is None, "nothing that counts"
