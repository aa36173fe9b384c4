"""A network's weights in bfloat16, cast all at once: autocast would launch kernels for each one, forward and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from wmlsearch.model.unet import UNet


class CastAtOnce:
    """Calls a network under autocast to bfloat16 on weights that are cast already.

    All numbers are those of autocast, which casts the same weights, one by one: those of the convolutions but the head.
    The network keeps its own weights, in float32, and they get the gradients.
    """

    def __init__(self, unet: UNet) -> None:
        self.unet = unet
        self.weights = {
            f"{name}.{own}": weight
            for name, module in unet.named_modules()
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module is not unet.head
            for own, weight in module.named_parameters()
            if weight.requires_grad
        }

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 1, H, W) in [0, 1] -> logits (N, 1, H, W), float32."""
        cast = _Cast.apply(*self.weights.values())
        logits: Tensor = functional_call(self.unet, dict(zip(self.weights, cast, strict=True)), (images,))
        return logits


class _Cast(torch.autograd.Function):
    """Float32 to bfloat16; gradients come back in float32."""

    @staticmethod
    def forward(_ctx: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        return copied(weights, torch.bfloat16)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return copied(gradients, torch.float32)


def copied(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Copies in another type, in the same memory formats; on a GPU a single kernel writes them all."""
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, tensors)  # torch has no public name for it
    return tuple(copies)
