"""Checkpoints: the state of a training as a file, written atomically and read without executing anything."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wmlsearch.config import VALUES_BEFORE, TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.errors import InputError, short_repr
from wmlsearch.runs.files import retry_while_unavailable, write_bytes

CHECKPOINT_FORMAT = 1
RESTORE_HINT = "restore it from a copy, or delete it and train again"


def save_atomically(state: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint. A reader sees the old file or the new one, never a part. Retries while storage is away.

    Raises StorageError if the storage stays away or is full.
    """
    buffer = io.BytesIO()  # torch hides the reason when a file cannot be written
    torch.save(dict(state), buffer)
    retry_while_unavailable(lambda: write_bytes(path, buffer.getbuffer()), path)


def load_checkpoint(path: Path, name: str = "") -> dict[str, Any]:
    """Return a checkpoint's contents, on the CPU. Nothing in the file is executed. Raises InputError.

    Args:
        path: The file.
        name: What errors call it. "": its path.
    """
    name = name or str(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles, which are refused anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise many kinds for damaged files
        raise InputError(f"{name}: not a readable checkpoint ({type(error).__name__}); {RESTORE_HINT}") from None
    if not isinstance(state, dict) or type(state.get("format")) is not int or state["format"] != CHECKPOINT_FORMAT:
        raise InputError(f"{name}: not a checkpoint of wmlsearch (format {CHECKPOINT_FORMAT}); {RESTORE_HINT}")
    return state


@dataclass(frozen=True)
class TrainingIdentity:
    """What a training and the checkpoint that it continues from must have in common."""

    config: TrialConfig
    data: PreparedData
    max_epochs: int
    seed: int
    rate_factors: Mapping[int, float]  # on the schedule's learning rate, each from its epoch on


def check_same_training(path: Path, state: Mapping[str, Any], training: TrainingIdentity) -> None:
    """Refuse a checkpoint of another training than the one given. Raises InputError with the differences."""
    epochs = len(state.get("reports", ()))
    expected = {
        "config": training.config.model_dump(),
        "seed": training.seed,
        "data": training.data.manifest.fingerprint,
        "fold": training.data.fold,
        "max_epochs": training.max_epochs,
        # Factors of later epochs may differ: a child of population based training continues at another rate.
        "rate_factors": {start: factor for start, factor in training.rate_factors.items() if start <= epochs},
    }
    saved = {"rate_factors": {}, "fold": 0, **state}  # what older versions do not have
    saved["config"] = {**VALUES_BEFORE, **state["config"]}
    differences = [
        f"{name}: {short_repr(saved.get(name))} in the checkpoint, {short_repr(value)} in this training"
        for name, value in expected.items()
        if saved.get(name) != value
    ]
    if differences:
        raise InputError(f"{path}: belongs to another training; choose another name or folder", differences)
