"""The predicted peak memory of a training, compared with the measured one.

    python -m benchmarks.peak [--json FILE]

It compares the memory that training adds to libraries and data. On CPUs this is the peak memory of the process, with a
fresh process for each configuration, since that peak never falls. On a GPU it is the memory that PyTorch reserves, over
the number of epochs after which all steps are CUDA graphs. Needs the core only, as benchmarks.training does.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import Row, show
from benchmarks.training import phantom
from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.model.memory import predict_peak_bytes
from wmlsearch.model.precision import has_fast_bfloat16
from wmlsearch.model.steps import WARM_UP
from wmlsearch.model.training import epochs

SIZES = {"cpu": 128, "cuda": 256}
SLICES = 45  # to train on: batches of the larger configurations are of two sizes
CONFIGURATIONS: tuple[dict[str, Any], ...] = (
    {"batch_size": 2},
    {},
    {"batch_size": 16},
    {"depth": 3, "base_channels": 32, "batch_size": 8, "norm": "instance"},
    {"depth": 5, "base_channels": 32, "batch_size": 8, "loss": "bce_dice"},
    {"depth": 2, "base_channels": 8, "batch_size": 32, "dropout": 0.0, "augment": "affine"},
    {"depth": 4, "base_channels": 48, "batch_size": 4, "optimizer": "sgd"},
    {"depth": 2, "base_channels": 4, "batch_size": 32, "input_slices": 5, "augment": "strong"},
)


def measure() -> list[Row]:
    """A row for each configuration, and the errors together."""
    rows, errors = [], []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = "bfloat16" if has_fast_bfloat16(torch.device(device)) else "float32"
    with tempfile.TemporaryDirectory() as folder:
        prepared = phantom(Path(folder), SLICES, SIZES[device])
        for values, (predicted, peak, tensors) in zip(CONFIGURATIONS, measured_peaks(prepared, device), strict=True):
            errors.append(peak / predicted - 1)
            words = ", ".join(f"{name} {value}" for name, value in values.items()) or "the baseline"
            of_tensors = f", {tensors / 1e6:.0f} MB of it tensors at once" if tensors else ""
            what = f"peak of training, {words}, {SIZES[device]} x {SIZES[device]}, {precision}, {device}"
            result = f"{peak / 1e6:.0f} MB{of_tensors}"
            rows.append(Row(what, f"{predicted / 1e6:.0f} MB predicted", result, peak / predicted))
    spread = f"{100 * min(errors):+.0f} % to {100 * max(errors):+.0f} %"
    middle = f"median {100 * statistics.median(errors):+.0f} %"
    return [*rows, Row(f"peak against prediction, {len(errors)} trainings, {device}", spread, middle)]


def measured_peaks(prepared: Path, device: str) -> Iterator[tuple[int, int, int]]:
    """Yield the result of `trained` for each configuration."""
    for values in CONFIGURATIONS:
        if device == "cuda":  # trainings after one another leave no memory there
            yield trained(str(prepared), values, device)
        else:
            with multiprocessing.get_context("spawn").Pool(1) as fresh:
                yield fresh.apply(trained, (str(prepared), values, device))


def trained(folder: str, values: dict[str, Any], device: str) -> tuple[int, int, int]:
    """Train, and return predicted peak bytes, measured peak bytes, and on a GPU the peak bytes of tensors."""
    torch.set_num_threads(1)
    data, config = PreparedData.open(Path(folder), device), TrialConfig(**values)
    held, predicted = predict_peak_bytes(config, data, "auto")
    if device == "cuda":
        data_bytes = torch.cuda.memory_allocated()
        list(epochs(config, data, max_epochs=WARM_UP + 2))
        return predicted, torch.cuda.max_memory_reserved() - held, torch.cuda.max_memory_allocated() - data_bytes
    list(epochs(config, data, max_epochs=1))
    return predicted, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held, 0


if __name__ == "__main__":
    show(__doc__, measure)
