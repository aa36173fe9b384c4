"""The metrics of segmentation, all computed from counts that are summed over slices and ranks and divided once.

A pixel is predicted as lesion if its probability is at least the threshold. With TP, FP, FN and TN the numbers of true
positive, false positive, false negative and true negative pixels:

    Dice      = 2 TP / (2 TP + FP + FN)
    IoU       = TP / (TP + FP + FN)
    precision = TP / (TP + FP)
    recall    = TP / (TP + FN)
    accuracy  = (TP + TN) / (TP + FP + FN + TN)
    soft Dice = 2 sum(p m) / (sum(p) + sum(m)), with probabilities p and the expert's mask m

"Pooled" metrics use the sums over all slices. `val_dice_best` is the highest pooled Dice over all thresholds, at
`val_threshold`. A ratio 0 / 0 is not a number.

The mean Dice over patients leaves out those without lesions in the expert's mask, and only those, whatever is predicted
in them. `val_dice_patients_best` is the highest such mean over all thresholds, at `val_threshold_patients`.

Ignored pixels (data/labels.py) are in no count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wmlsearch.model.losses import Loss, pooled_loss
from wmlsearch.model.ranks import in_process_group

SUMS = 4  # of a validation, beside the histograms
BINS = 1000  # bins of the histograms of probability; thresholds are multiples of 1/BINS


class ValidationCounts:
    """The sums of a validation, for each patient separately: histograms of probability and the sums for soft Dice.

    `histograms` is (patients * 2 * BINS,), as (patients, 2, BINS): how many background (0) and lesion (1) pixels had a
    probability in each bin [k/BINS, (k+1)/BINS). They give exact counts at every threshold k/BINS.
    `sums` is (SUMS,): probability on lesion pixels, probability, lesion pixels, loss. `slices` is how
    many slices the loss is of. With `pooled`, a loss over the batch, the loss of slices is without their overlap, which
    is compared over all.

    Histograms and sums are added to in place, on their device, and nothing waits for it: a CUDA graph can hold `add`.
    """

    def __init__(self, patients: int, device: torch.device | str = "cpu", pooled: Loss | None = None) -> None:
        self._use(torch.zeros(patients * 2 * BINS + SUMS, dtype=torch.int64, device=device))
        self.patients, self.slices, self.pooled = patients, 0, pooled

    def _use(self, memory: Tensor) -> None:
        """Count in `memory`, (patients * 2 * BINS + SUMS,) int64: one piece, so that one copy takes all to the host."""
        self.memory = memory
        self.histograms, sums = memory.split([len(memory) - SUMS, SUMS])
        self.sums = sums.view(torch.float64)

    def reset(self) -> None:
        """Count from zero again, in the same memory."""
        self.memory.zero_()  # all bits zero are 0.0 too
        self.slices = 0

    def to_host(self) -> ValidationCounts:
        """Return the counts on the CPU, where they are only read: by one copy, or the same object if they are there."""
        if self.memory.device.type == "cpu":
            return self
        counts = ValidationCounts(0, pooled=self.pooled)
        counts._use(self.memory.cpu())
        counts.patients, counts.slices = self.patients, self.slices
        return counts

    def add(
        self, logits: Tensor, masks: Tensor, patients: Tensor, losses: Tensor, counted: Tensor | None = None
    ) -> None:
        """Add a batch: logits and masks (N, 1, H, W), each slice's patient number (N,) and loss (N,).

        `counted` is (N, 1, H, W), 0 for ignored pixels, which are in no count; None where all pixels count.
        """
        probabilities = torch.sigmoid(logits)
        self.add_to_histograms(probabilities, masks, patients, counted)
        if counted is not None:
            probabilities, masks = probabilities * counted, masks * counted
        self.sums += torch.stack(
            [(probabilities * masks).sum(), probabilities.sum(), masks.sum(), losses.sum()]
        ).double()
        self.slices += len(logits)

    def add_to_histograms(
        self, probabilities: Tensor, masks: Tensor, patients: Tensor, counted: Tensor | None = None
    ) -> None:
        """Add to the histograms only: probabilities and masks (N, 1, H, W), each slice's patient number (N,).

        `counted` as in `add`.
        """
        bins = (probabilities * BINS).long().clamp_(0, BINS - 1)  # NaN becomes a bin too: the loss then is NaN
        bins += masks.long() * BINS + patients.view(-1, 1, 1, 1) * (2 * BINS)
        if bins.device.type != "cpu":  # bincount waits for a GPU to learn the number of bins; both sums are exact
            one = torch.ones(1, dtype=torch.int64, device=bins.device)
            pixels = one.expand(bins.numel()) if counted is None else counted.flatten().long()
            self.histograms.index_add_(0, bins.flatten(), pixels)
        else:
            flat = bins.flatten() if counted is None else bins[counted.bool()]
            self.histograms += torch.bincount(flat, minlength=len(self.histograms))

    def reduce(self) -> None:
        """Sum over all ranks, in place."""
        if in_process_group():
            slices = torch.tensor([self.slices], dtype=torch.int64, device=self.histograms.device)
            for part in (self.histograms, self.sums, slices):
                torch.distributed.all_reduce(part)
            self.slices = int(slices.item())

    def metrics(self) -> dict[str, float | None]:
        """Return all validation metrics of an epoch; None for what is not a finite number.

        `val_patients_empty` is the number of patients without lesions, whom the mean Dice over patients leaves out.
        """
        histograms = self.patient_histograms()
        pooled = histograms.sum(axis=0)
        pooled_counts = confusion(pooled)  # at every threshold
        at_half = Confusion(*(int(counts[BINS // 2]) for counts in pooled_counts))
        dice_by_threshold = dice(*pooled_counts[:3])
        best = best_bin(dice_by_threshold)
        of_patients = patient_dice(histograms)  # (patients with lesions, BINS)
        mean_by_threshold = of_patients.mean(axis=0) if len(of_patients) else np.full(BINS, np.nan)
        best_of_patients = best_bin(mean_by_threshold)
        probability_on_lesion, probability, lesion, loss = self.sums.tolist()
        val_loss = _ratio(loss, self.slices)
        if self.pooled is not None:
            val_loss = pooled_loss(self.pooled, val_loss, probability_on_lesion, probability, lesion)
        values = {
            "val_loss": val_loss,
            "val_dice": at_half.dice,
            "val_iou": at_half.iou,
            "val_precision": at_half.precision,
            "val_recall": at_half.recall,
            "val_accuracy": at_half.accuracy,
            "val_dice_best": float(dice_by_threshold[best]),
            "val_threshold": best / BINS,
            "val_soft_dice": _ratio(2 * probability_on_lesion, probability + lesion),
            "val_average_precision": average_precision(pooled),
            "val_dice_patients": float(mean_by_threshold[best]),
            "val_dice_patients_best": float(mean_by_threshold[best_of_patients]),
            "val_threshold_patients": best_of_patients / BINS,
            "val_patients_empty": float(self.patients - len(of_patients)),
        }
        return {name: value if np.isfinite(value) else None for name, value in values.items()}

    def patient_histograms(self) -> np.ndarray:
        """Return the histograms on the CPU, (patients, 2, BINS) int64."""
        return self.histograms.view(self.patients, 2, BINS).cpu().numpy()


@dataclass(frozen=True)
class Confusion:
    """Pixel counts at one threshold, and their ratios (Table I of the paper). A ratio 0 / 0 is NaN."""

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
        correct = self.true_positives + self.true_negatives
        return _ratio(correct, correct + self.false_positives + self.false_negatives)


def confusion(histograms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return TP, FP, FN and TN at each threshold k/BINS, (..., BINS) each, from histograms (2, ..., BINS)."""
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
    """Return 2 TP / (2 TP + FP + FN), or NaN if there is neither lesion nor prediction."""
    overlap = 2 * np.asarray(true_positives, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(overlap / (overlap + false_positives + false_negatives))


def patient_dice(histograms: np.ndarray) -> np.ndarray:
    """Return the Dice of each patient with lesions at each threshold k/BINS, (patients with lesions, BINS).

    The histograms are (patients, 2, BINS). Patients without lesions are left out.
    """
    with_lesions = histograms[histograms[:, 1].any(axis=1)]
    return dice(*confusion(with_lesions.transpose(1, 0, 2))[:3])


def best_bin(dice_by_threshold: np.ndarray) -> int:
    """Return the lowest k with the highest Dice at threshold k/BINS, (BINS,); the middle where it is never a number.

    At threshold 0, which is not considered, every pixel would be lesion.
    """
    positive = dice_by_threshold[1:]
    return BINS // 2 if np.isnan(positive).all() else int(np.nanargmax(positive)) + 1


def average_precision(histogram: np.ndarray) -> float:
    """Return the area under precision over recall, from a histogram (2, BINS), summed as scikit-learn does."""
    positives, false_positives, missed, _ = confusion(histogram)
    lesion = positives[0] + missed[0]
    if lesion == 0:
        return float("nan")
    predicted = positives + false_positives
    precision = np.divide(positives, predicted, out=np.ones(BINS), where=predicted > 0)
    steps = -np.diff(np.append(positives, 0)) / lesion  # recall gained from one threshold to the next
    return float((steps * precision).sum())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
