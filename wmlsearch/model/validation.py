"""Validation: the network's predictions on the slices of a split, counted."""

from __future__ import annotations

import torch
from torch import nn

from wmlsearch.data.slices import Slices
from wmlsearch.model.losses import Loss, pixel_losses, slice_losses
from wmlsearch.model.metrics import ValidationCounts

VALIDATION_BATCH = 16  # slices; affects speed and memory only
GPU_VALIDATION_PIXELS = 2**22  # of a batch on a GPU, which small batches leave idle: 64 slices of 256 x 256


def count_predictions(
    unet: nn.Module, slices: Slices, loss: Loss | str, bfloat16: bool, rank: int = 0, world: int = 1
) -> ValidationCounts:
    """Return the counts of the network's predictions on this rank's part of a split, each slice once, no padding.

    An overlap over the batch is that over the whole split, so that the loss depends neither on the size of batches nor
    on the number of ranks.
    """
    loss = Loss(loss) if isinstance(loss, str) else loss
    losses_of = pixel_losses if loss.is_pooled else slice_losses
    unet.eval()
    device = slices.images.device
    counts = ValidationCounts(len(slices.patient_names), device, loss if loss.is_pooled else None)
    batch_size = validation_batch_size(device, slices.images[0].numel())
    for positions in torch.arange(rank, len(slices), world, device=device).split(batch_size):
        images, labels = slices.batch(positions)
        masks, counted = slices.lesions(labels)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
            logits = unet(images.contiguous(memory_format=torch.channels_last))
        losses = losses_of(logits, masks, loss, counted)
        counts.add(logits, masks, slices.patients[positions], losses, counted)
    return counts


def validation_batch_size(device: torch.device, pixels: int) -> int:
    """Return how many slices of `pixels` pixels are validated at a time."""
    return max(VALIDATION_BATCH, GPU_VALIDATION_PIXELS // pixels if device.type == "cuda" else 0)
