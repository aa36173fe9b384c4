"""The predicted peak memory of a training: counted from shapes, or measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wmlsearch.config import TrialConfig
from wmlsearch.data.augmentation import Augmentation, Kind
from wmlsearch.data.slices import PreparedData, batches
from wmlsearch.model.losses import Loss, slice_losses
from wmlsearch.model.memory import (
    MemoryEstimate,
    count_cuda_graphs,
    estimate_memory,
    largest_step,
    measure_memory,
)
from wmlsearch.model.torch_patches import LiveTensorBytes
from wmlsearch.model.unet import UNet

TINY = TrialConfig(depth=1, base_channels=1, dropout=0.0)
GPU = torch.device("cuda", 0)
BIG, SMALL = {"base_channels": 512}, {"depth": 2, "base_channels": 4, "batch_size": 4}


def test_count_of_a_tiny_network_has_a_closed_form() -> None:
    """One level, one channel, float32: bytes for each pixel, tensor by tensor."""
    image_and_padded, mask, logits = 4 + 4, 4, 4
    block = 4 * 4  # two convolutions, each with what normalisation makes of it
    pooled = (4 + 8) / 4  # with the places of the maxima
    bottom = 2 * block / 4  # twice the channels, a quarter of the pixels
    joined = 2 * 4  # the skip and what came from below
    held = image_and_padded + mask + block + pooled + bottom + joined + block + logits
    size = 32
    estimate = estimate_memory(TINY, size, bfloat16=False, val_images=1)
    # At the beginning of the backward pass gradients as big as the biggest tensor come; a loss is a number an image.
    assert estimate.image_bytes == pytest.approx((held + joined) * size**2, abs=16)
    # Where pixels are ignored, the labels are held beside the masks, and which pixels count.
    with_ignored = estimate_memory(TINY, size, bfloat16=False, val_images=1, has_ignored=True)
    assert with_ignored.image_bytes - estimate.image_bytes == pytest.approx((4 + 4) * size**2, abs=16)
    parameters = sum(tensor.numel() for tensor in UNet(1, 1, 0.0).parameters())
    buffers = sum(tensor.nbytes for tensor in UNet(1, 1, 0.0).buffers())
    statistics = 2 * 4 * (2 + 4 + 2)  # mean and spread of each channel of six normalisations
    assert estimate.fixed_bytes == pytest.approx(4 * 4 * parameters + buffers + statistics, abs=16)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"norm": "instance", "loss": "bce_dice", "up_kernel": 3},
        {"dropout": 0.0, "depth": 2},
        {"dropout_place": "both"},
        {"network": "residual", "loss": "focal"},
        {"loss": "tversky", "dice_over": "batch"},
        {"input_slices": 5},
    ],
    ids=["paper", "other", "flat", "dropout", "residual", "batch", "slices"],
)
@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
def test_count_equals_the_tensors_that_autograd_saves(values: dict[str, Any], bfloat16: bool) -> None:
    """Compare with a real step on this CPU, measured by PyTorch's saved-tensor hooks."""
    config, size, images = TrialConfig(**{"base_channels": 4, "depth": 3, **values}), 64, 3
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    unet = UNet.of(config)
    inputs, masks = torch.rand(images, config.input_slices, size, size), torch.ones(images, 1, size, size)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            logits = unet(inputs)
        losses = slice_losses(logits, masks, Loss.of(config))
    excluded = {tensor.untyped_storage().data_ptr() for tensor in unet.parameters()}
    kept = sum(tensor.untyped_storage().nbytes() for pointer, tensor in saved.items() if pointer not in excluded)
    estimate = estimate_memory(config, size, bfloat16, val_images=1)
    biggest = max(tensor.untyped_storage().nbytes() for pointer, tensor in saved.items() if pointer not in excluded)
    parameters = sum(tensor.nbytes for tensor in unet.parameters())
    state = (
        sum(tensor.nbytes for tensor in unet.state_dict().values()) + 3 * parameters
    )  # gradients, two averages of Adam
    expected = state + kept + biggest + inputs.nbytes  # the images before they are padded are held by the step itself
    assert estimate.bytes(images) == pytest.approx(expected, rel=0.02)
    assert len(losses) == images


@pytest.mark.parametrize("images", [1, 6])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("kind", ["flip", "affine", "light", "strong"])
def test_augmentation_is_counted_where_it_needs_more_than_the_network(kind: Kind, channels: int, images: int) -> None:
    """It has ended when the network begins. Compared with a real one."""
    drawn = Augmentation.draw(kind, images, torch.Generator())
    with LiveTensorBytes() as live:
        drawn.apply(torch.zeros(images, channels, 64, 64), torch.zeros(images, 1, 64, 64))
    of = {**TINY.model_dump(), "input_slices": channels}
    network = estimate_memory(TrialConfig(**of), 64, bfloat16=False, val_images=1)
    step = estimate_memory(TrialConfig(**{**of, "augment": kind}), 64, bfloat16=False, val_images=1)
    wanted = max(live.peak, images * network.image_bytes)
    weights = network.fixed_bytes
    assert wanted <= step.fixed_bytes - weights + images * step.image_bytes + 1000 <= 1.2 * wanted
    assert step.image_bytes > network.image_bytes or live.peak <= images * network.image_bytes
    large = {"augment": kind, "input_slices": channels}
    assert estimate_memory(TrialConfig(**large), 64, False, 1).image_bytes == (
        estimate_memory(TrialConfig(input_slices=channels), 64, False, 1).image_bytes
    ), "in the paper's network nothing changes"


