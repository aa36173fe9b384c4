"""The number of epochs of a search or training where the user gives none: the data decide it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wmlsearch.config import (
    MAX_DEFAULT_EPOCHS,
    PAPER_BATCH,
    PAPER_EPOCHS,
    PAPER_STEPS,
    RunSettings,
    epochs_for_slices,
)
from wmlsearch.data.manifest import Manifest
from wmlsearch.runs.wording import plural

Validate = Callable[[Mapping[str, Any]], RunSettings]  # raises InputError, in the words of the command line or Python


def settings_before_data(values: Mapping[str, Any], validate: Validate) -> RunSettings:
    """Validate settings before the data are known, which decide the epochs where none are given. Raises InputError."""
    epochs = values.get("epochs")
    return validate({**values, "epochs": MAX_DEFAULT_EPOCHS if epochs is None else epochs})


def default_epochs(data: Path, say: Callable[[str], None]) -> int:
    """Return the maximum number of epochs for a prepared data set, and say why. Raises InputError."""
    slices = len(Manifest.read(data).indices("train", kept_only=True))
    epochs, steps = epochs_for_slices(slices), -(-slices // PAPER_BATCH)
    limit = {PAPER_EPOCHS: ", as in the paper", MAX_DEFAULT_EPOCHS: ", the most by default"}.get(epochs, "")
    say(
        f"epochs: at most {epochs}{limit}, since the paper trained {PAPER_STEPS:,} steps and an epoch of "
        f"{plural(slices, 'slice')} has {steps} (--epochs changes it)"
    )
    return epochs
