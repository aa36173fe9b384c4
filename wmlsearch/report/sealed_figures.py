"""Figures of the sealed test: Dice of each unit in pairs, lesion volumes, and the gallery of slices."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from wmlsearch.data.labels import LESION
from wmlsearch.report.figure_style import (
    BASELINE_COLOUR,
    CHAMPION_COLOUR,
    DARK_GREY,
    EXPERT_COLOUR,
    GREY,
    INK,
    figure,
    ignored_legend,
    show_ignored,
    show_slice,
    slice_dice,
)
from wmlsearch.report.unit_scores import DicePair, dice_pairs, gallery_units, lesion_sizes, size_unit
from wmlsearch.runs.evaluation import Comparison, Evaluation, Gallery
from wmlsearch.runs.names import BASELINE, CHAMPION
from wmlsearch.verdict.comparison import unit_means
from wmlsearch.verdict.wording import singular

MAX_NAMES = 40  # names of more units would overlap
COLOURS = {BASELINE: BASELINE_COLOUR, CHAMPION: CHAMPION_COLOUR}


def paired(path: Path, evaluation: Evaluation, primary: Comparison | None) -> None:
    """Draw the Dice of each unit from baseline to champion, and the differences with their mean and its interval.

    Args:
        primary: The comparison of Dice; None: the differences are not drawn.
    """
    pairs, unit = dice_pairs(evaluation), singular(evaluation.unit)
    named = len(pairs) <= MAX_NAMES
    width, height = (3.6, 3.8) if primary is None else (5.9, max(3.8, 1.9 + 0.2 * len(pairs) * named))
    with figure(path, width, height, columns=1 if primary is None else 2) as (_, grid):
        left, *others = grid[0]
        alpha = 0.85 if named else 0.35
        for pair in pairs:
            style = {"color": _colour(pair.difference), "linewidth": 1.2, "markersize": 4, "alpha": alpha}
            left.plot([0, 1], [pair.baseline, pair.champion], "o-", **style)
        means = [statistics.fmean(pair.baseline for pair in pairs), statistics.fmean(pair.champion for pair in pairs)]
        left.plot([0, 1], means, "D-", color=INK, linewidth=2.2, markersize=6, label="mean")
        left.set_xticks([0, 1], [BASELINE, CHAMPION])
        left.set(xlim=(-0.3, 1.3), ylabel=f"Dice of each {unit}", ylim=(0, None))
        left.legend(loc="best", fontsize=9.5)
        if primary is not None:
            _draw_differences(others[0], pairs, primary, alpha)


def _draw_differences(axes: Axes, pairs: Sequence[DicePair], primary: Comparison, alpha: float) -> None:
    heights = np.arange(len(pairs)) + 1
    differences = [pair.difference for pair in pairs]
    axes.axvline(0, color=DARK_GREY, linewidth=1)
    colours = [_colour(difference) for difference in differences]
    axes.scatter(differences, heights, s=26, zorder=3, alpha=alpha, c=colours)
    if primary.low is not None and primary.high is not None:
        axes.plot([primary.low, primary.high], [0, 0], color=INK, linewidth=2.6, solid_capstyle="butt")
    if primary.difference is not None:
        axes.plot(primary.difference, 0, "D", color=INK, markersize=7)
    names = [pair.unit for pair in pairs] if len(pairs) <= MAX_NAMES else []
    axes.set_yticks([0, *heights[: len(names)]], ["mean", *names])
    axes.set(xlabel="difference of Dice", ylim=(-0.8, len(pairs) + 0.8))
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.grid(axis="y", visible=False)


def _colour(difference: float) -> str:
    return CHAMPION_COLOUR if difference > 0 else BASELINE_COLOUR if difference < 0 else GREY


def volumes(path: Path, evaluation: Evaluation) -> None:
    """Draw how much lesion each model predicts in each unit against how much the expert marked."""
    unit = size_unit(evaluation)
    step = 1.0 if unit == "ml" else 10.0
    sizes = {role: list(lesion_sizes(evaluation, role).values()) for role in COLOURS}
    largest = max(max(size.expert, size.predicted) for role_sizes in sizes.values() for size in role_sizes)
    top = 1.4 * max(step, largest)
    with figure(path, 5.9, 3.3, columns=2) as (_, grid):
        for axes, (role, colour) in zip(grid[0], COLOURS.items(), strict=True):
            _square(axes, top, step)
            expert, predicted = ([getattr(size, name) for size in sizes[role]] for name in ("expert", "predicted"))
            axes.scatter(expert, predicted, s=30, color=colour, alpha=0.75)
            axes.set(title=role, xlabel=f"expert ({unit})", ylabel=f"predicted ({unit})")


def _square(axes: Axes, top: float, step: float) -> None:
    """Set axes that are linear from 0 to `step` and logarithmic above: lesion sizes span decades."""
    axes.plot([0, top], [0, top], color=DARK_GREY, linewidth=1, linestyle="--")
    axes.set_xscale("symlog", linthresh=step)
    axes.set_yscale("symlog", linthresh=step)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlim=(-0.08 * step, top), ylim=(-0.08 * step, top), aspect="equal")


def gallery(path: Path, evaluation: Evaluation, slices: Gallery) -> None:
    """Draw image, expert, baseline and champion of the best, median and worst units; nothing if none is there."""
    selected = [(title, unit) for title, unit in gallery_units(evaluation) if unit in slices.units]
    rows = [(title, unit, slices.units.index(unit)) for title, unit in selected]
    if not rows:
        return
    means = {role: unit_means(evaluation, role, "dice") for role in COLOURS}
    with figure(path, 9.2, 2.75 * len(rows) + 0.3, rows=len(rows), columns=4) as (canvas, grid):
        ignored_legend(canvas, slices.expert[[place for _, _, place in rows]])
        for (title, unit, place), (image_axes, expert_axes, *role_axes) in zip(rows, grid, strict=True):
            image, expert = slices.images[place], slices.expert[place]
            show_slice(image_axes, image)
            image_axes.set_ylabel(f"{title}: {unit if len(unit) < 22 else '…' + unit[-20:]}", fontsize=10.5)
            show_slice(expert_axes, image, expert == LESION, EXPERT_COLOUR)
            show_ignored(expert_axes, expert)
            for axes, (role, colour) in zip(role_axes, COLOURS.items(), strict=True):
                mask = slices.predictions[role][place].astype(bool)
                show_slice(axes, image, mask, colour)
                show_ignored(axes, expert)
                dices = slice_dice(mask, expert), means[role].get(unit)
                slice_text, unit_text = ("-" if dice is None else f"{dice:.2f}" for dice in dices)
                axes.set_xlabel(
                    f"Dice of the slice: {slice_text}\nof the {singular(evaluation.unit)}: {unit_text}", fontsize=9.5
                )
        for axes, title in zip(grid[0], ("image", "expert", *COLOURS), strict=True):
            axes.set_title(title, fontsize=11)
