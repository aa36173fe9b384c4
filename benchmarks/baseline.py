"""What the paper leaves open: PyTorch's values or Keras's? The baseline configuration with one changed at a time.

    python -m benchmarks.baseline                                             the table, from the recorded scores
    python -m benchmarks.baseline --record [--minutes 60] [--ms-flair FOLDER] [--work FOLDER]     record more of them

Each training is scored as a final run is: the weights of the best epoch, at the threshold that the validation patients
choose, by the mean Dice of patients that nothing else has used. Trainings with the same number share their seed and
their patients, so differences are paired. Recording again continues: what is in baseline.csv is kept.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.verdict.record import histograms, sealed_slices
from benchmarks.verdict.rows import markdown
from wmlsearch.config import TrialConfig
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.metrics import BINS, patient_dice
from wmlsearch.model.training import epochs

TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = ("cohort", "training", "values", "epochs", "dice", "dice_half")
EPOCHS = 100  # at most; early stopping ends nearly all trainings before
TORCH: dict[str, Any] = {
    "norm_momentum": 0.1,
    "norm_epsilon": 1e-5,
    "optimizer_epsilon": 1e-8,
    "plateau_min_delta": 0.0,
    "head_init": "he",
    "dropout_place": "first",
    "up_kernel": 2,
}
KERAS: dict[str, Any] = {
    "norm_momentum": 0.01,
    "norm_epsilon": 1e-3,
    "optimizer_epsilon": 1e-7,
    "plateau_min_delta": 1e-4,
    "head_init": "glorot",
}
OPEN: dict[str, Sequence[Any]] = {"dropout_place": ("last", "both"), "up_kernel": (3,)}  # where Keras has no default
REFERENCE, ALL_KERAS = "PyTorch's", "all of Keras's"
VARIANTS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    **{f"{name} {value}": {name: value} for name, value in KERAS.items()},
    **{f"{name} {value}": {name: value} for name, values in OPEN.items() for value in values},
    ALL_KERAS: KERAS,
}
PHANTOM, MS_FLAIR = "phantom", "ms-flair"
PHANTOM_PATIENTS, SEALED_PATIENTS, SIZE = 24, 10, 48
MS_FLAIR_PATIENTS, MS_FLAIR_SIZE = ("07", "19", "26"), 96


@dataclass(frozen=True)
class Score:
    """A row of baseline.csv."""

    cohort: str
    training: int  # its seed; trainings with the same number share the patients
    values: str  # a name in `VARIANTS`
    epochs: int
    dice: float  # at the threshold that the validation patients choose
    dice_half: float  # at 0.5


def phantom(folder: Path) -> Path:
    """Return a prepared phantom, which has five folds."""
    prepared = folder / "prepared"
    if not prepared.exists():
        raw = write_phantom(folder / "raw", patients=PHANTOM_PATIENTS, timepoints=1, shape=(SIZE, SIZE, 16))
        sealed = tuple(
            f"{number:02d}" for number in range(PHANTOM_PATIENTS - SEALED_PATIENTS + 1, PHANTOM_PATIENTS + 1)
        )
        prepare(raw, prepared, PrepareOptions(size=SIZE, jobs=1, test_patients=sealed))
    return prepared


def ms_flair(raw: Path, folder: Path, training: int) -> Path:
    """Return one of the three patients to train on, one to validate on, and one that is sealed, in turn."""
    train, val, test = (MS_FLAIR_PATIENTS[(training + place) % 3] for place in range(3))
    prepared = folder / f"{train}-{val}-{test}"
    if not prepared.exists():
        options = PrepareOptions(
            plane="axial",
            size=MS_FLAIR_SIZE,
            train_patients=(train,),
            val_patients=(val,),
            test_patients=(test,),
            jobs=1,
        )
        prepare(raw, prepared, options)
    return prepared


def train(prepared: Path, cohort: str, training: int, values: str, scratch: Path) -> Score:
    """Train and score the baseline configuration with other values. The number of the training is its fold too."""
    config = TrialConfig(**{**TORCH, **VARIANTS[values]})
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        last, best = Path(folder, "last.pt"), Path(folder, "best.pt")
        rows = list(
            epochs(
                config,
                PreparedData.open(prepared, fold=training),
                max_epochs=EPOCHS,
                seed=training,
                precision="float32",
                objective="val_dice_patients_best",
                last=last,
                best=best,
            )
        )
        model = TrainedModel.load(best)
    curves = patient_dice(histograms([model], sealed_slices(prepared))).mean(axis=0)
    return Score(
        cohort, training, values, len(rows), float(curves[round(model.threshold * BINS)]), float(curves[BINS // 2])
    )


def read(path: Path = TABLE) -> list[Score]:
    """Return the recorded scores; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Score(
                row["cohort"],
                int(row["training"]),
                row["values"],
                int(row["epochs"]),
                float(row["dice"]),
                float(row["dice_half"]),
            )
            for row in csv.DictReader(file)
        ]


