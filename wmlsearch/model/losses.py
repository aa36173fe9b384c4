"""The loss that training minimises and validation reports: of each slice, or of the region overlap in a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from wmlsearch.config import TrialConfig
from wmlsearch.model.ranks import sum_over_ranks

NAMES = ("bce", "dice", "bce_dice", "focal", "tversky")
OVERLAP_LOSSES = ("dice", "bce_dice", "tversky")  # those with a part that compares regions, not pixels
LossFunction: TypeAlias = "Callable[[Tensor, Tensor, Loss | str, Tensor | None], Tensor]"  # such as `slice_losses`
FOCAL_GAMMA = 2.0  # the value of Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017


@dataclass(frozen=True)
class Loss:
    """What a training minimises.

    "bce" is the binary cross-entropy, mean over pixels. "focal" is the same with each pixel's part multiplied by
    (1 - p)^2, where p is the probability of the right class. "dice" is 1 - (2 TP + 1) / (2 TP + FP + FN + 1) of soft
    counts: true positives TP, false positives FP, false negatives FN. The 1 gives a slice without lesion a gradient.
    "tversky" is 1 - (TP + 1/2) / (TP + alpha FP + (1 - alpha) FN + 1/2), which is "dice" at alpha 1/2 (Salehi et al.,
    "Tversky loss function for image segmentation", MLMI 2017). "bce_dice" is the sum of the two. All equal those of
    MONAI with the same constants.
    """

    name: str = "bce"
    over: Literal["slice", "batch"] = "slice"  # whose counts the region overlap is of
    alpha: float = 0.5  # tversky: weight of false positives
    world: int = 1  # ranks that share a batch: with several, counts "over" a batch are summed over them

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"loss must be {', '.join(NAMES[:-1])} or {NAMES[-1]}, but got {self.name!r}")

    @classmethod
    def of(cls, config: TrialConfig, world: int = 1) -> Loss:
        """Return the loss of a configuration, for `world` ranks that share a batch."""
        return cls(config.loss, config.dice_over, config.tversky_alpha, world)

    @property
    def is_pooled(self) -> bool:
        """Whether a part of it compares the regions of a whole batch."""
        return self.over == "batch" and self.name in OVERLAP_LOSSES

    def overlap_index(self, overlap: Tensor, predicted: Tensor, lesion: Tensor) -> Tensor:
        """Return the Dice or Tversky index, from 0 to 1, from soft counts of any shape. The loss is 1 minus it.

        Args:
            overlap: Sum of the probability on lesion pixels.
            predicted: Sum of the probability.
            lesion: Number of lesion pixels.
        """
        if self.name == "tversky":
            missed, false = lesion - overlap, predicted - overlap
            return (overlap + 0.5) / (overlap + self.alpha * false + (1 - self.alpha) * missed + 0.5)
        return (2 * overlap + 1) / (predicted + lesion + 1)


def slice_losses(logits: Tensor, masks: Tensor, loss: Loss | str, counted: Tensor | None = None) -> Tensor:
    """Return the loss of each slice, (N,). The loss of a batch is their mean, however the slices are spread over ranks.

    Where the overlap is of the batch, it is the same in each slice.

    Args:
        logits: (N, 1, H, W), float32.
        masks: (N, 1, H, W), 0 or 1, float32.
        loss: What to compute. A name stands for the loss of that name over slices.
        counted: (N, 1, H, W), 1 for pixels that count and 0 for ignored ones, float32; None where all count. Ignored
            pixels are in no sum and no mean, and have no gradient. A slice in which none counts has BCE 0.
    """
    loss = Loss(loss) if isinstance(loss, str) else loss
    total = pixel_losses(logits, masks, loss, counted)
    if loss.name in OVERLAP_LOSSES:
        probabilities = torch.sigmoid(logits)
        if counted is not None:
            probabilities, masks = probabilities * counted, masks * counted
        counts = [(probabilities * masks).sum((1, 2, 3)), probabilities.sum((1, 2, 3)), masks.sum((1, 2, 3))]
        total = add_overlap_loss(total, torch.stack(counts), loss)
    return total


def add_overlap_loss(total: Tensor, counts: Tensor, loss: Loss) -> Tensor:
    """Return `total`, (N,), plus 1 - the index of overlap of each slice, or of the batch.

    `counts` are those of `Loss.overlap_index` for each slice, (3, N).
    """
    if loss.over == "batch":
        counts = _sum_over_batch(counts, loss.world)
    overlap, predicted, lesion = counts
    return total + 1 - loss.overlap_index(overlap, predicted, lesion)


def pixel_losses(logits: Tensor, masks: Tensor, loss: Loss, counted: Tensor | None = None) -> Tensor:
    """Return the part of each slice's loss that is a mean over its pixels, (N,): 0 for "dice" and "tversky".

    The arguments are those of `slice_losses`.
    """
    total = torch.zeros(len(logits), device=logits.device)
    if loss.name in ("dice", "tversky"):
        return total
    if loss.name != "focal":
        return total + _cross_entropies(logits, masks, counted)
    of_wrong_class = torch.sigmoid(logits * (1 - 2 * masks))  # the probability that the network gives it
    weights = of_wrong_class.pow(FOCAL_GAMMA)
    pixels = weights * F.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    if counted is None:
        return total + pixels.mean((1, 2, 3))
    return total + (pixels * counted).sum((1, 2, 3)) / counted.sum((1, 2, 3)).clamp(min=1)


def pooled_loss(loss: Loss, pixel_loss: float, overlap: float, predicted: float, lesion: float) -> float:
    """Return the loss of slices whose counts are known: as if they were one batch.

    Args:
        loss: What to compute.
        pixel_loss: The mean of `pixel_losses` over the slices.
        overlap: As in `Loss.overlap_index`.
        predicted: As in `Loss.overlap_index`.
        lesion: As in `Loss.overlap_index`.
    """
    counts = (torch.tensor(value, dtype=torch.float64) for value in (overlap, predicted, lesion))
    return pixel_loss + 1 - float(loss.overlap_index(*counts))


def _sum_over_batch(counts: Tensor, world: int) -> Tensor:
    """Return the counts of each slice, (3, N), summed over all slices of all ranks, and repeated for each: (3, N)."""
    total = counts.sum(1)
    if world > 1:
        total = sum_over_ranks(total)
    return total[:, None].expand_as(counts)


def _cross_entropies(logits: Tensor, masks: Tensor, counted: Tensor | None) -> Tensor:
    """Return the mean binary cross-entropy over the counted pixels of each slice, (N,)."""
    if counted is None:
        return F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((1, 2, 3))
    weighted = F.binary_cross_entropy_with_logits(logits, masks, weight=counted, reduction="none")
    return weighted.sum((1, 2, 3)) / counted.sum((1, 2, 3)).clamp(min=1)