def test_memory_grows_linearly_with_images() -> None:
    """The memory of a real step of five images follows linearly from steps of one and two images."""
    unet = UNet(2, 4, 0.5)
    excluded = list(unet.state_dict().values())
    inputs, masks = torch.rand(5, 1, 32, 32), torch.ones(5, 1, 32, 32)
    with LiveTensorBytes(excluded) as held:
        padded = inputs.clone()
        losses = slice_losses(unet(padded), masks.clone(), "bce")
    config = TrialConfig(depth=2, base_channels=4, dropout=0.5)
    estimate = estimate_memory(config, 32, bfloat16=False, val_images=1)
    assert estimate.bytes(5) - estimate.bytes(3) == 2 * estimate.image_bytes
    assert 5 * estimate.image_bytes == pytest.approx(held.now + 5 * held.largest_per_image, rel=0.01)
    assert losses.requires_grad
    del losses
    assert held.now < 0.1 * 5 * estimate.image_bytes  # what nobody has any more is held no more


def test_the_count_depends_on_the_configuration() -> None:
    def of(bfloat16: bool = False, world: int = 1, val_images: int = 16, **values: Any) -> MemoryEstimate:
        return estimate_memory(TrialConfig(**values), 64, bfloat16, val_images, world)

    weights = 4 * 1_943_761  # the paper's
    paper = of()
    assert paper.fixed_bytes == pytest.approx(4 * weights, rel=0.01)  # with gradients and two averages
    assert paper.fixed_bytes - of(optimizer="sgd").fixed_bytes == weights
    assert of(world=2).fixed_bytes - paper.fixed_bytes == weights  # what is sent to the other ranks
    assert of(ema=0.99).fixed_bytes - paper.fixed_bytes == pytest.approx(weights, rel=0.01)  # the average
    assert of(ema=0.99) == of(ema=0.5)
    assert of(network="residual").image_bytes > 1.1 * paper.image_bytes  # a map in each block
    assert of(bfloat16=True).fixed_bytes - paper.fixed_bytes == pytest.approx(weights / 2, rel=0.01)
    assert of(bfloat16=True).image_bytes == pytest.approx(0.55 * paper.image_bytes, rel=0.05)
    assert of(dropout=0.0).image_bytes < 0.8 * paper.image_bytes
    assert estimate_memory(TrialConfig(), 128, False, 1).image_bytes == pytest.approx(4 * paper.image_bytes, rel=0.01)
    # 16 images to validate are more than one to train on; a single one is not.
    assert paper.bytes(1) == paper.fixed_bytes + paper.validation_bytes > paper.fixed_bytes + paper.image_bytes
    assert of(val_images=1).bytes(1) == paper.fixed_bytes + paper.image_bytes
    assert of(**{**BIG, "depth": 5}).bytes(1) > 100e9  # and nothing was allocated


def test_graphs_keep_their_memory() -> None:
    """Beside that of training the first validation runs; beside that of all graphs a batch size warms up."""
    weights, image, validation = 10, 100, 650
    of = MemoryEstimate(4 * weights, weights, image, validation)
    assert of.bytes(5) == 40 + 650  # without graphs what a step held is free for validation
    assert of.bytes(7) == 40 + 700
    assert of.bytes(5, graphs=1) == 40 + 500 + 650
    assert of.bytes(5, graphs=2) == 40 + 650 + (10 + 500)
    assert of.bytes(7, graphs=2) == 40 + 700 + (10 + 700)
    assert MemoryEstimate(40, 10, 100, 0).bytes(7, graphs=1) == 40 + 700 + 10  # gradients of the warm-up


@pytest.mark.parametrize("slices", [1, 5, 22, 43, 100])
@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_one_graph_for_each_batch_size(slices: int, batch_size: int) -> None:
    sizes = {len(batch) for batch in batches(slices, batch_size, torch.Generator())}
    config = TrialConfig(batch_size=batch_size)
    assert count_cuda_graphs(config, slices, GPU, several=False) == len(sizes)
    assert (
        count_cuda_graphs(config, slices, GPU, several=True)
        == count_cuda_graphs(config, slices, torch.device("cpu"), False)
        == 0
    )


@pytest.mark.parametrize("slices", [1, 5, 22, 43, 100])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 16, 64])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_images_in_the_largest_step(slices: int, batch_size: int, world: int) -> None:
    dealt = batches(slices, batch_size, torch.Generator())
    largest = max(len(batch[rank::world]) for batch in dealt for rank in range(world))
    assert largest_step(TrialConfig(batch_size=batch_size), slices, world) == largest


def test_the_measurement_uses_the_real_trainer(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fake GPU counters on a CPU: a first step, then steps of one and two images, then validation."""
    peaks = iter([500, 400, 650, 700])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 100)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: next(peaks))
    batch_sizes: list[int] = []
    forward = UNet.forward

    def looked_at(self: UNet, images: Tensor) -> Tensor:
        batch_sizes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(UNet, "forward", looked_at)
    data, config = PreparedData.open(prepared), TrialConfig(**SMALL)
    estimate = measure_memory(config, data, "float32")
    gradients = 4 * sum(tensor.numel() for tensor in UNet(config.depth, config.base_channels).parameters())
    assert estimate == MemoryEstimate(300 - 250, gradients, 250, 600 - (300 - 250))
    assert batch_sizes == [1, 1, 2, min(16, len(data.val))]
    assert (
        measure_memory(config.model_copy(update={"learning_rate": 0.5, "batch_size": 9}), data, "float32") is estimate
    )
