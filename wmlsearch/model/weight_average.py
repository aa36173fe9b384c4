"""The exponential moving average of a network's weights, which validation, the best checkpoint and prediction use."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class WeightAverage:
    """A copy of a network whose weights are the moving average of those in training: Polyak and Juditsky (1992).

    After each step the average moves towards the weights by `1 - decay`. The running statistics of batch normalisation
    are averaged in the same way, since those of the last step belong to other weights. The decay of the first steps is
    lower (see `average_steps`), so that the average forgets the initial weights.

    The copy stays at its place in memory, and an update waits for nothing, so that a CUDA graph can hold it.
    """

    def __init__(self, network: nn.Module) -> None:
        self.unet = copy.deepcopy(network).requires_grad_(False)
        # Aliases of the tensors of both networks: a loaded state is copied into them.
        pairs = list(zip(self.unet.state_dict().values(), network.state_dict().values(), strict=True))
        self._averaged = [(average, current) for average, current in pairs if average.is_floating_point()]
        self._counters = [(count, current) for count, current in pairs if not count.is_floating_point()]

    def update(self, weight: Tensor) -> None:
        """Move the average towards the weights in training by `weight`, (1,) float32 on their device."""
        for average, current in self._averaged:
            average.lerp_(current, weight)

    def end_epoch(self) -> None:
        """Copy what cannot be averaged: how many batches the normalisations have seen."""
        for count, current in self._counters:
            count.copy_(current)

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from the average of a checkpoint."""
        self.unet.load_state_dict(state)


def average_steps(decay: float, first: int, count: int) -> list[float]:
    """Return the weights of `count` updates, the first of which is after step `first` (from 0) of a training.

    The decay after step t is at most (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage.
    """
    return [1 - min(decay, (1 + step) / (10 + step)) for step in range(first, first + count)]
