"""The speed of a configuration on this machine, from a few steps of the real trainer. Nothing is saved."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed

from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData, batches
from wmlsearch.model.precision import Precision
from wmlsearch.model.process_memory import peak_memory_mb
from wmlsearch.model.training import Trainer
from wmlsearch.model.validation import validation_batch_size

MAX_STEPS = 50  # more do not make the figures better
MIN_IMAGES = 3  # for each rank in a step, to see how memory grows with the images
MPS_PIPE = Path("/tmp/nvidia-mps")  # noqa: S108 - the default of NVIDIA's control daemon


@dataclass(frozen=True)
class Throughput:
    """The speed of a training, all its ranks together, and the memory of each rank."""

    images: int  # in a step: fewer than the configuration's batch if time was short
    train_s: float  # seconds for each training image
    val_s: float  # seconds for each validation image
    one_image_memory_mb: float  # MiB, peak of steps with one image a rank
    step_memory_mb: float  # MiB, peak of steps with `images`
    peak_memory_mb: float  # MiB, overall peak, validation included


def measure_throughput(
    config: TrialConfig, data: PreparedData, *, seed: int = 0, precision: Precision = "auto", limit_s: float = 6
) -> Throughput:
    """Time some training steps and a validation batch.

    Takes about `limit_s` seconds, and longer only if single images do. With several ranks each rank calls this.
    """
    trainer = Trainer(frozen(config), data, 1, seed, precision)
    generator = torch.Generator().manual_seed(seed)
    order = batches(len(data.train), config.batch_size, generator)

    def seconds(work: Callable[[], object]) -> float:
        start = time.monotonic()
        work()
        taken = torch.tensor(time.monotonic() - start, dtype=torch.float64, device=trainer.device)
        if trainer.world > 1:  # all ranks use the slowest one's time, so that they run the same number of steps
            distributed.all_reduce(taken, distributed.ReduceOp.MAX)
        return float(taken.item())

    def train(images: int, steps: int) -> float:
        short = tuple(order[step % len(order)][:images] for step in range(steps))
        return seconds(lambda: trainer.train(short, 1, generator))

    train(trainer.world, 1)  # the first step includes set-up
    image_s, one_image_mb = train(trainer.world, 1) / trainer.world, peak_memory_mb(trainer.device)
    # No more images than the last batch has, which is the smallest.
    images = min(len(order[-1]), max(MIN_IMAGES * trainer.world, int(limit_s / 4 / image_s)))
    train_s = train(images, 1)
    steps = min(MAX_STEPS, int(limit_s / 2 / train_s))
    if steps:  # otherwise the first step of this size, which includes set-up, has to do
        train_s = train(images, steps) / steps
        if trainer.graphs.sizes("training"):  # captured during these steps: only now training has its full speed
            train_s = train(images, steps) / steps
    step_mb = peak_memory_mb(trainer.device)

    val_images = min(len(data.val), validation_batch_size(trainer.device, data.manifest.size**2) * trainer.world)
    val = trainer.data.val
    val = dataclasses.replace(val, rows=val.rows[:val_images], patients=val.patients[:val_images])
    trainer.data = dataclasses.replace(trainer.data, val=val)
    val_s = seconds(trainer.validate)
    if val_s < limit_s / 8:  # the first batch includes set-up
        val_s = seconds(trainer.validate)
        if trainer.graphs.sizes("validation"):  # captured in this one
            val_s = seconds(trainer.validate)
    peak_mb = peak_memory_mb(trainer.device)
    return Throughput(images, train_s / images, val_s / val_images, one_image_mb, step_mb, peak_mb)


class SteadyTraining:
    """A training at full speed that can run for any time, to measure several at once on one GPU."""

    def __init__(self, config: TrialConfig, data: PreparedData, seed: int = 0, precision: Precision = "auto") -> None:
        self.trainer = Trainer(frozen(config), data, 1, seed, precision)
        self.generator = torch.Generator().manual_seed(seed)
        order = batches(len(data.train), config.batch_size, self.generator)
        self.images = len(order[-1])  # in each step: a single size, so a single graph
        steps = MAX_STEPS if self.trainer.graphs.allows("training") else 1  # one step keeps CPUs busy
        self.order = tuple(order[step % len(order)][: self.images] for step in range(steps))
        for _ in range(2):  # the first pass includes set-up and capture; the second runs like all later ones
            self._train()

    def images_per_s(self, seconds: float) -> float:
        """Train for about `seconds` from now on and return the images trained per second."""
        start, done = time.monotonic(), 0
        while (elapsed := time.monotonic() - start) < seconds:
            self._train()
            done += len(self.order)
        return done * self.images / elapsed

    def _train(self) -> None:
        self.trainer.train(self.order, 1, self.generator)


def frozen(config: TrialConfig) -> TrialConfig:
    """Return the configuration with a learning rate near zero, so that no random one diverges while it is measured."""
    return config.model_copy(update={"learning_rate": 1e-9, "min_learning_rate": 0.0})


def mps_is_on() -> bool:
    """Return whether NVIDIA's Multi-Process Service is on, which lets processes use a GPU at the same time."""
    pipe = os.environ.get("CUDA_MPS_PIPE_DIRECTORY")
    return (Path(pipe) if pipe else MPS_PIPE).is_dir()
