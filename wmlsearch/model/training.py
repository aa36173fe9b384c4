"""Training one configuration: `epochs(...)` yields a row of metrics after each epoch, wherever it runs.

The same generator runs in this process, in a warm Tune actor and in every rank of a Ray Train worker group. It knows
neither Ray nor MLflow, and asks `torch.distributed` how many ranks there are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, distributed, nn

from wmlsearch.config import TrialConfig
from wmlsearch.data.augmentation import Augmentation
from wmlsearch.data.geometry import PLANES
from wmlsearch.data.slices import PreparedData, batches, batches_with_share
from wmlsearch.errors import InputError
from wmlsearch.model.checkpoint import (
    CHECKPOINT_FORMAT,
    RESTORE_HINT,
    TrainingIdentity,
    check_same_training,
    load_checkpoint,
    save_atomically,
)
from wmlsearch.model.checks import check_trainable
from wmlsearch.model.compile_cache import ArtifactStore, CompileCache, CompiledFor
from wmlsearch.model.compiled import CompiledNetwork
from wmlsearch.model.graphs import StepGraphs
from wmlsearch.model.kernels import selected_kernels, use_selected_kernels
from wmlsearch.model.losses import Loss
from wmlsearch.model.metrics import ValidationCounts
from wmlsearch.model.optimizers import build_optimizer
from wmlsearch.model.precision import Precision, uses_bfloat16
from wmlsearch.model.process_memory import peak_memory_mb
from wmlsearch.model.ranks import broadcast_tensors, in_process_group
from wmlsearch.model.schedules import RateFactors, epochs_without_improvement, learning_rate, plateau_scheduler
from wmlsearch.model.steps import Diverged, TrainingSteps
from wmlsearch.model.thresholds import choose_threshold
from wmlsearch.model.unet import UNet
from wmlsearch.model.validation import Validation
from wmlsearch.model.weight_average import WeightAverage, average_steps
from wmlsearch.runs.schema import EpochRow


def epochs(
    config: TrialConfig,
    data: PreparedData,
    *,
    max_epochs: int,
    seed: int = 0,
    precision: Precision = "auto",
    objective: str = "val_dice_patients_best",
    last: Path | None = None,
    best: Path | None = None,
    rate_factors: Mapping[int, float] | None = None,
    compiled: ArtifactStore | None = None,
) -> Generator[EpochRow, None, None]:
    """Train `config` on the training slices, validate on the validation slices, and yield a row after each epoch.

    With several ranks each rank calls this with the same arguments. The ranks share `config.batch_size`, their rows
    agree, and rank 0 writes the checkpoints.

    Args:
        last: Checkpoint of the latest epoch, written before its row is yielded. If it exists, training continues
            after it, bit for bit as if never interrupted (on CPUs, with the number of threads that it records).
        best: Checkpoint of the epoch with the highest `objective`, weights only.
        rate_factors: Factors on the schedule's learning rate, each from its epoch on.
        compiled: Where compiled networks are kept, if WMLSEARCH_KERNELS selects them.

    Raises:
        Diverged: the training or validation loss is not finite.
        InputError: the configuration cannot be trained on this data, or `last` belongs to another training.
    """
    trainer = Trainer(config, data, max_epochs, seed, precision, rate_factors)
    if selected_kernels() == "compile":
        trainer.compile_network(compiled)
    for path in filter(None, (last, best)):
        path.parent.mkdir(parents=True, exist_ok=True)
    if last is not None and last.exists():
        trainer.load(last)
    while trainer.ended is None:
        row = trainer.train_epoch()
        if trainer.rank == 0:  # best first: if the process dies between the two, the epoch is trained and saved again
            if best is not None and trainer.is_best(objective):
                save_atomically(trainer.weights(), best)
            if last is not None:
                save_atomically(trainer.state(), last)
        yield row


class Trainer:
    """A training, one epoch at a time: model, optimiser, schedule and the rows of the epochs so far."""

    def __init__(
        self,
        config: TrialConfig,
        data: PreparedData,
        max_epochs: int,
        seed: int,
        precision: str,
        rate_factors: Mapping[int, float] | None = None,
    ) -> None:
        several = in_process_group()
        self.rank, self.world = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)
        check_trainable(config, data, self.world)
        self.config, self.data, self.max_epochs, self.seed = config, data.with_input_of(config), max_epochs, seed
        self.rate_factors = RateFactors(rate_factors)
        self.device = data.train.images.device
        if self.device.type == "cuda":  # a warm process has trained other configurations before
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        self.bfloat16 = uses_bfloat16(precision, self.device)
        torch.manual_seed(seed)
        unet = UNet.of(config)
        self.unet: nn.Module = unet.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack memory_format
        if several and self.device.type == "cuda":
            self.unet = nn.SyncBatchNorm.convert_sync_batchnorm(self.unet)
        if several:
            broadcast_tensors(self.unet.state_dict().values())
        self.average = WeightAverage(self.unet) if config.ema else None
        self.fused_losses = use_selected_kernels(self.unet, self.device)
        self.optimizer = build_optimizer(config, self.unet, self.device)
        self.plateau = plateau_scheduler(config, self.optimizer)
        self.rows: list[EpochRow] = []  # of the epochs so far
        self.loss = Loss.of(config, self.world)
        self.threshold = 0.5  # chosen in the latest validation
        self.graphs = StepGraphs(self.device)
        self.validation: Validation | None = None  # made by the first one, as the steps are
        self.compiles = False
        self.artifacts: ArtifactStore | None = None  # where compiled networks are kept

    def compile_network(self, artifacts: ArtifactStore | None) -> None:
        """Let the training steps compile their network, and keep its code in a store. Call it before the first step.

        Not for measurements of a few steps: the first step of each batch size would take most of their time.
        """
        self.compiles, self.artifacts = True, artifacts

    @cached_property
    def steps(self) -> TrainingSteps:
        """The training steps. Created when the first one begins, since a loaded checkpoint decides the precision."""
        steps = TrainingSteps(
            self.unet,
            self.optimizer,
            self.data.train,
            self.loss,
            bfloat16=self.bfloat16,
            rank=self.rank,
            world=self.world,
            average=self.average,
            graphs=self.graphs,
            fused_losses=self.fused_losses,
        )
        if self.compiles:
            steps.network = self._compiled(steps.network)
        return steps

    def _compiled(self, layers: Callable[[Tensor], Tensor]) -> CompiledNetwork:
        cache = None
        if self.artifacts is not None and hasattr(torch.compiler, "save_cache_artifacts"):  # PyTorch 2.7
            made_for = CompiledFor.of(self.config, self.data.manifest.size, self.bfloat16, self.device)
            cache = CompileCache(self.artifacts, made_for)
        return CompiledNetwork(cast(UNet, self.unet), layers, cache, is_writer=self.rank == 0)

    @cached_property
    def balanced_slices(self) -> Tensor | None:
        """Which training slices show a lesion, (N,) bool, if each batch has a share of those; else None.

        A share below 1 needs slices of both kinds. Where all show a lesion, it leaves the batches as they are.
        """
        share = self.config.lesion_share
        if share is None:
            return None
        with_lesion = self.data.training_slices_with_lesions()
        return None if share < 1 and with_lesion.all() else with_lesion

    @property
    def kept_unet(self) -> nn.Module:
        """The network that is validated, kept and exported: the average, if there is one, or the latest weights."""
        return self.unet if self.average is None else self.average.unet

    @property
    def ended(self) -> str | None:
        """Why the training has ended, or None if there are epochs left."""
        return self.rows[-1].ended if self.rows else None

    def train_epoch(self) -> EpochRow:
        """Train and validate one epoch, update the schedule, and return the epoch's row."""
        epoch, start = len(self.rows) + 1, time.monotonic()
        generator = self._seed_epoch(epoch)
        train_loss = self.train(self.draw_batches(generator), epoch, generator)
        train_s = time.monotonic() - start
        counts = self.validate()
        metrics, self.threshold = (
            counts.metrics(),
            choose_threshold(counts.patient_histograms(), self.data.val.patients_known),
        )
        val_loss = metrics["val_loss"]
        if val_loss is None:
            raise Diverged(f"the validation loss is not finite in epoch {epoch}")
        rate = self.optimizer.param_groups[0]["lr"] * self.rate_factors.at(epoch)
        if self.config.schedule == "plateau":
            self.plateau.step(val_loss)
        previous_time = self.rows[-1].time if self.rows else 0.0
        row = EpochRow(
            epoch,
            max(time.time(), previous_time),  # the system clock may have been set back
            self._reason_to_end(epoch, val_loss),
            {
                "train_loss": train_loss,
                **metrics,
                "learning_rate": rate,
                "images_per_s": len(self.data.train) / train_s,
                "epoch_s": time.monotonic() - start,
                "peak_memory_mb": peak_memory_mb(self.device),
            },
        )
        self.rows.append(row)
        return row

    def _seed_epoch(self, epoch: int) -> torch.Generator:
        """Seed dropout and return the generator of the epoch's order and augmentation.

        All randomness of an epoch follows from (seed, epoch), so a resumed run needs no random state.
        """
        torch.manual_seed(_mix(self.seed, epoch, self.rank + 1))
        return torch.Generator().manual_seed(_mix(self.seed, epoch))

    def draw_batches(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return the positions of one epoch's training slices, batch after batch."""
        batch_size, share = self.config.batch_size, self.config.lesion_share
        if share is None or self.balanced_slices is None:
            return batches(len(self.data.train), batch_size, generator)
        return batches_with_share(self.balanced_slices, batch_size, share, generator)

    def train(self, order: tuple[Tensor, ...], epoch: int, generator: torch.Generator) -> float:
        """Train one step for each batch of positions in `order`; return the summed loss per training slice."""
        self.unet.train()
        slices, (group,) = len(self.data.train), self.optimizer.param_groups
        drawn = self._draw_augmentation(order, generator)
        done, steps = (epoch - 1) * len(order), self.max_epochs * len(order)
        planned = [learning_rate(self.config, done + step, steps) for step in range(len(order))]
        rates = [group["lr"] if rate is None else rate for rate in planned]
        averaging = average_steps(self.config.ema, done, len(order)) if self.average is not None else []
        factor = self.rate_factors.at(epoch)
        losses = self.steps.run(order, [rate * factor for rate in rates], drawn, epoch, averaging)
        if self.average is not None:
            self.average.end_epoch()
        group["lr"] = rates[-1]  # without the factor: the plateau schedule and the checkpoint continue from this rate
        return sum(losses) / slices

    def _draw_augmentation(self, order: tuple[Tensor, ...], generator: torch.Generator) -> Augmentation | None:
        """Return the augmentation of each position in `order`, batch after batch."""
        config = self.config
        if config.augment == "none":
            return None
        is_sagittal = self.data.manifest.axis == PLANES["sagittal"]
        mirrors_columns = config.flip_axis == "columns" or not is_sagittal
        positions = torch.cat(order)
        if self.balanced_slices is not None:  # a slice that an epoch has twice looks different each time
            return Augmentation.draw(config.augment, len(positions), generator, mirrors_columns)
        return Augmentation.draw(config.augment, len(self.data.train), generator, mirrors_columns)[positions]

    @torch.no_grad()
    def validate(self) -> ValidationCounts:
        """Return the counts on the validation slices, over all ranks, on the host."""
        if self.world > 1:  # on CPUs each rank has its own statistics of batch normalisation: all take those of rank 0
            broadcast_tensors(self.unet.buffers())
            if self.average is not None:
                broadcast_tensors(self.average.unet.buffers())
        if self.validation is None or self.validation.slices is not self.data.val:
            self.graphs.forget("validation")
            self.validation = Validation(
                self.kept_unet, self.data.val, self.loss, self.bfloat16, self.rank, self.world, self.graphs
            )
        counts = self.validation.run()
        counts.reduce()
        return counts.to_host()

    def _reason_to_end(self, epoch: int, val_loss: float) -> str | None:
        if epoch >= self.max_epochs:
            return "completed"
        val_losses = [loss for row in self.rows if (loss := row.metrics["val_loss"]) is not None] + [val_loss]
        if epochs_without_improvement(val_losses) >= self.config.early_stop_patience:
            return "early_stopped"
        return None

    def is_best(self, objective: str) -> bool:
        """Return whether the latest epoch is the first with the highest `objective`."""
        values = [-math.inf if (value := row.metrics[objective]) is None else value for row in self.rows]
        return int(np.argmax(values)) == len(values) - 1

    def weights(self) -> dict[str, Any]:
        """Return the contents of the best checkpoint: the weights, and what they are."""
        return {
            "format": CHECKPOINT_FORMAT,
            "config": self.config.model_dump(),
            "seed": self.seed,
            "data": self.data.manifest.fingerprint,
            "fold": self.data.fold,
            "rate_factors": self.rate_factors.until(len(self.rows)),
            "report": self.rows[-1].as_json(),
            "threshold": self.threshold,
            "model": self.kept_unet.state_dict(),
        }

    def state(self) -> dict[str, Any]:
        """Return the contents of the latest checkpoint: all that the next epoch depends on."""
        return {
            **self.weights(),
            "model": self.unet.state_dict(),
            **({} if self.average is None else {"average": self.average.unet.state_dict()}),
            "max_epochs": self.max_epochs,
            "bfloat16": self.bfloat16,
            "threads": torch.get_num_threads(),
            "reports": [row.as_json() for row in self.rows],
            "optimizer": self.optimizer.state_dict(),
            "plateau": self.plateau.state_dict(),
        }

    def load(self, path: Path) -> None:
        """Continue from a checkpoint. Raises InputError if it belongs to another training or is damaged."""
        state = load_checkpoint(path)
        try:
            training = TrainingIdentity(self.config, self.data, self.max_epochs, self.seed, self.rate_factors.factors)
            check_same_training(path, state, training)
            self._restore(state)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: is damaged ({type(error).__name__}: {reason}); {RESTORE_HINT}") from None

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.unet.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.plateau.load_state_dict(state["plateau"])
        self.rows, self.bfloat16 = [EpochRow.from_json(row) for row in state["reports"]], state["bfloat16"]
        if [row.epoch for row in self.rows] != list(range(1, len(self.rows) + 1)):
            raise ValueError("its reports are not those of consecutive epochs")
        torch.set_num_threads(min(state["threads"], 1024))  # the result of a sum of floats depends on it


def _mix(*numbers: int) -> int:
    """Return one seed for several numbers, unrelated to the seeds of neighbouring numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
