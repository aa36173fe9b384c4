"""Pictures of a search, from its run folders and the prepared data: learning curves, and predictions to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from wmlsearch.config import OBJECTIVES, InputError, TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.data.split import OPTIMISTIC
from wmlsearch.model.inference import Model
from wmlsearch.objectives import front
from wmlsearch.runs import RunDir, SearchDir
from wmlsearch.verdict.leaderboard import Leaderboard, leaderboard

EXAMPLES = 4
LABELLED = 12  # points of a front; more names would cover each other
BASELINE, CHAMPION = "#d95f02", "#1b6ca8"


def write_pictures(search: SearchDir, data: Path) -> list[Path]:
    """Write the pictures of a finished search into its report folder; returns those that could be made."""
    search.report.mkdir(exist_ok=True)
    written = [_curves(search)]
    board = leaderboard(search)
    if board.front:
        written.append(_front(search, board))
    models = [
        (title, RunDir(Path(entry.path)))
        for title, entry in (
            (_title_of_best(board), board.best),
            *(("paper's baseline", entry) for entry in board.finals[:1]),
        )
        if entry is not None and RunDir(Path(entry.path)).best.is_file()
    ]
    if models:
        written.append(_examples(search, PreparedData.open(data), models))
    return written


def _title_of_best(board: Leaderboard) -> str:
    return f"highest {board.objective}" if board.objectives else "best trial"


def _curves(search: SearchDir) -> Path:
    """The objective of each training over its epochs."""
    board = leaderboard(search)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for entry in (*board.trials[::-1], *board.finals):
        rows = RunDir(Path(entry.path)).rows()
        colour, width, label = "#c8c8c8", 1.0, None
        if board.best and entry.path == board.best.path:
            colour, width, label = CHAMPION, 2.2, f"{_title_of_best(board)} ({entry.name})"
        elif entry in board.finals:
            colour, width, label = BASELINE, 2.2, entry.name
        values = [np.nan if row[board.objective] is None else row[board.objective] for row in rows]
        axes.plot(
            [row["epoch"] for row in rows], values, "o-", color=colour, linewidth=width, markersize=3, label=label
        )
    warning = f"\n{OPTIMISTIC}" if search.about()["data"]["optimistic"] else ""
    axes.set(
        xlabel="epoch",
        ylabel=board.objective,
        title=f"{search.name}: {len(board.trials)} trials{warning}",
        ylim=(0, None),
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    path = search.report / "curves.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _front(search: SearchDir, board: Leaderboard) -> Path:
    """All trials by the first two of several objectives, the first upwards; the front and the paper's point marked."""
    up, across = board.objectives[:2]
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    known = [entry for entry in board.trials if entry.best.get(up) is not None and entry.best.get(across) is not None]
    points = {entry.path: (entry.best[across], entry.best[up]) for entry in known}
    on_front = [points[entry.path] for entry in board.front]
    for those, size, colour, label in (
        (list(points.values()), 22, "#c8c8c8", "other trials"),
        (on_front, 34, CHAMPION, "on the front"),
    ):
        axes.scatter([x for x, _ in those], [y for _, y in those], s=size, color=colour, label=label)
    # A step holds what can be had of the first objective by whoever wants so much of the second.
    in_two = front([(y, x) for x, y in on_front], (up, across))
    corners = sorted(point for point, it in zip(on_front, in_two, strict=True) if it)
    less = OBJECTIVES[across] == "minimize"
    axes.step(*np.array(corners).T, where="post" if less else "pre", color=CHAMPION, linewidth=1.2, alpha=0.6)
    for entry in sorted(board.front, key=lambda entry: points[entry.path])[:: -(-len(board.front) // LABELLED)]:
        axes.annotate(
            entry.name, points[entry.path], xytext=(5, 5), textcoords="offset points", fontsize=8, color=CHAMPION
        )
    # The trial, not the final baseline: that one runs alone, with all cores or workers, so its speed is another.
    paper = [points[e.path] for e in known if RunDir(Path(e.path)).about()["config"] == TrialConfig().model_dump()]
    for x, y in paper[:1]:
        axes.plot(
            x, y, "o", markersize=12, fillstyle="none", color=BASELINE, markeredgewidth=1.8, label="paper's point"
        )
    warning = f"\n{OPTIMISTIC}" if search.about()["data"]["optimistic"] else ""
    axes.set(
        xlabel=f"{across} ({'less' if less else 'more'} is better)",
        ylabel=f"{up} (more is better)",
        title=f"{search.name}: {len(board.front)} of {len(board.trials)} trials on the front{warning}",
    )
    axes.margins(x=0.15, y=0.1)  # for the names
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    path = search.report / "front.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _examples(search: SearchDir, data: PreparedData, models: Sequence[tuple[str, RunDir]]) -> Path:
    """Validation slices: the image, the expert's outline, and what each model finds."""
    slices = data.val
    images, masks = (array[slices.rows].numpy() for array in (slices.images, slices.masks))
    chosen = _telling(masks, slices.patients.numpy())
    columns: list[tuple[str, np.ndarray | None, str]] = [
        ("FLAIR", None, ""),
        ("expert", masks[chosen].astype(bool), "#ffd166"),
    ]
    for (title, run), colour in zip(models, (CHAMPION, BASELINE), strict=False):
        try:
            model = Model.load(run.best)
        except InputError:
            continue
        columns.append((title, model.probabilities(images[chosen]) >= model.threshold, colour))
    figure, grid = plt.subplots(
        len(chosen), len(columns), figsize=(2.2 * len(columns), 2.25 * len(chosen)), squeeze=False, layout="constrained"
    )
    for row, position in enumerate(chosen):
        for axes, (title, found, colour) in zip(grid[row], columns, strict=True):
            axes.imshow(images[position], cmap="gray", vmin=0, vmax=255)
            axes.set_axis_off()
            if found is not None and found[row].any():
                axes.contourf(found[row], levels=[0.5, 1], colors=[colour], alpha=0.45)
                axes.contour(found[row], levels=[0.5], colors=[colour], linewidths=0.9)
            if found is not None and title != "expert":
                either = found[row].sum() + masks[position].sum()
                score = 2 * np.logical_and(found[row], masks[position]).sum() / max(either, 1)
                axes.text(
                    0.97, 0.03, f"Dice {score:.2f}", color="white", fontsize=8, ha="right", transform=axes.transAxes
                )
            if row == 0:
                axes.set_title(title, fontsize=10)
            if title == "FLAIR":
                name = slices.patient_names[int(slices.patients[position])]
                axes.text(0.03, 0.03, name, color="white", fontsize=8, transform=axes.transAxes)
    path = search.report / "examples.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _telling(masks: np.ndarray, patients: np.ndarray) -> list[int]:
    """Slices worth a look: of different patients where there are enough, each the one with most lesion still free."""
    loads = masks.sum(axis=(1, 2))
    chosen: list[int] = []
    while len(chosen) < min(EXAMPLES, len(masks)):
        for patient in dict.fromkeys(patients.tolist()):
            free = [i for i in np.flatnonzero(patients == patient) if all(abs(i - other) > 2 for other in chosen)]
            if free and len(chosen) < EXAMPLES:
                chosen.append(int(max(free, key=lambda i: loads[i])))
        if len(chosen) < len(dict.fromkeys(patients.tolist())):
            break
        if len(masks) < 3 * EXAMPLES:
            break
    return chosen
