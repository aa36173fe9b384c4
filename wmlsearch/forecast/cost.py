"""What a search will cost, before anything is spent: epochs by rule, seconds and memory by measuring."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wmlsearch.cluster.data_shipping import Shipment
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.forecast.measurement import TimedConfiguration, TimingWorkers, slots_available_now
from wmlsearch.search.checkpoint_size import checkpoint_bytes
from wmlsearch.search.checkpoints import KEPT_BEST
from wmlsearch.search.pbt import comparisons, most_parents
from wmlsearch.search.rungs import NOTES, Rung, rungs_within
from wmlsearch.space import SearchSpace

SAMPLES = 200  # configurations drawn from the space to stand for its trials
DRAWS = 20  # searches drawn from them, where order matters
LIMIT_S = 5.0  # for each configuration that is timed, where nothing waits for it


@dataclass(frozen=True)
class Forecast:
    """What a search is expected to spend."""

    rungs: tuple[Rung, ...]
    ends_by: str  # the budget that is expected to end the trials before the last one: "--max-hours 2", or ""
    notes: tuple[str, ...]  # what can't be known here
    final_runs: int  # the baseline and the best configurations, each with all seeds
    final_epochs: int  # of them, if none stops early
    slots: Slots
    final: Slots  # as many of the final runs at once as fit
    start_s: float  # Ray and the processes of the slots
    search_s: float
    final_s: float  # with their start
    epoch_s: float  # of a trial of the space, on average
    gpu_hours: float
    disk_bytes: int  # most that checkpoints take at a time
    peak_memory_mb: float  # MiB of each worker of the hungriest trial; on a GPU: the GPU's
    measured: tuple[TimedConfiguration, ...]
    device: str

    @property
    def epochs(self) -> float:
        """Of the trials, without the final runs."""
        return sum(rung.epochs for rung in self.rungs)

    @property
    def total_s(self) -> float:
        return self.start_s + self.search_s + self.final_s

    def as_dict(self) -> dict[str, Any]:
        """Plain values: for JSON."""
        plain = dataclasses.asdict(self)
        measured = [{**entry, "config": entry["config"].model_dump()} for entry in plain["measured"]]
        lists = {"rungs": list(plain["rungs"]), "notes": list(self.notes), "measured": measured}
        return {**plain, **lists, "epochs": self.epochs, "total_s": self.total_s}


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


def forecast(
    space: SearchSpace,
    settings: RunSettings,
    data: Shipment,
    slots: Slots,
    final: Slots,
    limit_s: float = LIMIT_S,
    patience_s: float | None = None,
) -> Forecast:
    """Forecast a search on the Ray that we are connected to, as many trials at once as `slots` says.

    `data` is shipped; `final` says how many of the final runs go on at once. Each configuration is timed for `limit_s`
    seconds. On a cluster that grows, what is there already is measured. Raises TimeoutError when that takes
    `patience_s` or longer.
    """
    manifest = Manifest.read(data.path)
    train, val = (len(manifest.indices(split, kept_only=split == "train")) for split in ("train", "val"))
    rng = np.random.default_rng(settings.seed)
    sample = [space.config(space.sample(rng)) for _ in range(SAMPLES)]
    costs = [multiply_adds(config.depth, config.base_channels, manifest.size) for config in sample]
    chosen = to_measure(sample, manifest.size)
    with TimingWorkers(data, slots, slots_available_now(slots), patience_s) as there:
        # The dearest first: on CPUs the peak of a process's memory only rises, and nothing is to hide how it rises.
        measured = tuple(
            TimedConfiguration(of, config, multiply_adds(config.depth, config.base_channels, manifest.size), timing)
            for of, config in reversed(chosen.items())
            for timing in [there.time(config, settings, limit_s)]
        )[::-1]
    train_s, val_s = (
        statistics.fmean(between([(m.multiply_adds, getattr(m.timing, name)) for m in measured], costs))
        for name in ("train_s", "val_s")
    )
    epoch_s = train_s * train + val_s * val
    paper = next(entry.timing for entry in measured if entry.of == "paper")
    paper_s = settings.epochs * (paper.train_s * train + paper.val_s * val)
    # The baseline's seeds, and those of the best configurations, which are taken to be like the space's average.
    final_work_s = settings.confirm_seeds * (paper_s + settings.confirm_top * settings.epochs * epoch_s)
    final_s = 0.0
    if settings.baseline:
        longest_s = max(paper_s, settings.epochs * epoch_s if settings.confirm_top else 0.0)
        final_s = there.start_s + max(final_work_s / final.count, longest_s)
    most_epochs, ends_by = _first_budget(settings, slots, there.start_s, paper_s, epoch_s, final_s, final_work_s)
    levels = rungs_within(settings, most_epochs)
    epochs = sum(level.epochs for level in levels)
    # The first trial is the paper's configuration, and the first at each rung goes on.
    firsts = min(epochs, settings.epochs)
    trials_s = paper_s * firsts / settings.epochs + epoch_s * (epochs - firsts)
    gpus = slots.workers * slots.gpus * (trials_s + (final_work_s if settings.baseline else 0.0))
    return Forecast(
        rungs=levels,
        ends_by=ends_by if levels[0].trials < settings.trials else "",
        notes=_notes(settings),
        final_runs=settings.final_runs,
        final_epochs=settings.final_runs * settings.epochs,
        slots=slots,
        final=final,
        start_s=there.start_s,
        # no number of slots makes a single trial faster
        search_s=max(trials_s / slots.count, paper_s * firsts / settings.epochs),
        final_s=final_s,
        epoch_s=epoch_s,
        gpu_hours=gpus / 3600,
        disk_bytes=_disk_bytes(sample, settings, slots),
        peak_memory_mb=_most_memory(measured, sample, manifest.size, slots.workers),
        measured=measured,
        device=there.device,
    )


def _first_budget(
    settings: RunSettings,
    slots: Slots,
    start_s: float,
    paper_s: float,
    epoch_s: float,
    final_s: float = 0.0,
    final_work_s: float = 0.0,
) -> tuple[float, str]:
    """How many epochs the trials train in all until the first budget is reached, and its name.

    What the final runs take is left for them: `final_s` of the time, `final_work_s` of what all slots together give.
    """

    def epochs(trials_s: float) -> float:
        return max(settings.epochs * min(1.0, trials_s / paper_s), settings.epochs + (trials_s - paper_s) / epoch_s)

    limits = [(math.inf, "")]
    if settings.max_epochs_total is not None:
        left = settings.max_epochs_total - settings.final_runs * settings.epochs
        limits.append((left, f"--max-epochs-total {settings.max_epochs_total}"))
    if settings.max_hours is not None:
        left_s = max(0.0, 3600 * settings.max_hours - start_s - final_s)
        limits.append((epochs(left_s * slots.count), f"--max-hours {settings.max_hours:g}"))
    if settings.max_gpu_hours is not None:
        held_s = max(0.0, 3600 * settings.max_gpu_hours / (slots.workers * slots.gpus) - final_work_s)
        limits.append((epochs(held_s), f"--max-gpu-hours {settings.max_gpu_hours:g}"))
    return min(limits)


def _notes(settings: RunSettings) -> tuple[str, ...]:
    notes = [NOTES[settings.scheduler]] if settings.scheduler in NOTES else []
    if settings.target_dice is not None:
        notes.append(f"when --target-dice {settings.target_dice:g} is reached can't be known; taken is that it is not")
    return tuple(notes)


def _disk_bytes(sample: Sequence[TrialConfig], settings: RunSettings, slots: Slots) -> int:
    """Most that checkpoints take at a time, on average over searches drawn from a space's sample."""
    paper = checkpoint_bytes(TrialConfig())
    sizes = np.array([paper, *map(checkpoint_bytes, sample)], float)
    rng, count, most = np.random.default_rng(settings.seed), min(settings.trials, SAMPLES), []
    for _ in range(DRAWS):
        last, best = sizes[[0, *rng.integers(1, len(sizes), count - 1)]].T  # the first trial is the paper's
        # Running trials have both their checkpoints, of those that ended before the weights of the best few are kept.
        running = np.convolve(last + best, np.ones(slots.count))[:count]
        kept = np.convolve(best, np.ones(KEPT_BEST))[:count]
        most.append((running + np.concatenate([np.zeros(slots.count), kept])[:count]).max())
    of_trials = float(np.mean(most))
    if settings.scheduler == "pbt":  # and snapshots of the best at each comparison; the paper's may be one of them
        others = (most_parents(settings.trials) - 1) * sizes[1:].sum(axis=1).mean()
        of_trials += comparisons(settings) * (others + sum(paper))
    if settings.max_checkpoint_gb is not None:
        of_trials = min(of_trials, 1e9 * settings.max_checkpoint_gb)
    # At the end: the weights of the best trials and of all final runs, and what those keep that still go on.
    finals = settings.confirm_seeds * (paper[1] + settings.confirm_top * sizes[1:, 1].mean())
    running = slots.count * max(sum(paper), sizes[1:].sum(axis=1).mean())
    at_the_end = min(KEPT_BEST, count) * sizes[1:, 1].mean() + finals + running
    at_the_end = at_the_end if settings.baseline else 0.0
    return round(max(of_trials, at_the_end))


def _most_memory(
    measured: Sequence[TimedConfiguration], sample: Sequence[TrialConfig], size: int, workers: int
) -> float:
    """MiB of a worker: as measured, or more where the space has the dearest network with a bigger batch than timed."""
    most = max(entry.timing.peak_memory_mb for entry in measured)
    dearest = next(entry for entry in measured if entry.of == "dearest")
    timing = dearest.timing
    alike = [c.batch_size for c in sample if multiply_adds(c.depth, c.base_channels, size) >= dearest.multiply_adds]
    if timing.images == workers:  # a batch has no more
        return most
    an_image = (timing.step_memory_mb - timing.one_image_memory_mb) / (timing.images - workers)
    return max(most, timing.one_image_memory_mb + an_image * (max(alike) - workers))
