"""The peak memory of training a configuration, told before it runs: counted from shapes, on a GPU measured.

What is counted are the tensors that a training step holds when its backward pass begins. They are counted on fake
tensors, which have shapes and no memory, so a configuration that would need a terabyte is counted like any other.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
import resource
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData, batches
from wmlsearch.model.metrics import slice_losses
from wmlsearch.model.training import Trainer, has_fast_bfloat16, validation_batch
from wmlsearch.model.unet import UNet

Precision = Literal["auto", "bfloat16", "float32"]
# Tensors like the weights that an optimiser keeps, and whether it counts its steps for each of them.
OPTIMIZER_STATE = {"adam": (2, True), "adamw": (2, True), "sgd": (1, False)}
# Of a process on a GPU beside what PyTorch reserves: the CUDA context, with the code of cuDNN and cuBLAS, and graphs.
CONTEXT_BYTES = 800 * 2**20
# What a process takes for so many bytes of tensors, as (once, for each): see benchmarks/peak.py. On CPUs libraries work
# on copies, and what was freed stays in pieces; on GPUs PyTorch reserves 20 MiB or more at a time.
TAKEN = {"cpu": (200 * 2**20, 1.5), "cuda": (64 * 2**20, 1.1)}


@dataclass(frozen=True)
class Estimate:
    """Bytes of tensors that a training holds at its peak, beside the data, which are there before it."""

    fixed_bytes: int  # whatever the batch: weights, their gradients, the optimiser's state
    gradient_bytes: int  # these gradients alone
    image_bytes: int  # for each image of a step (of one rank)
    validation_bytes: int  # in validation: it holds less of an image than training does, but may have more of them

    def bytes(self, images: int, graphs: int = 0) -> int:
        """With `images` in a step, and so many CUDA graphs, one for each size of batch.

        Graphs share memory that nobody else gets between replays: beside it the other size of batch warms up, with
        gradients of its own, and later validation has its room.
        """
        step = images * self.image_bytes
        if not graphs:
            return self.fixed_bytes + max(step, self.validation_bytes)
        warm_up = self.gradient_bytes + (step if graphs > 1 else 0)
        return self.fixed_bytes + step + max(warm_up, self.validation_bytes)


def images_in_step(config: TrialConfig, slices: int, world: int = 1) -> int:
    """Images of the biggest part of a batch that one of `world` ranks gets."""
    biggest = math.ceil(slices / math.ceil(slices / config.batch_size))
    return math.ceil(biggest / world)


def graphs_of(config: TrialConfig, slices: int, device: torch.device, several: bool) -> int:
    """How many CUDA graphs a training has: one for each size of batch on a GPU, but none of `several` ranks'."""
    if device.type != "cuda" or several:
        return 0
    return 2 if slices % math.ceil(slices / config.batch_size) else 1


def of_process(tensors: int, device: torch.device) -> int:
    """Bytes that a process takes for `tensors` bytes of tensors."""
    once, each = TAKEN[device.type]
    return once + round(each * tensors)


def held_bytes(device: torch.device) -> int:
    """What this process holds before a training: of a GPU what PyTorch has reserved for the data and whatever lives.

    On a CPU all, libraries too, when it was asked first: later there is also what the allocator keeps of earlier
    trainings, to be used again.
    """
    if device.type == "cpu":
        return _at_first()
    gc.collect()  # of earlier trainings, too
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


@functools.cache
def _at_first() -> int:
    return process_bytes()[1]


def process_bytes() -> tuple[int, int]:
    """Bytes of this process that are mapped, and that are in memory (Linux)."""
    mapped, resident = Path("/proc/self/statm").read_text().split()[:2]
    return int(mapped) * resource.getpagesize(), int(resident) * resource.getpagesize()


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    return precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(device))


def predicted_bytes(
    config: TrialConfig, data: PreparedData, precision: Precision, limit_bytes: int = 2**63 - 1
) -> tuple[int, int]:
    """Bytes that this process holds already, and those that training `config` takes beside them at its peak.

    Together they are what `peak_memory_mb` should be at last. All ranks of a training ask at once. On a GPU that trains
    alone it is measured, if by counting two images fit within `limit_bytes` of a process. Raises torch.OutOfMemoryError
    where they don't after all.
    """
    device, slices = data.train.images.device, len(data.train)
    several = distributed.is_available() and distributed.is_initialized()
    world = distributed.get_world_size() if several else 1
    images, graphs = images_in_step(config, slices, world), graphs_of(config, slices, device, several)
    shown = min(validation_batch(device, data.manifest.size**2), math.ceil(len(data.val) / world))
    estimate = counted(config, data.manifest.size, uses_bfloat16(precision, device), shown, world)
    held = held_bytes(device)  # after counting, which imports what training needs too
    if device.type == "cuda" and not several and held + estimate.bytes(min(images, 2)) <= limit_bytes:
        estimate = measured(config, data, precision)
    return held, of_process(estimate.bytes(images, graphs), device)


