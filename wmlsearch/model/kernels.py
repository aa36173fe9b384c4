"""Normalisation, ReLU and dropout after a convolution as Triton kernels of this project: experimental, off by default.

`WMLSEARCH_KERNELS=triton` selects them for training, with those of the loss (`loss_kernels.py`); validation and
prediction run PyTorch's layers. PyTorch moves an activation through memory for each of the three layers, forward and
back. The kernels read it once for the statistics and once more to write the result; the backward pass is a reduction
and one elementwise pass. Nothing but the convolution's output and the statistics is kept for it: a counter-based
generator computes the dropout mask again from its seed (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011).

Nothing here waits for the device, so CUDA graphs can hold it. Results are rounded once to the type of the activations,
where PyTorch rounds after each layer.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from wmlsearch.errors import InputError
from wmlsearch.model.loss_kernels import fused_slice_losses
from wmlsearch.model.losses import LossFunction
from wmlsearch.model.unet import Layers

VARIABLE = "WMLSEARCH_KERNELS"
CHOICES = ("torch", "triton", "compile")  # the first is the default
MIN_CAPABILITY = (8, 0)  # of NVIDIA GPUs, which Triton supports
# Sizes of the kernels' work. They do not depend on the GPU, so neither do the order of sums and the results.
# A block is what a program reads of one tensor at a time: at bfloat16 and 4 warps, 1024 elements are a load of 16 bytes
# in each thread. More loads in flight hide the memory's latency, but take registers.
STATISTICS_ELEMENTS = 4096
GRADIENT_ELEMENTS = ELEMENTWISE_ELEMENTS = 2048
MAX_BLOCK_CHANNELS = 128
MAX_PARTS = 512  # of a reduction; the kernel that combines them reads all at once
FINISH_ELEMENTS = 8192  # of a block of that kernel
FINISH_WARPS = 8
RANDOM_VALUES = 2**16  # a random number of 16 bits decides for each element, as in `unet.Dropout`


def selected_kernels() -> str:
    """Return what the environment variable WMLSEARCH_KERNELS selects, one of CHOICES. Raises InputError for others."""
    selected = os.environ.get(VARIABLE) or CHOICES[0]
    if selected not in CHOICES:
        raise InputError(f"{VARIABLE} must be {', '.join(CHOICES[:-1])} or {CHOICES[-1]}, but got {selected!r}")
    return selected


def use_selected_kernels(network: nn.Module, device: torch.device) -> LossFunction | None:
    """Let `network` train with Triton kernels if they are selected.

    Returns the function that computes the losses of slices by such kernels, or None for `slice_losses`. With "torch"
    nothing changes, nor with "compile", which `compiled.py` does. Raises InputError where Triton kernels cannot run.
    """
    if selected_kernels() == "triton":
        _check_triton(network, device)
        use_triton(network)
        return fused_slice_losses
    return None


def _check_triton(network: nn.Module, device: torch.device) -> None:
    headline = f"{VARIABLE}=triton cannot be used for this training"
    unset = f"unset {VARIABLE} to train with PyTorch's layers"
    if device.type != "cuda":
        raise InputError(headline, [f"it needs a GPU with CUDA, but the training runs on: {device}; {unset}"])
    if importlib.util.find_spec("triton") is None:
        raise InputError(headline, [f"the Python package triton is not installed here; install it, or {unset}"])
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < MIN_CAPABILITY:
        needed, given = (".".join(map(str, version)) for version in (MIN_CAPABILITY, capability))
        raise InputError(headline, [f"it needs a GPU of compute capability {needed} or more, but got {given}; {unset}"])
    if any(isinstance(module, nn.SyncBatchNorm) for module in network.modules()):
        raise InputError(
            headline,
            [f"batch normalisation over several workers has no kernel; use --workers-per-trial 1, or {unset}"],
        )


def use_triton(network: nn.Module) -> None:
    """Let the `Layers` of `network` run the Triton kernels in training. Needs Triton."""
    seed = DropoutSeed()
    streams = 0
    for layers in network.modules():
        if isinstance(layers, Layers):
            layers.runner = FusedLayers(seed, streams)
            streams += len(layers)
    network.register_forward_pre_hook(seed.draw)


class DropoutSeed:
    """The seed of a network's dropout masks, drawn on the device by PyTorch's generator before each forward pass.

    A CUDA graph that holds the draw draws anew at each replay.
    """

    def __init__(self) -> None:
        self.value = torch.zeros(1, dtype=torch.int64)  # (1,)

    def draw(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Draw the seed of this forward pass, into memory of its own, since a backward pass may need the one before."""
        if network.training:
            self.value = torch.empty(1, dtype=torch.int64, device=inputs[0].device).random_()


