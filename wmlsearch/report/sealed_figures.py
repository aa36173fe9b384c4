"""Figures of the sealed test: each patient's scores in pairs, lesion volumes, and pictures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from wmlsearch.report.figures import BASELINE, CHAMPION, INK, drawn
from wmlsearch.verdict.evaluation import VOLUMES, unit_means

NAMED = 40  # patients; names of more would cover each other
ROLES = {"baseline": BASELINE, "champion": CHAMPION}
_EXPERT = "#ffd166"


def pairs_of(found: Mapping[str, Any], metric: str = "dice") -> list[tuple[str, float, float]]:
    """Unit, baseline, champion of the units in which both have a score, by their difference, the lowest first."""
    ours, theirs = (unit_means(found, role, metric) for role in ("champion", "baseline"))
    both = [(unit, their, ours[unit]) for unit, their in theirs.items()]
    known = [(unit, their, our) for unit, their, our in both if their is not None and our is not None]
    return sorted(known, key=lambda it: (it[2] - it[1], it[0]))


def paired(path: Path, found: Mapping[str, Any]) -> None:
    """Each unit's Dice from the baseline to the champion; and the differences with their mean and its interval."""
    pairs, primary, one = pairs_of(found), found["verdict"]["primary"], found["unit"].removesuffix("s")
    named = len(pairs) <= NAMED
    with drawn(path, 5.9, max(3.8, 1.9 + 0.2 * len(pairs) * named), columns=2) as (_, grid):
        left, right = grid[0]
        alpha = 0.85 if named else 0.35
        for _, their, our in pairs:
            left.plot([0, 1], [their, our], "o-", color=_colour(our - their), linewidth=1.2, markersize=4, alpha=alpha)
        means = [statistics.fmean(it[1] for it in pairs), statistics.fmean(it[2] for it in pairs)]
        left.plot([0, 1], means, "D-", color=INK, linewidth=2.2, markersize=6, label="mean")
        left.set_xticks([0, 1], ["baseline", "champion"])
        left.set(xlim=(-0.3, 1.3), ylabel=f"Dice of each {one}", ylim=(0, None))
        left.legend(loc="best", fontsize=9.5)
        places = np.arange(len(pairs)) + 1
        differences = [our - their for _, their, our in pairs]
        right.axvline(0, color="#57606a", linewidth=1)
        right.scatter(differences, places, s=26, zorder=3, alpha=alpha,
                      c=[_colour(it) for it in differences])  # fmt: skip
        if primary["low"] is not None:
            right.plot([primary["low"], primary["high"]], [0, 0], color=INK, linewidth=2.6, solid_capstyle="butt")
        right.plot(primary["difference"], 0, "D", color=INK, markersize=7)
        right.set_yticks([0, *(places if named else [])], ["mean", *([it[0] for it in pairs] if named else [])])
        right.set(xlabel="difference of Dice", ylim=(-0.8, len(pairs) + 0.8))
        right.xaxis.set_major_locator(MaxNLocator(3))
        right.grid(axis="y", visible=False)


def _colour(difference: float) -> str:
    return CHAMPION if difference > 0 else BASELINE if difference < 0 else "#8b949e"


def volumes(path: Path, found: Mapping[str, Any]) -> None:
    """How much lesion each model finds in each unit, against how much the expert has marked."""
    expert = lesion_sizes(found, "baseline")[0]
    unit, step = ("ml", 1.0) if found["scope"] == VOLUMES else ("pixels", 10.0)
    with drawn(path, 5.9, 3.3, columns=2) as (_, grid):
        sizes = {role: lesion_sizes(found, role)[1] for role in ROLES}
        top = 1.4 * max(step, *expert.values(), *(size for its in sizes.values() for size in its.values()))
        for axes, (role, its) in zip(grid[0], sizes.items(), strict=True):
            _square(axes, top, step)
            axes.scatter([expert[name] for name in its], list(its.values()), s=30, color=ROLES[role], alpha=0.75)
            axes.set(title=role, xlabel=f"expert ({unit})", ylabel=f"found ({unit})")


