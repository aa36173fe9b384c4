"""The loss of each slice, which training minimises and validation reports."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def slice_losses(logits: Tensor, masks: Tensor, loss: str, counted: Tensor | None = None) -> Tensor:
    """Return the loss of each slice, (N,). The loss of a batch is their mean, however the slices are spread over ranks.

    Args:
        logits: (N, 1, H, W), float32.
        masks: (N, 1, H, W), 0 or 1, float32.
        loss: "bce" (binary cross-entropy, mean over pixels), "dice" (1 - soft Dice, with 1 added to numerator and
            denominator so that a slice without lesion has a gradient), or "bce_dice" (their sum).
        counted: (N, 1, H, W), 1 for pixels that count and 0 for ignored ones, float32; None where all count. Ignored
            pixels are in no sum and no mean, and have no gradient. A slice in which none counts has BCE 0.
    """
    if loss not in ("bce", "dice", "bce_dice"):
        raise ValueError(f"loss must be bce, dice or bce_dice, but got {loss!r}")
    total = torch.zeros(len(logits), device=logits.device)
    if loss != "dice":
        total = total + _cross_entropies(logits, masks, counted)
    if loss != "bce":
        probabilities = torch.sigmoid(logits)
        if counted is not None:
            probabilities, masks = probabilities * counted, masks * counted
        overlap = (probabilities * masks).sum((1, 2, 3))
        total = total + 1 - (2 * overlap + 1) / (probabilities.sum((1, 2, 3)) + masks.sum((1, 2, 3)) + 1)
    return total


def _cross_entropies(logits: Tensor, masks: Tensor, counted: Tensor | None) -> Tensor:
    """Return the mean binary cross-entropy over the counted pixels of each slice, (N,)."""
    if counted is None:
        return F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((1, 2, 3))
    weighted = F.binary_cross_entropy_with_logits(logits, masks, weight=counted, reduction="none")
    return weighted.sum((1, 2, 3)) / counted.sum((1, 2, 3)).clamp(min=1)
