"""What a search will cost: epochs by its scheduler's rule, seconds and memory from a measurement of its space."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.forecast.measurement import EpochImages, Measurement, TimedConfiguration
from wmlsearch.forecast.workload import SAMPLES, work
from wmlsearch.runs.names import PAPER
from wmlsearch.search.checkpoint_size import checkpoint_bytes
from wmlsearch.search.checkpoints import KEPT_BEST
from wmlsearch.search.pbt import comparisons, most_parents
from wmlsearch.search.rungs import NOTES, Rung, rungs_within

# How often the networks predict the patients of their folds, for a model's threshold: also mirrored, which takes two
# predictions, and for the sizes of lesions.
PREDICTIONS = {"none": 1, "auto": 4}
SIMULATED_SEARCHES = 20  # drawn from the sample of a space, for what depends on the order of trials


@dataclass(frozen=True)
class Forecast:
    """What a search is expected to spend."""

    rungs: tuple[Rung, ...]
    ends_by: str  # the budget that is expected to end the trials before the last one: "--max-hours 2", or ""
    notes: tuple[str, ...]  # assumptions about what cannot be known
    final_runs: int  # those that choose the champion, and those of champion and baseline that are judged
    final_epochs: int  # of all final runs, if none stops early
    slots: Slots
    final: Slots  # slots of the final runs
    start_s: float  # seconds until Ray and the workers are ready
    search_s: float  # seconds of the trials
    final_s: float  # seconds of the final runs, with the start of their workers, and of what their models predict
    epoch_s: float  # seconds of an epoch of a trial, mean over the space
    gpu_hours: float
    disk_bytes: int  # the most that checkpoints take at a time
    peak_memory_mb: float  # MiB, of a worker of the largest trial; on a GPU: GPU memory
    measured: tuple[TimedConfiguration, ...]
    device: str

    @property
    def epochs(self) -> float:
        """Epochs of the trials, without the final runs."""
        return sum(rung.epochs for rung in self.rungs)

    @property
    def total_s(self) -> float:
        """Seconds from the start to the end of the final runs."""
        return self.start_s + self.search_s + self.final_s

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as `forecast.json` holds them."""
        plain = dataclasses.asdict(self)
        lists = {
            "rungs": list(plain["rungs"]),
            "notes": list(self.notes),
            "measured": [_timed_as_dict(timed) for timed in self.measured],
        }
        return {**plain, **lists, "epochs": self.epochs, "total_s": self.total_s}


_NAMES_IN_FILE = {"smallest": "cheapest", "largest": "dearest"}  # forecast.json has had these names from the beginning


def _timed_as_dict(timed: TimedConfiguration) -> dict[str, Any]:
    timing = dataclasses.asdict(timed.throughput)
    timing["least_memory_mb"] = timing.pop("one_image_memory_mb")  # its name in forecast.json
    return {
        "of": _NAMES_IN_FILE.get(timed.of, timed.of),
        "config": timed.config.model_dump(),
        "multiply_adds": timed.work,
        "timing": timing,
    }


def forecast(settings: RunSettings, slots: Slots, final_slots: Slots, measurement: Measurement) -> Forecast:
    """Forecast a search from the measurement of its space.

    Args:
        slots: Slots of the trials.
        final_slots: Slots of the final runs.
    """
    times = _expected_times(settings, final_slots, measurement)
    budget_epochs, ends_by = _first_budget(settings, slots, times)
    rungs = rungs_within(settings, budget_epochs)
    epochs = sum(rung.epochs for rung in rungs)
    # The first trial is the baseline, and the first trial at each rung is never stopped there.
    baseline_epochs = min(epochs, settings.epochs)
    baseline_s = times.baseline_s * baseline_epochs / settings.epochs
    trials_s = baseline_s + times.epoch_s * (epochs - baseline_epochs)
    return Forecast(
        rungs=rungs,
        ends_by=ends_by if rungs[0].trials < settings.trials else "",
        notes=_notes(settings),
        final_runs=settings.final_run_count,
        final_epochs=settings.final_run_count * settings.epochs,
        slots=slots,
        final=final_slots,
        start_s=times.start_s,
        search_s=max(trials_s / slots.count, baseline_s),  # more slots make no single trial faster
        final_s=times.final_s,
        epoch_s=times.epoch_s,
        gpu_hours=slots.workers * slots.gpus * (trials_s + times.final_work_s) / 3600,
        disk_bytes=_disk_bytes(measurement.sample, settings, slots),
        peak_memory_mb=_peak_memory_mb(measurement, slots.workers),
        measured=measurement.configurations,
        device=measurement.device,
    )


