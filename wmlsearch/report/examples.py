"""Predictions on validation slices, to look at: of all the report shows the one thing that needs the prepared data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wmlsearch.config import InputError
from wmlsearch.data.slices import PreparedData
from wmlsearch.inference.predictor import TrainedModel
from wmlsearch.report.figures import BASELINE, CHAMPION, drawn
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import leaderboard

EXAMPLES = 4


def write_examples(search: SearchDir, data: Path) -> Path | None:
    """Validation slices: the image, the expert's outline, and what the best trial and the baseline find.

    None where no model has weights yet.
    """
    board = leaderboard(search)
    best = f"highest {board.objective}" if board.objectives else "best trial"
    entries = [(best, board.best), *(("paper's baseline", entry) for entry in board.finals[:1])]
    models = [(title, RunDir(Path(entry.path))) for title, entry in entries if entry is not None]
    models = [(title, run) for title, run in models if run.best.is_file()]
    if not models:
        return None
    slices = PreparedData.open(data).val
    images, masks = (array[slices.rows].numpy() for array in (slices.images, slices.masks))
    chosen = _telling(masks, slices.patients.numpy())
    columns: list[tuple[str, np.ndarray | None, str]] = [
        ("FLAIR", None, ""),
        ("expert", masks[chosen].astype(bool), "#ffd166"),
    ]
    for (title, run), colour in zip(models, (CHAMPION, BASELINE), strict=False):
        try:
            model = TrainedModel.load(run.best)
        except InputError:
            continue
        columns.append((title, model.probabilities(images[chosen]) >= model.threshold, colour))
    path = search.report / "examples.png"
    with drawn(path, 2.2 * len(columns), 2.25 * len(chosen), len(chosen), len(columns)) as (_, grid):
        for row, position in enumerate(chosen):
            for axes, (title, found, colour) in zip(grid[row], columns, strict=True):
                axes.imshow(images[position], cmap="gray", vmin=0, vmax=255)
                axes.set_axis_off()
                if found is not None and found[row].any():
                    axes.contourf(found[row], levels=[0.5, 1], colors=[colour], alpha=0.45)
                    axes.contour(found[row], levels=[0.5], colors=[colour], linewidths=0.9)
                if found is not None and title != "expert":
                    either = found[row].sum() + masks[position].sum()
                    both = np.logical_and(found[row], masks[position]).sum()
                    score = f"Dice {2 * both / either:.2f}" if either else "no lesion"
                    axes.text(0.97, 0.03, score, color="white", fontsize=8, ha="right", transform=axes.transAxes)
                if row == 0:
                    axes.set_title(title, fontsize=10)
                if title == "FLAIR":
                    name = slices.patient_names[int(slices.patients[position])]
                    axes.text(0.03, 0.03, name, color="white", fontsize=8, transform=axes.transAxes)
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
