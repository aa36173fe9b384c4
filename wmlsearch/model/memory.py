"""The predicted peak memory of a training, before it runs: counted from shapes, and on a GPU measured.

The count covers the tensors that a training step holds when its backward pass begins, or during augmentation, which has
ended before the network begins: that takes more only beside a small network, or with neighbouring slices. The count
uses fake tensors, which have shapes and no memory, so a configuration that would need a terabyte can be counted too.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from wmlsearch.config import TrialConfig
from wmlsearch.data.augmentation import Augmentation, Kind
from wmlsearch.data.slices import PreparedData, batches
from wmlsearch.model.losses import Loss, slice_losses
from wmlsearch.model.optimizers import OPTIMIZER_STATE
from wmlsearch.model.precision import Precision, uses_bfloat16
from wmlsearch.model.process_memory import bytes_in_use
from wmlsearch.model.ranks import in_process_group
from wmlsearch.model.throughput import frozen
from wmlsearch.model.torch_patches import FakeTensorMode, LiveTensorBytes
from wmlsearch.model.training import Trainer
from wmlsearch.model.unet import UNet
from wmlsearch.model.validation import validation_batch_size

# GPU memory of a process outside PyTorch's reservation: CUDA context, the code of cuDNN and cuBLAS, and graphs.
CUDA_CONTEXT_BYTES = 800 * 2**20
# Memory of a process for its tensors, as (constant bytes, bytes for each byte of tensors): see benchmarks/peak.py. On
# CPUs libraries work on copies, and freed memory stays fragmented; on GPUs PyTorch reserves at least 20 MiB at a time.
PROCESS_OVERHEAD = {"cpu": (200 * 2**20, 1.5), "cuda": (64 * 2**20, 1.1)}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of tensors that a training holds at its peak, without the data, which are in memory before it starts."""

    fixed_bytes: int  # for any batch size: weights, their average, their gradients, the optimiser's state
    gradient_bytes: int  # the gradients alone
    image_bytes: int  # for each image of a step (of one rank)
    validation_bytes: int  # in validation, which holds less for an image than training does, but has larger batches

    def bytes(self, images: int, graphs: int = 0) -> int:
        """Return the bytes with `images` in a step and `graphs` CUDA graphs of training, one for each batch size.

        Graphs share memory that nothing else can use between replays. Beside that of training the first validation
        runs. The graphs of validation then share it. Beside it the other batch size may still warm up, with gradients
        of its own.
        """
        step = images * self.image_bytes
        largest = max(step, self.validation_bytes)
        if not graphs:
            return self.fixed_bytes + largest
        warm_up = self.gradient_bytes + (step if graphs > 1 else 0)
        return self.fixed_bytes + max(step + self.validation_bytes, largest + warm_up)


def largest_step(config: TrialConfig, slices: int, world: int = 1) -> int:
    """Return the number of images in the largest part of a batch that one of `world` ranks gets."""
    largest_batch = math.ceil(slices / math.ceil(slices / config.batch_size))
    return math.ceil(largest_batch / world)


def count_cuda_graphs(config: TrialConfig, slices: int, device: torch.device, several: bool) -> int:
    """Return how many CUDA graphs a training has: one for each batch size on a GPU, none with `several` ranks."""
    if device.type != "cuda" or several:
        return 0
    return 2 if slices % math.ceil(slices / config.batch_size) else 1


def add_process_overhead(tensor_bytes: int, device: torch.device) -> int:
    """Return the bytes that a process takes for `tensor_bytes` of tensors."""
    constant, factor = PROCESS_OVERHEAD[device.type]
    return constant + round(factor * tensor_bytes)


def predict_peak_bytes(
    config: TrialConfig, data: PreparedData, precision: Precision, limit_bytes: int = 2**63 - 1
) -> tuple[int, int]:
    """Return the bytes that this process uses already, and those that training `config` adds at its peak.

    Their sum predicts the `peak_memory_mb` of the last epoch. All ranks of a training call this together. On a GPU
    without other ranks the prediction is measured, if two images fit within `limit_bytes` by the count. Raises
    torch.OutOfMemoryError if they do not fit after all.
    """
    device, slices = data.train.images.device, len(data.train)
    several = in_process_group()
    world = distributed.get_world_size() if several else 1
    images, graphs = largest_step(config, slices, world), count_cuda_graphs(config, slices, device, several)
    val_images = min(validation_batch_size(device, data.manifest.size**2), math.ceil(len(data.val) / world))
    bfloat16, has_ignored = uses_bfloat16(precision, device), data.train.has_ignored
    estimate = estimate_memory(config, data.manifest.size, bfloat16, val_images, world, has_ignored)
    in_use = bytes_in_use(device)  # after the count, which imports libraries that training needs too
    if device.type == "cuda" and not several and in_use + estimate.bytes(min(images, 2)) <= limit_bytes:
        estimate = measure_memory(config, data, precision)
    return in_use, add_process_overhead(estimate.bytes(images, graphs), device)


def estimate_memory(
    config: TrialConfig, size: int, bfloat16: bool, val_images: int, world: int = 1, has_ignored: bool = False
) -> MemoryEstimate:
    """Count the bytes of a training on images of `size` x `size` pixels, on one of `world` ranks. Allocates nothing.

    `val_images` images are validated at a time. With `has_ignored` some of their pixels are ignored. The count leaves
    out what libraries take beside their results (the workspace of convolutions, copies in another memory format).
    """
    shape = _shape(config, "loss", "dice_over")
    weights, gradients, one_image, two_images, validation = _count_tensor_bytes(
        shape, size, bfloat16, val_images, has_ignored
    )
    copies, _ = OPTIMIZER_STATE[config.optimizer]
    # Several ranks send the gradients in one buffer, which is a second copy of them.
    fixed = weights * (2 if config.ema else 1) + (copies + (2 if world > 1 else 1)) * gradients
    any_step, each_image = _constant_and_slope(one_image, two_images)
    if config.augment != "none":
        augmenting, each_augmented = _count_augmentation_bytes(config.augment, config.input_slices, size)
        any_step, each_image = max(any_step, augmenting), max(each_image, each_augmented)
    return MemoryEstimate(fixed + any_step, gradients, each_image, validation)


