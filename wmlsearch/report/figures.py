"""Figures of a search: its trials and final runs, drawn from the run folders alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from wmlsearch.config import OBJECTIVES, RunSettings
from wmlsearch.report.figure_style import (
    BASELINE_COLOUR,
    CHAMPION_COLOUR,
    DARK_GREY,
    GREY,
    LIGHT,
    PALE_BLUE,
    RED,
    figure,
    legend_below,
)
from wmlsearch.runs.folders import RunDir
from wmlsearch.runs.leaderboard import Entry, Leaderboard
from wmlsearch.runs.names import PAPER, natural_key
from wmlsearch.runs.objectives import front
from wmlsearch.runs.schema import BAD
from wmlsearch.search.rungs import levels_of
from wmlsearch.space import Choices, Dimension, SearchSpace
from wmlsearch.verdict.champion import Candidate

BASELINE_RING: Any = {
    "marker": "o",
    "linestyle": "none",
    "markersize": 12,
    "fillstyle": "none",
    "color": BASELINE_COLOUR,
    "markeredgewidth": 1.8,
    "label": "baseline configuration",
}
OFF = -0.14  # height of a line in `parallel` where a condition switches the hyperparameter off
MAX_NAMES = 12  # names of more points on a Pareto front would overlap


def history(path: Path, board: Leaderboard) -> None:
    """Draw the objective of each trial, in the order in which they started, and the best so far."""
    entries = sorted(board.trials, key=lambda entry: natural_key(entry.name))
    values = [(number, entry, entry.value) for number, entry in enumerate(entries) if entry.value is not None]
    with figure(path, 5.3, 3.9) as (canvas, grid):
        axes = grid[0, 0]
        for label, colour, face in (
            ("other trials", CHAMPION_COLOUR, CHAMPION_COLOUR),
            ("stopped early", GREY, "white"),
            ("failed", RED, "white"),
        ):
            points = [(number, value) for number, entry, value in values if _ending(entry) == label]
            if points:
                axes.scatter(*zip(*points, strict=True), s=26, facecolor=face, edgecolor=colour, label=label, zorder=3)
        best = np.maximum.accumulate([value for _, _, value in values])
        numbers = [number for number, _, _ in values]
        axes.step(numbers, best, where="post", color=CHAMPION_COLOUR, linewidth=1.4, label="best so far")
        baseline = [(number, value) for number, entry, value in values if entry.is_baseline]
        if baseline:
            axes.plot(*baseline[0], **BASELINE_RING)
        without = [number for number, entry in enumerate(entries) if entry.value is None and entry.state in BAD]
        if without:
            axes.plot(without, np.zeros(len(without)), "x", color=RED, markersize=6, label="without a value")
        axes.set(xlabel="trial", ylabel=board.objective, ylim=(0, None))
        axes.margins(x=0.04)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(canvas, axes)


def _ending(entry: Entry) -> str:
    return "failed" if entry.state in BAD else "stopped early" if entry.state == "stopped" else "other trials"


def curves(
    path: Path, board: Leaderboard, settings: RunSettings, candidates: Sequence[Candidate], champion: str
) -> None:
    """Draw the objective of each trial and final run over its epochs, with the rungs at which trials are compared."""
    best_path = board.best.path if board.best is not None else ""
    with figure(path, 5.3, 3.9) as (canvas, grid):
        axes = grid[0, 0]
        rungs = [level.epoch for level in levels_of(settings) if level.epoch < settings.epochs]
        for number, epoch in enumerate(rungs):
            label = "rungs" if number == 0 else None
            axes.axvline(epoch, color=GREY, linestyle=":", linewidth=1.2, label=label, zorder=1)
        trials = [entry for entry in board.trials[::-1] if entry.path != best_path]
        stopped = [entry for entry in trials if entry.state in ("stopped", *BAD)]
        others = [entry for entry in trials if entry.state not in ("stopped", *BAD)]
        for entries, colour, name in ((stopped, LIGHT, "stopped or failed"), (others, PALE_BLUE, "other trials")):
            for number, entry in enumerate(entries):
                style = {"color": colour, "linewidth": 1.0, "label": name if number == 0 else None}
                _curve(axes, RunDir(Path(entry.path)), board.objective, **style)
        for candidate in candidates:
            if candidate.name not in (PAPER, champion):
                continue
            is_paper = candidate.name == PAPER
            colour, name = (BASELINE_COLOUR, "final: baseline") if is_paper else (CHAMPION_COLOUR, "final: champion")
            for number, final_run in enumerate(candidate.runs):
                style = {"color": colour, "linewidth": 1.7, "linestyle": (0, (4, 1.5))}
                _curve(axes, final_run.run, board.objective, label=name if number == 0 else None, **style)
        if board.best is not None:
            name = f"{'highest' if board.objectives else 'best trial'} ({board.best.name})"
            run = RunDir(Path(board.best.path))
            _curve(axes, run, board.objective, color=CHAMPION_COLOUR, linewidth=2.4, label=name)
        axes.set(xlabel="epoch", ylabel=board.objective, ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(canvas, axes, 2)


def rates(path: Path, board: Leaderboard) -> None:
    """Draw the learning rate of each trial of population based training over its epochs; the best trial stands out."""
    with figure(path, 5.9, 3.6) as (canvas, grid):
        axes = grid[0, 0]
        for entry in board.trials[::-1]:
            best = board.best is not None and entry.path == board.best.path
            style = {"color": CHAMPION_COLOUR if best else LIGHT, "linewidth": 2.4 if best else 1.0}
            label = f"best trial ({entry.name})" if best else None
            _curve(axes, RunDir(Path(entry.path)), "learning_rate", label=label, **style)
        axes.set(xlabel="epoch", ylabel="learning rate", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(canvas, axes)


def _curve(axes: Axes, run: RunDir, metric: str, **style: Any) -> None:
    """Draw a metric of a run over its epochs, with gaps where it is not a number."""
    rows = run.rows()
    values = [row.metrics.get(metric) for row in rows]
    numbers = [np.nan if value is None else value for value in values]
    axes.plot([row.epoch for row in rows], numbers, marker="o", markersize=2.8, **style)


def pareto(path: Path, board: Leaderboard) -> None:
    """Draw all trials by the first two objectives, the first upwards; front and baseline configuration stand out."""
    up, across = board.objectives[:2]
    values = [(entry, entry.metric(across), entry.metric(up)) for entry in board.trials]
    points = {entry.path: (x, y) for entry, x, y in values if x is not None and y is not None}
    entries = [entry for entry in board.trials if entry.path in points]
    front_points = [points[entry.path] for entry in board.front]
    with figure(path, 5.9, 4.5) as (canvas, grid):
        axes = grid[0, 0]
        for group, size, colour, label in (
            (list(points.values()), 24, LIGHT, "other trials"),
            (front_points, 38, CHAMPION_COLOUR, "on the front"),
        ):
            axes.scatter([x for x, _ in group], [y for _, y in group], s=size, color=colour, label=label, zorder=2)
        minimized = OBJECTIVES[across] == "minimize"
        # With more than two objectives, only some trials of the front are on the front of the first two.
        in_two = front([(y, x) for x, y in front_points], (up, across))
        corners = np.array(sorted(point for point, inside in zip(front_points, in_two, strict=True) if inside))
        where: Any = "post" if minimized else "pre"
        axes.step(*corners.T, where=where, color=CHAMPION_COLOUR, linewidth=1.2, alpha=0.6)
        every = -(-len(board.front) // MAX_NAMES)
        for entry in sorted(board.front, key=lambda entry: points[entry.path])[::every]:
            near = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": 9, "color": CHAMPION_COLOUR}
            axes.annotate(entry.name, points[entry.path], **near)
        # The trial rather than a final run: its speed was measured beside other trials, like theirs.
        for x, y in [points[entry.path] for entry in entries if entry.is_baseline][:1]:
            axes.plot(x, y, **BASELINE_RING)
        better = "lower" if minimized else "higher"
        axes.set(xlabel=f"{across} ({better} is better)", ylabel=f"{up} (higher is better)")
        axes.margins(x=0.15, y=0.1)  # for the names
        legend_below(canvas, axes)


def importance_bars(path: Path, shares: Mapping[str, float]) -> None:
    """Draw the importance of each hyperparameter, the largest on top."""
    names = list(shares)[::-1]
    with figure(path, 5.9, 0.9 + 0.3 * len(names)) as (_, grid):
        axes = grid[0, 0]
        axes.barh(names, [shares[name] for name in names], color=CHAMPION_COLOUR, height=0.62)
        for row, name in enumerate(names):
            style = {"textcoords": "offset points", "va": "center", "fontsize": 9.5}
            axes.annotate(f"{100 * shares[name]:.0f} %", (shares[name], row), (4, 0), **style)
        axes.set(xlabel="share of importance", xlim=(0, 1.12 * max(shares.values())))
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def peak_memories(board: Leaderboard) -> list[tuple[float, float]]:
    """Return predicted and measured peak memory in MiB of each trial that has both."""
    pairs = []
    for run in (RunDir(Path(entry.path)) for entry in board.trials):
        predicted = run.status().predicted_memory_mb
        measured = [peak for row in run.rows() if (peak := row.metrics.get("peak_memory_mb")) is not None]
        if predicted is not None and measured:
            pairs.append((predicted, max(measured)))
    return pairs


def memory(path: Path, pairs: Sequence[tuple[float, float]]) -> None:
    """Draw measured over predicted peak memory (MiB) of each trial; on the line the prediction is exact."""
    gigabytes = np.array(pairs) * 2**20 / 1e9
    with figure(path, 5.3, 3.9) as (canvas, grid):
        axes = grid[0, 0]
        top = 1.08 * gigabytes.max()
        axes.plot([0, top], [0, top], color=GREY, linewidth=1.2, linestyle=":", label="as predicted")
        axes.scatter(*gigabytes.T, s=26, color=CHAMPION_COLOUR, label="trials", zorder=3)
        axes.set(xlabel="predicted peak (GB)", ylabel="measured peak (GB)", xlim=(0, top), ylim=(0, top))
        legend_below(canvas, axes)


def parallel(path: Path, board: Leaderboard, space: SearchSpace) -> None:
    """Draw each trial as a line through its hyperparameters to its objective, the best in front."""
    entries = [entry for entry in board.trials if entry.value is not None][::-1]
    names = list(space.dimensions)
    top = max([*(entry.value or 0.0 for entry in entries), 1e-9])
    with figure(path, max(7.2, 1.15 * (len(names) + 1)), 4.3) as (_, grid):
        axes = grid[0, 0]
        for entry in entries:
            heights = [_height(space.dimensions[name], entry.config.get(name)) for name in names]
            value = (entry.value or 0.0) / top
            best = board.best is not None and entry.path == board.best.path
            style = _line_style(value, best, entry.is_baseline, few=len(entries) <= 30)
            axes.plot(range(len(names) + 1), [*heights, value], **style)
        for column, name in enumerate(names):
            for height, text in _ticks(space.dimensions[name]):
                _tick(axes, column, height, text)
            if any(name not in entry.config for entry in entries):
                _tick(axes, column, OFF, "off")
        for share in (0, 0.5, 1):
            _tick(axes, len(names), share, f"{share * top:.3f}")
        for column in range(len(names) + 1):
            axes.plot([column, column], [0, 1], color=DARK_GREY, linewidth=1.1, zorder=1)
        axes.set_xticks(range(len(names) + 1), [name.replace("_", "\n") for name in (*names, board.objective)])
        axes.set(xlim=(-0.45, len(names) + 0.45), ylim=(OFF - 0.06, 1.06), yticks=[])
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)


def _line_style(value: float, best: bool, baseline: bool, few: bool) -> dict[str, Any]:
    """Return the style of a trial's line: the darker, the higher its objective, from 0 to 1."""
    blues = matplotlib.colormaps["Blues"]
    colour = CHAMPION_COLOUR if best else BASELINE_COLOUR if baseline else blues(0.2 + 0.4 * value)
    if best:
        return {"color": colour, "linewidth": 2.8, "zorder": 4}
    return {
        "color": colour,
        "linewidth": 1.3 if few else 0.9,
        "alpha": 0.9 if few else 0.6,
        "zorder": 2 + value,
    }


def _tick(axes: Axes, x: float, y: float, text: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=9, bbox=box, zorder=5)


def _height(dimension: Dimension, value: Any) -> float:
    """Return where a value lies in its dimension, from 0 to 1; OFF for None. Baseline values may lie outside."""
    domain = dimension.domain
    if value is None:
        return OFF
    if isinstance(domain, Choices):
        place = domain.values.index(value) if value in domain.values else 0
        return place / max(len(domain.values) - 1, 1)
    numbers = (domain.low, domain.high, max(value, 1e-12) if domain.log else value)
    low, high, number = (np.log(number) if domain.log else number for number in numbers)
    return float(np.clip((number - low) / (high - low), 0, 1))


def _ticks(dimension: Dimension) -> list[tuple[float, str]]:
    domain = dimension.domain
    if isinstance(domain, Choices):
        return [(_height(dimension, value), "null" if value is None else str(value)) for value in domain.values]
    return [(0.0, f"{domain.low:g}"), (1.0, f"{domain.high:g}")]
