"""How many trials share a GPU: as many as make the search faster, and never into out-of-memory."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wmlsearch.cluster.data_shipping import Shipment
from wmlsearch.cluster.resources import Slots, share_of_gpu
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.forecast.measurement import TimingWorkers
from wmlsearch.model.memory import CUDA_CONTEXT_BYTES
from wmlsearch.model.throughput import mps_is_on
from wmlsearch.space import SearchSpace

MOST = 8  # trials on a GPU that are tried
GAIN = 1.1  # one trial more has to make all of them together so many times faster
SAMPLES = 200  # configurations drawn from the space, the dearest of which has to fit as often as trials run
LIMIT_S = 2.0  # for each number of trials that is timed
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Packing:
    """How many trials are to share a GPU, and why."""

    trials_per_gpu: int
    images_per_s: tuple[float, ...]  # of the paper's point, all trials together, by how many they were: 1, 2, ...
    dearest_bytes: int  # what the dearest configuration of a sample of the space takes, or the paper's
    gpu_bytes: int  # what a process may hold of the GPU, if it is alone
    ended_by: str  # why it is not one more: gain, memory, cores, trials, most
    mps: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values: for JSON."""
        return dataclasses.asdict(self) | {"images_per_s": list(self.images_per_s)}

    def __str__(self) -> str:
        count = self.trials_per_gpu
        rates = ", ".join(f"{rate:.0f}" for rate in self.images_per_s)
        at_once = "1 to " * (len(self.images_per_s) > 1) + str(len(self.images_per_s))
        why = {
            "gain": f"one more would add less than {100 * GAIN - 100:.0f} %",
            "memory": "the memory has room for no more",
            "cores": "there is no CPU core for one more",
            "trials": "the search has no more trials",
            "most": "more are not tried",
        }[self.ended_by]
        return (
            f"{count} trial{'s share' if count > 1 else ' has'} a GPU: the paper's point trains {rates} images/s with "
            f"{at_once} at once, and {why}; the dearest configuration needs {self.dearest_bytes / 1e9:.3g} of "
            f"{self.gpu_bytes / 1e9:.3g} GB; NVIDIA MPS is {'on' if self.mps else 'off'}"
        )


def enough(images_per_s: Sequence[float]) -> int:
    """How many trials at once are enough, by what 1, 2, 3, ... of them train in a second, all together.

    The first number after which one more adds less than a tenth; all of them where each added so much.
    """
    for count, (fewer, more) in enumerate(itertools.pairwise(images_per_s), start=1):
        if more < GAIN * fewer:
            return count
    return len(images_per_s)


def room_for(gpu_bytes: int, need_bytes: int, data_bytes: int) -> int:
    """How many trials of `need_bytes` a GPU holds, each in a process of its own with the data; from 1 to `MOST`.

    Args:
        gpu_bytes: all that one process may hold.
    """
    whole, each = gpu_bytes + CUDA_CONTEXT_BYTES, need_bytes + data_bytes + CUDA_CONTEXT_BYTES
    return max((count for count in range(1, MOST + 1) if each <= share_of_gpu(count) * whole), default=1)


def largest_configuration(space: SearchSpace, seed: int) -> TrialConfig:
    """Of a sample of the space and the paper's the one that holds most: by images of a batch times channels."""
    rng = np.random.default_rng(seed)
    sample = [TrialConfig(), *(space.config(space.sample(rng)) for _ in range(SAMPLES))]
    return max(sample, key=lambda it: (it.batch_size * it.base_channels, it.depth))


def choose_trials_per_gpu(space: SearchSpace, settings: RunSettings, data: Shipment, alone: Slots) -> Packing:
    """Try how many trials are best on one GPU of the Ray that we are connected to.

    `data` is shipped, `alone` what a trial has with a GPU of its own. The paper's point is timed by one trial, two at
    once, three, ..., as long as they get faster together and the space's dearest configuration fits for each of them.
    Raises TimeoutError when the GPU is not to be had.
    """
    limits = {"cores": alone.cpus, "trials": math.ceil(settings.trials / alone.count), "most": MOST}
    tried = min(limits.values())
    slots = Slots(tried, 1, max(1, alone.cpus // tried), share_of_gpu(tried))
    with TimingWorkers(data, slots, tried, PATIENCE_S, one_gpu=True) as there:
        fit, data_bytes = there.fit(largest_configuration(space, settings.seed), settings)
        limits["memory"] = room_for(fit.left_bytes + data_bytes, fit.need_bytes, data_bytes)
        rates: list[float] = []
        for count in range(1, min(limits.values()) + 1):
            rates.append(there.images_per_s(TrialConfig(), settings, LIMIT_S, count))
            if enough(rates) < count:
                break
    chosen = enough(rates)
    ended_by = "gain" if chosen < len(rates) else min(limits, key=lambda name: limits[name])
    return Packing(chosen, tuple(rates), fit.need_bytes, fit.left_bytes + data_bytes, ended_by, mps_is_on())
