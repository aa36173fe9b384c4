"""How fast a configuration trains here: a few steps of the very trainer that trains it, and nothing kept."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import distributed

from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData, batches
from wmlsearch.model.training import Trainer, peak_memory_mb, validation_batch

MOST_STEPS = 50  # more say nothing new
LEAST_IMAGES = 3  # for each rank in a step
MPS_PIPE = Path("/tmp/nvidia-mps")  # noqa: S108 - where NVIDIA's control daemon listens unless told otherwise


@dataclass(frozen=True)
class Timing:
    """How fast a training is, all its ranks together, and what memory each of them holds."""

    images: int  # in a step: fewer than the configuration's batch where time was short
    train_s: float  # seconds for each image trained on
    val_s: float  # seconds for each image validated
    least_memory_mb: float  # MiB, peak of steps of one image a rank
    step_memory_mb: float  # MiB, peak of steps of `images`
    peak_memory_mb: float  # MiB, of all, validation included


def timed(
    config: TrialConfig,
    data: PreparedData,
    *,
    seed: int = 0,
    precision: Literal["auto", "bfloat16", "float32"] = "auto",
    limit_s: float = 6,
) -> Timing:
    """Time some steps of training and a batch of validation.

    It takes about `limit_s` seconds, and longer only where single images do. With several ranks each calls it.
    """
    # A rate near zero: nothing that was drawn at random can diverge meanwhile.
    still = config.model_copy(update={"learning_rate": 1e-9, "min_learning_rate": 0.0})
    trainer = Trainer(still, data, 1, seed, precision)
    generator = torch.Generator().manual_seed(seed)
    order = batches(len(data.train), config.batch_size, generator)

    def seconds(work: Callable[[], object]) -> float:
        start = time.monotonic()
        work()
        taken = torch.tensor(time.monotonic() - start, dtype=torch.float64, device=trainer.device)
        if trainer.world > 1:  # all go by the slowest, so that they take the same number of steps
            distributed.all_reduce(taken, distributed.ReduceOp.MAX)
        return float(taken.item())

    def train(images: int, steps: int) -> float:
        some = tuple(order[step % len(order)][:images] for step in range(steps))
        return seconds(lambda: trainer.train(some, 1, generator))

    train(trainer.world, 1)  # the first step also sets up
    image_s, least = train(trainer.world, 1) / trainer.world, peak_memory_mb(trainer.device)
    # Some a rank at least, so that it is seen what memory an image takes; the last batch is the smallest.
    images = min(len(order[-1]), max(LEAST_IMAGES * trainer.world, int(limit_s / 4 / image_s)))
    train_s = train(images, 1)
    steps = min(MOST_STEPS, int(limit_s / 2 / train_s))
    if steps:  # else the first step of this size, which also sets up, has to do
        train_s = train(images, steps) / steps
        if trainer.steps.graphs:  # which were captured meanwhile, so only now it is as fast as it will be
            train_s = train(images, steps) / steps
    stepped = peak_memory_mb(trainer.device)

    shown = min(len(data.val), validation_batch(trainer.device, data.manifest.size**2) * trainer.world)
    val = dataclasses.replace(data.val, rows=data.val.rows[:shown], patients=data.val.patients[:shown])
    trainer.data = dataclasses.replace(data, val=val)
    val_s = seconds(trainer.validate)
    if val_s < limit_s / 8:  # the first batch also sets up
        val_s = seconds(trainer.validate)
    return Timing(images, train_s / images, val_s / shown, least, stepped, peak_memory_mb(trainer.device))


class Pace:
    """A training that is ready to go on for any time, to see what several train in a second that run at once."""

    def __init__(
        self,
        config: TrialConfig,
        data: PreparedData,
        seed: int = 0,
        precision: Literal["auto", "bfloat16", "float32"] = "auto",
    ) -> None:
        # A rate near zero, as above.
        still = config.model_copy(update={"learning_rate": 1e-9, "min_learning_rate": 0.0})
        self.trainer = Trainer(still, data, 1, seed, precision)
        self.generator = torch.Generator().manual_seed(seed)
        dealt = batches(len(data.train), config.batch_size, self.generator)
        self.images = len(dealt[-1])  # of each step: a single size, so a single graph
        steps = MOST_STEPS if self.trainer.steps.graphed else 1  # CPUs need no more to be busy
        self.order = tuple(dealt[step % len(dealt)][: self.images] for step in range(steps))
        for _ in range(2):  # the first time sets up, and captures the graph; the second runs as all later ones do
            self._train()

    def images_per_s(self, seconds: float) -> float:
        """Trained in about so many seconds from now on."""
        start, done = time.monotonic(), 0
        while (taken := time.monotonic() - start) < seconds:
            self._train()
            done += len(self.order)
        return done * self.images / taken

    def _train(self) -> None:
        self.trainer.train(self.order, 1, self.generator)


def mps_is_on() -> bool:
    """Whether NVIDIA's Multi-Process Service is on: then kernels of several processes run side by side on a GPU."""
    pipe = os.environ.get("CUDA_MPS_PIPE_DIRECTORY")
    return (Path(pipe) if pipe else MPS_PIPE).is_dir()
