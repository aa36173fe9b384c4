"""The style that all figures of the report share: colours, fonts, resolution."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from wmlsearch.data.labels import IGNORED, LESION
from wmlsearch.runs.files import write_bytes

ORANGE, BLUE, RED, YELLOW = "#d95f02", "#1b6ca8", "#b42318", "#ffd166"
PALE_BLUE = "#8fb8d6"
BASELINE_COLOUR, CHAMPION_COLOUR, EXPERT_COLOUR, IGNORED_COLOUR = ORANGE, BLUE, YELLOW, "#35b779"
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
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(width, height), layout="constrained")  # not pyplot's, whose state is a notebook's
        yield canvas, canvas.subplots(rows, columns, squeeze=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        canvas.savefig(buffer, format=path.suffix[1:], dpi=DPI)
        write_bytes(path, buffer.getbuffer())


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
    if mask is not None:
        _colour_region(axes, mask, colour)


def _colour_region(axes: Axes, region: np.ndarray, colour: str) -> None:
    if region.any():
        axes.contourf(region, levels=[0.5, 1], colors=[colour], alpha=0.45)
        axes.contour(region, levels=[0.5], colors=[colour], linewidths=1.1)


def show_ignored(axes: Axes, labels: np.ndarray) -> None:
    """Colour the ignored region of an expert's mask (H, W) on a slice, if there is one."""
    _colour_region(axes, labels == IGNORED, IGNORED_COLOUR)


def ignored_legend(canvas: Figure, labels: np.ndarray) -> None:
    """Say below the figure what ignored regions look like, if one of the experts' masks (N, H, W) has any."""
    if (labels == IGNORED).any():
        patch = Patch(facecolor=IGNORED_COLOUR, alpha=0.6, label="ignored: in no loss and no score")
        canvas.legend(handles=[patch], loc="outside lower center", fontsize=9.5)


def slice_dice(mask: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the Dice of a boolean mask and an expert's mask with labels (H, W), None where both are empty."""
    mask, expert = mask & (labels != IGNORED), labels == LESION
    size = int(mask.sum()) + int(expert.sum())
    return 2 * int((mask & expert).sum()) / size if size else None
