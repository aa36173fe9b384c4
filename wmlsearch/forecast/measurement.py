"""Configurations timed where and as trials would run: in as many processes at once, with what each would get."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import distributed

from wmlsearch.cluster.connect import EMBEDDED
from wmlsearch.cluster.data_shipping import Shipment
from wmlsearch.cluster.resources import Slots, available_cpus
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.model.process_memory import bytes_in_use
from wmlsearch.model.throughput import SteadyTraining, Throughput, measure_throughput
from wmlsearch.search.memory_admission import MemoryFit, predict_peak_memory
from wmlsearch.search.trial_worker import open_data


@dataclass(frozen=True)
class TimedConfiguration:
    """A configuration that was timed: `of` says which of the space it is."""

    of: str  # cheapest, paper, dearest
    config: TrialConfig
    multiply_adds: int  # an image
    timing: Throughput  # the mean of the slots that ran at once


class TimingWorkers:
    """The workers of `count` slots, ready to time, for as long as the block lasts; `device` is what they run on.

    With `one_gpu` the slots, of one worker each, are on one GPU, which they have for themselves. Raises TimeoutError
    when the workers have not started, or have not answered, `patience_s` after the beginning.
    """

    def __init__(
        self, data: Shipment, slots: Slots, count: int, patience_s: float | None = None, one_gpu: bool = False
    ) -> None:
        self.data, self.slots, self.count, self.patience_s, self.one_gpu = data, slots, count, patience_s, one_gpu
        self.rooms: list[Any] = []
        self.groups: list[list[Any]] = []
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
        for worker in (worker for group in self.groups for worker in group):
            ray.kill(worker)
        for room in self.rooms:
            remove_placement_group(room)
        self.scratch.cleanup()

    def time(self, config: TrialConfig, settings: RunSettings, limit_s: float) -> Throughput:
        """All slots at once, so that what they take from each other is in the figures.

        Of times the mean, of memory the most.
        """
        words = (config.model_dump(), settings.seed, settings.precision, limit_s)
        asked = [worker.time.remote(*words) for group in self.groups for worker in group]
        times: list[Throughput] = self._get(asked)
        return Throughput(
            images=min(timing.images for timing in times),
            train_s=statistics.fmean(timing.train_s for timing in times),
            val_s=statistics.fmean(timing.val_s for timing in times),
            one_image_memory_mb=max(timing.one_image_memory_mb for timing in times),
            step_memory_mb=max(timing.step_memory_mb for timing in times),
            peak_memory_mb=max(timing.peak_memory_mb for timing in times),
        )

    def images_per_s(self, config: TrialConfig, settings: RunSettings, seconds: float, count: int) -> float:
        """What the first `count` slots, of one worker each, train together when all are at it at once."""
        workers = [worker for (worker,) in self.groups[:count]]
        words = (config.model_dump(), settings.seed, settings.precision)
        self._get([worker.make_ready.remote(*words) for worker in workers])
        return float(sum(self._get([worker.images_per_s.remote(seconds) for worker in workers])))

    def fit(self, config: TrialConfig, settings: RunSettings) -> tuple[MemoryFit, int]:
        """Whether a configuration fits into a whole GPU, or a machine's memory; and what the data take there."""
        (told,) = self._get([self.groups[0][0].fit.remote(config.model_dump(), settings.precision)])
        return told

    def _start(self) -> None:
        slots = self.slots
        if self.one_gpu:
            self.rooms = [placement_group([{"CPU": slots.cpus * self.count, "GPU": 1}])]
        else:
            self.rooms = [placement_group([slots.resources] * slots.workers) for _ in range(self.count)]
        actor: Any = ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus)(_Worker)
        self._get([room.ready() for room in self.rooms])
        for room in self.rooms * (self.count if self.one_gpu else 1):
            places = [PlacementGroupSchedulingStrategy(room, rank) for rank in range(slots.workers)]
            self.groups.append([actor.options(scheduling_strategy=it).remote(self.data, slots.cpus) for it in places])
        self.device = self._get([worker.device.remote() for group in self.groups for worker in group])[0]
        for number, group in enumerate(self.groups if slots.workers > 1 else ()):
            if EMBEDDED in os.environ:  # by a file, as in group.py: torch's own store listens on all interfaces
                address = Path(self.scratch.name, f"rendezvous-{number}").as_uri()
            else:
                (address,) = self._get([group[0].address.remote()])
            self._get([worker.join.remote(address, rank, slots.workers) for rank, worker in enumerate(group)])

    def _get(self, asked: list[Any]) -> Any:
        left = None if self.patience_s is None else max(0.0, self.began + self.patience_s - time.monotonic())
        try:
            return ray.get(asked, timeout=left)
        except ray.exceptions.GetTimeoutError:
            raise TimeoutError(f"no answer within {self.patience_s:g} s") from None


class _Worker:
    """A rank of a trial, as far as its speed goes."""

    def __init__(self, data: Shipment, threads: int) -> None:
        torch.set_num_threads(threads)
        self.data, self.threads = open_data(data), threads
        self.pace: SteadyTraining | None = None

    def device(self) -> str:
        if self.data.train.images.device.type == "cuda":
            return torch.cuda.get_device_name()
        return f"CPU, {self.threads} thread{'s' if self.threads > 1 else ''} a worker"

    def address(self) -> str:
        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def join(self, address: str, rank: int, world: int) -> None:
        """Become a rank of a trial of several workers, over the network that its training would use."""
        cuda = self.data.train.images.device.type == "cuda"
        distributed.init_process_group("nccl" if cuda else "gloo", init_method=address, rank=rank, world_size=world)

    def time(self, config: Mapping[str, Any], seed: int, precision: Any, limit_s: float) -> Throughput:
        return measure_throughput(TrialConfig(**config), self.data, seed=seed, precision=precision, limit_s=limit_s)

    def fit(self, config: Mapping[str, Any], precision: Any) -> tuple[MemoryFit, int]:
        fit = predict_peak_memory(TrialConfig(**config), self.data, precision)
        return fit, bytes_in_use(self.data.train.images.device)

    def make_ready(self, config: Mapping[str, Any], seed: int, precision: Any) -> None:
        """Once for all that is asked of this worker: what was ready before is so still."""
        if self.pace is None:
            self.pace = SteadyTraining(TrialConfig(**config), self.data, seed, precision)

    def images_per_s(self, seconds: float) -> float:
        if self.pace is None:
            raise RuntimeError("images_per_s comes after make_ready")
        return self.pace.images_per_s(seconds)


def slots_available_now(slots: Slots) -> int:
    """How many of the slots fit on the machines that are there: an autoscaler's are not started for a forecast."""
    there = ray.cluster_resources()
    fits = min(there.get(name, 0) / amount for name, amount in slots.resources.items())
    return max(1, min(slots.count, int(fits + 1e-9) // slots.workers))


def load_warning() -> str:
    """What to mind where other programs use the cores of this machine that are about to be timed, or "".

    To be asked before Ray starts, whose own processes would be counted too.
    """
    ours, all_cores = available_cpus(), os.cpu_count() or 1
    try:
        load = os.getloadavg()[0]
    except OSError:  # a machine that doesn't say
        return ""
    busy = min(load - (all_cores - ours), ours)  # others first use the cores that are not ours
    if busy < max(0.5, ours / 10):
        return ""
    return (
        f"mind: in the last minute other programs used {max(1, round(busy))} of {ours} cores; if they still do, the "
        "forecast will be too high"
    )