def _square(axes: Axes, top: float, step: float) -> None:
    """Axes from 0: even up to `step`, logarithmic beyond; lesion loads span decades."""
    axes.plot([0, top], [0, top], color="#57606a", linewidth=1, linestyle="--")
    axes.set_xscale("symlog", linthresh=step)
    axes.set_yscale("symlog", linthresh=step)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlim=(-0.08 * step, top), ylim=(-0.08 * step, top), aspect="equal")


def lesion_sizes(found: Mapping[str, Any], role: str) -> tuple[dict[str, float], dict[str, float]]:
    """Of each unit: what the expert has marked, and what the role finds, mean over its seeds.

    In ml, a mean over time points; without volumes in pixels, a sum.
    """
    expert: dict[str, float] = {}
    each: dict[str, list[float]] = {}
    for member in found["models"][role]["members"]:
        for row in member[found["scope"]]["units"]:
            in_ml = found["scope"] == VOLUMES
            expert[row["unit"]] = float(row["expert_volume_ml"] if in_ml else row["tp"] + row["fn"])
            each.setdefault(row["unit"], []).append(float(row["volume_ml"] if in_ml else row["tp"] + row["fp"]))
    return expert, {unit: statistics.fmean(its) for unit, its in each.items()}


def telling(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Units to look at with what they are: by the champion's Dice the best, the median and the worst one."""
    scores = unit_means(found, "champion", "dice")
    ranked = sorted(((unit, it) for unit, it in scores.items() if it is not None), key=lambda it: (-it[1], it[0]))
    if not ranked:
        return []
    places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
    if len(ranked) < len(places):
        places = dict(list({"best": 0, "worst": len(ranked) - 1}.items())[: len(ranked)])
    return [(title, ranked[place][0]) for title, place in places.items()]


def gallery(path: Path, found: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bool:
    """Image, expert, baseline, champion of the best, median and worst units. False where no picture of them is kept."""
    units = [str(unit) for unit in arrays.get("units", [])]
    shown = [(title, unit) for title, unit in telling(found) if unit in units]
    if not shown:
        return False
    means = {role: unit_means(found, role, "dice") for role in ROLES}
    with drawn(path, 9.2, 2.75 * len(shown) + 0.3, rows=len(shown), columns=4) as (_, grid):
        for row, (title, unit) in enumerate(shown):
            place = units.index(unit)
            image, expert = arrays["images"][place], arrays["expert"][place].astype(bool)
            masks = {"expert": (expert, _EXPERT), **{r: (arrays[r][place].astype(bool), c) for r, c in ROLES.items()}}
            _image(grid[row, 0], image, None, "")
            grid[row, 0].set_ylabel(f"{title}: {unit if len(unit) < 22 else '…' + unit[-20:]}", fontsize=10.5)
            for axes, (name, (mask, colour)) in zip(grid[row, 1:], masks.items(), strict=True):
                _image(axes, image, mask, colour)
                if name in ROLES:
                    _words(axes, _dice(mask, expert), means[name].get(unit), found["unit"].removesuffix("s"))
            if row == 0:
                for axes, name in zip(grid[0], ("image", *masks), strict=True):
                    axes.set_title(name, fontsize=11)
    return True


def _image(axes: Axes, image: np.ndarray, mask: np.ndarray | None, colour: str) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if mask is not None and mask.any():
        axes.contourf(mask, levels=[0.5, 1], colors=[colour], alpha=0.45)
        axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.1)


def _words(axes: Axes, own: float | None, mean: float | None, one: str) -> None:
    lines = [f"{name}: {'-' if value is None else f'{value:.2f}'}" for name, value in (("slice", own), (one, mean))]
    axes.set_xlabel(f"Dice of the {lines[0]}\nof the {lines[1]}", fontsize=9.5)


def _dice(mask: np.ndarray, expert: np.ndarray) -> float | None:
    either = int(mask.sum()) + int(expert.sum())
    return 2 * int(np.logical_and(mask, expert).sum()) / either if either else None
