"""The U-Net: size and shapes of the baseline, variants, initial weights, and training."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmlsearch.config import TrialConfig
from wmlsearch.model.losses import slice_losses
from wmlsearch.model.unet import Dropout, UNet, pad_to_eight_channels


def parameters(unet: nn.Module) -> int:
    return sum(parameter.numel() for parameter in unet.parameters())


def test_the_papers_network_has_1943761_parameters() -> None:
    config = TrialConfig()
    assert parameters(UNet()) == 1_943_761
    assert parameters(UNet(config.depth, config.base_channels, config.dropout, config.norm)) == 1_943_761
    assert parameters(UNet(norm="instance")) == 1_943_761


def test_the_papers_shapes() -> None:
    unet = UNet().eval()
    output_shapes: dict[str, tuple[int, ...]] = {}
    levels = {f"down{level}": module for level, module in enumerate(unet.down)}
    for name, module in {**levels, "bottom": unet.bottom}.items():

        def note(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
            output_shapes[name] = tuple(output.shape)

        module.register_forward_hook(note)
    with torch.inference_mode():
        logits = unet(torch.rand(1, 1, 256, 256))
    assert output_shapes == {
        "down0": (1, 16, 256, 256),
        "down1": (1, 32, 128, 128),
        "down2": (1, 64, 64, 64),
        "down3": (1, 128, 32, 32),
        "bottom": (1, 256, 16, 16),
    }
    assert tuple(logits.shape) == (1, 1, 256, 256)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (31, 45), (4, 4), (7, 9)])
def test_output_size_equals_input_size(size: tuple[int, int]) -> None:
    unet = UNet(depth=2, base_channels=4).eval()
    with torch.inference_mode():
        assert tuple(unet(torch.rand(2, 1, *size)).shape) == (2, 1, *size)


def test_odd_sizes_are_padded_at_the_end_and_cropped() -> None:
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
    unet = UNet(depth, base, 0.1, norm)
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


def test_seed_determines_the_weights() -> None:
    def first(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return UNet(depth=1, base_channels=2).down[0][0].weight.clone()

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_the_defaults_of_a_network_are_those_of_the_older_versions() -> None:
    networks = []
    for config in (None, TrialConfig.from_record({}, "config.json")):
        torch.manual_seed(0)
        networks.append(UNet() if config is None else UNet.of(config))
    one, other = networks
    assert str(one) == str(other)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_glorot_changes_the_head_alone() -> None:
    states = {}
    for kind in ("he", "glorot"):
        torch.manual_seed(0)
        states[kind] = UNet.of(TrialConfig(head_init=kind)).state_dict()
    differing = [name for name, tensor in states["he"].items() if not torch.equal(tensor, states["glorot"][name])]
    assert differing == ["head.weight"]
    limit = math.sqrt(6 / (16 + 1))  # 16 channels in, one out
    assert 0.5 * limit < states["glorot"]["head.weight"].abs().max() <= limit


@pytest.mark.parametrize("size", [(32, 32), (31, 45)])
def test_transposed_convolutions_of_three_by_three(size: tuple[int, int]) -> None:
    unet = UNet(depth=2, base_channels=4, up_kernel=3).eval()
    with torch.inference_mode():
        assert tuple(unet(torch.rand(2, 1, *size)).shape) == (2, 1, *size)
    # 9 - 4 more weights for each pair of channels: 5 * (32 * 16 + 64 * 32 + 128 * 64 + 256 * 128)
    assert parameters(UNet(up_kernel=3)) == 1_943_761 + 217_600
    unet.load_state_dict(UNet(depth=2, base_channels=4, up_kernel=3).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for up"):
        unet.load_state_dict(UNet(depth=2, base_channels=4).state_dict())


@pytest.mark.parametrize("place", ["first", "last", "both"])
def test_the_place_of_dropout(place: str) -> None:
    unet = UNet(depth=1, base_channels=8, dropout=0.5, dropout_place=place)
    block, images = unet.down[0], torch.rand(2, 1, 16, 16)
    zeros = [(part(images) == 0).float().mean().item() for part in (block[:4], block)]
    # ReLU leaves about half of the normalised values, dropout half of those
    assert (zeros[0] > 0.65) == (place in ("first", "both"))
    assert (zeros[1] > 0.65) == (place in ("last", "both"))


@pytest.mark.parametrize("place", ["last", "both"])
def test_weights_fit_wherever_dropout_stands(place: str) -> None:
    first, other = UNet(2, 4).eval(), UNet(2, 4, dropout_place=place).eval()
    other.load_state_dict(first.state_dict())
    images = torch.rand(1, 1, 16, 16)
    assert torch.equal(first(images), other(images))


def test_momentum_and_epsilon_of_the_normalisation() -> None:
    batch = UNet.of(TrialConfig(depth=1, base_channels=2, norm_momentum=0.01, norm_epsilon=1e-3)).down[0][1]
    assert (batch.momentum, batch.eps) == (0.01, 1e-3)
    batch(torch.full((2, 2, 4, 4), 3.0))
    assert batch.running_mean.tolist() == pytest.approx([0.03, 0.03])  # 0.99 * 0 + 0.01 * 3
    instance = UNet.of(TrialConfig(depth=1, base_channels=2, norm="instance", norm_epsilon=1e-3)).down[0][1]
    assert (type(instance), instance.eps) == (nn.InstanceNorm2d, 1e-3)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_dropout_only_in_training(norm: str) -> None:
    unet = UNet(depth=1, base_channels=4, dropout=0.5, norm=norm)
    images = torch.rand(2, 1, 8, 8)
    assert not torch.equal(unet(images), unet(images))
    unet.eval()
    assert torch.equal(unet(images), unet(images))
    without = UNet(depth=1, base_channels=4, dropout=0.0, norm=norm)
    assert torch.equal(without(images), without(images))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_dropout_drops_its_share_and_scales_the_rest(kind: torch.dtype, order: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.ones(3, 16, 65, 33, dtype=kind).contiguous(memory_format=order).requires_grad_()  # no multiple of four
    dropped = Dropout(0.3)(x)
    assert (dropped.dtype, dropped.shape) == (kind, x.shape)
    assert dropped.is_contiguous(memory_format=order)
    assert dropped.unique().tolist() == [0, torch.ones((), dtype=kind).div(1 - 0.3).item()]
    dropped.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, dropped), "a gradient passes where its element did"
    away = (dropped == 0).double()
    error = 5 * math.sqrt(0.3 * 0.7 / (x.numel() / 4))
    in_memory = away.permute(0, 2, 3, 1).flatten() if order is torch.channels_last else away.flatten()
    for lane in range(4):  # a draw is shared out among four
        assert abs(in_memory[lane::4].mean().item() - 0.3) < error
        together = in_memory[lane::4][: x.numel() // 4] * in_memory[(lane + 1) % 4 :: 4][: x.numel() // 4]
        assert abs(together.mean().item() - 0.09) < error, "neighbours don't depend on each other"


def test_dropout_rates_near_one_and_zero() -> None:
    torch.manual_seed(0)
    x = torch.rand(5, 7)
    assert not Dropout(1 - 2**-20)(x).any()
    state = torch.get_rng_state()
    assert Dropout(0.0)(x) is x
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), state), "nothing was drawn"
    once, again = Dropout(0.5)(x), Dropout(0.5)(x)
    torch.set_rng_state(state)
    assert torch.equal(Dropout(0.5)(x), once)
    assert not torch.equal(once, again)


def test_dropout_stands_after_the_first_convolution_of_each_block() -> None:
    for block in [*(unet := UNet(depth=2)).down, unet.bottom, *unet.merge]:
        kinds = [type(module).__name__ for module in block]
        assert kinds == ["ConvBeforeNorm", "BatchNorm2d", "ReLU", "Dropout", "ConvBeforeNorm", "BatchNorm2d", "ReLU"]
        assert block[3].p == 0.1


def test_under_autocast_the_logits_stay_float32() -> None:
    unet = UNet(depth=1, base_channels=4).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        logits = unet(torch.rand(1, 1, 8, 8))
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())  # finer than bfloat16 could be


@pytest.mark.parametrize("loss", ["bce", "dice", "bce_dice", "focal", "tversky"])
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


def test_every_parameter_has_a_gradient_but_biases_before_a_normalisation() -> None:
    unet = UNet(depth=2, base_channels=4, dropout=0.0, norm="instance")
    unet(torch.rand(2, 1, 16, 16)).square().mean().backward()
    for name, parameter in unet.named_parameters():
        unused = name.startswith(("down.", "bottom.", "merge.")) and name.endswith((".0.bias", ".4.bias"))
        assert (parameter.grad is None) == unused == (not parameter.requires_grad), name


def with_biases(norm: str, monkeypatch: pytest.MonkeyPatch) -> UNet:
    """Return the same network with torch's convolutions, which add biases."""
    with monkeypatch.context() as patch:
        patch.setattr(
            "wmlsearch.model.unet.ConvBeforeNorm", lambda before, after: nn.Conv2d(before, after, 3, padding=1)
        )
        return UNet(depth=2, base_channels=4, dropout=0.0, norm=norm)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_network_without_biases_has_the_same_output(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    biased, images = with_biases(norm, monkeypatch), torch.rand(4, 1, 16, 16)
    for name, tensor in biased.named_parameters():
        if name.endswith(".bias"):
            nn.init.normal_(tensor)
    for _ in range(3):
        biased(torch.rand(4, 1, 16, 16))  # its running means come to hold the biases
    given = {name: tensor.clone() for name, tensor in biased.state_dict().items()}
    unet = UNet(depth=2, base_channels=4, dropout=0.0, norm=norm)
    unet.load_state_dict(given)
    assert all(torch.equal(given[name], tensor) for name, tensor in biased.state_dict().items()), "it is only read"
    state = unet.state_dict()
    assert list(state) == list(given)
    changed = {name for name, tensor in given.items() if not torch.equal(state[name], tensor)}
    unused = {name for name, parameter in unet.named_parameters() if not parameter.requires_grad}
    assert changed == unused | {name for name in given if name.endswith(".running_mean")}
    assert not any(state[name].any() for name in unused)
    for network in (biased, unet):  # on statistics that were kept, then on the batch's own
        network.eval()
    with torch.inference_mode():
        assert torch.allclose(unet(images), biased(images), rtol=1e-4, atol=1e-5)
        assert torch.allclose(unet.train()(images), biased.train()(images), rtol=1e-4, atol=1e-5)
    after, wanted = unet.state_dict(), biased.state_dict()
    for name in after:
        if name.endswith(".running_mean"):
            bias = wanted[name.replace("1.running_mean", "0.bias").replace("5.running_mean", "4.bias")]
            assert torch.allclose(after[name], wanted[name] - bias, rtol=1e-4, atol=1e-5), name
        if name.endswith(".running_var"):
            assert torch.allclose(after[name], wanted[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_all_other_gradients_are_those_of_a_network_with_biases(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    biased = with_biases(norm, monkeypatch).double()
    torch.manual_seed(0)
    unet = UNet(depth=2, base_channels=4, dropout=0.0, norm=norm).double()
    images = torch.rand(4, 1, 16, 16, dtype=torch.float64)
    for network in (biased, unet):
        # the head would make float32 of it
        network.head.register_forward_pre_hook(lambda _module, inputs: inputs[0].double())
        network(images).square().mean().backward()
    for (name, mine), (_, with_bias) in zip(unet.named_parameters(), biased.named_parameters(), strict=True):
        assert torch.equal(mine, with_bias), "the seed gives the same weights"
        assert with_bias.grad is not None
        wanted = torch.zeros_like(with_bias.grad) if mine.grad is None else mine.grad
        assert torch.allclose(with_bias.grad, wanted, atol=1e-7), name


def test_eight_channel_convolution_equals_single_channel_convolution() -> None:
    torch.manual_seed(0)
    images, weight = torch.rand(2, 1, 9, 7), torch.randn(4, 1, 3, 3, requires_grad=True)
    wide, padded = pad_to_eight_channels(images, weight)
    assert (wide.shape, padded.shape) == ((2, 8, 9, 7), (4, 8, 3, 3))
    assert wide.is_contiguous(memory_format=torch.channels_last)
    computed, wanted = (F.conv2d(*pair, padding=1) for pair in ((wide, padded), (images, weight)))
    assert torch.allclose(computed, wanted, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(result.square().sum(), weight)[0] for result in (computed, wanted)]
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-4)


# ------------------------------------------------------------------------------------------------- residual network


def residual(**values: Any) -> UNet:
    torch.manual_seed(0)
    return UNet.of(TrialConfig(depth=2, base_channels=4, network="residual", **values))


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("place", ["first", "last", "both"])
def test_a_residual_block_adds_its_input_before_the_last_relu(norm: Any, place: Any) -> None:
    block = residual(norm=norm, dropout=0.3, dropout_place=place).down[1].eval()
    x = torch.randn(2, 4, 8, 8)
    first, norm1, _, _, second, norm2 = block.convolutions
    shortcut, norm3 = block.shortcut
    inner = norm2(F.conv2d(norm1(F.conv2d(x, first.weight, padding=1)).relu(), second.weight, padding=1))
    wanted = (inner + norm3(F.conv2d(x, shortcut.weight))).relu()
    assert torch.allclose(block(x), wanted, atol=1e-6)


def test_a_residual_network_has_a_shortcut_in_each_block_and_learns() -> None:
    unet, paper = residual(), UNet(2, 4)
    widths = ((1, 4), (4, 8), (8, 16), (16, 8), (8, 4))  # each with a 1x1 convolution and the 4 numbers of a channel's
    more = sum(out * before + out + 2 * out for before, out in widths)  # weight, unused bias, scale and shift
    assert sum(p.numel() for p in unet.parameters()) - sum(p.numel() for p in paper.parameters()) == more
    images = torch.rand(4, 1, 19, 22)
    masks = (images > 0.7).float()
    optimizer = torch.optim.SGD(unet.parameters(), lr=0.01)
    before = slice_losses(unet(images), masks, "bce").mean()
    before.backward()
    assert all(p.grad is not None and p.grad.any() for p in unet.parameters() if p.requires_grad)
    optimizer.step()
    assert slice_losses(unet(images), masks, "bce").mean() < before


def test_weights_of_a_residual_network_fit_no_other() -> None:
    with pytest.raises(RuntimeError, match="Unexpected key"):
        UNet(2, 4).load_state_dict(residual().state_dict())
