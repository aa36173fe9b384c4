"""The style that all figures of the report share: colours, fonts, resolution."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wmlsearch.runs.files import write_bytes

ORANGE, BLUE, RED, YELLOW = "#d95f02", "#1b6ca8", "#b42318", "#ffd166"
PALE_BLUE = "#8fb8d6"
BASELINE_COLOUR, CHAMPION_COLOUR, EXPERT_COLOUR = ORANGE, BLUE, YELLOW
LIGHT, GREY, DARK_GREY, INK, GRID = "#c4c9cf", "#8b949e", "#57606a", "#30363d", "#e3e6ea"
DPI = 150
STYLE: Any = {
    "font.size": 10.5,
    "text.parse_math": False,  # names of patients and files may contain a $
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@contextmanager
def figure(path: Path, width: float, height: float, rows: int = 1, columns: int = 1) -> Iterator[tuple[Figure, Any]]:
    """Yield a figure of width x height inches and its axes (rows, columns); save it to `path` at the end."""
    with plt.rc_context(STYLE):
        canvas, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)
        try:
            yield canvas, axes
            path.parent.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            canvas.savefig(buffer, format=path.suffix[1:], dpi=DPI)
            write_bytes(path, buffer.getbuffer())
        finally:
            plt.close(canvas)


def legend_below(canvas: Figure, axes: Axes, columns: int = 3) -> None:
    """Put the legend below the axes, if there is anything in it."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        canvas.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9.5)


def show_slice(axes: Axes, image: np.ndarray, mask: np.ndarray | None = None, colour: str = "") -> None:
    """Show a slice (H, W) in grey levels from 0 to 255, with a mask (H, W) of bool over it."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if mask is not None and mask.any():
        axes.contourf(mask, levels=[0.5, 1], colors=[colour], alpha=0.45)
        axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.1)


def slice_dice(mask: np.ndarray, expert: np.ndarray) -> float | None:
    """Return the Dice of two boolean masks (H, W) of one slice, None where both are empty."""
    size = int(mask.sum()) + int(expert.sum())
    return 2 * int(np.logical_and(mask, expert).sum()) / size if size else None
