"""Training one configuration: `epochs(...)` yields a report after each epoch, wherever it runs.

The same generator runs in this process, in a warm Tune actor and in every rank of a Ray Train worker group: it knows
only torch, and asks `torch.distributed` whether it is alone.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ReduceLROnPlateau

from wmlsearch.config import InputError, TrialConfig
from wmlsearch.data.slices import Augmentation, PreparedData, Slices, batches
from wmlsearch.model.checkpoint import ANEW, CHECKPOINT_FORMAT, check_same, load_checkpoint, save_atomically
from wmlsearch.model.metrics import Counts, slice_losses
from wmlsearch.model.steps import Diverged, Steps
from wmlsearch.model.unet import UNet

VALIDATION_BATCH = 16  # slices; changes nothing but speed and memory
GPU_VALIDATION_PIXELS = 2**22  # of a batch on GPUs, which small batches leave idle: 64 slices of 256 x 256


@dataclass(frozen=True)
class EpochReport:
    """What is known after an epoch (the first is 1): its metrics (None: not a number), and whether training has ended.

    `ended` is None, "completed" (the last epoch) or "early_stopped" (by the configuration's own patience).
    """

    epoch: int
    time: float  # seconds since 1970, when the epoch ended
    metrics: Mapping[str, float | None]
    ended: str | None = None

    def row(self) -> dict[str, Any]:
        """Flat and plain: a line of metrics.jsonl, a result of Tune."""
        return {"epoch": self.epoch, "time": self.time, "ended": self.ended, **self.metrics}


def epochs(
    config: TrialConfig,
    data: PreparedData,
    *,
    max_epochs: int,
    seed: int = 0,
    precision: Literal["auto", "bfloat16", "float32"] = "auto",
    objective: str = "val_dice_best",
    last: Path | None = None,
    best: Path | None = None,
    rate_factors: Mapping[int, float] | None = None,
) -> Generator[EpochReport, None, None]:
    """Train `config` on the train split, validate on the validation split, and yield a report after each epoch.

    Args:
        last: checkpoint of the latest epoch. Written before its report is yielded; where it exists already, training
            goes on behind it, bit for bit as if never interrupted (on CPUs, with the number of threads that it holds).
        best: checkpoint of the epoch with the highest `objective`, weights only.
        rate_factors: what the rate of `config`'s schedule is multiplied with, each from its epoch on: {5: 0.8} leaves
            the first four epochs as they are.

    With several ranks each calls it with the same arguments; `config.batch_size` is shared out among them, the reports
    of all ranks agree, and rank 0 writes. Raises Diverged, and InputError for what can't be trained on this data.
    """
    trainer = Trainer(config, data, max_epochs, seed, precision, rate_factors)
    for path in filter(None, (last, best)):
        path.parent.mkdir(parents=True, exist_ok=True)
    if last is not None and last.exists():
        trainer.load(last)
    while trainer.ended is None:
        report = trainer.train_epoch()
        if trainer.rank == 0:  # best first: if only it gets written, the epoch is trained again and writes it again
            if best is not None and trainer.is_best(objective):
                save_atomically(trainer.weights(), best)
            if last is not None:
                save_atomically(trainer.state(), last)
        yield report


def check_trainable(config: TrialConfig, data: PreparedData, workers: int = 1) -> None:
    """Refuse what could not train. Raises InputError with the rule and the numbers."""
    size, slices = data.manifest.size, len(data.train)
    faults = []
    if size < 2 ** (config.depth + 1):
        faults.append(
            f"size >= 2^(depth + 1) must hold, but got (size={size}, depth={config.depth}): "
            "the lowest level would have a single pixel; lower `depth` or prepare with a bigger --size"
        )
    if slices == 0 or len(data.val) == 0:
        faults.append(f"slices are needed, but there are {slices} to train on and {len(data.val)} to validate on")
    else:
        smallest = slices // math.ceil(slices / config.batch_size)
        if smallest < workers:
            faults.append(
                f"each worker needs a slice of each batch, but batch_size={config.batch_size} of {slices} slices makes "
                f"batches of {smallest} for {workers} workers: raise `batch_size` or use fewer workers"
            )
    if faults:
        raise InputError("this configuration can't be trained on this data", faults)


class Trainer:
    """A training, an epoch at a time: model, optimiser and what was reported so far."""

    def __init__(
        self,
        config: TrialConfig,
        data: PreparedData,
        max_epochs: int,
        seed: int,
        precision: str,
        rate_factors: Mapping[int, float] | None = None,
    ) -> None:
        several = distributed.is_available() and distributed.is_initialized()
        self.rank, self.world = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)
        check_trainable(config, data, self.world)
        self.config, self.data, self.max_epochs, self.seed = config, data, max_epochs, seed
        self.rate_factors = dict(rate_factors or {})
        if not all(epoch >= 1 and 0 < factor < math.inf for epoch, factor in self.rate_factors.items()):
            raise InputError(f"rate_factors must be epochs (from 1) with factors above 0, but got {self.rate_factors}")
        self.device = data.train.images.device
        if self.device.type == "cuda":  # a warm process has trained others before
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        self.bfloat16 = precision == "bfloat16" or (precision == "auto" and has_fast_bfloat16(self.device))
        torch.manual_seed(seed)  # the same initial weights on all ranks
        unet = UNet(config.depth, config.base_channels, config.dropout, config.norm)
        self.unet: nn.Module = unet.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # as in inference.py
        if several and self.device.type == "cuda":
            self.unet = nn.SyncBatchNorm.convert_sync_batchnorm(self.unet)
        self.model = DistributedDataParallel(self.unet) if several else self.unet
        self.optimizer = _optimizer(config, self.unet, self.device)
        self.plateau = ReduceLROnPlateau(
            self.optimizer,
            factor=config.plateau_factor,
            # torch lowers the rate one epoch after Keras, which the paper used: at `num_bad_epochs > patience`
            patience=config.plateau_patience - 1,
            threshold=0,
            min_lr=config.min_learning_rate,
        )
        self.reports: list[dict[str, Any]] = []

    @cached_property
    def steps(self) -> Steps:
        """Made when the first begins, since a checkpoint says in what precision."""
        return Steps(
            self.model, self.optimizer, self.data.train, self.config.loss, self.bfloat16, self.rank, self.world
        )

    @property
    def ended(self) -> str | None:
        return self.reports[-1]["ended"] if self.reports else None

    def train_epoch(self) -> EpochReport:
        epoch, start = len(self.reports) + 1, time.monotonic()
        # All chance of an epoch comes from (seed, epoch), so a resumed run needs no random state from the past.
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
        torch.manual_seed(_mix(self.seed, epoch, self.rank + 1))  # dropout
        train_loss = self.train(batches(len(self.data.train), self.config.batch_size, generator), epoch, generator)
        trained = time.monotonic()
        metrics = self.validate()
        if metrics["val_loss"] is None:
            raise Diverged(f"the validation loss is not finite in epoch {epoch}")
        rate = self.optimizer.param_groups[0]["lr"] * self.rate_factor(epoch)
        if self.config.schedule == "plateau":
            self.plateau.step(metrics["val_loss"])
        losses = [row["val_loss"] for row in self.reports] + [metrics["val_loss"]]
        ended = None
        if epoch >= self.max_epochs:
            ended = "completed"
        elif len(losses) - 1 - int(np.argmin(losses)) >= self.config.early_stop_patience:
            ended = "early_stopped"
        report = EpochReport(
            epoch,
            max(time.time(), self.reports[-1]["time"] if self.reports else 0.0),  # clocks are set back at times
            {
                "train_loss": train_loss,
                **metrics,
                "learning_rate": rate,
                "images_per_s": len(self.data.train) / (trained - start),
                "epoch_s": time.monotonic() - start,
                "peak_memory_mb": peak_memory_mb(self.device),
            },
            ended,
        )
        self.reports.append(report.row())
        return report

    def train(self, order: tuple[Tensor, ...], epoch: int, generator: torch.Generator) -> float:
        """A step for each batch of positions; returns the loss summed over them, by the number of train slices."""
        self.model.train()
        slices, (group,) = len(self.data.train), self.optimizer.param_groups
        drawn = None
        if self.config.augment != "none":
            drawn = Augmentation.draw(self.config.augment, slices, generator)
        done, steps = (epoch - 1) * len(order), self.max_epochs * len(order)
        planned = [learning_rate(self.config, done + step, steps) for step in range(len(order))]
        rates = [group["lr"] if rate is None else rate for rate in planned]
        factor = self.rate_factor(epoch)
        losses = self.steps.run(order, [rate * factor for rate in rates], drawn, epoch)
        group["lr"] = rates[-1]  # the schedule's own: plateau goes on from it, and so does a checkpoint
        return sum(losses) / slices

    def rate_factor(self, epoch: int) -> float:
        """What the schedule's rate is multiplied with in an epoch."""
        return self.rate_factors[max(begun)] if (begun := self._factors_until(epoch)) else 1.0

    def _factors_until(self, epoch: int) -> dict[int, float]:
        return {start: factor for start, factor in self.rate_factors.items() if start <= epoch}

    @torch.no_grad()
    def validate(self) -> dict[str, float | None]:
        """The metrics on the validation slices."""
        if self.world > 1:  # statistics of batch normalisation are each rank's own on CPUs: rank 0's count
            for buffer in self.unet.buffers():
                distributed.broadcast(buffer, 0)
        counts = count(self.unet, self.data.val, self.config.loss, self.bfloat16, self.rank, self.world)
        counts.reduce()
        return counts.metrics()

    def is_best(self, objective: str) -> bool:
        values = [row[objective] if row[objective] is not None else -math.inf for row in self.reports]
        return int(np.argmax(values)) == len(values) - 1

    def weights(self) -> dict[str, Any]:
        """What the best epoch leaves: the weights and all that says what they are."""
        return {
            "format": CHECKPOINT_FORMAT,
            "config": self.config.model_dump(),
            "seed": self.seed,
            "data": self.data.manifest.fingerprint,
            "rate_factors": self._factors_until(len(self.reports)),
            "report": self.reports[-1],
            "model": self.unet.state_dict(),
        }

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on; its chance follows from seed and epoch."""
        return {
            **self.weights(),
            "max_epochs": self.max_epochs,
            "bfloat16": self.bfloat16,
            "threads": torch.get_num_threads(),
            "reports": self.reports,
            "optimizer": self.optimizer.state_dict(),
            "plateau": self.plateau.state_dict(),
        }

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises InputError where it is another training's, or isn't whole."""
        state = load_checkpoint(path)
        try:
            check_same(path, state, self.config, self.data, self.max_epochs, self.seed, self.rate_factors)
            self._take(state)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            why = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: is damaged ({type(error).__name__}: {why}); {ANEW}") from None

    def _take(self, state: Mapping[str, Any]) -> None:
        self.unet.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.plateau.load_state_dict(state["plateau"])
        self.reports, self.bfloat16 = state["reports"], state["bfloat16"]
        if [row["epoch"] for row in self.reports] != list(range(1, len(self.reports) + 1)):
            raise ValueError("its reports are not those of one epoch after another")
        torch.set_num_threads(min(state["threads"], 1024))  # sums of floats depend on it


def count(unet: nn.Module, slices: Slices, loss: str, bfloat16: bool, rank: int = 0, world: int = 1) -> Counts:
    """This rank's counts of a network on the slices of a split: without padding, each slice once."""
    unet.eval()
    device = slices.images.device
    counts = Counts(len(slices.patient_names), device)
    at_once = validation_batch(device, slices.images[0].numel())
    for positions in torch.arange(rank, len(slices), world, device=device).split(at_once):
        images, masks = slices.batch(positions)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
            logits = unet(images.contiguous(memory_format=torch.channels_last))
        counts.add(logits, masks, slices.patients[positions], slice_losses(logits, masks, loss))
    return counts


def validation_batch(device: torch.device, pixels: int) -> int:
    """How many slices of so many pixels are validated at a time."""
    return max(VALIDATION_BATCH, GPU_VALIDATION_PIXELS // pixels if device.type == "cuda" else 0)


def learning_rate(config: TrialConfig, step: int, steps: int) -> float | None:
    """The rate of a step (the first is 0) out of `steps`; None where the validation decides (plateau)."""
    high, low, done = config.learning_rate, config.min_learning_rate, step / steps
    if config.schedule == "cosine":
        if done < config.warmup_fraction:
            return high * (step + 1) / math.ceil(config.warmup_fraction * steps)
        rest = (done - config.warmup_fraction) / (1 - config.warmup_fraction)
        return low + (high - low) * (1 + math.cos(math.pi * rest)) / 2
    if config.schedule == "step":
        return high * (config.step_factor if done >= config.step_fraction else 1)
    if config.schedule == "onecycle":  # as torch.optim.lr_scheduler.OneCycleLR: up for 30 %, then down, by cosines
        peak = 0.3 * steps - 1
        start, end, rest = (high / 25, high, step / peak) if step <= peak else (
            high, high / 25 / 1e4, (step - peak) / (steps - 1 - peak)
        )  # fmt: skip
        return end + (start - end) * (1 + math.cos(math.pi * rest)) / 2
    return high if config.schedule == "constant" else None


def _optimizer(config: TrialConfig, unet: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    }
    return kinds[config.optimizer](
        unet.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether this processor or GPU multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:  # not Linux
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def peak_memory_mb(device: torch.device) -> float:
    """Most memory that this training held on its GPU so far, else the whole process in all its life (MiB)."""
    if device.type == "cuda":  # reserved: what graphs hold between replays isn't allocated, but nobody else can have it
        return torch.cuda.max_memory_reserved(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _mix(*numbers: int) -> int:
    """One seed out of several numbers, so that neighbours are unrelated."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
