"""Losses: equal to MONAI's, over the slices or the batch, whatever the ranks and the size of validation batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.losses import DiceLoss, FocalLoss, TverskyLoss
from torch import Tensor

from tests.model.test_training import rows, small, two_ranks
from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.model import validation
from wmlsearch.model.losses import Loss, slice_losses
from wmlsearch.model.training import Trainer, epochs
from wmlsearch.model.unet import UNet
from wmlsearch.model.validation import Validation


def batch(slices: int = 6) -> tuple[Tensor, Tensor]:
    """Random logits and masks; the first slice has no lesion."""
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(slices, 1, 8, 8, generator=generator)
    masks = (torch.rand(slices, 1, 8, 8, generator=generator) < 0.2).float()
    masks[0] = 0
    return logits, masks


def gradient(loss: Any, logits: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@pytest.mark.parametrize(
    ("ours", "monai"),
    [
        (Loss("dice"), DiceLoss(sigmoid=True, smooth_nr=1, smooth_dr=1)),
        (Loss("dice", "batch"), DiceLoss(sigmoid=True, smooth_nr=1, smooth_dr=1, batch=True)),
        (Loss("focal"), FocalLoss(gamma=2)),
        (Loss("tversky", alpha=0.3), TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7, smooth_nr=0.5, smooth_dr=0.5)),
        (
            Loss("tversky", "batch", alpha=0.8),
            TverskyLoss(sigmoid=True, alpha=0.8, beta=0.2, smooth_nr=0.5, smooth_dr=0.5, batch=True),
        ),
    ],
    ids=lambda loss: f"{loss.name}-{loss.over}" if isinstance(loss, Loss) else "",
)
def test_losses_and_gradients_equal_monai(ours: Loss, monai: Any) -> None:
    logits, masks = batch()
    value, slope = gradient(lambda leaf: slice_losses(leaf, masks, ours).mean(), logits)
    wanted, wanted_slope = gradient(lambda leaf: monai(leaf, masks), logits)
    assert torch.allclose(value, wanted, rtol=1e-5)
    assert torch.allclose(slope, wanted_slope, rtol=1e-4, atol=1e-8)


def test_tversky_of_one_half_is_dice_and_alpha_weighs_false_positives() -> None:
    logits, masks = batch()
    assert torch.allclose(slice_losses(logits, masks, Loss("tversky", alpha=0.5)), slice_losses(logits, masks, "dice"))
    everything = torch.full_like(logits, 50.0)  # all pixels are predicted: only false positives
    low, high = (slice_losses(everything, masks, Loss("tversky", alpha=alpha))[1:] for alpha in (0.1, 0.9))
    assert (low < high).all()


def test_batch_dice_of_a_configuration() -> None:
    assert Loss.of(TrialConfig()) == Loss("bce", "slice", 0.3)
    config = TrialConfig(loss="tversky", dice_over="batch", tversky_alpha=0.7)
    assert Loss.of(config, 2) == Loss("tversky", "batch", 0.7, 2)
    assert not Loss.of(TrialConfig(dice_over="batch")).is_pooled, "cross-entropy compares no regions"


def test_over_a_batch_a_slice_without_lesions_has_a_gradient_like_the_others() -> None:
    logits, masks = torch.full((2, 1, 64, 64), -2.0), torch.zeros(2, 1, 64, 64)
    masks[1, :, :8, :8] = 1
    sizes = {}
    for over in ("slice", "batch"):
        _, slope = gradient(lambda leaf, over=over: slice_losses(leaf, masks, Loss("dice", over)).mean(), logits)
        sizes[over] = (slope[0].abs().mean() / slope[1, :, 8:].abs().mean()).item()  # to that of other background
    assert sizes["batch"] == pytest.approx(1)
    assert sizes["slice"] < 0.2


def test_ignored_pixels_are_in_no_count_of_a_batch() -> None:
    logits, masks = batch()
    counted = torch.ones_like(masks)
    counted[..., 3:] = 0
    for loss in (Loss("bce_dice", "batch"), Loss("tversky", "batch", 0.3), Loss("focal")):
        cropped = slice_losses(logits[..., :3].contiguous(), masks[..., :3].contiguous(), loss)
        assert torch.allclose(slice_losses(logits, masks, loss, counted), cropped, rtol=1e-5)


@pytest.mark.parametrize("loss", [Loss("dice", "batch"), Loss("bce_dice", "batch"), Loss("tversky", "batch", 0.3)])
def test_validation_compares_the_regions_of_all_slices(
    data: PreparedData, loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    unet = UNet(2, 4).eval()
    images, masks = data.val.batch(torch.arange(len(data.val)))
    with torch.no_grad():
        wanted = slice_losses(unet(images), masks, loss).mean().item()
        for size in (5, 16):
            monkeypatch.setattr(validation, "VALIDATION_BATCH", size)
            assert Validation(unet, data.val, loss, False).run().metrics()["val_loss"] == pytest.approx(wanted)
        one, other = (Validation(unet, data.val, loss, False, rank, 2).run() for rank in range(2))
    one.sums, one.slices, one.histograms = one.sums + other.sums, len(data.val), one.histograms + other.histograms
    assert one.metrics()["val_loss"] == pytest.approx(wanted)


def test_training_loss_is_that_of_each_batch(data: PreparedData) -> None:
    config = small(loss="dice", dice_over="batch", norm="instance", dropout=0.0)
    trainer = Trainer(config, data, 1, 0, "float32")
    order = (torch.arange(7), torch.arange(7, 12))
    wanted = 0.0
    with torch.no_grad():
        for positions in order:
            images, masks = data.train.batch(positions)
            wanted += len(positions) * slice_losses(trainer.unet(images), masks, Loss("dice", "batch"))[0].item()
    trainer.optimizer.param_groups[0]["lr"] = 0.0
    few = replace(data, train=replace(data.train, rows=data.train.rows[:12]))
    trainer.data = few
    assert trainer.train(order, 1, torch.Generator()) == pytest.approx(wanted / 12, rel=1e-5)


@pytest.mark.parametrize("loss", ["bce_dice", "tversky"])
def test_two_ranks_compare_the_regions_of_the_whole_batch(
    data: PreparedData, prepared: Path, tmp_path: Path, loss: str
) -> None:
    config = small(loss=loss, dice_over="batch", norm="instance", dropout=0.0, optimizer="sgd", learning_rate=5e-3)
    options: dict[str, Any] = {"max_epochs": 3, "seed": 5, "precision": "float32"}
    alone = rows(epochs(config, data, **options))
    first, second = two_ranks(prepared, tmp_path / "two", config, **options)  # 7 slices a batch: 4 and 3
    assert first == second
    for row, wanted in zip(first, alone, strict=True):
        for name in ("train_loss", "val_loss", "val_soft_dice"):
            assert row[name] == pytest.approx(wanted[name], rel=1e-4), name
