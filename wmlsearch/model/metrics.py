"""Losses, and the counts from which all metrics follow: summed over slices and ranks, divided once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 1000  # of the histograms of probability; thresholds are multiples of 1/BINS


def slice_losses(logits: Tensor, masks: Tensor, loss: str) -> Tensor:
    """The loss of each slice, (N,): the batch's loss is their mean, however they are spread over ranks.

    Args:
        logits: (N, 1, H, W), float32.
        masks: (N, 1, H, W), 0 or 1, float32.
        loss: "bce" (mean over pixels), "dice" (1 - soft Dice, with 1 added above and below so that a slice without
            lesion has a gradient), or "bce_dice" (their sum).
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


class Counts:
    """What a validation adds up, for each patient on its own: histograms of probability and the sums for soft Dice.

    `histograms` is (patients, 2, BINS): how many background (0) and lesion (1) pixels had a probability in each bin
    [k/BINS, (k+1)/BINS). Every threshold k/BINS (a pixel is lesion at `probability >= threshold`) gives exact counts.
    `sums` is (4,): probability on lesion, probability, lesion pixels, loss; `slices` how many slices the loss sums.
    """

    def __init__(self, patients: int, device: torch.device | str = "cpu") -> None:
        self.histograms = torch.zeros(patients * 2 * BINS, dtype=torch.int64, device=device)
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.patients, self.slices = patients, 0

    def add(self, logits: Tensor, masks: Tensor, patients: Tensor, losses: Tensor) -> None:
        """Count a batch: logits and masks (N, 1, H, W), the patient's number of each slice (N,), its loss (N,)."""
        probabilities = torch.sigmoid(logits)
        self.count(probabilities, masks, patients)
        self.sums += torch.stack(
            [(probabilities * masks).sum(), probabilities.sum(), masks.sum(), losses.sum()]
        ).double()
        self.slices += len(logits)

    def count(self, probabilities: Tensor, masks: Tensor, patients: Tensor) -> None:
        """Into the histograms alone: probabilities and masks (N, 1, H, W), the patient's number of each slice (N,)."""
        bins = (probabilities * BINS).long().clamp_(0, BINS - 1)  # NaN too: the loss then says so
        bins += masks.long() * BINS + patients.view(-1, 1, 1, 1) * (2 * BINS)
        if bins.is_cuda:  # bincount would wait for the GPU, to see how many bins there are; sums of integers are exact
            one = torch.ones(1, dtype=torch.int64, device=bins.device)
            self.histograms.index_add_(0, bins.flatten(), one.expand(bins.numel()))
        else:
            self.histograms += torch.bincount(bins.flatten(), minlength=len(self.histograms))

    def reduce(self) -> None:
        """Add up over all ranks, in place, where there are several."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            slices = torch.tensor([self.slices], dtype=torch.int64, device=self.histograms.device)
            for part in (self.histograms, self.sums, slices):
                torch.distributed.all_reduce(part)
            self.slices = int(slices.item())

    def metrics(self) -> dict[str, float | None]:
        """All validation metrics of an epoch; None is not a (finite) number, 0 / 0, left out of every mean.

        `val_dice_patients` is the mean over patients at `val_threshold`; `val_patients_empty` tells how many were left
        out of it, since they had neither lesion nor prediction.
        """
        histograms = self.histograms.view(self.patients, 2, BINS).cpu().numpy()
        pooled = histograms.sum(axis=0)
        table = confusion(pooled)  # of every threshold
        at_half = Confusion(*(int(x[BINS // 2]) for x in table))
        dices = dice(*table[:3])
        best = int(np.nanargmax(dices[1:])) + 1 if not np.isnan(dices[1:]).all() else BINS // 2
        at_best = confusion(histograms.transpose(1, 0, 2))  # (patients, BINS) each
        of_patients = dice(*(x[:, best] for x in at_best[:3]))
        scored = of_patients[~np.isnan(of_patients)]
        on_lesion, predicted, lesion, loss = self.sums.tolist()
        values = {
            "val_loss": _ratio(loss, self.slices),
            "val_dice": at_half.dice,
            "val_iou": at_half.iou,
            "val_precision": at_half.precision,
            "val_recall": at_half.recall,
            "val_accuracy": at_half.accuracy,
            "val_dice_best": float(dices[best]),
            "val_threshold": best / BINS,
            "val_soft_dice": _ratio(2 * on_lesion, predicted + lesion),
            "val_average_precision": average_precision(pooled),
            "val_dice_patients": float(scored.mean()) if len(scored) else float("nan"),
            "val_patients_empty": float(len(of_patients) - len(scored)),
        }
        return {name: value if np.isfinite(value) else None for name, value in values.items()}


@dataclass(frozen=True)
class Confusion:
    """Pixel counts at one threshold, and the ratios of the paper's Table I; NaN where a ratio is 0 / 0."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def dice(self) -> float:
        return float(dice(self.true_positives, self.false_positives, self.false_negatives))

    @property
    def iou(self) -> float:
        return _ratio(self.true_positives, self.true_positives + self.false_positives + self.false_negatives)

    @property
    def precision(self) -> float:
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def accuracy(self) -> float:
        right = self.true_positives + self.true_negatives
        return _ratio(right, right + self.false_positives + self.false_negatives)


def confusion(histograms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """TP, FP, FN, TN at each threshold k/BINS, from histograms (2, ..., BINS): four arrays (..., BINS)."""
    background, lesion = histograms
    positives = np.cumsum(lesion[..., ::-1], axis=-1)[..., ::-1]
    false_positives = np.cumsum(background[..., ::-1], axis=-1)[..., ::-1]
    return (
        positives,
        false_positives,
        lesion.sum(axis=-1, keepdims=True) - positives,
        background.sum(axis=-1, keepdims=True) - false_positives,
    )


def dice(
    true_positives: np.ndarray | int, false_positives: np.ndarray | int, false_negatives: np.ndarray | int
) -> np.ndarray:
    """2 TP / (2 TP + FP + FN); NaN where nothing is there and nothing was predicted."""
    both = 2 * np.asarray(true_positives, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(both / (both + false_positives + false_negatives))


def average_precision(histogram: np.ndarray) -> float:
    """Area under precision over recall, from a histogram (2, BINS), summed as scikit-learn does."""
    positives, false_positives, missed, _ = confusion(histogram)
    lesion = positives[0] + missed[0]
    if lesion == 0:
        return float("nan")
    called = positives + false_positives
    precision = np.divide(positives, called, out=np.ones(BINS), where=called > 0)
    steps = -np.diff(np.append(positives, 0)) / lesion  # how much recall each threshold adds
    return float((steps * precision).sum())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
