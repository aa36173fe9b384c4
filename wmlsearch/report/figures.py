"""Figures of a search, from its run folders alone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wmlsearch.config import OBJECTIVES, RunSettings, TrialConfig
from wmlsearch.runs.files import write_bytes
from wmlsearch.runs.folders import BAD, RunDir
from wmlsearch.runs.leaderboard import Entry, Leaderboard
from wmlsearch.runs.names import PAPER
from wmlsearch.runs.objectives import front
from wmlsearch.search.rungs import levels_of
from wmlsearch.space import Choices, Dimension, SearchSpace
from wmlsearch.verdict.champion import Candidate

BASELINE, CHAMPION = "#d95f02", "#1b6ca8"
OTHERS, INK, FAINT = "#c4c9cf", "#30363d", "#e3e6ea"
DPI = 150
LABELLED = 12  # points of a front; more names would cover each other
# parse_math: names of patients and files may hold a $.
STYLE: Any = {
    "font.size": 10.5, "text.parse_math": False, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": "#8b949e",
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": FAINT, "grid.linewidth": 0.8, "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip


@contextmanager
def drawn(path: Path, width: float, height: float, rows: int = 1, columns: int = 1) -> Iterator[tuple[Figure, Any]]:
    """A figure of so many inches, and its axes as an array (rows, columns), in the report's style; saved at the end."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)
        try:
            yield figure, axes
            path.parent.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            figure.savefig(buffer, format=path.suffix[1:], dpi=DPI)
            write_bytes(path, buffer.getbuffer())
        finally:
            plt.close(figure)


def _legend(figure: Figure, axes: Axes, columns: int = 3) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9.5)


def _values(run: RunDir, name: str) -> tuple[list[int], list[float]]:
    rows = run.rows()
    return [row["epoch"] for row in rows], [np.nan if row.get(name) is None else row[name] for row in rows]


def history(path: Path, board: Leaderboard) -> None:
    """The objective of each trial, in the order in which they began, and the best so far."""
    entries = sorted(board.trials, key=lambda entry: entry.name)
    with drawn(path, 5.3, 3.9) as (figure, grid):
        axes = grid[0, 0]
        known = [(n, entry) for n, entry in enumerate(entries) if entry.value is not None]
        for label, colour, face, chosen in (
            ("ended by itself", CHAMPION, CHAMPION, lambda e: e.state not in ("stopped", *BAD)),
            ("stopped early", "#8b949e", "white", lambda e: e.state == "stopped"),
            ("failed on the way", "#b42318", "white", lambda e: e.state in BAD),
        ):
            points = [(n, entry.value) for n, entry in known if chosen(entry)]
            if points:
                axes.scatter(*zip(*points, strict=True), s=26, facecolor=face, edgecolor=colour, label=label, zorder=3)
        best = np.maximum.accumulate([entry.value or 0.0 for _, entry in known])
        axes.step([n for n, _ in known], best, where="post", color=CHAMPION, linewidth=1.4, label="best so far")
        paper = [(n, entry.value) for n, entry in known if is_paper(entry)]
        if paper:
            ring = {"markersize": 12, "fillstyle": "none", "color": BASELINE, "markeredgewidth": 1.8}
            axes.plot(*paper[0], "o", label="the paper's point", **ring)
        lost = [n for n, entry in enumerate(entries) if entry.value is None and entry.state in BAD]
        if lost:
            axes.plot(lost, np.zeros(len(lost)), "x", color="#b42318", markersize=6, label="without a value")
        axes.set(xlabel="trial", ylabel=board.objective, ylim=(0, None))
        axes.margins(x=0.04)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(figure, axes)


