"""Layers that compute what torch's own do, in less time on CPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

DRAW_BITS = 16  # of chance for each element


class Convolution(nn.Conv2d):
    """nn.Conv2d, whose weights get their gradient in another memory layout on CPUs with AVX2 at most.

    There oneDNN (of torch 2.13) is faster with channels_last than with contiguous images in all of a convolution but
    the gradient of its weights, which takes up to four times as long from 32 channels and 64 x 64 pixels on.
    """

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K, H', W')."""
        turned = (
            self.in_channels >= 32
            and images.shape[-2:].numel() >= 64 * 64
            and torch.is_grad_enabled()
            and images.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            and torch.backends.cpu.get_cpu_capability() == "AVX2"
        )
        if not turned:
            return super().forward(images)
        found: Tensor = _Turned.apply(images, self.weight, self.bias, self.padding)
        return found


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.padding = padding
        return torch.conv2d(images, weight, bias, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        images, weight = ctx.saved_tensors
        how = [len(weight)], [1, 1], ctx.padding, [1, 1], False, [0, 0], 1
        of_images = None
        if ctx.needs_input_grad[0]:
            wanted = [True, False, False]
            of_images, _, _ = torch.ops.aten.convolution_backward(gradient, images, weight, *how, wanted)
        turned = (tensor.contiguous(memory_format=torch.contiguous_format) for tensor in (gradient, images, weight))
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(*turned, *how, [False, True, True])
        return of_images, of_weight, of_bias, None


class Dropout(nn.Dropout):
    """nn.Dropout, which on CPUs draws 16 bits for each element, where torch draws a float64.

    So the share that is dropped is `p` to within 2**-17; what is kept is scaled by the share that it really is.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, without gaps in memory."""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        kept = max(1, round((1 - self.p) * 2**DRAW_BITS))  # of the 2**16 numbers that may be drawn
        words = torch.empty(-(-x.numel() * DRAW_BITS // 64), dtype=torch.int64).random_(-(2**63), None)
        drawn = words.view(torch.int16)[: x.numel()]
        mask = (drawn < kept - 2 ** (DRAW_BITS - 1)).to(x.dtype).mul_(2**DRAW_BITS / kept)
        return x * mask.as_strided(x.shape, x.stride())
