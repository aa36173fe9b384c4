"""The Triton kernels of the loss in Triton's interpreter: `test_kernels.py` runs this file in a process of its own."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from wmlsearch.config import TrialConfig
from wmlsearch.model import loss_kernels
from wmlsearch.model.loss_kernels import fused_slice_losses
from wmlsearch.model.losses import NAMES, OVERLAP_LOSSES, Loss, slice_losses
from wmlsearch.model.optimizers import build_optimizer
from wmlsearch.model.unet import UNet

assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1"
torch.set_num_threads(1)

LOSSES = [
    *(Loss(name) for name in NAMES),
    Loss("tversky", alpha=0.3),
    *(Loss(name, "batch", 0.3) for name in OVERLAP_LOSSES),
]
SHAPES = [(1, 1, 1, 1), (3, 1, 7, 5), (2, 1, 33, 41), (2, 1, 32, 64)]  # less than a block, several, and whole ones


def maps(shape: tuple[int, ...], ignoring: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return logits of all sizes, masks, and pixels that count. In the first slice there is no lesion."""
    generator = torch.Generator().manual_seed(sum(shape))
    logits = torch.randn(shape, generator=generator) * 10 ** torch.empty(shape).uniform_(-2, 1.3, generator=generator)
    masks = (torch.rand(shape, generator=generator) < 0.2).float()
    masks[0] = 0
    counted = (torch.rand(shape, generator=generator) < 0.8).float() if ignoring else None
    return logits, masks if counted is None else masks * counted, counted


def losses_and_gradient(
    compute: Any, logits: Tensor, masks: Tensor, loss: Loss, counted: Tensor | None, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    losses = compute(leaf, masks, loss, counted)
    (gradient,) = torch.autograd.grad(losses, leaf, upstream.to(losses.dtype))
    return losses.detach(), gradient


@pytest.mark.parametrize("ignoring", [False, True], ids=["all pixels", "ignored pixels"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.name}-{loss.over}-{loss.alpha}")
def test_loss_and_gradient_equal_the_eager_loss_in_float64(loss: Loss, shape: tuple[int, ...], ignoring: bool) -> None:
    logits, masks, counted = maps(shape, ignoring)
    upstream = torch.linspace(0.5, 2, len(logits))
    mine, gradient = losses_and_gradient(fused_slice_losses, logits, masks, loss, counted, upstream)
    wide = [None if given is None else given.double() for given in (logits, masks, counted)]
    wanted, wanted_gradient = losses_and_gradient(slice_losses, wide[0], wide[1], loss, wide[2], upstream)
    assert (mine.dtype, mine.shape, gradient.dtype) == (torch.float32, (len(logits),), torch.float32)
    assert torch.allclose(mine.double(), wanted, rtol=2e-6, atol=1e-6)
    largest = wanted_gradient.abs().max()
    assert (gradient.double() - wanted_gradient).abs().max() <= 2e-6 * largest
    if counted is not None:
        assert not gradient[counted == 0].any()


@pytest.mark.parametrize("name", ["bce", "focal"])
def test_small_losses_of_pixels_keep_their_digits(name: str) -> None:
    """Most pixels of a trained network are far from the threshold, where 1 + exp(-|x|) would lose them."""

    def exactly(x: Tensor, mask: Tensor, *_: object) -> Tensor:
        """In float64, where the eager cross-entropy cancels too."""
        of_wrong_class = x * (1 - 2 * mask)
        pixels = F.softplus(of_wrong_class) * (1 if name == "bce" else torch.sigmoid(of_wrong_class) ** 2)
        return pixels.mean((1, 2, 3))

    for logit in (-80.0, -30.0, -17.0, -9.0, -1.0, -1e-3, 0.0, 1e-3, 3.0, 25.0):
        given = torch.full((1, 1, 2, 2), logit), torch.full((1, 1, 2, 2), float(logit > 0)), Loss(name), None
        mine, gradient = losses_and_gradient(fused_slice_losses, *given, torch.ones(1))
        exact = losses_and_gradient(exactly, given[0].double(), given[1].double(), *given[2:], torch.ones(1))
        assert mine.double().item() == pytest.approx(exact[0].item(), rel=3e-6, abs=1e-37), logit
        assert torch.allclose(gradient.double(), exact[1], rtol=5e-6, atol=1e-37), logit


@pytest.mark.parametrize("loss", [Loss("bce"), Loss("bce_dice"), Loss("focal")], ids=lambda loss: loss.name)
def test_same_input_same_bits(loss: Loss) -> None:
    logits, masks, counted = maps((2, 1, 33, 41), True)
    one, other = (
        losses_and_gradient(fused_slice_losses, logits, masks, loss, counted, torch.ones(2)) for _ in range(2)
    )
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.name}-{loss.over}-{loss.alpha}")
def test_a_slice_without_counted_pixels(loss: Loss) -> None:
    logits, masks, _ = maps((3, 1, 7, 5), False)
    counted = torch.ones_like(masks)
    counted[1], masks[1] = 0, 0
    mine, gradient = losses_and_gradient(fused_slice_losses, logits, masks, loss, counted, torch.ones(3))
    wanted, _ = losses_and_gradient(slice_losses, logits, masks, loss, counted, torch.ones(3))
    assert torch.allclose(mine, wanted, rtol=1e-5, atol=1e-6)
    assert not gradient[1].any()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.name}-{loss.over}-{loss.alpha}")
