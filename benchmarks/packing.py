"""Trials per hour on one GPU, as many at once as `--trials-per-gpu auto` finds best, against one at a time.

    python -m benchmarks.packing [--json FILE]

Some configurations of the default space are timed, each by as many processes at once; a trial is one of the paper's
length, 18 epochs of 3098 images.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.table import Row, show
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.search.cluster import Request, Slots, plan_slots, ray_at, share_of_gpu, this_machine
from wmlsearch.search.measure import Measuring
from wmlsearch.search.nodes import parcel
from wmlsearch.search.packing import pack
from wmlsearch.space import SearchSpace

WHAT, AIM = "trials per hour on one GPU, default space", 3.0
CONFIGURATIONS = 6
LIMIT_S = 3.0  # for each that is timed
IMAGES = 18 * 3098  # of a trial


def measure() -> list[Row]:
    """One row, and what was chosen."""
    if not torch.cuda.is_available():
        return [Row(WHAT, "no GPU here", aim=f"{AIM:g}")]
    space, settings = SearchSpace.read("unet"), RunSettings(trials=100)
    rng = np.random.default_rng(0)
    sample = [TrialConfig(), *(space.config(space.sample(rng)) for _ in range(CONFIGURATIONS - 1))]
    with tempfile.TemporaryDirectory() as folder, ray_at(None):
        raw = write_phantom(Path(folder) / "raw", patients=6, timepoints=1, shape=(128, 128, 48))
        prepare(raw, Path(folder) / "prepared", PrepareOptions(size=256, jobs=1))
        data = parcel(Path(folder) / "prepared", send=False)
        alone = plan_slots(this_machine(), Request(), settings.trials)
        found = pack(space, settings, data, alone)
        count = found.trials_per_gpu
        slots = Slots(count, 1, max(1, alone.cpus // count), share_of_gpu(count))
        with Measuring(data, slots, count, one_gpu=True) as there:
            one, several = (
                [
                    at_once * 3600 / (IMAGES * there.time(config, settings, LIMIT_S, at_once).train_s)
                    for config in sample
                ]
                for at_once in (1, count)
            )
    ratio = statistics.median(b / a for a, b in zip(one, several, strict=True))
    ours, theirs = (f"{statistics.median(rates):.0f}" for rates in (several, one))
    row = Row(WHAT, f"{ours}, {count} at once", f"{theirs}, one at a time", ratio, f"{AIM:g}", ratio >= AIM)
    return [row, Row(f"--trials-per-gpu auto: {found}", str(count))]


if __name__ == "__main__":
    show(__doc__, measure)
