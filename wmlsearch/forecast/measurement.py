"""Time configurations as trials would run: in as many processes at once, each with the resources of a slot."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import distributed

from wmlsearch.cluster.data_shipping import Shipment
from wmlsearch.cluster.embedded import EMBEDDED
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.forecast.workload import configurations_to_time, sample_configurations, work
from wmlsearch.model.process_memory import bytes_in_use
from wmlsearch.model.throughput import SteadyTraining, Throughput, measure_throughput
from wmlsearch.runs.machine import available_cpus
from wmlsearch.search.memory_admission import MemoryFit, predict_peak_memory
from wmlsearch.search.trial_worker import open_data
from wmlsearch.space import SearchSpace

TIMING_LIMIT_S = 5.0  # for each configuration that is timed, if nothing waits for the result


@dataclass(frozen=True)
class TimedConfiguration:
    """A configuration and its throughput while all slots train it at once."""

    of: str  # its network in the space: "smallest", "largest", or "paper" (the baseline)
    config: TrialConfig
    work: int  # for one image, as multiply-adds of the baseline
    throughput: Throughput  # mean speed and highest memory of the slots


class EpochImages(NamedTuple):
    """How many images an epoch has."""

    train: int
    val: int


@dataclass(frozen=True)
class Measurement:
    """What was measured of a search space."""

    sample: tuple[TrialConfig, ...]  # configurations drawn from the space, to stand for its trials
    configurations: tuple[TimedConfiguration, ...]  # with the smallest network, the baseline, with the largest
    image_size: int  # pixels of each side
    images: tuple[EpochImages, ...]  # with each fold for validation; trials have the first
    sealed_images: int  # of the sealed test
    start_s: float  # seconds until the workers of all slots were ready
    device: str  # what the workers ran on

    def configuration(self, of: str) -> TimedConfiguration:
        """Return the timed configuration with this name."""
        return next(timed for timed in self.configurations if timed.of == of)


def measure_space(
    space: SearchSpace,
    settings: RunSettings,
    manifest: Manifest,
    shipment: Shipment,
    slots: Slots,
    *,
    limit_s: float = TIMING_LIMIT_S,
    patience_s: float | None = None,
) -> Measurement:
    """Time the smallest network of a space, the baseline and the largest network, on the Ray of this process.

    On a cluster that grows on demand, only the slots on its present machines are used.

    Args:
        manifest: Manifest of the data set that was sent to the workers.
        limit_s: Seconds for each configuration.
        patience_s: Raise TimeoutError if the whole takes longer, in seconds. None: wait forever.
    """
    sample = sample_configurations(space, settings.seed)
    configurations = configurations_to_time(sample, manifest.size)
    timed = []
    with TimingWorkers(shipment, slots, slots_available_now(slots), patience_s) as workers:
        # The largest first: on CPUs the peak memory of a process never falls, and the largest one's must be seen.
        for of, config in reversed(configurations.items()):
            throughput = workers.measure_throughput(config, settings, limit_s)
            timed.append(TimedConfiguration(of, config, work(config, manifest.size), throughput))
    return Measurement(
        sample=sample,
        configurations=tuple(reversed(timed)),
        image_size=manifest.size,
        images=tuple(
            EpochImages(
                len(manifest.indices("train", kept_only=True, fold=fold)),
                len(manifest.indices("val", kept_only=False, fold=fold)),
            )
            for fold in range(manifest.fold_count)
        ),
        sealed_images=len(manifest.indices("test", kept_only=False)),
        start_s=workers.start_s,
        device=workers.device,
    )


class TimingWorkers:
    """A context manager with the workers of `count` slots, ready to time configurations.

    `device` is what they run on, `start_s` the seconds until they were ready. With `one_gpu`, the slots have one worker
    each and share one GPU, which nothing else uses. Raises TimeoutError if the workers have not started, or have not
    answered, `patience_s` seconds after the beginning.
    """

    def __init__(
        self, shipment: Shipment, slots: Slots, count: int, patience_s: float | None = None, one_gpu: bool = False
    ) -> None:
        self.shipment, self.slots, self.count = shipment, slots, count
        self.patience_s, self.one_gpu = patience_s, one_gpu
        self.placement_groups: list[Any] = []
        self.slot_workers: list[list[Any]] = []  # the workers of each slot
        self.device, self.start_s = "", 0.0

    def __enter__(self) -> TimingWorkers:
        self.began = time.monotonic()
        self.scratch = tempfile.TemporaryDirectory(prefix="wmlsearch-measure-")
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        self.start_s = time.monotonic() - self.began
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._all_workers():
            ray.kill(worker)
        for group in self.placement_groups:
            remove_placement_group(group)
        self.scratch.cleanup()

    def measure_throughput(self, config: TrialConfig, settings: RunSettings, limit_s: float) -> Throughput:
        """Time a configuration in all slots at once, so that what they take from each other is in the result.

        Speeds are means over the workers, amounts of memory are maxima.
        """
        arguments = (config.model_dump(), settings.seed, settings.precision, limit_s)
        answers: list[Throughput] = self._get(
            [worker.measure_throughput.remote(*arguments) for worker in self._all_workers()]
        )
        return Throughput(
            images=min(answer.images for answer in answers),
            train_s=statistics.fmean(answer.train_s for answer in answers),
            val_s=statistics.fmean(answer.val_s for answer in answers),
            one_image_memory_mb=max(answer.one_image_memory_mb for answer in answers),
            step_memory_mb=max(answer.step_memory_mb for answer in answers),
            peak_memory_mb=max(answer.peak_memory_mb for answer in answers),
        )

    def images_per_s(self, config: TrialConfig, settings: RunSettings, seconds: float, count: int) -> float:
        """Return what the first `count` slots, of one worker each, train per second while all of them train at once."""
        workers = [worker for (worker,) in self.slot_workers[:count]]
        arguments = (config.model_dump(), settings.seed, settings.precision)
        self._get([worker.prepare_training.remote(*arguments) for worker in workers])
        return float(sum(self._get([worker.images_per_s.remote(seconds) for worker in workers])))

    def predict_peak_memory(self, config: TrialConfig, settings: RunSettings) -> tuple[MemoryFit, int]:
        """Return whether a configuration fits into a whole GPU or machine, and the bytes that the data take there."""
        worker = self.slot_workers[0][0]
        (answer,) = self._get([worker.predict_peak_memory.remote(config.model_dump(), settings.precision)])
        return answer

    def _all_workers(self) -> list[Any]:
        return [worker for workers in self.slot_workers for worker in workers]

    def _start(self) -> None:
        slots = self.slots
        if self.one_gpu:
            self.placement_groups = [placement_group([{"CPU": slots.cpus * self.count, "GPU": 1}])]
        else:
            self.placement_groups = [placement_group([slots.resources] * slots.workers) for _ in range(self.count)]
        actor: Any = ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus)(_TimingWorker)
        self._get([group.ready() for group in self.placement_groups])
        for group in self.placement_groups * (self.count if self.one_gpu else 1):
            bundles = [PlacementGroupSchedulingStrategy(group, rank) for rank in range(slots.workers)]
            self.slot_workers.append(
                [actor.options(scheduling_strategy=bundle).remote(self.shipment, slots.cpus) for bundle in bundles]
            )
        self.device = self._get([worker.device_name.remote() for worker in self._all_workers()])[0]
        if slots.workers > 1:
            for number, workers in enumerate(self.slot_workers):
                self._join(number, workers)

    def _join(self, number: int, workers: list[Any]) -> None:
        """Make the workers of slot `number` the ranks of one training."""
        if EMBEDDED in os.environ:  # by a file, as in train_patches.py: torch's own store listens on all interfaces
            address = Path(self.scratch.name, f"rendezvous-{number}").as_uri()
        else:
            (address,) = self._get([workers[0].free_address.remote()])
        self._get([worker.join.remote(address, rank, len(workers)) for rank, worker in enumerate(workers)])

    def _get(self, references: list[Any]) -> Any:
        left_s = None if self.patience_s is None else max(0.0, self.began + self.patience_s - time.monotonic())
        try:
            return ray.get(references, timeout=left_s)
        except ray.exceptions.GetTimeoutError:
            raise TimeoutError(f"no answer within {self.patience_s:g} s") from None


class _TimingWorker:
    """A Ray actor: one rank of a trial that is timed."""

    def __init__(self, shipment: Shipment, threads: int) -> None:
        torch.set_num_threads(threads)
        self.data, self.threads = open_data(shipment), threads
        self.training: SteadyTraining | None = None

    def device_name(self) -> str:
        if self.data.train.images.device.type == "cuda":
            return torch.cuda.get_device_name()
        return f"CPU, {self.threads} thread{'s' if self.threads > 1 else ''} a worker"

    def free_address(self) -> str:
        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def join(self, address: str, rank: int, world_size: int) -> None:
        """Become a rank of a training with several workers, over the network that the training would use."""
        cuda = self.data.train.images.device.type == "cuda"
        distributed.init_process_group(
            "nccl" if cuda else "gloo", init_method=address, rank=rank, world_size=world_size
        )

    def measure_throughput(self, config: Mapping[str, Any], seed: int, precision: Any, limit_s: float) -> Throughput:
        return measure_throughput(TrialConfig(**config), self.data, seed=seed, precision=precision, limit_s=limit_s)

    def predict_peak_memory(self, config: Mapping[str, Any], precision: Any) -> tuple[MemoryFit, int]:
        fit = predict_peak_memory(TrialConfig(**config), self.data, precision)
        return fit, bytes_in_use(self.data.train.images.device)

    def prepare_training(self, config: Mapping[str, Any], seed: int, precision: Any) -> None:
        """Set up the training that `images_per_s` times, at the first call."""
        if self.training is None:
            self.training = SteadyTraining(TrialConfig(**config), self.data, seed, precision)

    def images_per_s(self, seconds: float) -> float:
        if self.training is None:
            raise RuntimeError("images_per_s must be called after prepare_training")
        return self.training.images_per_s(seconds)


def slots_available_now(slots: Slots) -> int:
    """Return how many of the slots fit on the present machines: no machine is started for a forecast."""
    resources = ray.cluster_resources()
    workers = min(resources.get(name, 0) / amount for name, amount in slots.resources.items())
    return max(1, min(slots.count, int(workers + 1e-9) // slots.workers))


def load_warning() -> str:
    """Return a warning if other programs use the CPU cores of this machine that are about to be timed, or "".

    Call it before Ray starts, whose own processes would be counted too.
    """
    available, cores = available_cpus(), os.cpu_count() or 1
    try:
        load = os.getloadavg()[0]
    except OSError:  # a machine without this figure
        return ""
    busy = min(load - (cores - available), available)  # other programs use the cores that are not ours first
    if busy < max(0.5, available / 10):
        return ""
    count = max(1, round(busy))
    return (
        f"warning: {count} of {available} CPU cores {'were' if count > 1 else 'was'} busy during the last minute, so "
        "the forecast may be too high"
    )
