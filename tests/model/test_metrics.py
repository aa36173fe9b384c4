"""Metrics equal a slow reference that counts pixel by pixel; losses equal their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from wmlsearch.model.losses import slice_losses
from wmlsearch.model.metrics import BINS, Confusion, ValidationCounts

Batch = tuple[Tensor, Tensor, Tensor]


def counted(logits: Tensor, masks: Tensor, patients: Tensor, number: int, loss: str = "bce") -> ValidationCounts:
    counts = ValidationCounts(number)
    counts.add(logits, masks, patients, slice_losses(logits, masks, loss))
    return counts


def batch(seed: int, slices: int = 6, patients: int = 3, size: int = 5, share: float = 0.3) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(slices, 1, size, size, generator=generator)
    masks = (torch.rand(slices, 1, size, size, generator=generator) < share).float()
    logits[torch.rand(logits.shape, generator=generator) < 0.1] = 0.0  # exactly 0.5: lesion at threshold 0.5
    return logits, masks, torch.arange(slices) % patients


def ratio(part: float, total: float) -> float | None:
    return part / total if total else None


def pixels(probabilities: np.ndarray, masks: np.ndarray, threshold: float) -> tuple[int, int, int, int]:
    """True and false positives, false and true negatives, pixel by pixel."""
    tp = fp = fn = tn = 0
    for p, m in zip(probabilities.ravel().tolist(), masks.ravel().tolist(), strict=True):
        if p >= threshold:
            tp, fp = (tp + 1, fp) if m else (tp, fp + 1)
        else:
            fn, tn = (fn + 1, tn) if m else (fn, tn + 1)
    return tp, fp, fn, tn


def dice_of(tp: int, fp: int, fn: int, _tn: int = 0) -> float | None:
    return ratio(2 * tp, 2 * tp + fp + fn)


def reference(logits: Tensor, masks: Tensor, patients: Tensor, number: int) -> dict[str, float | None]:
    p, m = torch.sigmoid(logits).numpy(), masks.numpy()
    tp, fp, fn, tn = pixels(p, m, 0.5)
    best, threshold = None, 0.5
    for k in range(1, BINS):
        value = dice_of(*pixels(p, m, k / BINS))
        if value is not None and (best is None or value > best):
            best, threshold = value, k / BINS
    with_lesions = [patient for patient in range(number) if m[patients.numpy() == patient].any()]

    def of_patients(threshold: float) -> float | None:
        values = [
            dice_of(*pixels(p[patients.numpy() == patient], m[patients.numpy() == patient], threshold)) or 0.0
            for patient in with_lesions
        ]
        return float(np.mean(values)) if values else None

    by_threshold = [of_patients(k / BINS) or 0.0 for k in range(1, BINS)]
    losses = [
        np.mean([-math.log(q if t else 1 - q) for q, t in zip(ps.ravel().tolist(), ts.ravel().tolist(), strict=True)])
        for ps, ts in zip(p.astype(np.float64), m, strict=True)
    ]
    return {
        "val_loss": float(np.mean(losses)),
        "val_dice": dice_of(tp, fp, fn),
        "val_iou": ratio(tp, tp + fp + fn),
        "val_precision": ratio(tp, tp + fp),
        "val_recall": ratio(tp, tp + fn),
        "val_accuracy": (tp + tn) / (tp + fp + fn + tn),
        "val_dice_best": best,
        "val_threshold": threshold,
        "val_soft_dice": ratio(2 * float((p * m).sum()), float(p.sum() + m.sum())),
        "val_dice_patients": of_patients(threshold),
        "val_dice_patients_best": max(by_threshold),
        "val_threshold_patients": (1 + int(np.argmax(by_threshold))) / BINS,
        "val_patients_empty": number - len(with_lesions),
    }


def close(value: dict[str, float | None]) -> dict[str, Any]:
    return {name: None if number is None else pytest.approx(number, rel=1e-5) for name, number in value.items()}


@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_a_slow_reference(seed: int) -> None:
    logits, masks, patients = batch(seed)
    measured = counted(logits, masks, patients, 3).metrics()
    measured.pop("val_average_precision")
    assert measured == close(reference(logits, masks, patients, 3))


def test_counts_at_each_threshold() -> None:
    logits, masks, patients = batch(9, slices=2, patients=1, size=20)
    counts = counted(logits, masks, patients, 1)
    histogram = counts.histograms.view(2, BINS).numpy()
    p = torch.sigmoid(logits).numpy()
    for k in range(0, BINS, 50):
        tp, fp, fn, tn = pixels(p, masks.numpy(), k / BINS)
        assert histogram[1, k:].sum() == tp
        assert histogram[0, k:].sum() == fp
        assert histogram[1, :k].sum() == fn
        assert histogram[0, :k].sum() == tn


def test_a_probability_of_one_half_is_lesion() -> None:
    masks = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 1, 2, 2)
    below = -1e-6  # its sigmoid is just below 0.5
    logits = torch.tensor([0.0, 0.0, below, below]).view(1, 1, 2, 2)
    values = counted(logits, masks, torch.tensor([0]), 1).metrics()
    assert (values["val_precision"], values["val_recall"], values["val_accuracy"]) == (0.5, 0.5, 0.5)
    assert values["val_dice"] == 0.5
    assert values["val_iou"] == pytest.approx(1 / 3)


def test_empty_masks_and_predictions() -> None:
    far = torch.full((2, 1, 3, 3), -30.0)
    nothing, all_of_it, patients = torch.zeros(2, 1, 3, 3), torch.ones(2, 1, 3, 3), torch.tensor([0, 1])
    both = counted(far, nothing, patients, 2).metrics()
    for name in (
        "val_dice", "val_iou", "val_precision", "val_recall", "val_dice_best", "val_average_precision",
        "val_dice_patients", "val_dice_patients_best",
    ):  # fmt: skip
        assert both[name] is None, name
    assert (both["val_accuracy"], both["val_threshold"], both["val_patients_empty"]) == (1.0, 0.5, 2)
    assert both["val_threshold_patients"] == 0.5
    missed = counted(far, all_of_it, patients, 2).metrics()
    assert (missed["val_dice"], missed["val_precision"], missed["val_recall"]) == (0.0, None, 0.0)
    assert (missed["val_dice_best"], missed["val_patients_empty"]) == (0.0, 0)
    assert (missed["val_dice_patients"], missed["val_dice_patients_best"]) == (0.0, 0.0), "finds nothing: not left out"
    invented = counted(-far, nothing, patients, 2).metrics()
    assert (invented["val_dice"], invented["val_precision"], invented["val_recall"]) == (0.0, 0.0, None)
    assert (invented["val_average_precision"], invented["val_patients_empty"]) == (None, 2)
    assert (invented["val_dice_patients"], invented["val_dice_patients_best"]) == (None, None), "nobody has lesions"
    perfect = counted(-far, all_of_it, patients, 2).metrics()
    assert perfect["val_dice"] == perfect["val_dice_best"] == perfect["val_average_precision"] == 1.0


@pytest.mark.parametrize("invented_pixels", [0, 3])
def test_a_patient_without_lesions_is_left_out_of_the_mean_whatever_is_predicted(invented_pixels: int) -> None:
    logits, masks = torch.full((3, 1, 4, 4), -30.0), torch.zeros(3, 1, 4, 4)
    logits[0, 0, 0, :4], masks[0, 0, 0, :2] = 30.0, 1.0  # patient 0: Dice 2 * 2 / (4 + 2) = 2/3
    logits[1, 0, 0, :2], masks[1, 0, 0, :2] = 30.0, 1.0  # patient 1: Dice 1
    logits[2, 0, 0, :invented_pixels] = 30.0  # patient 2 has no lesions
    values = counted(logits, masks, torch.arange(3), 3).metrics()
    assert values["val_dice_patients"] == values["val_dice_patients_best"] == pytest.approx((2 / 3 + 1) / 2)
    assert values["val_patients_empty"] == 1
    assert values["val_dice"] == pytest.approx(2 * 4 / (2 * 4 + 2 + invented_pixels))  # pooled


def test_a_patient_in_whom_nothing_is_found_has_dice_0() -> None:
    logits, masks = torch.full((2, 1, 4, 4), -30.0), torch.zeros(2, 1, 4, 4)
    logits[0, 0, 0, :2], masks[:, 0, 0, :2] = 30.0, 1.0  # patient 0: Dice 1; patient 1: two pixels, none found
    values = counted(logits, masks, torch.arange(2), 2).metrics()
    assert values["val_dice_patients"] == values["val_dice_patients_best"] == (1 + 0) / 2
    assert values["val_patients_empty"] == 0


def test_the_threshold_that_is_best_for_the_mean_over_patients() -> None:
    """A large patient is best at a low threshold, two small ones at a high one: the mean over patients is theirs."""
    p, masks = torch.full((3, 1, 10, 10), 0.0005), torch.zeros(3, 1, 10, 10)
    masks[0, 0, :8], p[0, 0, :8] = 1.0, 0.2005  # 80 pixels of lesion, found up to threshold 0.2
    for small in (1, 2):  # one pixel of lesion up to 0.8, nine of background up to 0.3
        p[small, 0, 0, :], p[small, 0, 0, 0], masks[small, 0, 0, 0] = 0.3005, 0.8005, 1.0
    values = counted(torch.logit(p), masks, torch.arange(3), 3).metrics()
    # pooled, at most 0.2: 2 * 82 / (2 * 82 + 18) = 0.90; above 0.3: 2 * 2 / (2 * 2 + 80) = 0.05
    assert (values["val_threshold"], values["val_dice_best"]) == (0.001, pytest.approx(164 / 182))
    # a patient: at most 0.2: (1 + 2 * 2/11) / 3 = 0.45; above 0.3: (0 + 1 + 1) / 3 = 0.67
    assert values["val_dice_patients"] == pytest.approx((1 + 4 / 11) / 3)
    assert (values["val_threshold_patients"], values["val_dice_patients_best"]) == (0.301, pytest.approx(2 / 3))


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # the middles of the bins: nothing is lost by sorting probabilities into them
    p = (rng.integers(0, 12 if seed == 0 else BINS, (2, 1, 15, 15)) + 0.5) / BINS
    masks = (rng.random(p.shape) < 0.2 + 0.6 * p).astype(np.float32)
    logits = torch.from_numpy(np.log(p / (1 - p)))
    counts = ValidationCounts(1)
    counts.add(logits, torch.from_numpy(masks), torch.zeros(2, dtype=torch.int64), torch.zeros(2))
    wanted = average_precision_score(masks.ravel().astype(int), p.ravel())
    assert counts.metrics()["val_average_precision"] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]])
def test_counts_add_up_in_any_order(order: list[int]) -> None:
    logits, masks, patients = batch(5)
    at_once = counted(logits, masks, patients, 3)
    parts = ValidationCounts(3)
    for chunk in torch.tensor(order).split(4):  # a batch of four, then one of two
        part = masks[chunk]
        parts.add(logits[chunk], part, patients[chunk], slice_losses(logits[chunk], part, "bce"))
    assert torch.equal(parts.histograms, at_once.histograms)
    assert torch.allclose(parts.sums, at_once.sums, rtol=1e-6)
    assert parts.slices == at_once.slices == 6
    assert parts.metrics() == close(at_once.metrics())


def test_diverged_network_has_no_loss() -> None:
    for value in (math.nan, math.inf, 3e38):
        logits, masks = torch.full((1, 1, 40, 40), value), torch.zeros(1, 1, 40, 40)
        values = counted(logits, masks, torch.tensor([0]), 1).metrics()
        assert values["val_loss"] is None
        assert all(number is None or math.isfinite(number) for number in values.values())


def bce(logits: Tensor, masks: Tensor) -> Tensor:
    p = torch.sigmoid(logits.double())
    return -(masks * p.log() + (1 - masks) * (1 - p).log()).flatten(1).mean(1)


def soft_dice(logits: Tensor, masks: Tensor) -> Tensor:
    p, m = torch.sigmoid(logits.double()).flatten(1), masks.double().flatten(1)
    return 1 - (2 * (p * m).sum(1) + 1) / (p.sum(1) + m.sum(1) + 1)


@pytest.mark.parametrize(
    ("loss", "formula"), [("bce", bce), ("dice", soft_dice), ("bce_dice", lambda a, b: bce(a, b) + soft_dice(a, b))]
)
def test_losses_equal_their_formulas(loss: str, formula: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits, masks, _ = batch(7)
    masks[0] = 0  # a slice without lesion
    losses = slice_losses(logits, masks, loss)
    assert losses.shape == (6,)
    assert torch.allclose(losses.double(), formula(logits, masks), rtol=1e-5)
    if loss == "bce":
        wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, masks)
        assert losses.mean() == pytest.approx(wanted.item(), rel=1e-6)
    parts = torch.cat([slice_losses(logits[k : k + 1], masks[k : k + 1], loss) for k in range(6)])
    assert torch.allclose(parts, losses, rtol=1e-6)  # a slice's loss doesn't depend on its batch


@pytest.mark.parametrize("loss", ["bce", "dice", "bce_dice", "focal", "tversky"])
def test_losses_stay_finite_and_have_a_gradient(loss: str) -> None:
    logits = torch.tensor([-200.0, 200.0, -200.0, 0.0]).view(1, 1, 2, 2).requires_grad_()
    losses = slice_losses(logits, torch.zeros(1, 1, 2, 2), loss)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.flatten()[3] > 0  # no lesion there: the probability has to fall


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="loss must be bce, dice, bce_dice, focal or tversky, but got 'mse'"):
        slice_losses(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), "mse")


def test_published_scores_are_pooled() -> None:
    # Table I: precision 75.92 %, recall 70.16 %, Dice 0.7292, IoU 0.5739
    figures = Confusion(7016 * 7592, 7016 * 2408, 2984 * 7592, 10**10)
    assert figures.precision == pytest.approx(0.7592)
    assert figures.recall == pytest.approx(0.7016)
    assert figures.dice == pytest.approx(0.7293, abs=5e-5)
    assert figures.iou == pytest.approx(0.5739, abs=1e-4)


# ------------------------------------------------------------------------------------------------- ignored pixels

# Four pixels: probabilities 0.5, 0.75, 0.25, 0.9; lesion, background, lesion, and one that is ignored.
FOUR = torch.tensor([0.0, math.log(3), -math.log(3), math.log(9)]).view(1, 1, 2, 2)
COUNTED = torch.tensor([1.0, 1.0, 1.0, 0.0]).view(1, 1, 2, 2)


@pytest.mark.parametrize("garbage", [0.0, 1.0])
@pytest.mark.parametrize("logit", [math.log(9), -50.0, 50.0])
def test_ignored_pixels_are_in_no_loss_and_no_count(garbage: float, logit: float) -> None:
    logits, masks = FOUR.clone(), torch.tensor([1.0, 0.0, 1.0, garbage]).view(1, 1, 2, 2)
    logits[0, 0, 1, 1] = logit
    bce_by_hand = -(math.log(0.5) + math.log(0.25) + math.log(0.25)) / 3
    dice_by_hand = 1 - (2 * (0.5 + 0.25) + 1) / (1.5 + 2 + 1)
    for loss, wanted in (("bce", bce_by_hand), ("dice", dice_by_hand), ("bce_dice", bce_by_hand + dice_by_hand)):
        assert slice_losses(logits, masks, loss, COUNTED).item() == pytest.approx(wanted, rel=1e-6)
    counts = ValidationCounts(1)
    counts.add(logits, masks, torch.tensor([0]), slice_losses(logits, masks, "bce", COUNTED), COUNTED)
    background, lesion = counts.patient_histograms()[0]
    assert np.flatnonzero(background).tolist() == [750]
    assert np.flatnonzero(lesion).tolist() == [250, 500]
    assert background.sum() + lesion.sum() == 3
    metrics = counts.metrics()
    for name, value in {
        "val_loss": bce_by_hand,
        "val_dice": 2 * 1 / (2 * 1 + 1 + 1),
        "val_precision": 1 / 2,
        "val_recall": 1 / 2,
        "val_accuracy": 1 / 3,
        "val_soft_dice": 2 * 0.75 / (1.5 + 2),
        "val_dice_best": 2 * 2 / (2 * 2 + 1),  # all three predicted, at threshold 0.25
        "val_average_precision": 0.5 * (1 / 2) + 0.5 * (2 / 3),
        "val_dice_patients_best": 4 / 5,
    }.items():
        assert metrics[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("loss", ["bce", "dice", "bce_dice", "focal", "tversky"])
def test_ignored_pixels_have_no_gradient(loss: str) -> None:
    logits, masks, _ = batch(3)
    counted = (torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)) < 0.6).float()
    counted[0] = 0  # a slice of which nothing counts
    gradients = []
    for garbage in (0.0, 1.0):
        leaf = logits.clone().requires_grad_()
        slice_losses(leaf, torch.where(counted.bool(), masks, garbage), loss, counted).sum().backward()
        assert leaf.grad is not None
        assert not leaf.grad[counted == 0].any()
        assert leaf.grad[1:][counted[1:] == 1].all()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("loss", ["bce", "dice", "bce_dice", "focal", "tversky"])
def test_losses_are_those_of_slices_without_the_ignored_pixels(loss: str) -> None:
    logits, masks, _ = batch(4)
    counted = torch.ones_like(masks)
    counted[:, :, :, 3:] = 0
    cropped = slice_losses(logits[..., :3].contiguous(), masks[..., :3].contiguous(), loss)
    assert torch.allclose(slice_losses(logits, masks, loss, counted), cropped, rtol=1e-5)
    assert torch.allclose(slice_losses(logits, masks, loss, torch.ones_like(masks)), slice_losses(logits, masks, loss))


def test_metrics_are_those_of_slices_without_the_ignored_pixels() -> None:
    logits, masks, patients = batch(5)
    masks[patients == 2] = 0
    masks[patients == 2, :, 4] = 1  # lesions that are ignored: the patient has none
    pixels_that_count = torch.ones_like(masks)
    pixels_that_count[:, :, 3:] = 0
    counts = ValidationCounts(3)
    losses = slice_losses(logits, masks, "bce_dice", pixels_that_count)
    counts.add(logits, masks, patients, losses, pixels_that_count)
    cropped = counted(logits[:, :, :3].contiguous(), masks[:, :, :3].contiguous(), patients, 3, "bce_dice")
    assert np.array_equal(counts.patient_histograms(), cropped.patient_histograms())
    metrics = counts.metrics()
    assert metrics["val_patients_empty"] == 1
    assert metrics == pytest.approx(cropped.metrics(), rel=1e-5)
