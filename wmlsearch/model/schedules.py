"""Learning rate schedules and early stopping: what changes from step to step and from epoch to epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from wmlsearch.config import TrialConfig
from wmlsearch.errors import InputError

POLY_POWER = 0.9  # of nnU-Net and DeepLab


def learning_rate(config: TrialConfig, step: int, steps: int) -> float | None:
    """Return the learning rate of a step (from 0) out of `steps`, or None if validation decides it (plateau)."""
    high, low, done = config.learning_rate, config.min_learning_rate, step / steps
    if config.schedule == "cosine":
        if done < config.warmup_fraction:
            return high * (step + 1) / math.ceil(config.warmup_fraction * steps)
        rest = (done - config.warmup_fraction) / (1 - config.warmup_fraction)
        return low + (high - low) * (1 + math.cos(math.pi * rest)) / 2
    if config.schedule == "poly":
        return low + (high - low) * (1 - done) ** POLY_POWER
    if config.schedule == "step":
        return high * (config.step_factor if done >= config.step_fraction else 1)
    if config.schedule == "onecycle":  # as torch.optim.lr_scheduler.OneCycleLR: up for 30 %, then down, by cosines
        peak = 0.3 * steps - 1
        start, end, rest = (high / 25, high, step / peak) if step <= peak else (
            high, high / 25 / 1e4, (step - peak) / (steps - 1 - peak)
        )  # fmt: skip
        return end + (start - end) * (1 + math.cos(math.pi * rest)) / 2
    return high if config.schedule == "constant" else None


def plateau_scheduler(config: TrialConfig, optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau:
    """Return the scheduler that lowers the rate when the validation loss has not improved for some epochs."""
    return ReduceLROnPlateau(
        optimizer,
        factor=config.plateau_factor,
        # torch lowers the rate one epoch after Keras, which the paper used: at `num_bad_epochs > patience`
        patience=config.plateau_patience - 1,
        threshold=config.plateau_min_delta,
        threshold_mode="abs",
        min_lr=config.min_learning_rate,
    )


class RateFactors:
    """Factors on the schedule's learning rate, each from its epoch on: {5: 0.8} leaves the first four epochs as is."""

    def __init__(self, factors: Mapping[int, float] | None) -> None:
        self.factors = dict(factors or {})
        if not all(epoch >= 1 and 0 < factor < math.inf for epoch, factor in self.factors.items()):
            raise InputError(f"rate_factors must be epochs (from 1) with factors above 0, but got {self.factors}")

    def until(self, epoch: int) -> dict[int, float]:
        """Return the factors that have started by `epoch`."""
        return {start: factor for start, factor in self.factors.items() if start <= epoch}

    def at(self, epoch: int) -> float:
        """Return the factor of `epoch`."""
        started = self.until(epoch)
        return started[max(started)] if started else 1.0


def epochs_without_improvement(val_losses: Sequence[float]) -> int:
    """Return how many epochs have passed since the lowest validation loss."""
    return len(val_losses) - 1 - int(np.argmin(val_losses))
