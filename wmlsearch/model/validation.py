"""Validation: the network's predictions on the slices of a split, counted."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from wmlsearch.data.slices import Slices
from wmlsearch.model.graphs import StepGraphs
from wmlsearch.model.losses import Loss, pixel_losses, slice_losses
from wmlsearch.model.metrics import ValidationCounts

VALIDATION_BATCH = 16  # slices; affects speed and memory only
GPU_VALIDATION_PIXELS = 2**22  # of a batch on a GPU, which small batches leave idle: 64 slices of 256 x 256


class Validation:
    """The validation of one network on this rank's part of a split, each slice once, no padding.

    A step predicts a batch and adds to the counts, all on the device: nothing is copied to the host. With `graphs` on a
    GPU the first validation runs as usual. In the second one each batch size (there are at most two) is captured as a
    CUDA graph, when nothing runs without a graph any more beside the graphs' memory.

    An overlap over the batch is that over the whole split, so that the loss depends neither on the size of batches nor
    on the number of ranks.
    """

    def __init__(
        self,
        unet: nn.Module,
        slices: Slices,
        loss: Loss | str,
        bfloat16: bool,
        rank: int = 0,
        world: int = 1,
        graphs: StepGraphs | None = None,
    ) -> None:
        self.unet, self.slices, self.bfloat16, self.graphs = unet, slices, bfloat16, graphs
        self.loss = Loss(loss) if isinstance(loss, str) else loss
        self.device = slices.images.device
        self.positions = torch.arange(len(slices), device=self.device)[rank::world]  # none if there are more ranks
        batch_size = validation_batch_size(self.device, slices.images[0].numel())
        self.batch_sizes = [len(batch) for batch in self.positions.split(batch_size) if len(batch)]
        self.begin = torch.zeros(1, dtype=torch.int64, device=self.device)  # place in `positions` of the next batch
        self.counts: ValidationCounts | None = None  # that graphs add to
        self.is_warm = False

    def run(self) -> ValidationCounts:
        """Return the counts of the network as it is now, on the device. With graphs, the next run uses their memory."""
        self.unet.eval()
        self.begin.zero_()
        graphs = self.graphs
        if graphs is None or not graphs.allows("validation"):
            counts = self._zero_counts()
            for images in self.batch_sizes:
                self._step(images, counts)
            return counts
        counts = self.counts = self.counts or self._zero_counts()
        counts.reset()
        with graphs.on_stream():
            if self.is_warm and not graphs.sizes("validation"):
                torch.cuda.empty_cache()  # of the run before, so that it does not add to the graphs' memory
            for images in self.batch_sizes:
                graphs.run("validation", images, partial(self._step, images, counts), self.is_warm)
        counts.slices = len(self.positions)  # replaying a graph runs no code on the host that counts them
        self.is_warm = True
        return counts

    def _zero_counts(self) -> ValidationCounts:
        return ValidationCounts(len(self.slices.patient_names), self.device, self.loss if self.loss.is_pooled else None)

    def _step(self, images: int, counts: ValidationCounts) -> None:
        """Predict the next batch and add it to the counts."""
        positions = self.positions[self.begin + torch.arange(images, device=self.device)]
        batch, labels = self.slices.batch(positions)
        masks, counted = self.slices.lesions(labels)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            logits = self.unet(batch.contiguous(memory_format=torch.channels_last))
        losses_of = pixel_losses if self.loss.is_pooled else slice_losses
        losses = losses_of(logits, masks, self.loss, counted)
        counts.add(logits, masks, self.slices.patients[positions], losses, counted)
        self.begin.add_(images)


def validation_batch_size(device: torch.device, pixels: int) -> int:
    """Return how many slices of `pixels` pixels are validated at a time."""
    return max(VALIDATION_BATCH, GPU_VALIDATION_PIXELS // pixels if device.type == "cuda" else 0)
