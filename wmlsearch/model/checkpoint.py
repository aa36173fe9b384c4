"""The state of a training as a file, a checkpoint: written whole, read without running anything, and told apart."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from wmlsearch.config import InputError, TrialConfig, shown
from wmlsearch.data.slices import PreparedData
from wmlsearch.runs.files import retry_while_unavailable, write_bytes

CHECKPOINT_FORMAT = 1
ANEW = "restore it from a copy, or train anew without it"


def save_atomically(state: Mapping[str, Any], path: Path) -> None:
    """Whoever looks finds the old file or the new one, whole. A storage that is away is waited for.

    Raises StorageError where it stays away, or is full.
    """
    buffer = io.BytesIO()  # torch hides why a file can't be written
    torch.save(dict(state), buffer)
    retry_while_unavailable(lambda: write_bytes(path, buffer.getbuffer()), path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents, on the CPU. Nothing in the file is ever executed. Raises InputError."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that are refused anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files, pickle's among them
        raise InputError(f"{path}: not a readable checkpoint ({type(error).__name__}); {ANEW}") from None
    if not isinstance(state, dict) or type(state.get("format")) is not int or state["format"] != CHECKPOINT_FORMAT:
        raise InputError(f"{path}: not a checkpoint of wmlsearch (format {CHECKPOINT_FORMAT}); {ANEW}")
    return state


def check_same(
    path: Path,
    state: Mapping[str, Any],
    config: TrialConfig,
    data: PreparedData,
    max_epochs: int,
    seed: int,
    rate_factors: Mapping[int, float],
) -> None:
    """Refuse a checkpoint of another training than this. Raises InputError with what differs."""
    trained = len(state.get("reports", ()))
    mine = {
        "config": config.model_dump(),
        "seed": seed,
        "data": data.manifest.fingerprint,
        "max_epochs": max_epochs,
        # only what was trained with: a child of population based training goes on from here at another rate
        "rate_factors": {start: factor for start, factor in rate_factors.items() if start <= trained},
    }
    its = {"rate_factors": {}, **state}  # of before there were any
    if other := [
        f"{name}: {shown(its.get(name))} there, {shown(value)} here"
        for name, value in mine.items()
        if its.get(name) != value
    ]:
        raise InputError(f"{path}: is a checkpoint of another training; use another name or folder", other)
