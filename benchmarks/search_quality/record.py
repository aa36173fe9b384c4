"""Record table.csv, a tabular benchmark of this task: full learning curves of random configurations.

    python -m benchmarks.search_quality.record [--task few] [--until 240] [--minutes 30] [--jobs 2] [--device cuda]

Run it again to continue: recorded rows are kept. A search can then be replayed by looking up scores instead of
training. Needs the core only (torch, numpy, pydantic, pyyaml, nibabel, pillow), so it runs on any machine with torch.

A row is an epoch of a configuration: its number, the searched hyperparameters (empty where a condition switches them
off), the epoch, `ended` and the metrics, numbers with 5 significant digits. `ended` is filled in the last row of each
configuration only: "completed", or "diverged" in a row without metrics for the epoch that could not be trained.
Configurations are in the order in which they finished; sort by (number, epoch) where the order matters.
Configuration n is drawn from (SEED, n), so neither order nor interruption changes it, and it can be drawn again in
full precision. `epoch_learning_rate` is the metric learning_rate: what the schedule made of the hyperparameter of that
name. `epoch_s` is the time of one thread on the machine that recorded, `peak_memory_mb` that of the whole process up
to then.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.search_quality.resumable import ResumableFile
from benchmarks.search_quality.sealed_record import record_task
from benchmarks.search_quality.sealed_tasks import SEALED_TASKS
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData
from wmlsearch.errors import InputError
from wmlsearch.model.steps import Diverged
from wmlsearch.model.training import epochs
from wmlsearch.space import SearchSpace

HERE = Path(__file__).parent
SEED = 0  # of the phantom, the draws and every training
METRICS = (
    "train_loss", "val_loss", "val_dice", "val_iou", "val_precision", "val_recall", "val_accuracy", "val_dice_best",
    "val_threshold", "val_soft_dice", "val_average_precision", "val_dice_patients", "val_dice_patients_best",
    "val_threshold_patients", "val_patients_empty", "epoch_learning_rate", "images_per_s", "epoch_s", "peak_memory_mb",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What each configuration is trained on. Rows of different tasks must not stand in one table."""

    table: str = "table.csv"
    seed: int = SEED  # of the phantom
    first: int = 0  # number of the first configuration: tasks share none
    patients: int = 18
    val_patients: tuple[str, ...] = ("02", "04", "07", "10", "13")
    test_patients: tuple[str, ...] = ("18",)  # required by a split, not used here
    shape: tuple[int, int, int] = (64, 64, 32)  # voxels of 3 x 3 x 4.5 mm
    size: int = 32  # so that a training takes a minute; on coarser pixels lesions are learnt in fewer steps too
    epochs: int = 27  # three cubed: ASHA's rungs at reduction factor 3 are whole epochs

    def prepare(self, folder: Path) -> Path:
        """Make the data in `folder`, and return the prepared data set. It is the same each time."""
        raw = write_phantom(folder / "raw", patients=self.patients, timepoints=1, shape=self.shape, seed=self.seed)
        options = PrepareOptions(
            plane="axial",
            size=self.size,
            val_patients=self.val_patients,
            test_patients=self.test_patients,
            jobs=1,
        )
        prepare(raw, folder / "prepared", options)
        return folder / "prepared"


TASKS = {
    "phantom": Task(),
    # half as many patients on coarser pixels: less than half as many steps, so trainings learn later
    "few": Task(
        table="few.csv", seed=1, first=1000, patients=10, val_patients=("02", "05", "08"), test_patients=("10",),
        shape=(48, 48, 24), size=24,
    ),
}  # fmt: skip