@dataclass(frozen=True)
class _ExpectedTimes:
    """Seconds that the parts of a search take."""

    start_s: float  # until the workers of all slots are ready
    epoch_s: float  # an epoch of a trial, mean over the space
    baseline_s: float  # a training of the baseline with all its epochs
    final_work_s: float = 0.0  # all final runs, one after the other, and what their models predict
    final_s: float = 0.0  # the final runs as many at a time as fit, with the start of their workers; and predictions


def _expected_times(settings: RunSettings, final_slots: Slots, measurement: Measurement) -> _ExpectedTimes:
    baseline = measurement.configuration(PAPER).throughput
    paper, mean = _ImageTimes(baseline.train_s, baseline.val_s), _mean_image_times(measurement)
    of_trials = measurement.images[0]
    baseline_s, epoch_s = settings.epochs * paper.epoch_s(of_trials), mean.epoch_s(of_trials)
    if not settings.baseline:
        return _ExpectedTimes(measurement.start_s, epoch_s, baseline_s)

    def runs_s(times: _ImageTimes, count: int) -> list[float]:
        """Return the seconds of `count` runs with all epochs, run k with fold k for validation."""
        images = measurement.images
        return [settings.epochs * times.epoch_s(images[number % len(images)]) for number in range(count)]

    # The best configurations are assumed to be like the mean of the space.
    selection, judgement = list[float](), runs_s(paper, settings.final_runs)
    if settings.candidate_count:
        selection = runs_s(paper, settings.confirm_seeds) + settings.candidate_count * runs_s(
            mean, settings.confirm_seeds
        )
        judgement += runs_s(mean, settings.final_runs)
    stages = [runs for runs in (selection, judgement) if runs]  # the second begins when the first has ended
    final_s = sum(measurement.start_s + max(sum(runs) / final_slots.count, *runs) for runs in stages)
    judged = (paper, mean) if settings.candidate_count else (paper,)
    predictions_s = sum(times.val_s for times in judged) * _predicted_images(settings, measurement)
    return _ExpectedTimes(
        measurement.start_s, epoch_s, baseline_s, sum(map(sum, stages)) + predictions_s, final_s + predictions_s
    )


def _predicted_images(settings: RunSettings, measurement: Measurement) -> int:
    """Return how many images the judgement runs of a configuration predict: of their folds, and of the sealed test."""
    folds = measurement.images
    of_folds = sum(folds[number % len(folds)].val for number in range(settings.final_runs))
    return PREDICTIONS[settings.postprocessing] * of_folds + settings.final_runs * measurement.sealed_images


class _ImageTimes(NamedTuple):
    """Seconds of an image of one configuration."""

    train_s: float
    val_s: float

    def epoch_s(self, images: EpochImages) -> float:
        return self.train_s * images.train + self.val_s * images.val


def _mean_image_times(measurement: Measurement) -> _ImageTimes:
    """Return the mean over the sample of the space: interpolated by their work."""
    costs = [work(config, measurement.image_size) for config in measurement.sample]
    train_s, val_s = (
        statistics.fmean(
            interpolate([(t.work, getattr(t.throughput, name)) for t in measurement.configurations], costs)
        )
        for name in ("train_s", "val_s")
    )
    return _ImageTimes(train_s, val_s)


def interpolate(points: Sequence[tuple[float, float]], at: Sequence[float]) -> list[float]:
    """Interpolate linearly between points (x, y); constant outside them. The y of equal x are averaged."""
    values: dict[float, list[float]] = {}
    for x, y in points:
        values.setdefault(x, []).append(y)
    xs = sorted(values)
    return [float(y) for y in np.interp(at, xs, [statistics.fmean(values[x]) for x in xs])]


