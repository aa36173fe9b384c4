"""The Triton kernels on a GPU: against PyTorch's layers in float64, in CUDA graphs, and in a training."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_kernels import dropout_multipliers, normalise_eagerly
from torch import Tensor

from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.model import steps as module
from wmlsearch.model.kernels import VARIABLE, AfterConvolution, normalise
from wmlsearch.model.loss_kernels import fused_slice_losses
from wmlsearch.model.losses import NAMES, OVERLAP_LOSSES, Loss, slice_losses
from wmlsearch.model.training import Trainer, epochs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed here"),
]
EPOCHS = 6
SMALL = TrialConfig(depth=2, base_channels=8, batch_size=7, dropout=0.0, learning_rate=3e-3, optimizer="sgd")
SEED, STREAM = 2**62 + 12345, 7


def gradients_of(x: Tensor, weight: Tensor, bias: Tensor, compute: Any, gradient: Tensor) -> list[Tensor]:
    """Return the result and the gradients of its three inputs."""
    given = [tensor.detach().clone().requires_grad_() for tensor in (x, weight, bias)]
    result = compute(*given)
    return [result.detach(), *torch.autograd.grad(result, given, gradient.to(result.dtype))]


@pytest.mark.parametrize("shape", [(5, 16, 256, 256), (1, 48, 33, 17), (3, 130, 9, 7), (128, 256, 16, 16)], ids=str)
@pytest.mark.parametrize("per_image", [False, True], ids=["batch", "instance"])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-3)], ids=str)
def test_kernels_equal_torchs_layers_in_float64(
    shape: tuple[int, int, int, int], per_image: bool, dtype: torch.dtype, allowed: float
) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    after = AfterConvolution(per_image=per_image, dropout=0.3)
    x, gradient = (torch.randn(shape, generator=generator, device="cuda").to(dtype) for _ in range(2))
    x = (2 * x + 1).contiguous(memory_format=torch.channels_last)
    weight, bias = (torch.rand(shape[1], generator=generator, device="cuda") for _ in range(2))
    seed, multipliers = torch.tensor([SEED], device="cuda"), dropout_multipliers(shape, after, SEED, STREAM).cuda()
    mine = gradients_of(x, weight, bias, lambda *given: normalise(*given, after, seed, STREAM), gradient)
    again = gradients_of(x, weight, bias, lambda *given: normalise(*given, after, seed, STREAM), gradient)
    in_float64 = [tensor.double() for tensor in (x, weight, bias)]
    wanted = gradients_of(*in_float64, lambda *given: normalise_eagerly(*given, after, multipliers), gradient)
    for one, other, expected in zip(mine, again, wanted, strict=True):
        assert torch.equal(one, other), "two runs are equal bit for bit"
        assert (one.double() - expected).norm() <= allowed * expected.norm()


LOSSES = [*(Loss(name) for name in NAMES), *(Loss(name, "batch", 0.3) for name in OVERLAP_LOSSES)]


@pytest.mark.parametrize("shape", [(5, 1, 256, 256), (3, 1, 33, 17), (128, 1, 64, 64)], ids=str)
@pytest.mark.parametrize("ignoring", [False, True], ids=["all pixels", "ignored pixels"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.name}-{loss.over}")
def test_the_loss_and_its_gradient_equal_the_eager_ones_in_float64(
    loss: Loss, ignoring: bool, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    logits = 4 * torch.randn(shape, generator=generator, device="cuda")
    counted = (torch.rand(shape, generator=generator, device="cuda") < 0.8).float() if ignoring else None
    masks = (torch.rand(shape, generator=generator, device="cuda") < 0.1).float() * (1 if counted is None else counted)
    upstream = torch.linspace(0.5, 2, len(logits), device="cuda")

    def computed(compute: Any, dtype: torch.dtype) -> list[Tensor]:
        leaf = logits.detach().clone().to(dtype).requires_grad_()
        result = compute(leaf, masks.to(dtype), loss, None if counted is None else counted.to(dtype))
        return [result.detach(), *torch.autograd.grad(result, leaf, upstream.to(result.dtype))]

    mine, again = (computed(fused_slice_losses, torch.float32) for _ in range(2))
    for one, other, expected in zip(mine, again, computed(slice_losses, torch.float64), strict=True):
        assert torch.equal(one, other), "two runs are equal bit for bit"
        assert (one.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


def losses(config: TrialConfig, data: PreparedData, **options: Any) -> list[float]:
    return [report.metrics["train_loss"] or 0.0 for report in epochs(config, data, max_epochs=EPOCHS, **options)]


TRAININGS = [
    {},
    {"norm": "instance", "loss": "bce_dice", "dice_over": "batch"},
    {"network": "residual", "loss": "focal"},
]


@pytest.mark.parametrize("values", TRAININGS, ids=str)
@pytest.mark.parametrize(("precision", "allowed"), [("float32", 1e-2), ("bfloat16", 5e-2)])
def test_a_training_equals_that_of_torchs_layers(
    values: dict[str, Any], precision: Any, allowed: float, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, config = PreparedData.open(prepared, "cuda"), SMALL.model_copy(update=values)
    wanted = losses(config, data, precision=precision)
    monkeypatch.setenv(VARIABLE, "triton")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(training|validation) continues")
        graphed = losses(config, data, precision=precision)
    monkeypatch.setattr(module, "WARM_UP", 10**9)
    eager = losses(config, data, precision=precision)
    assert graphed == pytest.approx(wanted, rel=allowed)
    assert eager == pytest.approx(wanted, rel=allowed)


def test_dropout_differs_at_each_replay(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "triton")
    data = PreparedData.open(prepared, "cuda")
    for dropout, different in ((0.5, True), (0.0, False)):
        trainer = Trainer(SMALL.model_copy(update={"dropout": dropout}), data, 1, 0, "float32")
        trainer.unet.train()
        same = tuple(torch.arange(7) for _ in range(9))
        computed = trainer.steps.run(same, [0.0] * 9, None, 1)  # nothing is learned at a rate of 0
        assert trainer.graphs.sizes("training") == [7]
        assert (len({round(loss, 5) for loss in computed[module.WARM_UP :]}) > 1) == different
