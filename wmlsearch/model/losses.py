"""The loss of each slice, which training minimises and validation reports."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def slice_losses(logits: Tensor, masks: Tensor, loss: str) -> Tensor:
    """Return the loss of each slice, (N,). The loss of a batch is their mean, however the slices are spread over ranks.

    Args:
        logits: (N, 1, H, W), float32.
        masks: (N, 1, H, W), 0 or 1, float32.
        loss: "bce" (binary cross-entropy, mean over pixels), "dice" (1 - soft Dice, with 1 added to numerator and
            denominator so that a slice without lesion has a gradient), or "bce_dice" (their sum).
    """
    if loss not in ("bce", "dice", "bce_dice"):
        raise ValueError(f"loss must be bce, dice or bce_dice, but got {loss!r}")
    total = torch.zeros(len(logits), device=logits.device)
    if loss != "dice":
        total = total + F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((1, 2, 3))
    if loss != "bce":
        probabilities = torch.sigmoid(logits)
        overlap = (probabilities * masks).sum((1, 2, 3))
        total = total + 1 - (2 * overlap + 1) / (probabilities.sum((1, 2, 3)) + masks.sum((1, 2, 3)) + 1)
    return total
