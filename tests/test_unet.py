"""The U-Net: the paper's size and shapes, its variants, its first weights, and that it learns."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from wmlsearch.config import TrialConfig
from wmlsearch.model.metrics import slice_losses
from wmlsearch.model.unet import UNet


def parameters(unet: nn.Module) -> int:
    return sum(parameter.numel() for parameter in unet.parameters())


def test_the_papers_network_has_1943761_parameters() -> None:
    config = TrialConfig()
    assert parameters(UNet()) == 1_943_761
    assert parameters(UNet(config.depth, config.base_channels, config.dropout, config.norm)) == 1_943_761
    assert parameters(UNet(norm="instance")) == 1_943_761


def test_the_papers_shapes() -> None:
    unet = UNet().eval()
    seen: dict[str, tuple[int, ...]] = {}
    levels = {f"down{level}": module for level, module in enumerate(unet.down)}
    for name, module in {**levels, "bottom": unet.bottom}.items():

        def note(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
            seen[name] = tuple(output.shape)

        module.register_forward_hook(note)
    with torch.inference_mode():
        logits = unet(torch.rand(1, 1, 256, 256))
    assert seen == {
        "down0": (1, 16, 256, 256),
        "down1": (1, 32, 128, 128),
        "down2": (1, 64, 64, 64),
        "down3": (1, 128, 32, 32),
        "bottom": (1, 256, 16, 16),
    }
    assert tuple(logits.shape) == (1, 1, 256, 256)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (31, 45), (4, 4), (7, 9)])
def test_any_size_comes_back(size: tuple[int, int]) -> None:
    unet = UNet(depth=2, base_channels=4).eval()
    with torch.inference_mode():
        assert tuple(unet(torch.rand(2, 1, *size)).shape) == (2, 1, *size)


def test_odd_sizes_are_padded_at_the_end_and_cut_back() -> None:
    unet = UNet(depth=2, base_channels=4).eval()
    images = torch.rand(1, 1, 9, 11)
    padded = torch.zeros(1, 1, 12, 12)
    padded[..., :9, :11] = images
    with torch.inference_mode():
        assert torch.equal(unet(images), unet(padded)[..., :9, :11])


@pytest.mark.parametrize(
    ("depth", "base", "norm"), [*itertools.product((1, 2, 3), (2, 6), ("batch", "instance")), (5, 2, "batch")]
)
def test_variants(depth: int, base: int, norm: str) -> None:
    unet = UNet(depth, base, 0.1, norm)  # type: ignore[arg-type]
    assert len(unet.down) == len(unet.up) == len(unet.merge) == depth
    size = 2 ** (depth + 1)
    assert tuple(unet(torch.rand(2, 1, size, size)).shape) == (2, 1, size, size)
    kinds = {type(module) for module in unet.modules()}
    assert (nn.BatchNorm2d in kinds, nn.InstanceNorm2d in kinds) == (norm == "batch", norm == "instance")
    # per level: two convolutions with two normalisations, down and up; a transposed convolution; the head
    widths = [base * 2**level for level in range(depth + 1)]

    def block(a: int, b: int) -> int:
        return 9 * a * b + b + 9 * b * b + b + 4 * b

    wanted = sum(block(a, b) for a, b in zip([1, *widths], widths, strict=False))
    wanted += sum(4 * b * a + a + block(b, a) for a, b in itertools.pairwise(widths)) + base + 1
    assert parameters(unet) == wanted


def test_he_initialisation() -> None:
    torch.manual_seed(0)
    unet = UNet()
    for name, module in unet.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            assert module.bias is not None
            assert not module.bias.any(), name
            if module.weight.numel() < 2000:  # too few to tell
                continue
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05), name
            assert abs(module.weight.mean().item()) < 0.1 * math.sqrt(2 / fan_in), name


def test_the_seed_gives_the_weights() -> None:
    def first(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return UNet(depth=1, base_channels=2).down[0][0].weight.clone()

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_dropout_only_in_training(norm: str) -> None:
    unet = UNet(depth=1, base_channels=4, dropout=0.5, norm=norm)  # type: ignore[arg-type]
    images = torch.rand(2, 1, 8, 8)
    assert not torch.equal(unet(images), unet(images))
    unet.eval()
    assert torch.equal(unet(images), unet(images))
    without = UNet(depth=1, base_channels=4, dropout=0.0, norm=norm)  # type: ignore[arg-type]
    assert torch.equal(without(images), without(images))


def test_dropout_stands_after_the_first_convolution_of_each_block() -> None:
    for block in [*(unet := UNet(depth=2)).down, unet.bottom, *unet.merge]:
        kinds = [type(module).__name__ for module in block]
        assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "Dropout", "Conv2d", "BatchNorm2d", "ReLU"]
        assert block[3].p == 0.1


def test_under_autocast_the_logits_stay_float32() -> None:
    unet = UNet(depth=1, base_channels=4).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        logits = unet(torch.rand(1, 1, 8, 8))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())  # finer than bfloat16 could be


@pytest.mark.parametrize("loss", ["bce", "dice", "bce_dice"])
def test_one_step_lowers_the_loss(loss: str) -> None:
    torch.manual_seed(0)
    unet = UNet(depth=2, base_channels=4, dropout=0.0)
    images = torch.rand(4, 1, 16, 16)
    masks = (images > 0.7).float()
    optimizer = torch.optim.SGD(unet.parameters(), lr=0.01)
    before = slice_losses(unet(images), masks, loss).mean()
    before.backward()
    optimizer.step()
    assert slice_losses(unet(images), masks, loss).mean() < before


def test_every_parameter_has_a_gradient() -> None:
    unet = UNet(depth=2, base_channels=4, dropout=0.0, norm="instance")
    unet(torch.rand(2, 1, 16, 16)).square().mean().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None, name
