"""The peak memory that a training is predicted to have, against the one that it has.

    python -m benchmarks.peak [--json FILE]

On CPUs each configuration is trained in a fresh process, since the peak of a process never falls; what is compared is
what training adds to the libraries and the data.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import Row, show
from wmlsearch.config import TrialConfig
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData
from wmlsearch.model.training import epochs, has_fast_bfloat16
from wmlsearch.search.room import foretell, held_bytes

SIZE = 128
CONFIGURATIONS: tuple[dict[str, Any], ...] = (
    {"batch_size": 2},
    {},
    {"batch_size": 16},
    {"depth": 3, "base_channels": 32, "batch_size": 8, "norm": "instance"},
    {"depth": 5, "base_channels": 32, "batch_size": 8, "loss": "bce_dice"},
    {"depth": 2, "base_channels": 8, "batch_size": 32, "dropout": 0.0, "augment": "affine"},
    {"depth": 4, "base_channels": 48, "batch_size": 4, "optimizer": "sgd"},
)


def measure() -> list[Row]:
    """A row for each configuration, and the errors together."""
    rows, errors = [], []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = "bfloat16" if has_fast_bfloat16(torch.device(device)) else "float32"
    with tempfile.TemporaryDirectory() as folder:
        raw = write_phantom(Path(folder) / "raw", patients=4, timepoints=1, shape=(64, 64, 20))
        prepare(raw, Path(folder) / "prepared", PrepareOptions(size=SIZE, jobs=1))
        for values in CONFIGURATIONS:
            with multiprocessing.get_context("spawn").Pool(1) as fresh:
                predicted, peak = fresh.apply(trained, (str(Path(folder) / "prepared"), values, device))
            errors.append(peak / predicted - 1)
            words = ", ".join(f"{name} {value}" for name, value in values.items()) or "the paper's point"
            what = f"peak of training, {words}, {precision}, {device}"
            rows.append(Row(what, f"{predicted / 1e6:.0f} MB predicted", f"{peak / 1e6:.0f} MB", peak / predicted))
    spread = f"{100 * min(errors):+.0f} % to {100 * max(errors):+.0f} %"
    middle = f"median {100 * statistics.median(errors):+.0f} %"
    rows.append(Row(f"peak against prediction, {len(errors)} trainings, {device}", spread, middle))
    return rows


def trained(folder: str, values: dict[str, Any], device: str) -> tuple[int, int]:
    """Bytes that a training is predicted to take at its peak in this process, and that it took."""
    torch.set_num_threads(1)
    data, config = PreparedData.open(Path(folder), device), TrialConfig(**values)
    fit = foretell(config, data, "auto")
    held = held_bytes(data.train.images.device)
    list(epochs(config, data, max_epochs=1))
    if device == "cuda":
        return fit.need_bytes, torch.cuda.max_memory_allocated() - held
    return fit.need_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held


if __name__ == "__main__":
    show(__doc__, measure)