class FusedLayers:
    """Runs the layers of a block in training, with a normalisation, its ReLU and its dropout as one."""

    def __init__(self, seed: DropoutSeed, first_stream: int) -> None:
        self.seed, self.first_stream = seed, first_stream  # each layer of a network has a stream of its own

    def __call__(self, layers: Layers, x: Tensor) -> Tensor:
        """(N, in, h, w) -> (N, out, h, w)."""
        modules = list(layers)
        place = 0
        while place < len(modules):
            norm = modules[place]
            place += 1
            if not isinstance(norm, nn.BatchNorm2d | nn.InstanceNorm2d):
                x = norm(x)
                continue
            relu, dropout = False, 0.0
            if place < len(modules) and isinstance(modules[place], nn.ReLU):
                relu, place = True, place + 1
                if place < len(modules) and isinstance(after := modules[place], nn.Dropout):
                    dropout, place = after.p, place + 1
            x = self._normalise(x, norm, relu, dropout, self.first_stream + place - 1)
        return x

    def _normalise(
        self, x: Tensor, norm: nn.BatchNorm2d | nn.InstanceNorm2d, relu: bool, dropout: float, stream: int
    ) -> Tensor:
        batch = isinstance(norm, nn.BatchNorm2d)
        if batch and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        after = AfterConvolution(norm.eps, not batch, relu, dropout, norm.momentum or 0.0)
        return normalise(x, norm.weight, norm.bias, after, self.seed.value, stream, norm.running_mean, norm.running_var)


@dataclass(frozen=True)
class AfterConvolution:
    """What follows a convolution."""

    epsilon: float = 1e-5  # added to the variance
    per_image: bool = False  # statistics of each image (instance normalisation), or of the batch
    relu: bool = True
    dropout: float = 0.0  # fraction of elements set to zero, rounded to a multiple of 2**-16
    momentum: float = 0.1  # share of this batch in the running statistics

    @property
    def threshold(self) -> int:
        """The smallest random number of 16 bits whose element is kept."""
        return min(round(self.dropout * RANDOM_VALUES), RANDOM_VALUES - 1)

    @property
    def scale(self) -> float:
        """The factor of the elements that dropout keeps."""
        return 1 / (1 - self.dropout)


def normalise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    after: AfterConvolution,
    seed: Tensor,
    stream: int = 0,
    running_mean: Tensor | None = None,
    running_variance: Tensor | None = None,
) -> Tensor:
    """Return normalisation, ReLU and dropout of `x` by Triton kernels, with gradients of `x`, `weight` and `bias`.

    Args:
        x: (N, C, H, W), float32 or bfloat16. The result has the same shape and type, in the format channels last.
        weight: (C,), float32.
        bias: (C,), float32.
        after: What to compute.
        seed: (1,) int64 on the device of `x`: with `stream` it decides the dropout mask.
        stream: Number of this mask among those of the same seed.
        running_mean: (C,), float32, updated in place as by PyTorch; None if there is none.
        running_variance: (C,), float32, as `running_mean`.
    """
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"x must be float32 or bfloat16, but got {x.dtype}")
    if x[0, 0].numel() * (1 if after.per_image else len(x)) < 2:
        raise ValueError(f"a normalisation in training needs more than one value per channel, but got {tuple(x.shape)}")
    result: Tensor = _Normalise.apply(x, weight, bias, running_mean, running_variance, seed, stream, after)
    return result


