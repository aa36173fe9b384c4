"""The loss of a training by Triton kernels of this project, with its sigmoid: experimental, see `kernels.py`.

PyTorch reads and writes maps of the size of the logits several times for a loss, and again for its gradient. Here one
pass over logits and masks adds up what the loss of a slice is made of, and one pass writes the gradient of the logits.
What lies between is a few numbers for each slice, so that all losses share both passes, over slices or over a batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wmlsearch.model.losses import OVERLAP_LOSSES, Loss, add_overlap_loss

BLOCK = 1024  # pixels of a program: at 4 warps two loads of 16 bytes of each map in each thread
KINDS = {"bce": 1, "bce_dice": 1, "focal": 2, "dice": 0, "tversky": 0}  # of the mean over pixels, as `triton_loss.py`


def fused_slice_losses(logits: Tensor, masks: Tensor, loss: Loss | str, counted: Tensor | None = None) -> Tensor:
    """Return what `losses.slice_losses` returns for the same arguments, (N,), with the gradient of the logits.

    Raises TypeError unless all maps are float32.
    """
    loss = Loss(loss) if isinstance(loss, str) else loss
    has_region = loss.name in OVERLAP_LOSSES
    sums = slice_sums(logits, masks, counted, KINDS[loss.name], has_region)
    total = sums[0] / (logits[0].numel() if counted is None else sums[4].clamp(min=1))
    return add_overlap_loss(total, sums[1:4], loss) if has_region else total


def slice_sums(logits: Tensor, masks: Tensor, counted: Tensor | None, kind: int, has_region: bool) -> Tensor:
    """Return the sums that the loss is computed from, over the counted pixels of each slice, (5, N) float32.

    They are: the loss of pixels, the probability on lesion pixels, the probability, lesion pixels, pixels. The first
    three have a gradient of the logits, the second and third of them only with `has_region`.

    Args:
        logits: (N, 1, H, W), float32.
        masks: (N, 1, H, W), 0 or 1, float32.
        counted: As in `losses.slice_losses`.
        kind: 1 for cross-entropy as the loss of pixels, 2 for the focal loss, 0 for none.
        has_region: Whether the sums of probability are used.
    """
    for given in (logits, masks, counted):
        if given is not None and given.dtype != torch.float32:
            raise TypeError(f"logits, masks and counted pixels must be float32, but got {given.dtype}")
    result: Tensor = _SliceSums.apply(logits, masks, counted, kind, has_region)
    return result


class _SliceSums(torch.autograd.Function):
    """`slice_sums`, with the gradient of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor, counted: Tensor | None, kind: int, has_region: bool) -> Tensor:
        from wmlsearch.model import triton_loss as kernels

        logits, masks = logits.contiguous(), masks.contiguous()
        counted = None if counted is None else counted.contiguous()
        grid, pixels = _grid(logits)
        of_parts = logits.new_empty((5, grid[1], grid[0]))
        with torch.cuda.device_of(logits):
            kernels.loss_sums[grid](
                logits, masks, counted, of_parts, pixels, KIND=kind, HAS_COUNTED=counted is not None, BLOCK=BLOCK
            )
        ctx.save_for_backward(logits, masks, counted)
        ctx.kind, ctx.has_region = kind, has_region
        return of_parts.sum(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_sums: Tensor) -> tuple[Tensor | None, ...]:
        from wmlsearch.model import triton_loss as kernels

        logits, masks, counted = ctx.saved_tensors
        grid, pixels = _grid(logits)
        of_logits = torch.empty_like(logits)
        with torch.cuda.device_of(logits):
            kernels.loss_gradients[grid](
                logits,
                masks,
                counted,
                of_sums.contiguous(),
                of_logits,
                pixels,
                KIND=ctx.kind,
                HAS_COUNTED=counted is not None,
                HAS_REGION=ctx.has_region,
                BLOCK=BLOCK,
            )
        return of_logits, None, None, None, None


def _grid(logits: Tensor) -> tuple[tuple[int, int], int]:
    """Return the grid of both kernels, (parts, slices), and the pixels of a slice."""
    pixels = logits[0].numel()
    return (-(-pixels // BLOCK), len(logits)), pixels
