"""The Triton kernels in Triton's interpreter, which runs them on a CPU. `test_kernels.py` runs this file in a process
of its own, since the interpreter is chosen before Triton is imported: TRITON_INTERPRET=1."""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from reference_kernels import dropout_multipliers, normalise_eagerly
from torch import Tensor, nn

from wmlsearch.model import kernels
from wmlsearch.model.bulk_cast import BulkCastUNet
from wmlsearch.model.kernels import AfterConvolution, normalise, use_triton
from wmlsearch.model.unet import Layers, UNet

assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1"
torch.set_num_threads(1)

Shape = tuple[int, int, int, int]
SEED, STREAM = 2**62 + 12345, 7
SHAPES: list[Shape] = [(1, 1, 2, 3), (2, 3, 5, 7), (1, 16, 33, 9), (3, 48, 8, 11), (1, 130, 4, 5), (2, 8, 1, 1)]
LAYERS = [
    AfterConvolution(relu=False),
    AfterConvolution(momentum=0.01, epsilon=1e-3),
    AfterConvolution(dropout=0.3),
    AfterConvolution(dropout=0.3, per_image=True),
]
NAMES = ["norm", "ReLU", "dropout", "instance"]


@triton.jit
def write_last(to, count):
    """Write the last number of a loop."""
    for number in range(0, count):
        tl.store(to, number)


@pytest.fixture(scope="module", autouse=True)
def interpreter() -> None:
    """Skip where Triton's interpreter cannot run a loop: that of Triton 3.6 cannot with NumPy 2.4 or newer."""
    try:
        write_last[(1,)](torch.zeros(1, dtype=torch.int32), 3)
    except Exception as error:
        if "only 0-dimensional arrays" not in str(error):
            raise
        pytest.skip(f"Triton {triton.__version__} has no interpreter for this NumPy")