def _constant_and_slope(one: int, two: int) -> tuple[int, int]:
    """Return the bytes for any number of images, and for each, from those for one image and for two."""
    return 2 * one - two, two - one


def _shape(config: TrialConfig, *others: str) -> TrialConfig:
    """Return a configuration that has the same tensors, and is equal for all that have."""
    names = ("input_slices", "depth", "base_channels", "network", "norm", "up_kernel", *others)
    same = {name: getattr(config, name) for name in names}
    dropout = {"dropout": 0.5, "dropout_place": config.dropout_place} if config.dropout else {"dropout": 0.0}
    return TrialConfig(**same, **dropout, ema=0.5 if config.ema else 0.0)


@functools.cache
def _count_tensor_bytes(
    config: TrialConfig, size: int, bfloat16: bool, val_images: int, has_ignored: bool
) -> tuple[int, int, int, int, int]:
    """Return the bytes of weights, gradients, a step of 1 image, a step of 2 images, and validating `val_images`."""
    with FakeTensorMode():
        unet = UNet.of(config)
        state = list(unet.state_dict().values())
        weights = sum(tensor.nbytes for tensor in state)
        gradients = sum(tensor.nbytes for tensor in unet.parameters())

        def forward(images: int) -> tuple[Tensor, ...]:
            """Return all tensors that a step keeps until its end."""
            inputs, labels = torch.empty(images, config.input_slices, size, size), torch.empty(images, 1, size, size)
            masks, counted = (torch.empty_like(labels), torch.empty_like(labels)) if has_ignored else (labels, None)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                logits = unet(inputs)
            losses = slice_losses(logits, masks, Loss.of(config), counted)
            kept = (inputs, labels, masks, logits, losses)
            return kept if counted is None else (*kept, counted)

        steps = []
        for images in (1, 2):
            with LiveTensorBytes(state) as live:
                step = forward(images)
            # The backward pass begins with all that the forward pass has kept, and with the gradients of a layer's
            # input and output, which take as much as the largest tensor that was kept.
            steps.append(live.now + images * live.largest_per_image)
            del step
        unet.eval()
        with torch.no_grad(), LiveTensorBytes(state) as live:
            forward(val_images)
    return weights, gradients, *steps, live.peak


@functools.cache
def _count_augmentation_bytes(kind: Kind, channels: int, size: int) -> tuple[int, int]:
    """Return the bytes of augmenting a batch at its peak, the batch included: for any batch, and for each image."""
    peaks = []
    with FakeTensorMode():
        for images in (1, 2):
            drawn = Augmentation.draw(kind, images, torch.Generator())
            with LiveTensorBytes() as live:
                drawn.apply(torch.empty(images, channels, size, size), torch.empty(images, 1, size, size))
            peaks.append(live.peak)
    return _constant_and_slope(*peaks)


_measured: dict[tuple[Any, ...], MemoryEstimate] = {}  # of this process, by all that the memory of a step depends on


def measure_memory(config: TrialConfig, data: PreparedData, precision: Precision = "auto") -> MemoryEstimate:
    """Measure on the GPU that holds `data` what a training takes there, once for each network shape and process.

    Runs steps of one and of two images with the real trainer, before any graph is captured, and one validation batch.
    Memory grows linearly with more images. Raises torch.OutOfMemoryError if even these do not fit. Not for a rank of
    several, since ranks would wait for each other.
    """
    key = (_shape(config, "loss", "dice_over", "optimizer", "augment"), data.manifest.fingerprint, precision)
    if key not in _measured:
        _measured[key] = _measure_on_gpu(config, data, precision)
    return _measured[key]


def _measure_on_gpu(config: TrialConfig, data: PreparedData, precision: Precision) -> MemoryEstimate:
    device = data.train.images.device
    before = torch.cuda.memory_allocated(device)
    trainer = Trainer(frozen(config.model_copy(update={"batch_size": 2})), data, 1, 0, precision)
    generator = torch.Generator().manual_seed(0)
    batch = batches(len(data.train), 2, generator)[0]

    def peak(images: int) -> int:
        # Of allocated tensors, not of reserved memory, which grows in blocks and not linearly.
        torch.cuda.reset_peak_memory_stats(device)
        if images:
            trainer.train((batch[:images],), 1, generator)
        else:
            trainer.validate()
        return torch.cuda.max_memory_allocated(device) - before

    peak(1)  # the first step also allocates the optimiser's state
    one_image, two_images = peak(1), peak(min(2, len(batch)))
    val = trainer.data.val
    val_images = min(len(val), validation_batch_size(device, data.manifest.size**2))
    trainer.data = dataclasses.replace(
        trainer.data, val=dataclasses.replace(val, rows=val.rows[:val_images], patients=val.patients[:val_images])
    )
    image = max(two_images - one_image, 0)
    fixed = max(one_image - image, 0)
    gradients = sum(weight.nbytes for weight in trainer.unet.parameters())
    return MemoryEstimate(fixed, gradients, image, max(peak(0) - fixed, 0))