def counted(config: TrialConfig, size: int, bfloat16: bool, shown: int, world: int = 1) -> Estimate:
    """Count what training on images of `size` x `size` pixels holds, on one of `world` ranks; it takes no memory.

    `shown` images are validated at a time. Not counted is what the libraries take beside their results (workspace of
    convolutions, copies in another order).
    """
    shape = (config.depth, config.base_channels, config.norm, config.dropout > 0, config.loss)
    weights, gradients, one, two, of_validation = _count(*shape, size, bfloat16, shown)
    copies, _ = OPTIMIZER_STATE[config.optimizer]
    # DistributedDataParallel has the gradients once more, in the order in which they are sent.
    fixed = weights + (copies + (2 if world > 1 else 1)) * gradients
    return Estimate(fixed + 2 * one - two, gradients, two - one, of_validation)


@functools.cache
def _count(
    depth: int,
    base_channels: int,
    norm: Literal["batch", "instance"],
    dropout: bool,
    loss: str,
    size: int,
    bfloat16: bool,
    shown: int,
) -> tuple[int, int, int, int, int]:
    """Bytes of weights, of gradients, of what steps of 1 and 2 images hold, and of validating `shown` images."""
    with FakeTensorMode():
        unet = UNet(depth, base_channels, 0.5 if dropout else 0.0, norm)
        own = list(unet.state_dict().values())
        weights = sum(tensor.nbytes for tensor in own)
        gradients = sum(tensor.nbytes for tensor in unet.parameters())

        def forward(images: int) -> tuple[Tensor, ...]:
            """All that a step has at hand until its end."""
            inputs, masks = torch.empty(images, 1, size, size), torch.empty(images, 1, size, size)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                logits = unet(inputs)
            return inputs, masks, logits, slice_losses(logits, masks, loss)

        of_steps = []
        for images in (1, 2):
            with Held(own) as held:
                step = forward(images)
            # The backward pass begins with all that the forward pass has kept, and with gradients: those that go into
            # a layer and come out of it take as much as the biggest of what was kept.
            of_steps.append(held.now + images * held.biggest_image)
            del step
        unet.eval()
        with torch.no_grad(), Held(own) as held:
            forward(shown)
    return weights, gradients, *of_steps, held.most


class Held(TorchDispatchMode):
    """Counts bytes of the tensors that are made while it is on, of `own` none: held `now`, and at `most`.

    `biggest_image` is what the biggest (N, C, H, W) of them has for each of its N.
    """

    def __init__(self, own: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.most = self.biggest_image = 0
        self._own = {tensor.untyped_storage()._cdata for tensor in own}
        self._there: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()

        def freed(_: object) -> None:
            self.now -= size
            del self._there[key]

        if key not in self._there and key not in self._own:
            self._there[key] = weakref.ref(storage, freed)
            self.now += size
            self.most = max(self.most, self.now)
            if tensor.dim() == 4:
                self.biggest_image = max(self.biggest_image, size // len(tensor))


_measured: dict[tuple[Any, ...], Estimate] = {}  # of this process, by all that a step's memory depends on


def measured(config: TrialConfig, data: PreparedData, precision: Precision = "auto") -> Estimate:
    """Measure on the GPU that holds `data` what training holds there, once for each shape in a process.

    Steps of one and of two images by the very trainer, before anything is captured, and a batch of validation; what
    more images take follows. Raises torch.OutOfMemoryError where even these find no room. Not for a rank of several:
    they would wait for each other.
    """
    names = ("depth", "base_channels", "norm", "loss", "optimizer", "augment")
    key = (*(getattr(config, name) for name in names), config.dropout > 0, data.manifest.fingerprint, precision)
    if key not in _measured:
        _measured[key] = _measure(config, data, precision)
    return _measured[key]


def _measure(config: TrialConfig, data: PreparedData, precision: Precision) -> Estimate:
    device, val = data.train.images.device, data.val
    before = torch.cuda.memory_allocated(device)
    # A rate near zero: nothing that was drawn at random can diverge meanwhile.
    still = config.model_copy(update={"batch_size": 2, "learning_rate": 1e-9, "min_learning_rate": 0.0})
    trainer = Trainer(still, data, 1, 0, precision)
    generator = torch.Generator().manual_seed(0)
    step = batches(len(data.train), 2, generator)[0]

    def peak(images: int) -> int:
        # Of tensors, not of what is reserved for them: that grows by blocks, and would make no line.
        torch.cuda.reset_peak_memory_stats(device)
        if images:
            trainer.train((step[:images],), 1, generator)
        else:
            trainer.validate()
        return torch.cuda.max_memory_allocated(device) - before

    peak(1)  # the first step also makes the optimiser's state
    one, two = peak(1), peak(min(2, len(step)))
    shown = min(len(val), validation_batch(device, data.manifest.size**2))
    trainer.data = dataclasses.replace(
        data, val=dataclasses.replace(val, rows=val.rows[:shown], patients=val.patients[:shown])
    )
    image = max(two - one, 0)
    fixed = max(one - image, 0)
    gradients = sum(weight.nbytes for weight in trainer.unet.parameters())
    return Estimate(fixed, gradients, image, max(peak(0) - fixed, 0))
