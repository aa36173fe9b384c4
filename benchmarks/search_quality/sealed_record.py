"""Recordings with sealed patients: whole trainings of random configurations, part of them with two seeds.

A file of `recordings/` has a line that says what was recorded, then a line for each training: its configuration's
number and searched hyperparameters, its seed, the division of the patients, whether it diverged, its seconds, and by
epoch the objective and the Dice of each sealed patient at the epoch's own threshold.

Configuration 0 is the baseline, configuration n is drawn from (SEED, n). So neither order nor interruption changes it.
Those from NEAR on have the baseline's value of each hyperparameter with a chance of UNCHANGED: searches begin there and
often end there, and few random configurations come near.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.search_quality.resumable import ResumableFile
from benchmarks.search_quality.sealed_tasks import SEALED_TASKS, DividedData, SealedTask
from wmlsearch.config import TrialConfig
from wmlsearch.model.metrics import BINS, patient_dice
from wmlsearch.model.steps import Diverged
from wmlsearch.model.training import Trainer
from wmlsearch.model.validation import Validation
from wmlsearch.space import SearchSpace

HERE = Path(__file__).parent
RECORDINGS = HERE / "recordings"
SPACE = "wide.yaml"
FORMAT = 1
SEED = 0  # of the draws
REPEATED = 3  # each third configuration is trained with two seeds
NEAR, UNCHANGED = 1000, 0.65
OBJECTIVE = "val_dice_patients_best"


@dataclass(frozen=True, order=True)
class Key:
    """Which training of a recording. The order is that in which they are recorded."""

    number: int  # of the configuration
    seed: int
    division: int


@dataclass(frozen=True)
class Training:
    """A recorded training."""

    key: Key
    values: Mapping[str, Any]  # searched hyperparameters
    objective: tuple[float, ...]  # by epoch
    sealed: tuple[tuple[float, ...], ...]  # by epoch, the Dice of each sealed patient with lesions
    seconds: float
    diverged: bool = False  # after its last epoch

    @property
    def kept(self) -> float:
        """The mean Dice over sealed patients at the epoch with the highest objective; 0 without an epoch."""
        return float(np.mean(self.sealed[int(np.argmax(self.objective))])) if self.objective else 0.0

    def as_line(self) -> str:
        fields = asdict(self)
        return json.dumps({**fields.pop("key"), **fields}, separators=(",", ":")) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Training:
        fields = json.loads(line)
        key = Key(fields.pop("number"), fields.pop("seed"), fields.pop("division"))
        objective, sealed = tuple(fields.pop("objective")), tuple(map(tuple, fields.pop("sealed")))
        return cls(key, objective=objective, sealed=sealed, **fields)


def draw(space: SearchSpace, number: int) -> dict[str, Any]:
    """Return the searched hyperparameters of a configuration."""
    if number == 0:
        return space.active_values(TrialConfig())
    rng = np.random.default_rng([SEED, number])
    drawn = space.sample(rng)
    if number < NEAR:
        return drawn
    changed = {name: value for name, value in drawn.items() if rng.random() >= UNCHANGED}
    return space.active_values(space.config(changed))


def keys(task: SealedTask, configurations: int, near: int) -> Iterator[Key]:
    """Yield the trainings of the first configurations of either kind, in the order in which they are recorded."""
    for number in (*range(configurations), *range(NEAR, NEAR + near)):
        for seed in range(2 if number % REPEATED == 0 else 1):
            for division in range(len(task.divisions)):
                yield Key(number, seed, division)


class Recording:
    """The file of a task: opened where a recording left it, one write for each finished training.

    Raises InputError if the file was recorded from another space or task.
    """

    def __init__(self, path: Path, name: str, task: SealedTask, space: SearchSpace) -> None:
        self.path = path
        command = f"python -m benchmarks.search_quality.record --task {name}"
        about = {"format": FORMAT, "task": name, "epochs": task.epochs, "objective": OBJECTIVE, "command": command}
        header = json.dumps({**about, "space": space.to_mapping()}, separators=(",", ":")) + "\n"
        refusal = f"{path}: was not recorded from {space.source} for {name}: record into another file"
        file = ResumableFile(path, header, refusal)
        self.trainings = [Training.from_line(line) for line in file.lines]
        file.keep(len(file.lines))

    @property
    def done(self) -> set[Key]:
        return {training.key for training in self.trainings}

    def append(self, training: Training) -> None:
        """Add a training."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(training.as_line())
        self.trainings.append(training)


