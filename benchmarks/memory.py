"""Memory of several trials on a node, compared with one: is the data set in memory once?

    python -m benchmarks.memory

Trials are Ray actors that train as in a search, on the same prepared data of about 200 MB. Each has read all of it (an
epoch of training and validation) before it is measured. The measure is the proportional set size of all trial
processes, in whose sum memory that several of them map counts once.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import call, mapped, memory
from benchmarks.table import Row, show

TRIALS = 3
DATA_MB = 200
LIMIT_S = 420


def measure() -> list[Row]:
    """Measure the memory of the data set, and the memory that each further trial adds."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "prepared"
        size = _make(Path(folder), data) / 1e6
        sizes = call(trials_on_a_node, str(data), str(folder), limit_s=LIMIT_S)
    total = [process_bytes / 1e6 for process_bytes, _ in sizes]
    shared = [data_bytes / 1e6 for _, data_bytes in sizes]
    private = [a - b for a, b in zip(total, shared, strict=True)]
    return [
        Row(
            f"a data set of {size:.0f} MB in the memory of {TRIALS} trials",
            f"{shared[-1]:.0f} MB",
            f"of one trial: {shared[0]:.0f} MB",
            shared[0] / shared[-1],
            "counted once",
            shared[-1] < 1.05 * shared[0],
        ),
        *(
            Row(
                f"memory of {count} trials on a node",
                f"{total[count - 1]:.0f} MB, {private[count - 1] - private[count - 2]:.0f} MB more than {count - 1}",
                f"one: {total[0]:.0f} MB, {private[0]:.0f} MB without the data",
                total[0] / total[count - 1],
                "a further trial adds no more than the first has beside the data",
                total[count - 1] - total[count - 2] < 1.05 * private[0],
            )
            for count in range(2, TRIALS + 1)
        ),
    ]


def trials_on_a_node(data: str, folder: str) -> list[tuple[int, int]]:
    """Return for 1, 2, ... trials on this machine the bytes of all of them, and the data set's part of these."""
    import ray

    from wmlsearch.cluster.connect import ray_session
    from wmlsearch.cluster.data_shipping import make_shipment
    from wmlsearch.config import RunSettings, TrialConfig
    from wmlsearch.data.manifest import Manifest
    from wmlsearch.search.messages import TrialAssignment, WorkerJob
    from wmlsearch.search.trial_worker import TrainingSession

    class Trial(TrainingSession):
        def pid(self) -> int:
            return os.getpid()

    config = TrialConfig(depth=1, base_channels=2, batch_size=32)
    job = WorkerJob(
        make_shipment(Path(data), Manifest.read(Path(data)).fingerprint, send=False), RunSettings(epochs=2), threads=1
    )
    sizes: list[tuple[int, int]] = []
    actors, pids = [], []
    remote: Any = ray.remote(num_cpus=0)(Trial)
    with ray_session(None):
        for number in range(TRIALS):
            place = Path(folder) / str(number)
            place.mkdir()
            actor = remote.remote(job, TrialAssignment(config=config, checkpoint_location=str(place)))
            result = ray.get(actor.step.remote())
            if result.report is None:
                raise RuntimeError(result.reason)
            actors.append(actor)  # a reference keeps the actor alive
            pids.append(ray.get(actor.pid.remote()))
            sizes.append((sum(map(memory, pids)), sum(mapped(pid, Path(data)) for pid in pids)))
    return sizes


def _make(folder: Path, data: Path) -> int:
    """Write prepared data with arrays of `DATA_MB`, by repeating those of a small phantom. Return their bytes."""
    from wmlsearch.data.manifest import IMAGES, MASKS, Manifest
    from wmlsearch.data.phantom import write_phantom
    from wmlsearch.data.prepare import PrepareOptions, prepare

    small = folder / "small"
    raw = write_phantom(folder / "raw", patients=4, timepoints=1, shape=(48, 48, 12))
    prepare(raw, small, PrepareOptions(size=256, fit="resize", jobs=1))
    data.mkdir()
    arrays = {name: np.load(small / name) for name in (IMAGES, MASKS)}
    times = round(DATA_MB * 1e6 / sum(array.nbytes for array in arrays.values()))
    for name, array in arrays.items():
        np.save(data / name, np.tile(array, (times, 1, 1)))
    manifest = Manifest.read(small)
    dataclasses.replace(manifest, slices=manifest.slices * times).write(data)
    return times * sum(array.nbytes for array in arrays.values())


if __name__ == "__main__":
    show(__doc__, measure)
