"""Predictions on validation slices: the one figure of the report that needs the prepared data set."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes

from wmlsearch.data.labels import LESION
from wmlsearch.data.slices import PreparedData
from wmlsearch.errors import InputError
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.report.figure_style import (
    BASELINE_COLOUR,
    CHAMPION_COLOUR,
    EXPERT_COLOUR,
    figure,
    ignored_legend,
    show_ignored,
    show_slice,
    slice_dice,
)
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import leaderboard

EXAMPLES = 4
MIN_DISTANCE = 3  # between two examples, in slices: neighbours look alike


def write_examples(search: SearchDir, data: Path) -> Path | None:
    """Draw validation slices: the image, the expert's mask, and what the best trial and the baseline predict.

    Return the figure, or None where no model has weights yet.
    """
    models = _models(search)
    if not models:
        return None
    prepared = PreparedData.open(data)
    validation = prepared.val
    images, masks = (array[validation.rows].numpy() for array in (validation.images, validation.masks))
    patients = validation.patients.numpy()
    positions = _select_slices(masks, patients)
    experts = masks[positions]
    columns = [("expert", experts == LESION, EXPERT_COLOUR)]
    for title, model, colour in models:
        batch, _ = prepared.with_input_of(model.config).val.batch(torch.tensor(positions))
        columns.append((title, model.probabilities_of_input(batch).numpy() >= model.threshold, colour))
    path = search.report / "examples.png"
    rows, width = len(positions), len(columns) + 1
    with figure(path, 2.2 * width, 2.25 * rows, rows, width) as (canvas, grid):
        ignored_legend(canvas, experts)
        for row, position in enumerate(positions):
            show_slice(grid[row, 0], images[position])
            _write(grid[row, 0], validation.patient_names[int(patients[position])], "left")
            for axes, (title, predictions, colour) in zip(grid[row, 1:], columns, strict=True):
                show_slice(axes, images[position], predictions[row], colour)
                show_ignored(axes, experts[row])
                if title != "expert":
                    dice = slice_dice(predictions[row], experts[row])
                    _write(axes, "no lesion" if dice is None else f"Dice {dice:.2f}", "right")
        for axes, title in zip(grid[0], ("FLAIR", *(title for title, _, _ in columns)), strict=True):
            axes.set_title(title, fontsize=10)
    return path


def _models(search: SearchDir) -> list[tuple[str, TrainedModel, str]]:
    """Return title, model and colour of the best trial and a baseline run, where the folder has the weights of their
    best epoch."""
    board = leaderboard(search)
    title = f"highest {board.objective}" if board.objectives else "best trial"
    entries = [(title, board.best, CHAMPION_COLOUR)]
    # Another fold's run has trained on the patients that are shown.
    unseen = [entry for entry in board.finals if RunDir(Path(entry.path)).record().fold == 0]
    entries += [("baseline", entry, BASELINE_COLOUR) for entry in unseen[:1]]
    models = []
    for title, entry, colour in entries:
        run = RunDir(Path(entry.path)) if entry is not None else None
        if run is not None and run.best.is_file():
            with contextlib.suppress(InputError):
                model = TrainedModel.load(run.best)
                if model.has_latest_weights(run):
                    models.append((title, model, colour))
    return models


def _write(axes: Axes, text: str, side: Literal["left", "right"]) -> None:
    """Write a text into the lower corner of a slice."""
    x = 0.03 if side == "left" else 0.97
    axes.text(x, 0.03, text, color="white", fontsize=8, ha=side, transform=axes.transAxes)


def _select_slices(masks: np.ndarray, patients: np.ndarray) -> list[int]:
    """Return up to `EXAMPLES` slices with much lesion, of different patients where there are enough.

    Args:
        masks: (N, H, W), of labels (data/labels.py); `patients` (N,) is the patient number of each slice.
    """
    lesion = (masks == LESION).sum(axis=(1, 2))
    numbers = list(dict.fromkeys(patients.tolist()))
    selected: list[int] = []
    while len(selected) < min(EXAMPLES, len(masks)):
        before = len(selected)
        for patient in numbers:
            free = [i for i in np.flatnonzero(patients == patient) if _far(int(i), selected)]
            if free and len(selected) < EXAMPLES:
                selected.append(int(max(free, key=lambda i: lesion[i])))
        if len(selected) == before or len(selected) < len(numbers) or len(masks) < 3 * EXAMPLES:
            break
    return selected


def _far(position: int, selected: list[int]) -> bool:
    return all(abs(position - other) >= MIN_DISTANCE for other in selected)
