"""What each way to train adds to a step of the baseline.

    python -m benchmarks.recipe [--json FILE]

A step of four images of 256 x 256 pixels, in turn with the baseline's; the ratio is the median over the turns. On a CPU
it is the time of one thread, so that a busy machine changes little. Needs the core only, as benchmarks.training does.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import Row, show
from benchmarks.training import phantom
from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData, batches
from wmlsearch.model.steps import WARM_UP
from wmlsearch.model.training import Trainer

TURNS = 5
STEPS = {"cpu": 1, "cuda": 20}  # of a turn
CONFIGURATIONS: tuple[dict[str, Any], ...] = (
    {"augment": "affine"},
    {"augment": "strong"},
    {"ema": 0.99},
    {"network": "residual"},
    {"loss": "bce_dice"},
    {"loss": "bce_dice", "dice_over": "batch"},
    {"loss": "focal"},
    {"loss": "tversky"},
    {"lesion_share": 0.5},
)


def measure() -> list[Row]:
    """A row for each configuration."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        data = PreparedData.open(phantom(Path(folder), 40, 256), device)
        return [_compare(values, data, device) for values in CONFIGURATIONS]


def _compare(values: dict[str, Any], data: PreparedData, device: str) -> Row:
    trainers = [Trainer(TrialConfig(**changed), data, 1, 0, "auto") for changed in ({}, values)]
    for trainer in trainers:
        for _ in range(WARM_UP + 1 if device == "cuda" else 1):  # captures the graph too
            _step_s(trainer, STEPS[device], device)
    turns = [[_step_s(trainer, STEPS[device], device) for trainer in trainers] for _ in range(TURNS)]
    baseline, changed = (1000 * statistics.median(times) for times in zip(*turns, strict=True))
    words = ", ".join(f"{name} {value}" for name, value in values.items())
    ratio = statistics.median(other / plain for plain, other in turns)
    return Row(f"a step with {words}, {device}", f"{changed:.4g} ms", f"the baseline {baseline:.4g} ms", ratio)


def _step_s(trainer: Trainer, steps: int, device: str) -> float:
    """Return the seconds of a step, of one thread on a CPU."""
    generator = torch.Generator().manual_seed(0)
    order = tuple(batch[:4] for batch in batches(len(trainer.data.train), 5, generator)[:1]) * steps
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    clock = time.process_time if device == "cpu" else time.perf_counter
    try:
        start = clock()
        trainer.train(order, 1, generator)
        return (clock() - start) / steps
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    show(__doc__, measure)
