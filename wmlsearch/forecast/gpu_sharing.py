"""How many trials share a GPU (`--trials-per-gpu auto`): as many as train faster together and fit into its memory."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from wmlsearch.cluster.data_shipping import Shipment
from wmlsearch.cluster.resources import Slots, share_of_gpu
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.forecast.measurement import TimingWorkers
from wmlsearch.forecast.workload import sample_configurations
from wmlsearch.model.memory import CUDA_CONTEXT_BYTES
from wmlsearch.model.throughput import mps_is_on
from wmlsearch.space import SearchSpace

MAX_MEASURED = 8  # trials on a GPU; more are not measured
MIN_GAIN = 1.1  # factor by which one more trial must speed up all of them together
TIMING_LIMIT_S = 2.0  # for each number of trials that is timed
MEASUREMENT_LIMIT_S = 300.0  # for the whole measurement

Limit = Literal["gain", "memory", "cores", "trials", "most"]


@dataclass(frozen=True)
class Packing:
    """How many trials share a GPU, and the measurement behind it."""

    trials_per_gpu: int
    images_per_s: tuple[float, ...]  # of the baseline configuration, all trials together: with 1 trial, with 2, ...
    largest_bytes: int  # predicted peak memory of the space's largest configuration, or of the baseline
    gpu_bytes: int  # what a single process may use of the GPU
    ended_by: Limit  # why it is not one more
    mps: bool  # whether NVIDIA's Multi-Process Service is on

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as `search.json` holds them."""
        values = dataclasses.asdict(self) | {"images_per_s": list(self.images_per_s)}
        # Its name in search.json is that of earlier versions.
        return {"dearest_bytes" if name == "largest_bytes" else name: value for name, value in values.items()}

    def __str__(self) -> str:
        count = self.trials_per_gpu
        rates = ", ".join(f"{rate:.0f}" for rate in self.images_per_s)
        at_once = "1 to " * (len(self.images_per_s) > 1) + str(len(self.images_per_s))
        reasons: dict[Limit, str] = {
            "gain": f"one more would add less than {100 * MIN_GAIN - 100:.0f} %",
            "memory": "no more fit into its memory",
            "cores": "there is no CPU core for one more",
            "trials": "the search has no more trials",
            "most": "more are not measured",
        }
        return (
            f"{count} trial{'s share' if count > 1 else ' has'} a GPU: the baseline configuration trains {rates} "
            f"images/s with {at_once} at once, and {reasons[self.ended_by]}; the largest configuration needs "
            f"{self.largest_bytes / 1e9:.3g} of {self.gpu_bytes / 1e9:.3g} GB; NVIDIA MPS is "
            f"{'on' if self.mps else 'off'}"
        )


def choose_trials_per_gpu(
    space: SearchSpace, settings: RunSettings, shipment: Shipment, whole_gpu_slots: Slots
) -> Packing:
    """Measure how many trials train fastest on one GPU of the Ray to which this process is connected.

    The baseline configuration is timed with one trial, with two at once, and so on, as long as one more makes all of
    them faster and the space's largest configuration fits for each. Raises TimeoutError if the GPU does not get free.

    Args:
        whole_gpu_slots: The slots of the search if each trial had a GPU of its own.
    """
    trials = math.ceil(settings.trials / whole_gpu_slots.count)
    limits: dict[Limit, int] = {"cores": whole_gpu_slots.cpus, "trials": trials, "most": MAX_MEASURED}
    max_trials = min(limits.values())
    slots = Slots(max_trials, 1, max(1, whole_gpu_slots.cpus // max_trials), share_of_gpu(max_trials))
    with TimingWorkers(shipment, slots, max_trials, MEASUREMENT_LIMIT_S, one_gpu=True) as workers:
        fit, data_bytes = workers.predict_peak_memory(largest_configuration(space, settings.seed), settings)
        gpu_bytes = fit.left_bytes + data_bytes
        limits["memory"] = trials_that_fit(gpu_bytes, fit.need_bytes, data_bytes)
        rates: list[float] = []
        for count in range(1, min(limits.values()) + 1):
            rates.append(workers.images_per_s(TrialConfig(), settings, TIMING_LIMIT_S, count))
            if fastest_count(rates) < count:
                break
    chosen = fastest_count(rates)
    ended_by: Limit = "gain" if chosen < len(rates) else min(limits, key=lambda name: limits[name])
    return Packing(chosen, tuple(rates), fit.need_bytes, gpu_bytes, ended_by, mps_is_on())


def fastest_count(images_per_s: Sequence[float]) -> int:
    """Return the first number of trials to which one more adds less than `MIN_GAIN`, or the highest number.

    Args:
        images_per_s: Training speed of all trials together, with 1 trial, with 2, ...
    """
    for count, (fewer, more) in enumerate(itertools.pairwise(images_per_s), start=1):
        if more < MIN_GAIN * fewer:
            return count
    return len(images_per_s)


def trials_that_fit(gpu_bytes: int, need_bytes: int, data_bytes: int) -> int:
    """Return how many trials fit into the memory of a GPU, from 1 to `MAX_MEASURED`.

    Args:
        gpu_bytes: GPU memory that a single process may use.
        need_bytes: Peak memory of a trial.
        data_bytes: The data set, which each process holds.
    """
    total_bytes = gpu_bytes + CUDA_CONTEXT_BYTES
    each = need_bytes + data_bytes + CUDA_CONTEXT_BYTES
    return max((count for count in range(1, MAX_MEASURED + 1) if each <= share_of_gpu(count) * total_bytes), default=1)


def largest_configuration(space: SearchSpace, seed: int) -> TrialConfig:
    """Return the one that needs most memory of the baseline and a sample: by images of a batch times channels."""
    candidates = [TrialConfig(), *sample_configurations(space, seed)]
    return max(candidates, key=lambda config: (config.batch_size * config.base_channels, config.depth))
