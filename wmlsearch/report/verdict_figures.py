"""Figures of the verdict: the difference on the sealed test with both claims, and the final runs by fold."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from wmlsearch.report.figure_style import (
    BASELINE_COLOUR,
    CHAMPION_COLOUR,
    DARK_GREY,
    GREY,
    INK,
    LIGHT,
    figure,
)
from wmlsearch.runs.evaluation import Comparison, ConfigurationClaim, Evaluation, Verdict
from wmlsearch.runs.names import BASELINE, CHAMPION, PAPER
from wmlsearch.runs.wording import rounded_beside
from wmlsearch.verdict.champion import MEASURES, Candidate
from wmlsearch.verdict.comparison import PRIMARY
from wmlsearch.verdict.judged_runs import judged_runs

# Colour, marker and relative size of a pair of runs. The colours are Paul Tol's "muted" scheme, which colour-blind
# readers can tell apart; none of them is that of baseline or champion.
RUN_STYLES = (
    ("#332288", "o", 1.0), ("#cc6677", "s", 0.95), ("#44aa99", "^", 1.2), ("#882255", "D", 0.9), ("#999933", "v", 1.2),
    ("#88ccee", "P", 1.15), ("#117733", "X", 1.15), ("#aa4499", "*", 1.5),
)  # fmt: skip
MAX_NAMES = 40  # names of more patients would make the figure too tall
MAX_NAME = 20  # characters of a patient's name
MAX_FOLDS = 12  # with more, the labels of folds would overlap
# Heights in inches.
CLAIM, GAP = 0.36, 0.36  # of a claim, and between groups of rows
ROW, LOW_ROW, FEW = 0.25, 0.19, 15  # of a run or a patient with a name; the second where there are more than FEW
COMPACT = 5.0  # of all patients where they have no names


def forest(path: Path, evaluation: Evaluation, verdict: Verdict) -> None:
    """Draw the difference of Dice: both claims with their intervals, each pair of runs, each patient.

    A patient has a point for each pair of runs, in the pair's colour, and a line at their mean. Rows are placed in
    inches from the top, so that they keep their distance with 6 patients and with 100.
    """
    runs = judged_runs(evaluation, BASELINE, CHAMPION)
    baseline, champion = runs.scores(evaluation, PRIMARY, runs.patients)
    differences = champion - baseline  # (runs, patients)
    order = np.argsort(-differences.mean(axis=0), kind="stable")
    differences, patients = differences[:, order], [runs.patients[place] for place in order]
    rows = _Rows()
    claims = [(rows.add(CLAIM, claim.label), claim) for claim in _claim_rows(verdict)]
    rows.add_gap("each pair of trainings: mean over patients")
    run_names = [f"run {number} (fold {fold})" for number, fold in enumerate(runs.folds)]
    run_places = [rows.add(_row_height(len(run_names)), name) for name in _names(run_names)]
    rows.add_gap("each patient: a point for each pair of trainings, a line at their mean")
    patient_places = [rows.add(_row_height(len(patients)), name) for name in _names(patients)]
    with figure(path, 8.6, rows.bottom + 0.85) as (_, grid):
        axes = grid[0, 0]
        axes.axvline(0, color=DARK_GREY, linewidth=1.3, zorder=1)
        for place, claim in claims:
            _draw_claim(axes, place, claim)
        for number, run in enumerate(differences):
            style = _run_style(number, len(differences), len(patients))
            axes.plot(run, patient_places, zorder=2, **style)
            axes.plot(run.mean(), run_places[number], zorder=3, **{**style, "markersize": 8, "alpha": 1})
        half = 0.45 * _row_height(len(patients))
        ends = [np.array(patient_places) + side * half for side in (-1, 1)]
        axes.vlines(differences.mean(axis=0), *ends, color=INK, linewidth=2, zorder=4)
        rows.label(axes)
        axes.set(ylim=(rows.bottom, 0), xlabel="difference of Dice per patient: champion minus baseline")
        axes.margins(x=0.06)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        _write_directions(axes)


class _Rows:
    """The rows of the forest plot: their places, from the top down in inches, and their labels."""

    def __init__(self) -> None:
        self.bottom = 0.05
        self.labels: dict[float, str] = {}
        self.heads: dict[float, str] = {}

    def add(self, height: float, label: str) -> float:
        """Add a row; return the place of its middle."""
        place = self.bottom + height / 2
        self.bottom += height
        if label:
            self.labels[place] = label
        return place

    def add_gap(self, head: str) -> None:
        """Begin a group of rows with a head above them."""
        self.bottom += GAP
        self.heads[self.bottom] = head

    def label(self, axes: Axes) -> None:
        """Write the labels at the left, the heads into the axes."""
        axes.set_yticks(list(self.labels), list(self.labels.values()))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        for place, head in self.heads.items():
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            style: Any = {"fontsize": 9.5, "color": DARK_GREY, "va": "bottom", "bbox": box, "zorder": 2}
            axes.annotate(head, (0, place), xycoords=("axes fraction", "data"), **style)


@dataclass(frozen=True)
class _ClaimRow:
    """A difference with its interval, or what could have been found."""

    label: str
    text: str  # its numbers
    low: float | None
    high: float | None
    difference: float | None  # None for what could have been found
    hollow: bool = False


def _claim_rows(verdict: Verdict) -> list[_ClaimRow]:
    rows = []
    configuration, models = verdict.configuration, verdict.models
    if configuration is not None and configuration.difference is not None:
        rows.append(_claim_row("(a) configurations", configuration))
    if models is not None and models.difference is not None:
        rows.append(_claim_row(f"(b) {models.what}", models, hollow=True))
    if configuration is not None and configuration.detectable is not None:
        detectable = configuration.detectable
        label = f"\N{PLUS-MINUS SIGN}{detectable:.3f}"
        rows.append(_ClaimRow("(a) smallest detectable", label, -detectable, detectable, None))
    return rows


def _claim_row(label: str, claim: Comparison | ConfigurationClaim, hollow: bool = False) -> _ClaimRow:
    difference = claim.difference or 0.0
    interval = "no interval"
    if claim.low is not None and claim.high is not None:
        interval = f"{_signed(claim.low)} to {_signed(claim.high)}"
    return _ClaimRow(label, f"{_signed(difference)} ({interval})", claim.low, claim.high, difference, hollow)


def _draw_claim(axes: Axes, place: float, row: _ClaimRow) -> None:
    if row.low is not None and row.high is not None:
        ends, places = [row.low, row.high], [place, place]
        if row.difference is None:
            axes.plot(ends, places, color=LIGHT, linewidth=6, solid_capstyle="butt", zorder=2)
        else:
            axes.plot(ends, places, color=INK, linewidth=2.6, solid_capstyle="butt", zorder=3)
            axes.plot(ends, places, "|", color=INK, markersize=9, markeredgewidth=1.6, zorder=3)
    if row.difference is not None:
        face = "white" if row.hollow else INK
        edge: Any = {"markeredgecolor": INK, "markeredgewidth": 1.6}
        axes.plot(row.difference, place, "D", markersize=8.5, zorder=4, markerfacecolor=face, **edge)
    axes.annotate(row.text, (1.02, place), xycoords=("axes fraction", "data"), va="center", annotation_clip=False)


def _write_directions(axes: Axes) -> None:
    """Say above the axes on which side which configuration is better."""
    for x, side, text, colour in (
        (-6, "right", "\N{LEFTWARDS ARROW} baseline better", BASELINE_COLOUR),
        (6, "left", "champion better \N{RIGHTWARDS ARROW}", CHAMPION_COLOUR),
    ):
        style: Any = {"textcoords": "offset points", "fontsize": 9.5, "va": "bottom", "ha": side, "color": colour}
        axes.annotate(text, (0, 1), (x, 2), xycoords=("data", "axes fraction"), **style)


def _row_height(count: int) -> float:
    return ROW if count <= FEW else LOW_ROW if count <= MAX_NAMES else COMPACT / count


def _names(names: Sequence[str]) -> list[str]:
    """Return the names, shortened; empty ones where there are too many."""
    if len(names) > MAX_NAMES:
        return [""] * len(names)
    return [name if len(name) <= MAX_NAME else f"\N{HORIZONTAL ELLIPSIS}{name[1 - MAX_NAME :]}" for name in names]


def _run_style(number: int, runs: int, patients: int) -> dict[str, Any]:
    """Return the style of a pair of runs in the rows of patients; beyond `RUN_STYLES`, a shade from blue to yellow."""
    shade: Any = matplotlib.colormaps["viridis"](0.95 * number / max(runs - 1, 1))
    colour, marker, size = RUN_STYLES[number] if runs <= len(RUN_STYLES) else (shade, "o", 1.0)
    points, alpha = (5.0, 0.9) if patients <= MAX_NAMES else (2.8, 0.6)
    edge = {"markeredgewidth": 0, "linestyle": "none"}
    return {"color": colour, "marker": marker, "markersize": size * points, "alpha": alpha, **edge}


def _signed(value: float) -> str:
    return rounded_beside(value, 0, "+.3f").replace("-", "\N{MINUS SIGN}")


def fold_scores(path: Path, candidates: Sequence[Candidate], champion: str) -> None:
    """Draw the validation score of each final run in the fold that it validated on.

    Configurations stand side by side in a fold. Runs that chose the champion are hollow, runs that are judged on the
    sealed test are filled. A dashed line is the mean of the judgement runs of a configuration.
    """
    shown = [candidate for candidate in candidates if any(run.value is not None for run in candidate.runs)]
    folds = sorted({run.fold for candidate in shown for run in candidate.runs})
    step = 0.72 / len(shown)
    with figure(path, max(6.6, 1.2 + 0.17 * len(folds) * (len(shown) + 1)), 3.9) as (canvas, grid):
        axes = grid[0, 0]
        for number, candidate in enumerate(shown):
            colour = _colour(candidate, champion)
            offset = (number - (len(shown) - 1) / 2) * step
            for runs, face, aside in ((candidate.selection, "white", -0.17), (candidate.judgement, colour, 0.17)):
                place = offset + aside * step * bool(candidate.selection and candidate.judgement)
                points = [(folds.index(run.fold) + place, run.value) for run in runs if run.value is not None]
                if points:
                    style: Any = {"s": 50, "facecolor": face, "edgecolor": colour, "linewidth": 1.6, "zorder": 3}
                    axes.scatter(*zip(*points, strict=True), **style)
            values = [run.value for run in candidate.judgement if run.value is not None]
            if values:
                axes.axhline(statistics.fmean(values), color=colour, linewidth=1.3, linestyle=(0, (5, 3)), zorder=1)
        for border in range(1, len(folds)):
            axes.axvline(border - 0.5, color=LIGHT, linewidth=0.8, zorder=0)
        names = [str(fold) if len(folds) > 1 else "" for fold in folds]
        axes.set_xticks(range(len(folds)), names if len(folds) <= MAX_FOLDS else [""] * len(folds))
        across = "fold of the patients that a run validated on" if len(folds) > 1 else "the validation patients"
        axes.set(xlim=(-0.5, len(folds) - 0.5), xlabel=across, ylabel=f"validation: {MEASURES[shown[0].metric]}")
        axes.margins(y=0.12)
        axes.grid(axis="x", visible=False)
        axes.tick_params(axis="x", length=0)
        canvas.legend(handles=_fold_legend(shown, champion), loc="outside lower center", ncols=3, fontsize=9.5)


def _colour(candidate: Candidate, champion: str) -> str:
    return BASELINE_COLOUR if candidate.name == PAPER else CHAMPION_COLOUR if candidate.name == champion else GREY


def _fold_legend(shown: Sequence[Candidate], champion: str) -> list[Line2D]:
    """Return the legend: configurations by colour, runs by filling."""
    labels = {}
    for candidate in shown:
        colour = _colour(candidate, champion)
        if colour == BASELINE_COLOUR:
            labels[colour] = "baseline and champion" if champion == PAPER else "baseline"
        elif colour == CHAMPION_COLOUR:
            labels[colour] = f"champion ({candidate.name})"
        else:
            labels[colour] = "other candidates"
    style: Any = {"marker": "o", "linestyle": "none"}
    handles = [Line2D([], [], color=colour, label=label, **style) for colour, label in labels.items()]
    if any(candidate.selection for candidate in shown):
        handles.append(Line2D([], [], color=INK, markerfacecolor="white", label="selection run", **style))
    if any(candidate.judgement for candidate in shown):
        handles.append(Line2D([], [], color=INK, label="judgement run", **style))
        handles.append(Line2D([], [], color=INK, linestyle=(0, (5, 3)), linewidth=1.3, label="mean of judgement runs"))
    return handles
