"""The training steps of an epoch, the same on every device; on a GPU replayed as CUDA graphs, without the host."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from wmlsearch.data.slices import Augmentation, Slices
from wmlsearch.model.casts import CastAtOnce
from wmlsearch.model.metrics import slice_losses
from wmlsearch.model.unet import UNet

WARM_UP = 3  # steps of each size of batch before it is captured: they set up what a capture may not


class Diverged(Exception):
    """The loss is no longer a finite number, so training can't go on."""


@dataclass(frozen=True)
class Epoch:
    """What the steps of an epoch read and write, on the device: a captured step finds it where it was."""

    order: Tensor  # (slices,) int64, this rank's positions, batch after batch
    rates: Tensor  # (steps,) of learning; float64 on CPUs, float32 on GPUs, where the fused optimisers read it
    drawn: Augmentation | None  # for all slices of the split
    losses: Tensor  # (steps,) float64, summed over the slices of a batch
    begin: Tensor  # (1,) int64, where in `order` the next batch begins
    step: Tensor  # (1,) int64, the next step, from 0

    @classmethod
    def of(
        cls, order: Sequence[Tensor], rates: Sequence[float], drawn: Augmentation | None, device: torch.device
    ) -> Epoch:
        on_gpu = device.type == "cuda"
        return cls(
            torch.cat(list(order)).to(device),
            torch.tensor(rates, dtype=torch.float32 if on_gpu else torch.float64).to(device),
            None if drawn is None else drawn.to(device),
            torch.zeros(len(rates), dtype=torch.float64, device=device),
            *(torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2)),
        )

    def tensors(self) -> list[Tensor]:
        drawn = [] if self.drawn is None else self.drawn.tensors()
        return [self.order, self.rates, *drawn, self.losses, self.begin, self.step]

    def take(self, other: Epoch) -> bool:
        """Hold what another holds, in the same places; False where its shapes differ."""
        mine, theirs = self.tensors(), other.tensors()
        if [tensor.shape for tensor in mine] != [tensor.shape for tensor in theirs]:
            return False
        for tensor, its in zip(mine, theirs, strict=True):
            tensor.copy_(its)
        return True