@dataclass(frozen=True)
class _Matrix:
    """An activation (N, C, H, W) in channels last as `sets` times `rows` x `channels`, and how programs share it."""

    sets: int
    rows: int
    channels: int

    @classmethod
    def of(cls, x: Tensor, per_image: bool) -> _Matrix:
        images, channels, height, width = x.shape
        return cls(images, height * width, channels) if per_image else cls(1, images * height * width, channels)

    @property
    def block_channels(self) -> int:
        return min(max(8, _next_power_of_two(self.channels)), MAX_BLOCK_CHANNELS)

    @property
    def channel_blocks(self) -> int:
        return -(-self.channels // self.block_channels)

    def block_rows(self, elements: int) -> int:
        return min(elements // self.block_channels, _next_power_of_two(self.rows))

    @property
    def rows_per_part(self) -> int:
        """Rows that a program of a reduction reads, a multiple of its blocks."""
        block = self.block_rows(STATISTICS_ELEMENTS)
        parts_of_set = max(1, MAX_PARTS // self.sets)
        return -(-self.rows // (block * parts_of_set)) * block

    @property
    def parts(self) -> int:
        return -(-self.rows // self.rows_per_part)

    def reduction(self, elements: int) -> tuple[tuple[int, int, int], dict[str, int]]:
        """Return grid and sizes of the first stage of a reduction."""
        return (self.parts, self.channel_blocks, self.sets), self._sizes(elements)

    def finish(self) -> tuple[tuple[int, int, int], dict[str, int]]:
        """Return grid, sizes and warps of the second stage."""
        block_parts = _next_power_of_two(self.parts)
        block_channels = min(self.block_channels, FINISH_ELEMENTS // block_parts)
        sizes = {"CHANNELS": self.channels, "BLOCK_PARTS": block_parts, "BLOCK_CHANNELS": block_channels}
        sizes["num_warps"] = FINISH_WARPS
        return (1, -(-self.channels // block_channels), self.sets), sizes

    def elementwise(self) -> tuple[tuple[int, int, int], dict[str, int]]:
        """Return grid and sizes of an elementwise pass."""
        sizes = self._sizes(ELEMENTWISE_ELEMENTS)
        return (-(-self.rows // sizes["BLOCK_ROWS"]), self.channel_blocks, self.sets), sizes

    def _sizes(self, elements: int) -> dict[str, int]:
        return {
            "CHANNELS": self.channels,
            "BLOCK_ROWS": self.block_rows(elements),
            "BLOCK_CHANNELS": self.block_channels,
        }


class _Normalise(torch.autograd.Function):
    """`normalise`, with gradients. Six kernels: three forward and three back."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_variance: Tensor | None,
        seed: Tensor,
        stream: int,
        after: AfterConvolution,
    ) -> Tensor:
        from wmlsearch.model import triton_kernels as kernels

        x = x.contiguous(memory_format=torch.channels_last)
        matrix = _Matrix.of(x, after.per_image)
        statistics = x.new_empty((2, matrix.sets, matrix.channels), dtype=torch.float32)  # mean, 1 / deviation
        of_parts = x.new_empty((2, matrix.sets, matrix.parts, matrix.channels), dtype=torch.float32)
        result = torch.empty_like(x, memory_format=torch.channels_last)
        with torch.cuda.device_of(x):
            grid, sizes = matrix.reduction(STATISTICS_ELEMENTS)
            kernels.partial_statistics[grid](x, *of_parts, matrix.rows, matrix.rows_per_part, **sizes)
            grid, sizes = matrix.finish()
            kernels.finish_statistics[grid](
                *of_parts,
                *statistics,
                running_mean,
                running_variance,
                matrix.parts,
                matrix.rows,
                matrix.rows_per_part,
                after.epsilon,
                after.momentum,
                HAS_RUNNING=running_mean is not None,
                **sizes,
            )
            grid, sizes = matrix.elementwise()
            kernels.normalise[grid](
                x,
                result,
                *statistics,
                weight,
                bias,
                seed,
                stream,
                after.threshold,
                after.scale,
                matrix.rows,
                RELU=after.relu,
                DROPOUT=after.dropout > 0,
                **sizes,
            )
        ctx.save_for_backward(x, weight, bias, statistics, seed)
        ctx.stream, ctx.after = stream, after
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, ...]:
        from wmlsearch.model import triton_kernels as kernels

        x, weight, bias, statistics, seed = ctx.saved_tensors
        after: AfterConvolution = ctx.after
        gradients = gradients.contiguous(memory_format=torch.channels_last)
        matrix = _Matrix.of(x, after.per_image)
        of_parts = x.new_empty((2, matrix.sets, matrix.parts, matrix.channels), dtype=torch.float32)
        sums = x.new_empty((2, matrix.sets, matrix.channels), dtype=torch.float32)
        result = torch.empty_like(x, memory_format=torch.channels_last)
        layer = (*statistics, weight, bias)
        dropout = (seed, ctx.stream, after.threshold, after.scale)
        flags = {"RELU": after.relu, "DROPOUT": after.dropout > 0}
        with torch.cuda.device_of(x):
            grid, sizes = matrix.reduction(GRADIENT_ELEMENTS)
            kernels.partial_gradients[grid](
                x, gradients, *of_parts, *layer, *dropout, matrix.rows, matrix.rows_per_part, **flags, **sizes
            )
            grid, sizes = matrix.finish()
            kernels.finish_gradients[grid](*of_parts, *sums, matrix.parts, **sizes)
            grid, sizes = matrix.elementwise()
            kernels.input_gradients[grid](x, gradients, result, *layer, *sums, *dropout, matrix.rows, **flags, **sizes)
        of_bias, of_weight = sums.sum(1) if matrix.sets > 1 else sums[:, 0]
        return result, of_weight, of_bias, None, None, None, None, None


def _next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