def inputs(shape: Shape, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return input, weight, bias and the gradient of the result: means that differ, small and large deviations."""
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1]
    deviations = 10 ** torch.linspace(-1, 1, channels).view(-1, 1, 1)
    x = torch.randn(shape, generator=generator) * deviations + torch.randn(channels, 1, 1, generator=generator)
    weight, bias = torch.rand(channels, generator=generator) + 0.5, torch.randn(channels, generator=generator)
    gradient = torch.randn(shape, generator=generator)
    x, gradient = (tensor.to(dtype, memory_format=torch.channels_last) for tensor in (x, gradient))
    return x, weight, bias, gradient


def computed(
    given: tuple[Tensor, Tensor, Tensor, Tensor], after: AfterConvolution, eager: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Return result, gradients and running statistics: by the kernels, or by torch's layers in a type."""
    x, weight, bias, gradient = (tensor.detach().clone() for tensor in given)
    running = torch.linspace(-1, 1, x.shape[1]), torch.linspace(1, 2, x.shape[1])
    if eager is not None:
        x, weight, bias, gradient = (tensor.to(eager) for tensor in (x, weight, bias, gradient))
        running = running[0].to(eager), running[1].to(eager)
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    statistics = (None, None) if after.per_image else running
    if eager is None:
        result = normalise(x, weight, bias, after, torch.tensor([SEED]), STREAM, *statistics)
    else:
        multipliers = dropout_multipliers(shape_of(x), after, SEED, STREAM).to(eager) if after.dropout else None
        result = normalise_eagerly(x, weight, bias, after, multipliers, *statistics)
    result.backward(gradient)
    gradients = {"x": x.grad, "weight": weight.grad, "bias": bias.grad}
    named = {"result": result.detach(), "running mean": running[0], "running variance": running[1]}
    return named | {name: tensor for name, tensor in gradients.items() if tensor is not None}


def shape_of(x: Tensor) -> Shape:
    images, channels, height, width = x.shape
    return images, channels, height, width


def distance(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, as a part of the largest value."""
    return ((one.double() - other.double()).abs().max() / other.double().abs().max().clamp(min=1e-30)).item()


def usable(shape: Shape, after: AfterConvolution) -> bool:
    return shape[2] * shape[3] > 1 or not after.per_image


@pytest.mark.parametrize("after", LAYERS, ids=NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_equals_float64(shape: Shape, after: AfterConvolution) -> None:
    if not usable(shape, after):
        with pytest.raises(ValueError, match="more than one value per channel"):
            computed(inputs(shape), after)
        return
    given = inputs(shape)
    mine, wanted = computed(given, after), computed(given, after, torch.float64)
    for name, expected in wanted.items():
        # As torch's layers in float32: a mean that is rounded counts for more where the deviation is smaller.
        assert distance(mine[name], expected) < (5e-6 if name in ("x", "weight") else 1e-6), name
        assert mine[name].dtype == torch.float32, name
    assert mine["result"].is_contiguous(memory_format=torch.channels_last)
    assert mine["x"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("after", LAYERS[2:], ids=NAMES[2:])
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[4]], ids=str)
def test_bfloat16_differs_from_float32_in_the_last_conversion_only(shape: Shape, after: AfterConvolution) -> None:
    """The interpreter cuts bits off; on a GPU the conversion rounds to nearest (`compiled_kernels.py`)."""
    x, weight, bias, gradient = inputs(shape, torch.bfloat16)
    mine = computed((x, weight, bias, gradient), after)
    exact = computed((x.float(), weight, bias, gradient.float()), after)
    for name, expected in exact.items():
        if name in ("result", "x"):
            expected = (expected.view(torch.int32) & -(2**16)).view(torch.float32).bfloat16()
        assert mine[name].dtype == expected.dtype, name
        assert torch.equal(mine[name], expected), name


def test_programs_that_read_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large activations have the most parts that are allowed, each of several blocks, the last one shorter."""
    given, after = inputs((2, 48, 23, 19)), LAYERS[2]
    wanted = computed(given, after, torch.float64)
    before = computed(given, after)
    monkeypatch.setattr(kernels, "MAX_PARTS", 3)
    mine = computed(given, after)
    for name, expected in wanted.items():
        assert distance(mine[name], expected) < 5e-6, name
    assert torch.equal(mine["result"] == 0, before["result"] == 0), "the mask does not depend on the parts"


def test_a_mean_far_above_the_deviation() -> None:
    x, weight, bias, gradient = inputs((2, 3, 17, 16))
    given = (x / x.std((0, 2, 3), keepdim=True) + 1000, weight, bias, gradient)
    mine, wanted = computed(given, LAYERS[0]), computed(given, LAYERS[0], torch.float64)
    assert distance(mine["running variance"], wanted["running variance"]) < 1e-6
    assert distance(mine["result"], wanted["result"]) < 1e-4  # float32 has steps of 6e-5 at 1000


def test_same_input_same_bits() -> None:
    given = inputs((3, 48, 8, 11), torch.bfloat16)
    one, other = computed(given, LAYERS[2]), computed(given, LAYERS[2])
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dropout", [0.1, 0.999])
def test_dropout_rate_and_mask(dropout: float) -> None:
    shape = (2, 40, 16, 16)
    after = AfterConvolution(relu=False, dropout=dropout)
    x, weight, bias, gradient = inputs(shape)
    weight, bias, gradient = torch.zeros_like(weight), torch.ones_like(bias).requires_grad_(), torch.ones_like(gradient)
    result = normalise(x, weight, bias, after, torch.tensor([SEED]), STREAM)  # the multipliers, since weight is 0
    assert torch.equal(result.double(), dropout_multipliers(shape, after, SEED, STREAM).float().double())
    result.backward(gradient)
    assert bias.grad is not None
    assert torch.allclose(bias.grad, result.detach().sum((0, 2, 3)), rtol=1e-6), "the mask backward is that forward"
    dropped, count = (result == 0).double().mean().item(), result.numel()
    assert abs(dropped - dropout) < 4 * (dropout * (1 - dropout) / count) ** 0.5
    kept = result[result != 0]
    assert torch.equal(kept, torch.full_like(kept, 1 / (1 - dropout)))


def test_masks_are_independent() -> None:
    """Of another stream, another seed, and at neighbouring pixels and channels."""
    shape, after = (2, 40, 16, 16), AfterConvolution(dropout=0.5)
    one = dropout_multipliers(shape, after, SEED, STREAM) > 0
    others = [
        dropout_multipliers(shape, after, SEED, STREAM + 1) > 0,
        dropout_multipliers(shape, after, SEED + 1, STREAM) > 0,
        dropout_multipliers(shape, after, SEED + 2**32, STREAM) > 0,
        *(one.roll(1, dimension) for dimension in range(4)),
    ]
    for other in others:
        assert abs((one == other).double().mean().item() - 0.5) < 4 * 0.5 / one.numel() ** 0.5


def test_philox_equals_the_published_answer() -> None:
    """The known answers of Random123 (kat_vectors) for philox4x32 with 7 rounds, of counter and key 0."""
    after = AfterConvolution(dropout=0.5)
    words = (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    kept = dropout_multipliers((1, 8, 1, 1), after, 0, 0).flatten() > 0
    assert kept.tolist() == [half >= 2**15 for half in halves]


def test_without_dropout_the_seed_counts_for_nothing() -> None:
    x, weight, bias, _ = inputs((2, 3, 5, 7))
    results = [normalise(x, weight, bias, LAYERS[1], torch.tensor([seed]), seed) for seed in (0, 5)]
    assert torch.equal(*results)


def test_nan_stays_nan() -> None:
    """Training ends when the loss is not finite, so no layer may hide it."""
    x, weight, bias, gradient = inputs((2, 3, 5, 7))
    x[0, 1, 2, 3] = float("nan")
    mine = computed((x, weight, bias, gradient), LAYERS[1])
    for name in ("result", "x"):
        assert mine[name][:, 1].isnan().all(), name
        assert mine[name][:, [0, 2]].isfinite().all(), name


def test_other_types_are_refused() -> None:
    x, weight, bias, _ = inputs((2, 3, 5, 7))
    with pytest.raises(TypeError, match=r"^x must be float32 or bfloat16, but got torch\.float64$"):
        normalise(x.double(), weight, bias, LAYERS[0], torch.tensor([0]))


def test_gradients_in_another_memory_format() -> None:
    x, weight, bias, gradient = inputs((2, 3, 5, 7))
    one = computed((x, weight, bias, gradient), LAYERS[1])
    other = computed((x.contiguous(), weight, bias, gradient.contiguous()), LAYERS[1])
    wide = torch.cat([gradient, gradient], 1)[:, 3:]  # as the backward pass of a concatenation returns
    third = computed((x, weight, bias, wide), LAYERS[1])
    assert all(torch.equal(one[name], other[name]) and torch.equal(one[name], third[name]) for name in one)


# ------------------------------------------------------------------------------------------------- the whole network


def network(fused: bool, **changes: Any) -> UNet:
    torch.manual_seed(0)
    made = UNet(**{"depth": 1, "base_channels": 4, "dropout": 0.0, **changes}).to(memory_format=torch.channels_last)
    if fused:
        use_triton(made)
    return made


def train_step(unet: UNet, bfloat16: bool = False) -> tuple[Tensor, list[Tensor | None]]:
    """Return logits and gradients for two images."""
    images = torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        logits = (BulkCastUNet(unet) if bfloat16 else unet)(images)
    logits.square().mean().backward()
    return logits.detach(), [parameter.grad for parameter in unet.parameters()]


NETWORKS = [
    {},
    {"norm": "instance"},
    {"network": "residual", "norm_momentum": 0.01, "norm_epsilon": 1e-3},
]


@pytest.mark.parametrize("changes", NETWORKS, ids=["batch", "instance", "residual"])
def test_a_network_equals_torchs_layers(changes: dict[str, Any]) -> None:
    one, other = network(True, **changes), network(False, **changes)
    (logits, gradients), (wanted, wanted_gradients) = train_step(one), train_step(other)
    assert distance(logits, wanted) < 1e-5
    for (name, _), mine, expected in zip(one.named_parameters(), gradients, wanted_gradients, strict=True):
        assert (mine is None) == (expected is None), name
        if mine is not None and expected is not None:
            assert torch.allclose(mine, expected, rtol=1e-4, atol=1e-6), name
    for name, buffer in one.named_buffers():
        assert torch.allclose(buffer, other.get_buffer(name), rtol=1e-5), name
    assert one.state_dict().keys() == other.state_dict().keys()


def test_a_network_in_bfloat16() -> None:
    (logits, gradients), (wanted, _) = train_step(network(True), True), train_step(network(False))
    assert distance(logits, wanted) < 5e-2
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("place", ["first", "last", "both"])
def test_dropout_of_a_network(place: str) -> None:
    """Each layer and each step has a mask of its own, and PyTorch's seed decides them all."""
    unet = network(True, dropout=0.5, dropout_place=place)
    masks: list[tuple[int, int]] = []

    def noted(
        x: Tensor, weight: Tensor, bias: Tensor, after: AfterConvolution, seed: Tensor, stream: int, *rest: Any
    ) -> Tensor:
        if after.dropout:
            masks.append((int(seed), stream))
        return normalise(x, weight, bias, after, seed, stream, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "normalise", noted)
        torch.manual_seed(1)
        first, second = train_step(unet)[0], train_step(unet)[0]
        torch.manual_seed(1)
        again = train_step(unet)[0]
    each_step = 3 * (2 if place == "both" else 1)
    assert len(masks) == 3 * each_step
    steps = [masks[start : start + each_step] for start in range(0, len(masks), each_step)]
    assert steps[0] == steps[2]
    assert len({*steps[0], *steps[1]}) == 2 * each_step
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_validation_runs_torchs_layers() -> None:
    one, other = network(True, dropout=0.5), network(False, dropout=0.5)
    images = torch.rand(2, 1, 8, 12)
    before = torch.random.get_rng_state()
    assert torch.equal(one.eval()(images), other.eval()(images))
    assert torch.equal(torch.random.get_rng_state(), before), "no seed is drawn"


def test_other_layers_run_by_themselves() -> None:
    layers = Layers(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.BatchNorm2d(4), nn.ReLU())
    images = torch.rand(2, 1, 8, 12)
    wanted = layers(images)
    use_triton(layers)
    assert torch.allclose(layers(images), wanted, atol=1e-5)
    assert [int(norm.num_batches_tracked) for norm in itertools.islice(layers, 1, 4, 2)] == [2, 2]