class Table:
    """The CSV file: opened where a recording left it, one write for each finished configuration."""

    def __init__(self, path: Path, space: SearchSpace) -> None:
        self.path = path
        self.columns = ["number", *space.dimensions, "epoch", "ended", *METRICS]
        self.done: set[int] = set()
        header = ",".join(self.columns) + "\n"
        refusal = f"{path}: its columns are not those of {space.source}: record into another file"
        file = ResumableFile(path, header, refusal)
        rows = list(csv.DictReader([header, *file.lines]))
        while rows and not rows[-1]["ended"]:  # written in one go, so only the last can be incomplete
            rows.pop()
        for row in rows:
            drawn = _texts(draw(space, int(row["number"])))
            if any(row[name] != drawn.get(name, "") for name in space.dimensions):
                raise InputError(
                    f"{path}: configuration {row['number']} is not what {space.source} draws: record into another file"
                )
        self.done = {int(row["number"]) for row in rows}
        file.keep(len(rows))

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Add all rows of a configuration."""
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(_texts(row) for row in rows)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text.getvalue())
            file.flush()
        self.done.add(rows[0]["number"])


def draw(space: SearchSpace, number: int) -> dict[str, Any]:
    """Return the searched hyperparameters of a configuration."""
    return space.sample(np.random.default_rng([SEED, number]))


def train(space: SearchSpace, data: Path, max_epochs: int, number: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Train a configuration to its end on one thread, and return its rows of the table."""
    torch.set_num_threads(1)  # one configuration per core has the highest throughput
    values = draw(space, number)
    rows: list[dict[str, Any]] = []
    # float32, because "auto" would give other values on processors with bfloat16
    prepared = PreparedData.open(data, device)
    reports = epochs(space.config(values), prepared, max_epochs=max_epochs, seed=SEED, precision="float32")
    try:
        for report in reports:
            metrics = dict(report.metrics)
            metrics["epoch_learning_rate"] = metrics.pop("learning_rate")  # a hyperparameter has that name already
            rows.append({"number": number, **values, "epoch": report.epoch, "ended": report.ended or "", **metrics})
    except Diverged:
        rows.append({"number": number, **values, "epoch": len(rows) + 1, "ended": "diverged"})
    return rows


def record(
    path: Path,
    space: SearchSpace,
    task: Task,
    *,
    until: int,
    jobs: int = 1,
    minutes: float = math.inf,
    device: str = "cpu",
    tell: Callable[[str], None] = print,
) -> None:
    """Record those of the first `until` configurations that the table lacks. None is started after `minutes`.

    Raises InputError if the table is of another search space.
    """
    start = time.monotonic()
    table = Table(path, space)
    numbers = [number for number in range(task.first, task.first + until) if number not in table.done]
    if not numbers:
        return
    due = (number for number in numbers if time.monotonic() < start + 60 * minutes)
    with tempfile.TemporaryDirectory() as folder:
        one = partial(train, space, task.prepare(Path(folder)), task.epochs, device=device)
        start_training = time.monotonic()
        for count, rows in enumerate(_trained(one, due, jobs), 1):
            table.append(rows)
            left_s = (time.monotonic() - start_training) / count * (len(numbers) - count)
            scores = [float(row["val_dice_patients_best"] or 0) for row in rows if "val_dice_patients_best" in row]
            tell(
                f"configuration {rows[0]['number']} {rows[-1]['ended']}: "
                f"val_dice_patients_best {scores[-1] if scores else 0:.3f} (highest {max(scores, default=0):.3f}), "
                f"{sum(row.get('epoch_s', 0) for row in rows):.0f} s; "
                f"{until - len(numbers) + count} of {until} recorded, {left_s / 60:.0f} min left"
            )


def _trained(
    one: Callable[[int], list[dict[str, Any]]], numbers: Iterator[int], jobs: int
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each number as they finish. A number is taken when a process is free."""
    if jobs == 1:
        yield from map(one, numbers)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(one, number) for number in islice(numbers, jobs)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(one, number) for number in islice(numbers, len(finished))}
            for future in finished:
                yield future.result()


def _texts(row: dict[str, Any]) -> dict[str, str]:
    return {
        name: "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
        for name, value in row.items()
    }


def main() -> None:
    """Record configurations, or continue an earlier recording."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", type=int, default=240, metavar="N", help="number of configurations (default: 240)")
    parser.add_argument(
        "--near", type=int, default=0, metavar="N", help="also record N configurations near the baseline (sealed tasks)"
    )
    parser.add_argument(
        "--minutes", type=float, default=math.inf, metavar="M", help="start no configuration after M minutes"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: cores)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda, which the processes share")
    parser.add_argument(
        "--task", choices=[*TASKS, *SEALED_TASKS], default="phantom", help="what is trained on (default: phantom)"
    )
    parser.add_argument("--ms-flair", type=Path, metavar="FOLDER", help="real patients in BIDS layout, for ms-flair")
    parser.add_argument("--table", type=Path, metavar="FILE", help="the table (default: that of the task)")
    given = parser.parse_args()
    try:
        if given.task in SEALED_TASKS:
            record_task(
                given.task, until=given.until, near=given.near, raw=given.ms_flair, minutes=given.minutes,
                device=given.device,
            )  # fmt: skip
            return
        space, task = SearchSpace.read(HERE / "space.yaml"), TASKS[given.task]
        record(
            given.table or HERE / task.table, space, task, until=given.until, jobs=given.jobs, minutes=given.minutes,
            device=given.device, tell=partial(print, flush=True),
        )  # fmt: skip
    except InputError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
