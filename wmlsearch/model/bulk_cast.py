"""A U-Net whose weights are cast to bfloat16 all at once. Autocast launches a kernel for each, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from wmlsearch.model.torch_patches import cast_all
from wmlsearch.model.unet import UNet


class BulkCastUNet:
    """Calls a network under autocast to bfloat16 with weights that are cast in advance.

    The results equal autocast's, which casts the same weights one by one: those of all convolutions except the head.
    The network keeps its float32 weights, which receive the gradients.
    """

    def __init__(self, unet: UNet) -> None:
        self.unet = unet
        self.weights = {
            f"{module_name}.{name}": weight
            for module_name, module in unet.named_modules()
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module is not unet.head
            for name, weight in module.named_parameters()
            if weight.requires_grad
        }

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 1, H, W) in [0, 1] -> logits (N, 1, H, W), float32."""
        cast = _Cast.apply(*self.weights.values())
        logits: Tensor = functional_call(self.unet, dict(zip(self.weights, cast, strict=True)), (images,))
        return logits


class _Cast(torch.autograd.Function):
    """Casts float32 weights to bfloat16, and their gradients back to float32."""

    @staticmethod
    def forward(_ctx: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        return cast_all(weights, torch.bfloat16)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return cast_all(gradients, torch.float32)
