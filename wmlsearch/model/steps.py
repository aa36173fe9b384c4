"""The training steps of an epoch, the same on every device. On a GPU they are replayed as CUDA graphs."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, distributed, nn

from wmlsearch.data.augmentation import Augmentation
from wmlsearch.data.slices import Slices
from wmlsearch.model.bulk_cast import BulkCastUNet
from wmlsearch.model.graphs import StepGraphs
from wmlsearch.model.losses import Loss, LossFunction, slice_losses
from wmlsearch.model.ranks import sum_gradients
from wmlsearch.model.torch_patches import capturable
from wmlsearch.model.unet import UNet
from wmlsearch.model.weight_average import WeightAverage

WARM_UP = 3  # steps of each batch size before its capture: they do the set-up that a capture forbids


class Diverged(Exception):
    """The loss is no longer a finite number, so training cannot continue."""


@dataclass(frozen=True)
class EpochBuffers:
    """What the steps of an epoch read and write, on the device. A captured step uses the same memory in every epoch."""

    order: Tensor  # (slices,) int64, this rank's positions, batch after batch
    rates: Tensor  # (steps,) learning rates; float64 on CPUs, float32 on GPUs, where the fused optimisers read it
    drawn: Augmentation | None  # for each place in `order`
    average_steps: Tensor  # (steps,) float32, how far the average of the weights moves; empty where there is none
    losses: Tensor  # (steps,) float64, summed over the slices of a batch
    begin: Tensor  # (1,) int64, position in `order` where the next batch begins
    step: Tensor  # (1,) int64, the next step, from 0

    @classmethod
    def of(
        cls,
        order: Sequence[Tensor],
        rates: Sequence[float],
        drawn: Augmentation | None,
        average_steps: Sequence[float],
        device: torch.device,
    ) -> EpochBuffers:
        """Return the buffers of an epoch that has not started."""
        on_gpu = device.type == "cuda"
        return cls(
            torch.cat(list(order)).to(device),
            torch.tensor(rates, dtype=torch.float32 if on_gpu else torch.float64).to(device),
            None if drawn is None else drawn.to(device),
            torch.tensor(average_steps, dtype=torch.float32).to(device),
            torch.zeros(len(rates), dtype=torch.float64, device=device),
            *(torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2)),
        )

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in a fixed order."""
        drawn = [] if self.drawn is None else self.drawn.tensors()
        return [self.order, self.rates, *drawn, self.average_steps, self.losses, self.begin, self.step]

    def copy_from(self, other: EpochBuffers) -> bool:
        """Copy the contents of `other` into the same memory. Return False if the shapes differ."""
        targets, sources = self.tensors(), other.tensors()
        if [tensor.shape for tensor in targets] != [tensor.shape for tensor in sources]:
            return False
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
        return True


