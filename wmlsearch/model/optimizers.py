"""The optimisers of a training, and the state that each keeps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from wmlsearch.config import TrialConfig

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}
WITH_EPSILON = ("adam", "adamw")
# The number of state tensors for each weight tensor, and whether there is a step counter for each weight tensor.
OPTIMIZER_STATE = {"adam": (2, True), "adamw": (2, True), "sgd": (1, False)}


def build_optimizer(config: TrialConfig, unet: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimiser of `config` for the weights of `unet`, which are on `device`."""
    optional = {"eps": config.optimizer_epsilon} if config.optimizer in WITH_EPSILON else {}
    return OPTIMIZERS[config.optimizer](
        unet.parameters(),
        **optional,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