class Steps:
    """The training steps of one model.

    A step gathers a batch, augments it, goes forward and back, and moves the optimiser. Which batch and at what rate it
    reads on the device, by counters that it moves on itself, so the host has nothing to say from step to step. On a GPU
    that trains alone the first steps of each size of batch (an epoch has two at most) run as usual, then one is
    captured as a CUDA graph and replayed from there on; where capturing fails, all steps run as usual, with a warning.
    A loss that isn't finite is noticed before the optimiser moves on CPUs, and at the epoch's end on GPUs, which would
    have to wait for it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        slices: Slices,
        loss: str,
        bfloat16: bool,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.optimizer, self.slices, self.loss, self.bfloat16 = optimizer, slices, loss, bfloat16
        self.rank, self.world, self.device = rank, world, slices.images.device
        self.on_gpu = self.device.type == "cuda"
        # DDP wants to hear of each weight's gradient on its own, as soon as there is one
        self.network: Callable[[Tensor], Tensor] = CastAtOnce(model) if bfloat16 and isinstance(model, UNet) else model
        self.epoch, self.number = Epoch.of([torch.zeros(0, dtype=torch.int64)], [], None, self.device), 0
        self.rate = torch.zeros(1, device=self.device)  # of the current step, where graphs and optimiser find it
        self.graphed = self.on_gpu and not isinstance(model, DistributedDataParallel)
        self.stream = graph_stream(self.device) if self.graphed else None
        self.pool = torch.cuda.graph_pool_handle() if self.graphed else None  # of memory, which the graphs share
        self.graphs: dict[int, Callable[[], None]] = {}  # by size of batch
        self.warmed: Counter[int] = Counter()

    def run(
        self, order: Sequence[Tensor], rates: Sequence[float], drawn: Augmentation | None, epoch: int
    ) -> list[float]:
        """A step for each batch of positions in `order`, at its rate; returns each batch's loss, summed over slices.

        `drawn` holds what chance has drawn for all slices of the split; the positions are those of all ranks, and so
        are the losses. The optimiser's own rate is left as it was. Raises Diverged, naming the first step with a loss
        that is not finite.
        """
        (group,) = self.optimizer.param_groups
        own, self.number = group["lr"], epoch
        try:
            with self._streamed():
                new = Epoch.of([batch[self.rank :: self.world] for batch in order], rates, drawn, self.device)
                if not (self.graphed and self.epoch.take(new)):
                    self.epoch = new
                    self.graphs.clear()
                    self.warmed.clear()
                warming = self.graphed and any(len(batch) not in self.graphs for batch in order)
                if warming:  # what validation keeps for itself would come on top of warm-ups and graphs
                    torch.cuda.empty_cache()
                for batch in order:
                    self.advance(len(batch))
                if warming:  # and what warm-ups keep, on top of validation
                    torch.cuda.empty_cache()
        finally:
            group["lr"] = own
        if self.on_gpu and self.world > 1:
            distributed.all_reduce(self.epoch.losses)
        losses: list[float] = self.epoch.losses.tolist()
        for step, loss in enumerate(losses):
            self._check(loss, step)
        return losses

    def advance(self, images: int) -> None:
        """The next step, whose batch has so many images over all ranks."""
        if self.graphed and images not in self.graphs and self.warmed[images] >= WARM_UP:
            self._capture(images)
        if images in self.graphs:
            self.graphs[images]()
        else:
            self._step(images)
            self.warmed[images] += 1

    def _step(self, images: int) -> None:
        epoch, own = self.epoch, len(range(self.rank, images, self.world))
        positions = epoch.order[epoch.begin + torch.arange(own, device=self.device)]
        batch, masks = self.slices.batch(positions)
        if epoch.drawn is not None:
            batch, masks = epoch.drawn[positions].apply(batch, masks)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            logits = self.network(batch.contiguous(memory_format=torch.channels_last))
        losses = slice_losses(logits, masks, self.loss)
        total = losses.detach().sum().double()
        if not self.on_gpu:
            if self.world > 1:  # so that all ranks agree on it before the optimiser moves
                distributed.all_reduce(total)
            self._check(total.item(), int(epoch.step.item()))
        epoch.losses.index_copy_(0, epoch.step, total.view(1))
        self.optimizer.zero_grad()  # to None: a graph has gradients of its own
        # DDP averages over ranks: weighted so that uneven parts give the mean over the whole batch
        (losses.sum() * (self.world / images)).backward()
        rate = epoch.rates[epoch.step]
        self.optimizer.param_groups[0]["lr"] = self.rate.copy_(rate) if self.on_gpu else rate.item()
        self.optimizer.step()
        epoch.begin.add_(own)
        epoch.step.add_(1)

    def _check(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise Diverged(
                f"the training loss is not finite in epoch {self.number}, step {step + 1} of {len(self.epoch.losses)}"
            )

    def _capture(self, images: int) -> None:
        """Make a graph of a step, which is not executed meanwhile; without graphs from here on where that fails."""
        (group,) = self.optimizer.param_groups
        flags = {"capturable": True} if "capturable" in group else {}  # fused ones are, but Adam wants to hear it
        before = {name: group[name] for name in flags}
        group.update(flags)
        try:
            self.graphs[images] = captured(lambda: self._step(images), self.stream, self.pool)
        except Exception as error:  # of many kinds; whatever it is, the training can do without
            self.graphed = False
            self.graphs.clear()
            self.optimizer.zero_grad()
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(f"training goes on without CUDA graphs, since capturing failed: {reason}", stacklevel=2)
            if self.on_gpu:
                forget_capture(self.device, self.pool)
        finally:
            group.update(before)

    @contextlib.contextmanager
    def _streamed(self) -> Iterator[None]:
        """On the graphs' own stream, in order with what runs before and after."""
        if self.stream is None:
            yield
            return
        outer = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            outer.wait_stream(self.stream)


@cache
def graph_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all trainings of this process, since libraries keep a workspace for each stream that they have seen."""
    return torch.cuda.Stream(device)


def captured(step: Callable[[], None], stream: torch.cuda.Stream | None, pool: Any) -> Callable[[], None]:
    """What replays all that `step` launches on this stream; capturing doesn't execute it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        step()
    return graph.replay


def forget_capture(device: torch.device, pool: Any) -> None:
    """Undo what a capture that broke off leaves behind: else later steps and trainings of this process fail.

    The GPU's generator still waits for the capture's end, so dropout raises; so does the allocator, and can't give
    memory back. torch has no public way for the latter.
    """
    generator = torch.cuda.default_generators[device.index]
    fresh = torch.Generator(device).manual_seed(generator.initial_seed()).set_offset(generator.get_offset())
    generator.graphsafe_set_state(fresh.graphsafe_get_state())
    # A capture that came to its end is none of the allocator's any more; torch 2.6 has other names.
    with contextlib.suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)