def curves(path: Path, board: Leaderboard, settings: RunSettings, found: list[Candidate], chosen: str) -> None:
    """The objective of each training over its epochs, with the rungs at which trials are compared."""
    with drawn(path, 5.3, 3.9) as (figure, grid):
        axes = grid[0, 0]
        rungs = [level.epoch for level in levels_of(settings) if level.epoch < settings.epochs]
        for n, epoch in enumerate(rungs):
            label = None if n else "trials are compared"
            axes.axvline(epoch, color="#8b949e", linestyle=":", linewidth=1.2, label=label, zorder=1)
        ended: list[Entry] = []
        stopped: list[Entry] = []
        for entry in board.trials[::-1]:
            (stopped if entry.state in ("stopped", *BAD) else ended).append(entry)
        for entries, colour, label in ((stopped, OTHERS, "stopped or failed"), (ended, "#8fb8d6", "other trials")):
            for n, entry in enumerate(e for e in entries if board.best is None or e.path != board.best.path):
                name = label if n == 0 else None
                _curve(axes, RunDir(Path(entry.path)), board.objective, color=colour, linewidth=1.0, label=name)
        for candidate in found:
            if candidate.name not in (PAPER, chosen):
                continue
            colour, role = (
                (BASELINE, "final: the paper's") if candidate.name == PAPER else (CHAMPION, "final: champion")
            )
            for n, run in enumerate(candidate.runs):
                style = {"color": colour, "linewidth": 1.7, "linestyle": (0, (4, 1.5))}
                _curve(axes, run, board.objective, label=role if n == 0 else None, **style)
        if board.best is not None:
            best = f"{'highest' if board.objectives else 'best trial'} ({board.best.name})"
            _curve(axes, RunDir(Path(board.best.path)), board.objective, color=CHAMPION, linewidth=2.4, label=best)
        axes.set(xlabel="epoch", ylabel=board.objective, ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(figure, axes, 2)


def _curve(axes: Axes, run: RunDir, name: str, **style: Any) -> None:
    epochs, values = _values(run, name)
    axes.plot(epochs, values, marker="o", markersize=2.8, **style)


def rates(path: Path, board: Leaderboard) -> None:
    """Population based training: the learning rate that each trial was trained with, and that of the best."""
    with drawn(path, 5.9, 3.6) as (figure, grid):
        axes = grid[0, 0]
        for entry in board.trials[::-1]:
            best = board.best is not None and entry.path == board.best.path
            style = {"color": CHAMPION if best else OTHERS, "linewidth": 2.4 if best else 1.0}
            label = f"best trial ({entry.name})" if best else None
            _curve(axes, RunDir(Path(entry.path)), "learning_rate", label=label, **style)
        axes.set(xlabel="epoch", ylabel="learning rate", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(figure, axes)


def is_paper(entry: Entry) -> bool:
    """Whether a trial has the paper's configuration."""
    return bool(RunDir(Path(entry.path)).about()["config"] == TrialConfig().model_dump())


def pareto(path: Path, board: Leaderboard) -> None:
    """All trials by the first two of several objectives, the first upwards; the front and the paper's point marked."""
    up, across = board.objectives[:2]
    known = [entry for entry in board.trials if entry.best.get(up) is not None and entry.best.get(across) is not None]
    points = {entry.path: (entry.best[across], entry.best[up]) for entry in known}
    on_front = [points[entry.path] for entry in board.front]
    with drawn(path, 5.9, 4.5) as (figure, grid):
        axes = grid[0, 0]
        for those, size, colour, label in (
            (list(points.values()), 24, OTHERS, "other trials"),
            (on_front, 38, CHAMPION, "on the front"),
        ):
            axes.scatter([x for x, _ in those], [y for _, y in those], s=size, color=colour, label=label, zorder=2)
        # A step holds what can be had of the first objective by whoever wants so much of the second.
        in_two = front([(y, x) for x, y in on_front], (up, across))
        corners = sorted(point for point, it in zip(on_front, in_two, strict=True) if it)
        less = OBJECTIVES[across] == "minimize"
        axes.step(*np.array(corners).T, where="post" if less else "pre", color=CHAMPION, linewidth=1.2, alpha=0.6)
        for entry in sorted(board.front, key=lambda entry: points[entry.path])[:: -(-len(board.front) // LABELLED)]:
            near = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": 9, "color": CHAMPION}
            axes.annotate(entry.name, points[entry.path], **near)
        # The trial, not a final run: it ran among the other trials, so that its speed compares with theirs.
        for x, y in [points[entry.path] for entry in known if is_paper(entry)][:1]:
            ring = {"markersize": 12, "fillstyle": "none", "color": BASELINE, "markeredgewidth": 1.8}
            axes.plot(x, y, "o", label="the paper's point", **ring)
        better = "less" if less else "more"
        axes.set(xlabel=f"{across} ({better} is better)", ylabel=f"{up} (more is better)")
        axes.margins(x=0.15, y=0.1)  # for the names
        _legend(figure, axes)


def bars(path: Path, shares: Mapping[str, float]) -> None:
    """Importances, the largest on top."""
    names = list(shares)[::-1]
    with drawn(path, 5.9, 0.9 + 0.3 * len(names)) as (_, grid):
        axes = grid[0, 0]
        axes.barh(names, [shares[name] for name in names], color=CHAMPION, height=0.62)
        for n, name in enumerate(names):
            axes.annotate(f"{100 * shares[name]:.0f} %", (shares[name], n), (4, 0), textcoords="offset points",
                          va="center", fontsize=9.5)  # fmt: skip
        axes.set(xlabel="share of importance", xlim=(0, 1.12 * max(shares.values())))
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def memory_of(board: Leaderboard) -> list[tuple[float, float]]:
    """What the trials were predicted to take at their peak, and what they took, MiB; of those that know both."""
    pairs = []
    for run in (RunDir(Path(entry.path)) for entry in board.trials):
        predicted = run.status().get("predicted_memory_mb")
        _, peaks = _values(run, "peak_memory_mb")
        if predicted is not None and peaks:
            pairs.append((predicted, max(peaks)))
    return pairs


def memory(path: Path, pairs: Sequence[tuple[float, float]]) -> None:
    """Predicted and measured peak memory of each trial; on the line the prediction was right."""
    gigabytes = np.array(pairs) * 2**20 / 1e9
    with drawn(path, 5.3, 3.9) as (figure, grid):
        axes = grid[0, 0]
        top = 1.08 * gigabytes.max()
        axes.plot([0, top], [0, top], color="#8b949e", linewidth=1.2, linestyle=":", label="as predicted")
        axes.scatter(*gigabytes.T, s=26, color=CHAMPION, label="trials", zorder=3)
        axes.set(xlabel="predicted peak (GB)", ylabel="measured peak (GB)", xlim=(0, top), ylim=(0, top))
        _legend(figure, axes)


OFF = -0.14  # where a line runs at a hyperparameter that its condition has switched off


def parallel(path: Path, board: Leaderboard, space: SearchSpace) -> None:
    """Each trial as a line through its hyperparameters to its objective; the best in front."""
    known = [entry for entry in board.trials if entry.value is not None][::-1]
    names = list(space.dimensions)
    values = [entry.value or 0.0 for entry in known]
    top = max([*values, 1e-9])
    scale, few = matplotlib.colormaps["Blues"], len(known) <= 30
    wide = max(7.2, 1.15 * (len(names) + 1))
    with drawn(path, wide, 4.3) as (_, grid):
        axes = grid[0, 0]
        for entry in known:
            places = [_place(space.dimensions[name], entry.config.get(name)) for name in names]
            value = (entry.value or 0.0) / top
            best = board.best is not None and entry.path == board.best.path
            colour = CHAMPION if best else BASELINE if is_paper(entry) else scale(0.2 + 0.4 * value)
            style = (
                {"linewidth": 2.8, "zorder": 4}
                if best
                else {"linewidth": 1.3 if few else 0.9, "zorder": 2 + value, "alpha": 0.9 if few else 0.6}
            )
            axes.plot(range(len(names) + 1), [*places, value], color=colour, **style)
        for n, name in enumerate(names):
            for place, text in _ticks(space.dimensions[name]):
                _tick(axes, n, place, text)
            if any(name not in entry.config for entry in known):
                _tick(axes, n, OFF, "off")
        for share in (0, 0.5, 1):
            _tick(axes, len(names), share, f"{share * top:.3f}")
        for n in range(len(names) + 1):
            axes.plot([n, n], [0, 1], color="#57606a", linewidth=1.1, zorder=1)
        axes.set_xticks(range(len(names) + 1), [*(name.replace("_", "\n") for name in (*names, board.objective))])
        axes.set(xlim=(-0.45, len(names) + 0.45), ylim=(OFF - 0.06, 1.06), yticks=[])
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)


def _tick(axes: Axes, x: float, y: float, text: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", fontsize=9, bbox=box, zorder=5)


def _place(dimension: Dimension, value: Any) -> float:
    """From 0 to 1 where a value lies in its dimension; OFF where it has none, cut where the paper's lies outside."""
    domain = dimension.domain
    if value is None:
        return OFF
    if isinstance(domain, Choices):
        place = domain.values.index(value) if value in domain.values else 0
        return place / max(len(domain.values) - 1, 1)
    low, high, own = (np.log(it) if domain.log else it for it in (domain.low, domain.high, max(value, 1e-12)))
    return float(np.clip((own - low) / (high - low), 0, 1))


def _ticks(dimension: Dimension) -> list[tuple[float, str]]:
    domain = dimension.domain
    if isinstance(domain, Choices):
        return [(_place(dimension, value), str(value)) for value in domain.values]
    return [(0.0, f"{domain.low:g}"), (1.0, f"{domain.high:g}")]