class TrainingSteps:
    """The training steps of one model.

    A step gathers a batch, augments it, runs forward and backward, moves the optimiser, and after it the average of the
    weights. It reads its batch and its learning rate on the device, by counters that it advances itself, so the host
    sends nothing between steps.

    On a GPU without other ranks the first steps of each batch size (an epoch has at most two) run as usual. Then one is
    captured as a CUDA graph and replayed from there on (see `StepGraphs`, which validation shares). If a capture fails,
    all steps run as usual, with a warning. `fused_losses` compute what `slice_losses` does, in fewer operations.

    A loss that is not finite is noticed before the optimiser moves on CPUs, and at the end of the epoch on GPUs, where
    a check in each step would wait for the device.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        slices: Slices,
        loss: Loss | str,
        *,
        bfloat16: bool,
        rank: int = 0,
        world: int = 1,
        average: WeightAverage | None = None,
        graphs: StepGraphs | None = None,
        fused_losses: LossFunction | None = None,
    ) -> None:
        self.average, self.fused_losses = average, fused_losses
        self.optimizer, self.slices, self.loss, self.bfloat16 = optimizer, slices, loss, bfloat16
        self.rank, self.world, self.device = rank, world, slices.images.device
        self.on_gpu = self.device.type == "cuda"
        self.parameters = list(model.parameters())
        self.network: Callable[[Tensor], Tensor] = (
            BulkCastUNet(model) if bfloat16 and isinstance(model, UNet) else model
        )
        self.buffers = EpochBuffers.of([torch.zeros(0, dtype=torch.int64)], [], None, [], self.device)
        self.epoch = 0
        self.rate = torch.zeros(1, device=self.device)  # of the current step, where graphs and the optimiser read it
        self.graphs = graphs or StepGraphs(self.device)
        self.warmed: Counter[int] = Counter()  # steps that ran without a graph, by batch size

    def run(
        self,
        order: Sequence[Tensor],
        rates: Sequence[float],
        drawn: Augmentation | None,
        epoch: int,
        average_steps: Sequence[float] = (),
    ) -> list[float]:
        """Run a step for each batch, at its rate. Return each batch's loss, summed over its slices.

        The optimiser's own rate stays as it was. Raises Diverged, naming the first step with a loss that is not finite.

        Args:
            order: Positions of the slices in each batch, over all ranks.
            rates: Learning rate of each step.
            drawn: Augmentation of each position in `order`, batch after batch, or None.
            epoch: Number of the epoch, for messages.
            average_steps: How far the average of the weights moves after each step, if there is one.
        """
        (group,) = self.optimizer.param_groups
        rate_before, self.epoch = group["lr"], epoch
        try:
            with self.graphs.on_stream():
                self._load_epoch(order, rates, drawn, average_steps)
                graphed = self.graphs.sizes("training")
                capturing = self.graphs.allows("training") and any(len(batch) not in graphed for batch in order)
                if capturing:  # free memory cached by validation, so that it does not add to warm-up and graphs
                    torch.cuda.empty_cache()
                for batch in order:
                    self.advance(len(batch))
                if capturing:  # free memory cached by the warm-up, so that it does not add to validation
                    torch.cuda.empty_cache()
        finally:
            group["lr"] = rate_before
        if self.on_gpu and self.world > 1:
            distributed.all_reduce(self.buffers.losses)
        losses: list[float] = self.buffers.losses.tolist()
        for step, loss in enumerate(losses):
            self._check_finite(loss, step)
        return losses

    def _load_epoch(
        self,
        order: Sequence[Tensor],
        rates: Sequence[float],
        drawn: Augmentation | None,
        average_steps: Sequence[float],
    ) -> None:
        """Load an epoch into the buffers. Graphs stay valid if its shapes are those of the epoch before."""
        rank_order = [batch[self.rank :: self.world] for batch in order]
        if drawn is not None:
            places = torch.arange(sum(map(len, order))).split([len(batch) for batch in order])
            drawn = drawn[torch.cat([batch[self.rank :: self.world] for batch in places])]
        buffers = EpochBuffers.of(rank_order, rates, drawn, average_steps, self.device)
        if not (self.graphs.allows("training") and self.buffers.copy_from(buffers)):
            self.buffers = buffers
            self.graphs.forget("training")
            self.warmed.clear()

    def advance(self, images: int) -> None:
        """Run the next step, whose batch has `images` images over all ranks."""
        is_warm = self.warmed[images] >= WARM_UP
        if not self.graphs.run("training", images, partial(self._step, images), is_warm, self._capturing):
            self.warmed[images] += 1

    @contextlib.contextmanager
    def _capturing(self) -> Iterator[None]:
        """Let a step be captured inside the block. If that fails, the gradients in the graphs' memory are dropped."""
        with capturable(self.optimizer):
            try:
                yield
            except Exception:
                self.optimizer.zero_grad()
                raise

    def _step(self, images: int) -> None:
        buffers, own_images = self.buffers, len(range(self.rank, images, self.world))
        places = buffers.begin + torch.arange(own_images, device=self.device)
        positions = buffers.order[places]
        batch, labels = self.slices.batch(positions)
        if buffers.drawn is not None:
            batch, labels = buffers.drawn[places].apply(batch, labels)
        masks, counted = self.slices.lesions(labels)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            logits = self.network(batch.contiguous(memory_format=torch.channels_last))
        losses = (self.fused_losses or slice_losses)(logits, masks, self.loss, counted)
        total = losses.detach().sum().double()
        if not self.on_gpu:
            if self.world > 1:  # so that all ranks agree before the optimiser moves
                distributed.all_reduce(total)
            self._check_finite(total.item(), int(buffers.step.item()))
        buffers.losses.index_copy_(0, buffers.step, total.view(1))
        self.optimizer.zero_grad()  # sets gradients to None: a graph has gradients of its own
        (losses.sum() * (1 / images)).backward()  # summed over the ranks: the mean over the whole batch
        if self.world > 1:
            sum_gradients(self.parameters)
        rate = buffers.rates[buffers.step]
        self.optimizer.param_groups[0]["lr"] = self.rate.copy_(rate) if self.on_gpu else rate.item()
        self.optimizer.step()
        if self.average is not None:
            self.average.update(buffers.average_steps[buffers.step])
        buffers.begin.add_(own_images)
        buffers.step.add_(1)

    def _check_finite(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise Diverged(
                f"the training loss is not finite in epoch {self.epoch}, step {step + 1} of {len(self.buffers.losses)}"
            )