def _first_budget(settings: RunSettings, slots: Slots, times: _ExpectedTimes) -> tuple[float, str]:
    """Return the epochs of all trials until the first budget is reached, and that budget's option.

    What the final runs take is reserved for them.
    """

    def epochs_within(trials_s: float) -> float:
        first_trial = settings.epochs * min(1.0, trials_s / times.baseline_s)
        return max(first_trial, settings.epochs + (trials_s - times.baseline_s) / times.epoch_s)

    limits = [(math.inf, "")]
    if settings.max_epochs_total is not None:
        epochs_of_trials = settings.max_epochs_total - settings.final_run_count * settings.epochs
        limits.append((epochs_of_trials, f"--max-epochs-total {settings.max_epochs_total}"))
    if settings.max_hours is not None:
        left_s = max(0.0, 3600 * settings.max_hours - times.start_s - times.final_s)
        limits.append((epochs_within(left_s * slots.count), f"--max-hours {settings.max_hours:g}"))
    if settings.max_gpu_hours is not None:
        held_s = max(0.0, 3600 * settings.max_gpu_hours / (slots.workers * slots.gpus) - times.final_work_s)
        limits.append((epochs_within(held_s), f"--max-gpu-hours {settings.max_gpu_hours:g}"))
    return min(limits)


def _notes(settings: RunSettings) -> tuple[str, ...]:
    notes = [NOTES[settings.scheduler]] if settings.scheduler in NOTES else []
    if settings.target_dice is not None:
        notes.append(f"--target-dice {settings.target_dice:g} is assumed not to be reached")
    return tuple(notes)


def _disk_bytes(sample: Sequence[TrialConfig], settings: RunSettings, slots: Slots) -> int:
    """Return the most bytes that checkpoints take at a time, during the trials or at the end of the final runs."""
    baseline = checkpoint_bytes(TrialConfig())
    sizes = np.array([baseline, *map(checkpoint_bytes, sample)], float)  # (1 + n, 2): last.pt and best.pt
    of_trials = _checkpoint_bytes_of_trials(sizes, settings, slots)
    if settings.max_checkpoint_gb is not None:
        of_trials = min(of_trials, 1e9 * settings.max_checkpoint_gb)
    if not settings.baseline:
        return round(of_trials)
    # At the end: the weights of the best trials and of all judgement runs, and both checkpoints of those still running.
    _, best = sizes[1:].T
    best_of_trials = min(KEPT_BEST, settings.trials, SAMPLES) * best.mean()
    final_weights = settings.final_runs * (baseline.best + (best.mean() if settings.candidate_count else 0.0))
    running = slots.count * max(sum(baseline), sizes[1:].sum(axis=1).mean())
    return round(max(of_trials, best_of_trials + final_weights + running))


def _checkpoint_bytes_of_trials(sizes: np.ndarray[Any, Any], settings: RunSettings, slots: Slots) -> float:
    """Return the most bytes that checkpoints of trials take at a time, mean over simulated searches.

    Args:
        sizes: Bytes of `last.pt` and `best.pt`, (1 + n, 2): of the baseline, then of a sample of the space.
    """
    rng, count, peaks = np.random.default_rng(settings.seed), min(settings.trials, SAMPLES), []
    for _ in range(SIMULATED_SEARCHES):
        last, best = sizes[[0, *rng.integers(1, len(sizes), count - 1)]].T  # the first trial is the baseline
        # A running trial has both checkpoints; of ended trials, the weights of the best few are kept.
        running = np.convolve(last + best, np.ones(slots.count))[:count]
        kept = np.convolve(best, np.ones(KEPT_BEST))[:count]
        peaks.append((running + np.concatenate([np.zeros(slots.count), kept])[:count]).max())
    peak = float(np.mean(peaks))
    if settings.scheduler == "pbt":  # and snapshots of the best trials at each comparison, the baseline among them
        others = (most_parents(settings.trials) - 1) * sizes[1:].sum(axis=1).mean()
        peak += comparisons(settings) * (others + sizes[0].sum())
    return peak


def _peak_memory_mb(measurement: Measurement, workers: int) -> float:
    """Return the MiB of a worker: as measured, or extrapolated to the biggest batch of the largest network."""
    measured = max(timed.throughput.peak_memory_mb for timed in measurement.configurations)
    largest = measurement.configuration("largest")
    throughput = largest.throughput
    if throughput.images == workers:  # each worker trained one image a step, and its batches have no more
        return measured
    batch_size = max(
        config.batch_size for config in measurement.sample if work(config, measurement.image_size) >= largest.work
    )
    image_mb = (throughput.step_memory_mb - throughput.one_image_memory_mb) / (throughput.images - workers)
    return max(measured, throughput.one_image_memory_mb + image_mb * (batch_size - workers))