def test_nan_stays_nan(loss: Loss) -> None:
    """Training ends when the loss is not finite."""
    logits, masks, _ = maps((3, 1, 7, 5), False)
    logits[1, 0, 2, 3] = float("nan")
    mine, gradient = losses_and_gradient(fused_slice_losses, logits, masks, loss, None, torch.ones(3))
    assert mine[1].isnan()
    assert gradient[1, 0, 2, 3].isnan()
    assert mine[[0, 2]].isfinite().all() == (loss.over == "slice")


def test_other_memory_formats() -> None:
    """The network crops its logits where the size is not a multiple of its steps."""
    logits, masks, counted = maps((2, 1, 8, 12), True)
    wide = torch.zeros(2, 1, 11, 16)
    wide[..., :8, :12] = logits
    one = losses_and_gradient(fused_slice_losses, logits, masks, Loss("bce_dice"), counted, torch.ones(2))
    cropped = wide.contiguous(memory_format=torch.channels_last)[..., :8, :12]
    other = losses_and_gradient(
        lambda leaf, *others: fused_slice_losses(leaf[..., :8, :12], *others),
        wide,
        masks.contiguous(memory_format=torch.channels_last),
        Loss("bce_dice"),
        counted,
        torch.ones(2),
    )
    assert not cropped.is_contiguous()
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1][..., :8, :12])


def test_the_result_hardly_depends_on_the_size_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, masks, counted = maps((2, 1, 33, 41), True)
    before = losses_and_gradient(fused_slice_losses, logits, masks, Loss("bce_dice"), counted, torch.ones(2))
    monkeypatch.setattr(loss_kernels, "BLOCK", 16)
    after = losses_and_gradient(fused_slice_losses, logits, masks, Loss("bce_dice"), counted, torch.ones(2))
    assert torch.allclose(before[0], after[0], rtol=1e-6)
    assert torch.allclose(before[1], after[1], rtol=1e-6)


def test_other_types_are_refused() -> None:
    logits, masks, _ = maps((1, 1, 1, 1), False)
    with pytest.raises(TypeError, match=r"^logits, masks and counted pixels must be float32, but got torch\.bfloat16$"):
        fused_slice_losses(logits.bfloat16(), masks, "bce")


@pytest.mark.parametrize("name", ["bce", "bce_dice"])
def test_some_steps_of_a_network_equal_those_of_the_eager_loss(name: str) -> None:
    trained = []
    for compute in (slice_losses, fused_slice_losses):
        torch.manual_seed(0)
        network = UNet(1, 2, 0.0)
        optimizer = build_optimizer(TrialConfig(optimizer="sgd"), network, torch.device("cpu"))
        images = torch.rand(2, 1, 9, 12, generator=torch.Generator().manual_seed(1))
        masks, computed = (images > 0.8).float(), []
        for _ in range(4):
            losses = compute(network(images), masks, Loss(name))
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
            computed += losses.tolist()
        trained.append(computed)
    assert trained[1] == pytest.approx(trained[0], rel=1e-5)
