"""The objectives of a search: the best epoch of a trial, its values, and the Pareto front of several objectives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from wmlsearch.config import OBJECTIVES, RunSettings, TrialConfig
from wmlsearch.runs.schema import EpochRow

MANY = 3  # with more objectives almost every trial is on the front
# Compares the candidates for the champion, also after a search by another metric. See `candidate_value`.
CANDIDATE_METRIC = "val_dice_patients_best"
POOLED_METRIC = "val_dice_best"  # what older versions compared
DICE_METRICS = (CANDIDATE_METRIC, "val_dice_patients", POOLED_METRIC, "val_dice", "val_soft_dice")


def best_epoch(rows: Sequence[EpochRow], objective: str) -> EpochRow | None:
    """Return the epoch with the highest objective, the first of equal ones: its weights are kept. None without rows."""
    best, highest = None, -math.inf
    for row in rows:
        value = row.metrics.get(objective)
        if best is None or (value is not None and value > highest):
            best, highest = row, -math.inf if value is None else value
    return best


def candidate_value(row: EpochRow) -> float | None:
    """Return the value by which configurations are compared for the champion, whatever the search maximises.

    It is the mean Dice over patients at the best threshold. Runs of older versions lack it: their pooled Dice counts.
    """
    value = row.metrics.get(CANDIDATE_METRIC)
    return row.metrics.get(POOLED_METRIC) if value is None else value


def dice_value(row: EpochRow, objective: str) -> float | None:
    """Return the Dice of an epoch: the objective where that is one, else the value by which candidates are compared."""
    return row.metrics.get(objective) if objective in DICE_METRICS else candidate_value(row)


def cut_off_by_budget(rows: Sequence[EpochRow], config: TrialConfig) -> bool:
    """Return whether a run was ended by its number of epochs, though more of them could have made it better.

    Its patience had not run out: the lowest validation loss came within `early_stop_patience` of the end. Schedules
    that are planned for all epochs (cosine, step, onecycle) have had what they were planned for.
    """
    if not rows or rows[-1].ended != "completed" or config.schedule not in ("plateau", "constant"):
        return False
    losses = [math.inf if (loss := row.metrics.get("val_loss")) is None else loss for row in rows]
    return len(rows) - 1 - losses.index(min(losses)) < config.early_stop_patience


def objective_values(rows: Sequence[EpochRow], objectives: Sequence[str]) -> list[float] | None:
    """Return a trial's value of each objective at the epoch that is best by the first, so that they belong to one set
    of weights. None where one of them is not a number."""
    row = best_epoch(rows, objectives[0])
    values = [row.metrics.get(name) if row else None for name in objectives]
    return None if None in values else [float(value) for value in values if value is not None]


def front(values: Sequence[Sequence[float] | None], objectives: Sequence[str]) -> list[bool]:
    """Return for each trial whether it is on the Pareto front: no other is as good in all objectives and better in one.

    Equal trials are on it together. A trial without values is not on it.
    """
    signs = np.array([-1.0 if OBJECTIVES.get(name) == "minimize" else 1.0 for name in objectives])
    trials = [trial for trial, value in enumerate(values) if value is not None]
    scores = np.array([values[trial] for trial in trials], dtype=float).reshape(len(trials), len(objectives)) * signs
    on_front = [False] * len(values)
    for trial, score in zip(trials, scores, strict=True):
        dominating = (scores >= score).all(axis=1) & (scores > score).any(axis=1)
        on_front[trial] = not dominating.any()
    return on_front


def objective_warnings(settings: RunSettings, warm_start: bool) -> list[str]:
    """Return notes about objectives that are allowed but of little use together."""
    names, notes = settings.objectives, []
    if measured := [name for name in names if name in ("images_per_s", "epoch_s")]:
        which = " and ".join(measured)
        notes.append(
            f"{which}: depends on what else runs on the machine, so small differences mean nothing"
            + ("; values of earlier trials are from the machines of their searches" if warm_start else "")
        )
    if {"val_dice", "val_iou"} <= set(names):
        notes.append("val_dice and val_iou: both rank trials in the same order; one of them is enough")
    if {"images_per_s", "epoch_s"} <= set(names):
        notes.append("images_per_s and epoch_s: both measure how fast a network trains; one of them is enough")
    if len(names) > MANY:
        notes.append(
            f"{len(names)} objectives: with so many, most trials are on the Pareto front, which then selects little"
        )
    if names and settings.target_dice is not None:
        metric = names[0] if names[0] in DICE_METRICS else CANDIDATE_METRIC
        notes.append(f"--target-dice: the search ends by {metric}, whatever values the other objectives have")
    return notes