def append(score: Score, path: Path = TABLE) -> None:
    """Append a row."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerow([
            score.cohort, score.training, score.values, score.epochs, f"{score.dice:.5f}", f"{score.dice_half:.5f}",
        ])  # fmt: skip


def missing(cohorts: Sequence[str], trainings: int, variants: Sequence[str]) -> Iterator[tuple[str, int, str]]:
    """Yield cohort, number and values of what is not recorded, all values of a number before the next number."""
    done = {(score.cohort, score.training, score.values) for score in read()}
    for training in range(trainings):
        for cohort in cohorts:
            for values in variants:
                if (cohort, training, values) not in done:
                    yield cohort, training, values


def table(scores: Sequence[Score]) -> str:
    """Return the mean Dice of each value, and its paired difference to PyTorch's with the standard error."""
    lines = []
    for cohort in dict.fromkeys(score.cohort for score in scores):
        by_values: Mapping[str, dict[int, Score]] = defaultdict(dict)
        for score in scores:
            if score.cohort == cohort:
                by_values[score.values][score.training] = score
        reference = by_values[REFERENCE]
        for values, of_values in by_values.items():
            shared = sorted(set(of_values) & set(reference))
            mine, theirs = (
                np.array([[one[number].dice, one[number].dice_half] for number in shared])
                for one in (of_values, reference)
            )
            differences = mine - theirs
            errors: tuple[str, ...] = ("", "")
            if len(shared) > 1:
                errors = tuple(f" ± {sd:.3f}" for sd in differences.std(axis=0, ddof=1) / np.sqrt(len(shared)))
            epochs_of = np.mean([of_values[number].epochs for number in shared])
            cells = [f"{mean:.3f}" for mean in mine.mean(axis=0)]
            paired = [
                "" if values == REFERENCE else f"{mean:+.3f}{error}"
                for mean, error in zip(differences.mean(axis=0), errors, strict=True)
            ]
            lines.append((cohort, values, len(shared), f"{epochs_of:.0f}", cells[0], paired[0], cells[1], paired[1]))
    head = ("cohort", "values", "trainings", "epochs", "Dice", "difference", "Dice at 0.5", "difference")
    return markdown(head, lines)


def main() -> None:
    """Print the table; with --record, train first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="train what baseline.csv lacks")
    parser.add_argument("--trainings", type=int, default=6, help="with --record: trainings of each value and cohort")
    parser.add_argument(
        "--values", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="with --record: these only"
    )
    parser.add_argument("--minutes", type=float, default=60, help="with --record: begin no training after this time")
    parser.add_argument("--ms-flair", type=Path, metavar="FOLDER", help="with --record: real patients, in BIDS layout")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="with --record: keeps the prepared data")
    given = parser.parse_args()
    if given.record:
        torch.set_num_threads(1)
        began = time.monotonic()
        cohorts = [PHANTOM, *([MS_FLAIR] if given.ms_flair else [])]
        with tempfile.TemporaryDirectory() as temporary:
            work = given.work or Path(temporary)
            work.mkdir(parents=True, exist_ok=True)
            for cohort, training, values in missing(cohorts, given.trainings, given.values):
                if time.monotonic() - began > 60 * given.minutes:
                    break
                prepared = phantom(work) if cohort == PHANTOM else ms_flair(given.ms_flair, work, training)
                score = train(prepared, cohort, training, values, work)
                append(score)
                print(f"{cohort} {training} {values}: {score.epochs} epochs, Dice {score.dice:.3f}", flush=True)
    print(table(read()))


if __name__ == "__main__":
    main()