def read(name: str, path: Path | None = None) -> list[Training]:
    """Return the recorded trainings of a task, by their keys. None are returned where there is no file."""
    path = path or RECORDINGS / f"{name}.jsonl"
    if not path.exists():
        return []
    _, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return sorted((Training.from_line(line) for line in lines if line.endswith("\n")), key=lambda each: each.key)


def train(space: SearchSpace, values: Mapping[str, Any], data: DividedData, epochs: int, key: Key) -> Training:
    """Train a configuration, given by its searched hyperparameters, to its end on one thread, whatever its patience."""
    torch.set_num_threads(1)  # one configuration per core has the highest throughput
    start = time.process_time()
    config = space.config(values).model_copy(update={"early_stop_patience": epochs})
    # float32, because "auto" would give other values on processors with bfloat16
    trainer, sealed = Trainer(config, data.data, epochs, key.seed, "float32"), data.sealed.with_input_of(config).val
    objective: list[float] = []
    scores: list[tuple[float, ...]] = []
    diverged = False
    while trainer.ended is None:
        try:
            row = trainer.train_epoch()
        except Diverged:
            diverged = True
            break
        with torch.no_grad():
            counts = Validation(trainer.kept_unet, sealed, trainer.loss, bfloat16=False).run()
        of_patients = patient_dice(counts.patient_histograms())[:, round(trainer.threshold * BINS)]
        objective.append(round(row.metrics[OBJECTIVE] or 0.0, 4))
        scores.append(tuple(round(float(score), 4) for score in of_patients))
    return Training(key, values, tuple(objective), tuple(scores), round(time.process_time() - start, 1), diverged)


def record(
    name: str,
    path: Path,
    task: SealedTask,
    space: SearchSpace,
    *,
    until: int,
    near: int = 0,
    raw: Path | None = None,
    minutes: float = math.inf,
    device: str = "cpu",
    tell: Callable[[str], None] = print,
) -> None:
    """Record those trainings that the file lacks of the first `until` configurations and `near` ones near the baseline.

    None is begun after `minutes`.
    """
    start, recording = time.monotonic(), Recording(path, name, task, space)
    due = [key for key in keys(task, until, near) if key not in recording.done]
    if not due:
        return
    with tempfile.TemporaryDirectory() as folder:
        data = [DividedData.open(each, device) for each in task.prepare(Path(folder), raw)]
        for count, key in enumerate(due, 1):
            if time.monotonic() >= start + 60 * minutes:
                return
            training = train(space, draw(space, key.number), data[key.division], task.epochs, key)
            recording.append(training)
            scores = "diverged at once"
            if training.objective:
                scores = f"{OBJECTIVE} {max(training.objective):.3f}, sealed {training.kept:.3f}"
            tell(
                f"{name}, configuration {key.number}, seed {key.seed}, division {key.division}: {scores}, "
                f"{training.seconds:.0f} s; {count} of {len(due)} recorded"
            )


def record_task(name: str, *, until: int, near: int, raw: Path | None, minutes: float, device: str) -> None:
    """Record a task of `SEALED_TASKS` into its file."""
    RECORDINGS.mkdir(exist_ok=True)
    space = SearchSpace.read(HERE / SPACE)
    record(
        name, RECORDINGS / f"{name}.jsonl", SEALED_TASKS[name], space,
        until=until, near=near, raw=raw, minutes=minutes, device=device, tell=lambda text: print(text, flush=True),
    )  # fmt: skip
