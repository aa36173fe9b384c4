"""Which hyperparameters have an effect beside which values of others, and which configurations train the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wmlsearch.config import TrialConfig

# Hyperparameters that have an effect only beside these values of another one, which always has an effect
NEEDED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "plateau_patience": ("schedule", ("plateau",)),
    "plateau_factor": ("schedule", ("plateau",)),
    "plateau_min_delta": ("schedule", ("plateau",)),
    "warmup_fraction": ("schedule", ("cosine",)),
    "step_fraction": ("schedule", ("step",)),
    "step_factor": ("schedule", ("step",)),
    "min_learning_rate": ("schedule", ("plateau", "cosine", "poly")),
    "norm_momentum": ("norm", ("batch",)),
    "optimizer_epsilon": ("optimizer", ("adam", "adamw")),
    "dice_over": ("loss", ("dice", "bce_dice", "tversky")),
    "tversky_alpha": ("loss", ("tversky",)),
    "flip_axis": ("augment", ("flip", "affine", "light", "medium", "strong")),
}
_BASELINE = TrialConfig().model_dump()

Identity = tuple[Any, ...]


def has_effect(name: str, values: Mapping[str, Any]) -> bool:
    """Return whether the hyperparameter `name` has an effect in a configuration, given the values of all."""
    if name not in NEEDED:
        return True
    other, allowed = NEEDED[name]
    return values[other] in allowed


def identity(values: Mapping[str, Any]) -> Identity:
    """Return what tells a configuration from all whose trainings with the same seed differ from its own.

    These are its values, given those of all hyperparameters, in the order of the fields of `TrialConfig`, with the
    baseline's value where a hyperparameter has no effect.
    """
    return tuple(values[name] if has_effect(name, values) else default for name, default in _BASELINE.items())
