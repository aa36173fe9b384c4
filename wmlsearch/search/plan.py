"""What a search will cost, before anything is spent: trials and epochs by rule, seconds and memory by measuring."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import socket
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmlsearch.search.cluster import Slots  # isort: skip - sets Ray's environment before Ray is imported

import numpy as np
import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import distributed

from wmlsearch.config import InputError, RunSettings, TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.model.timing import Timing, timed
from wmlsearch.model.unet import UNet
from wmlsearch.search.checkpoints import KEPT_BEST
from wmlsearch.search.population import comparisons, expected_size, most_parents, most_snapshots
from wmlsearch.search.slot import open_data
from wmlsearch.space import Choices, SearchSpace

SAMPLES = 200  # configurations drawn from the space to stand for its trials
LIMIT_S = 5.0  # for each configuration that is timed
RECORD_BYTES = 305  # what a checkpoint holds for each tensor beside its numbers: names, checksum, alignment
# Tensors like the weights that an optimiser keeps, and whether it counts its steps for each of them.
OPTIMIZER_STATE = {"adam": (2, True), "adamw": (2, True), "sgd": (1, False)}


@dataclass(frozen=True)
class Rung:
    """A level of the search: so many trials are expected to train from the level before up to `epoch`."""

    epoch: int
    trials: float
    epochs: float  # trained on this level, by all of its trials


@dataclass(frozen=True)
class Measured:
    """A configuration that was timed: `of` says which of the space it is."""

    of: str  # cheapest, paper, dearest
    config: TrialConfig
    multiply_adds: int  # an image
    timing: Timing  # the mean of the slots that ran at once


@dataclass(frozen=True)
class Forecast:
    """What a search is expected to spend."""

    rungs: tuple[Rung, ...]
    baseline_epochs: int
    slots: Slots
    start_s: float  # Ray and the processes of the slots
    search_s: float
    baseline_s: float
    epoch_s: float  # of a trial of the space, on average
    gpu_hours: float
    disk_bytes: int  # most that checkpoints take at a time
    peak_memory_mb: float  # MiB of each worker of the hungriest trial; on a GPU: the GPU's
    measured: tuple[Measured, ...]
    device: str

    @property
    def epochs(self) -> float:
        """Of the trials, without the baseline."""
        return sum(rung.epochs for rung in self.rungs)

    @property
    def total_s(self) -> float:
        return self.start_s + self.search_s + self.baseline_s

    def as_dict(self) -> dict[str, Any]:
        """Plain values: for JSON."""
        plain = dataclasses.asdict(self)
        measured = [{**entry, "config": entry["config"].model_dump()} for entry in plain["measured"]]
        sums = {"epochs": self.epochs, "total_s": self.total_s}
        return {**plain, "rungs": list(plain["rungs"]), "measured": measured, **sums}


def rungs(trials: int, epochs: int, grace_epochs: int, reduction_factor: int) -> tuple[Rung, ...]:
    """The levels of asynchronous successive halving, with the numbers of trials to expect on each.

    A trial that comes to a rung goes on if it is among the best 1 / `reduction_factor` of those that came before it.
    The first has nobody before it and goes on, so a small search trains more than that share. How trials rank is taken
    as new at each rung: where the good stay good, Ray lets more of them go on (by its own scheduler with 27 trials half
    as many epochs again); trials that end by their own patience, and a first trial that is hard to beat, make it less.
    """
    levels, before, arrive = [], 0, float(trials)
    milestone = min(grace_epochs, epochs)
    while before < epochs:
        epoch = min(milestone, epochs)
        levels.append(Rung(epoch, arrive, arrive * (epoch - before)))
        before, milestone, arrive = epoch, milestone * reduction_factor, _going_on(arrive, reduction_factor)
    return tuple(levels)


def levels_of(settings: RunSettings) -> tuple[Rung, ...]:
    """The levels of a search; hyperband and median are taken as asha."""
    if settings.scheduler == "pbt":
        size, step = expected_size(settings), settings.grace_epochs
        ends = [*range(step, settings.epochs, step), settings.epochs]
        return tuple(Rung(end, size, size * (end - start)) for start, end in itertools.pairwise([0, *ends]))
    grace = settings.epochs if settings.scheduler == "none" else settings.grace_epochs
    return rungs(settings.trials, settings.epochs, grace, settings.reduction_factor)


def _going_on(arrivals: float, reduction_factor: int) -> float:
    """How many of them pass a rung, one after another, none known to be better than another."""
    passed = 0.0
    for before in range(int(np.ceil(arrivals))):
        # The bar is the quantile 1 - 1/reduction_factor of the values before, as numpy interpolates it. By symmetry a
        # new value is as likely in each of the before + 1 gaps; for evenly spread values that gives:
        chance = (1 + (before - 1) / reduction_factor) / (before + 1) if before else 1.0
        passed += chance * min(1.0, arrivals - before)
    return passed


def multiply_adds(depth: int, base_channels: int, size: int) -> int:
    """Of the U-Net's convolutions for one image of `size` x `size` pixels, forward."""
    step = 2**depth
    side = -(-size // step) * step  # the network pads to a multiple
    total, channels_in = side**2 * base_channels, 1  # the head
    for level in range(depth + 1):
        pixels, width = (side // 2**level) ** 2, base_channels * 2**level
        total += pixels * 9 * (channels_in * width + width * width)
        if level < depth:  # on the way up: doubled by the transposed convolution, then merged with the skip
            total += pixels * 2 * width * width + pixels * 9 * (2 * width * width + width * width)
        channels_in = width
    return total


def checkpoint_bytes(config: TrialConfig) -> tuple[int, int]:
    """Of a training's `last.pt` and `best.pt`."""
    weights, records = _weights(config.depth, config.base_channels, config.norm)
    parameters, tensors = _parameters(config.depth, config.base_channels, config.norm)
    copies, counts = OPTIMIZER_STATE[config.optimizer]
    best = weights + RECORD_BYTES * records
    state = copies * (4 * parameters + RECORD_BYTES * tensors) + counts * tensors * (4 + RECORD_BYTES)
    return best + state, best


def most_checkpoint_bytes(space: SearchSpace) -> tuple[int, int]:
    """Of the biggest network of a space, or the paper's: `last.pt` and `best.pt`."""
    options: dict[str, list[Any]] = {}
    for name in ("depth", "base_channels", "norm", "optimizer"):
        if name in space.dimensions:
            domain = space.dimensions[name].domain
            options[name] = list(domain.values) if isinstance(domain, Choices) else [int(domain.high)]
        else:
            options[name] = [space.defaults[name]]
    corners = [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]
    sizes = [checkpoint_bytes(TrialConfig(**corner)) for corner in corners] + [checkpoint_bytes(TrialConfig())]
    return max(last for last, _ in sizes), max(best for _, best in sizes)


def room_for_best(space: SearchSpace, settings: RunSettings, slots: Slots) -> float:
    """Bytes that the weights of ended trials may take, beside what running trials need. Raises InputError.

    A checkpoint is written beside the one that it replaces, so a running trial needs room for three.
    """
    if settings.max_checkpoint_gb is None:
        return math.inf
    last, best = most_checkpoint_bytes(space)
    running = slots.count * (last + best + last)
    snapshots = most_snapshots(settings, slots.count)
    kept = snapshots * (last + best)
    room = settings.max_checkpoint_gb * 1e9 - running - kept
    if room < best:
        of_pbt = f", {snapshots} snapshots that children may begin with {kept / 1e9:.3g} GB" if snapshots else ""
        raise InputError(
            f"--max-checkpoint-gb {settings.max_checkpoint_gb:g}: {slots.count} running trials may need "
            f"{running / 1e9:.3g} GB{of_pbt} and the best weights {best / 1e9:.3g} GB; "
            f"give at least {math.ceil((running + kept + best) / 1e6) / 1000:g}, or search smaller networks"
            + (", or compare less often by --grace-epochs" if snapshots else "")
        )
    return room


@functools.cache
def _unet(depth: int, base_channels: int, norm: Any) -> UNet:
    with torch.device("meta"):  # shapes without memory
        return UNet(depth, base_channels, 0.0, norm)


def _weights(depth: int, base_channels: int, norm: str) -> tuple[int, int]:
    """Bytes and number of the tensors of a network, statistics of its normalisation included."""
    tensors = _unet(depth, base_channels, norm).state_dict().values()
    return sum(tensor.nbytes for tensor in tensors), len(tensors)


def _parameters(depth: int, base_channels: int, norm: str) -> tuple[int, int]:
    tensors = list(_unet(depth, base_channels, norm).parameters())
    return sum(tensor.numel() for tensor in tensors), len(tensors)


def to_measure(sample: Sequence[TrialConfig], size: int) -> dict[str, TrialConfig]:
    """The cheapest of a space's sample, the paper's, and the dearest; of equally dear ones that of a middling batch."""
    middle = statistics.median(config.batch_size for config in sample)

    def cost(config: TrialConfig) -> int:
        return multiply_adds(config.depth, config.base_channels, size)

    usual = sorted(sample, key=lambda config: abs(config.batch_size - middle))
    return {"cheapest": min(usual, key=cost), "paper": TrialConfig(), "dearest": max(usual, key=cost)}


def between(points: Sequence[tuple[float, float]], at: Sequence[float]) -> list[float]:
    """Piecewise linear through (x, y); beyond the outermost points as at them, equal x averaged."""
    values: dict[float, list[float]] = {}
    for x, y in points:
        values.setdefault(x, []).append(y)
    xs = sorted(values)
    return [float(y) for y in np.interp(at, xs, [statistics.fmean(values[x]) for x in xs])]


def forecast(space: SearchSpace, settings: RunSettings, data: dict[str, Any], slots: Slots, final: Slots) -> Forecast:
    """Forecast a search on the Ray that we are connected to, as many trials at once as `slots` says.

    `data` is a parcel; `final` is what the baseline gets. On a cluster that grows, what is there already is measured.
    """
    manifest = Manifest.read(Path(data["path"]))
    train, val = (len(manifest.indices(split, kept_only=split == "train")) for split in ("train", "val"))
    rng = np.random.default_rng(settings.seed)
    sample = [space.config(space.sample(rng)) for _ in range(SAMPLES)]
    costs = [multiply_adds(config.depth, config.base_channels, manifest.size) for config in sample]
    chosen = to_measure(sample, manifest.size)
    started = time.monotonic()
    with _workers(data, slots, _there_now(slots)) as (groups, device):
        start_s = time.monotonic() - started
        # The dearest first: on CPUs the peak of a process's memory only rises, and nothing is to hide how it rises.
        measured = tuple(
            Measured(of, config, multiply_adds(config.depth, config.base_channels, manifest.size), timing)
            for of, config in reversed(chosen.items())
            for timing in [_time(groups, config, settings)]
        )[::-1]
    train_s, val_s = (
        statistics.fmean(between([(m.multiply_adds, getattr(m.timing, name)) for m in measured], costs))
        for name in ("train_s", "val_s")
    )
    epoch_s = train_s * train + val_s * val
    paper = next(entry.timing for entry in measured if entry.of == "paper")
    paper_s = settings.epochs * (paper.train_s * train + paper.val_s * val)
    levels = levels_of(settings)
    # The first trial is the paper's configuration, and the first at each rung goes on.
    trials_s = paper_s + epoch_s * (sum(level.epochs for level in levels) - settings.epochs)
    baseline_s = 0.0
    if settings.baseline:
        started = time.monotonic()
        with _workers(data, final, 1) as (groups, _):
            start_s += time.monotonic() - started
            timing = _time(groups, TrialConfig(), settings)
        baseline_s = settings.epochs * (timing.train_s * train + timing.val_s * val)
    running_bytes, best_bytes = np.mean([(sum(sizes), sizes[1]) for sizes in map(checkpoint_bytes, sample)], axis=0)
    # Running trials have both their checkpoints, of those that ended the weights of the best few are kept.
    disk_bytes = slots.count * running_bytes + min(KEPT_BEST, settings.trials) * best_bytes
    if settings.scheduler == "pbt":  # and snapshots of the best at each comparison; the paper's may be one of them
        others = (most_parents(settings.trials) - 1) * running_bytes
        disk_bytes += comparisons(settings) * (others + sum(checkpoint_bytes(TrialConfig())))
    gpus = slots.workers * slots.gpus * trials_s + final.workers * final.gpus * baseline_s
    return Forecast(
        rungs=levels,
        baseline_epochs=settings.epochs if settings.baseline else 0,
        slots=slots,
        start_s=start_s,
        search_s=max(trials_s / slots.count, paper_s),  # no number of slots makes a single trial faster
        baseline_s=baseline_s,
        epoch_s=epoch_s,
        gpu_hours=gpus / 3600,
        disk_bytes=round(disk_bytes) + sum(checkpoint_bytes(TrialConfig())) * settings.baseline,
        peak_memory_mb=_most_memory(measured, sample, manifest.size, slots.workers),
        measured=measured,
        device=device,
    )


def _most_memory(measured: Sequence[Measured], sample: Sequence[TrialConfig], size: int, workers: int) -> float:
    """MiB of a worker: as measured, or more where the space has the dearest network with a bigger batch than timed."""
    most = max(entry.timing.peak_memory_mb for entry in measured)
    dearest = next(entry for entry in measured if entry.of == "dearest")
    timing = dearest.timing
    alike = [c.batch_size for c in sample if multiply_adds(c.depth, c.base_channels, size) >= dearest.multiply_adds]
    if timing.images == workers:  # a batch has no more
        return most
    an_image = (timing.step_memory_mb - timing.least_memory_mb) / (timing.images - workers)
    return max(most, timing.least_memory_mb + an_image * (max(alike) - workers))


def _there_now(slots: Slots) -> int:
    """How many of the slots fit on the machines that are there: an autoscaler's are not started for a forecast."""
    there = ray.cluster_resources()
    fits = min(there.get(name, 0) / amount for name, amount in slots.resources.items())
    return max(1, min(slots.count, int(fits + 1e-9) // slots.workers))


class _Worker:
    """A rank of a trial, as far as its speed goes."""

    def __init__(self, data: Mapping[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self.data, self.threads = open_data(dict(data)), threads

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

    def time(self, config: Mapping[str, Any], seed: int, precision: Any) -> Timing:
        return timed(TrialConfig(**config), self.data, seed=seed, precision=precision, limit_s=LIMIT_S)


@contextlib.contextmanager
def _workers(data: dict[str, Any], slots: Slots, count: int) -> Iterator[tuple[list[list[Any]], str]]:
    """The workers of `count` slots, each with a worker's resources, ready to time; and what they run on."""
    rooms = [placement_group([slots.resources] * slots.workers) for _ in range(count)]
    actor: Any = ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus)(_Worker)
    groups: list[list[Any]] = []
    try:
        ray.get([room.ready() for room in rooms])
        for room in rooms:
            places = [PlacementGroupSchedulingStrategy(room, rank) for rank in range(slots.workers)]
            groups.append([actor.options(scheduling_strategy=it).remote(data, slots.cpus) for it in places])
        devices = ray.get([worker.device.remote() for group in groups for worker in group])
        for group in groups if slots.workers > 1 else ():
            address = ray.get(group[0].address.remote())
            ray.get([worker.join.remote(address, rank, slots.workers) for rank, worker in enumerate(group)])
        yield groups, devices[0]
    finally:
        for worker in (worker for group in groups for worker in group):
            ray.kill(worker)
        for room in rooms:
            remove_placement_group(room)


def _time(groups: list[list[Any]], config: TrialConfig, settings: RunSettings) -> Timing:
    """All slots at once, so that what they take from each other is in the figures: the mean, of memory the most."""
    asked = [w.time.remote(config.model_dump(), settings.seed, settings.precision) for group in groups for w in group]
    times: list[Timing] = ray.get(asked)
    return Timing(
        images=min(timing.images for timing in times),
        train_s=statistics.fmean(timing.train_s for timing in times),
        val_s=statistics.fmean(timing.val_s for timing in times),
        least_memory_mb=max(timing.least_memory_mb for timing in times),
        step_memory_mb=max(timing.step_memory_mb for timing in times),
        peak_memory_mb=max(timing.peak_memory_mb for timing in times),
    )
