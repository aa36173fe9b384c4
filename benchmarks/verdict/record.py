"""Record the scores of repeated trainings, for the calibration of the verdict: recorded.csv and ensembles.csv.

    python -m benchmarks.verdict.record [--until 30] [--minutes 60] [--work FOLDER]

Two configurations are trained again and again on the phantom, each run with another seed and fold, as the final runs of
a search are. Five runs, one for each fold, make an ensemble, and one threshold is chosen for it and its networks on
their out-of-fold predictions. The rows of an ensemble are written when its five runs have ended. Run it again to
continue: what is recorded is kept, and `--work` keeps the trained networks of an unfinished ensemble.

recorded.csv has a row for each run and sealed patient. `dice` is the Dice at the ensemble's threshold, `dice_half` at
0.5, `dice_argmax` at the threshold that is best on the run's own validation patients. ensembles.csv has a row for each
ensemble and sealed patient.
"""

from __future__ import annotations

import argparse
import csv
import io
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wmlsearch.config import TrialConfig
from wmlsearch.data.manifest import SEALED, Manifest
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData, Slices
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.metrics import BINS, ValidationCounts, best_bin, patient_dice
from wmlsearch.model.thresholds import threshold_of_curves
from wmlsearch.model.training import epochs

HERE = Path(__file__).parent
FOLDS = 5
EPOCHS = 14  # at most; validation Dice changes little from there on
SEED = 0  # of the phantom and of the split
CONFIGURATIONS = {
    "baseline": TrialConfig(),
    "small": TrialConfig(depth=3, base_channels=12, dropout=0.0, loss="bce_dice"),
}
PATIENTS, SHAPE, SIZE, LESION_SIZE = 40, (48, 48, 16), 48, 3.0
TEST_PATIENTS = tuple(f"{number:02d}" for number in range(17, 41))
RUN_COLUMNS = ("configuration", "run", "fold", "seed", "epochs", "patient", "dice", "dice_half", "dice_argmax")
ENSEMBLE_COLUMNS = ("configuration", "ensemble", "threshold", "patient", "dice", "dice_half")


@dataclass(frozen=True)
class Recording:
    """What one training left: its networks' predictions, counted."""

    run: int
    epochs: int
    validation: np.ndarray  # (patients of the fold, 2, BINS)
    sealed: np.ndarray  # (sealed patients, 2, BINS)


def make_data(folder: Path) -> Path:
    """Write the phantom and prepare it, unless that is done; return the prepared data set."""
    prepared = folder / "prepared"
    if not prepared.exists():
        raw = write_phantom(
            folder / "raw", patients=PATIENTS, timepoints=1, shape=SHAPE, lesion_size=LESION_SIZE, seed=SEED
        )
        prepare(raw, prepared, PrepareOptions(size=SIZE, jobs=1, test_patients=TEST_PATIENTS, seed=SEED))
    return prepared


def sealed_slices(prepared: Path) -> Slices:
    """Return the slices of the sealed patients. The phantom's may be looked at as often as one likes."""
    manifest = Manifest.read(prepared / SEALED)
    images, masks = (torch.from_numpy(np.load(prepared / SEALED / name)) for name in ("images.npy", "masks.npy"))
    names = tuple(sorted({row.patient for row in manifest.slices}))
    patients = torch.tensor([names.index(row.patient) for row in manifest.slices])
    return Slices(images, masks, torch.arange(len(images)), patients, names)


def probabilities(models: list[TrainedModel], slices: Slices) -> torch.Tensor:
    """Return the mean probability of the models, (N, H, W)."""
    images = slices.images[slices.rows].numpy()
    return torch.from_numpy(np.mean([model.probabilities(images) for model in models], axis=0, dtype=np.float32))


def histograms(models: list[TrainedModel], slices: Slices) -> np.ndarray:
    """Return each patient's histograms of probability, (patients, 2, BINS)."""
    counts = ValidationCounts(len(slices.patient_names))
    counts.add_to_histograms(
        probabilities(models, slices).unsqueeze(1), slices.masks[slices.rows].unsqueeze(1), slices.patients
    )
    return counts.patient_histograms()


def train(config: TrialConfig, prepared: Path, run: int, best: Path) -> int:
    """Train a run, unless its weights are there; return its epochs."""
    data = PreparedData.open(prepared, fold=run % FOLDS)
    finished = best.with_suffix(".epochs")
    if not finished.exists():
        rows = list(
            epochs(
                config,
                data,
                max_epochs=EPOCHS,
                seed=run,
                precision="auto",
                objective="val_dice_patients_best",
                last=best.with_suffix(".last"),
                best=best,
            )
        )
        finished.write_text(str(len(rows)))
        best.with_suffix(".last").unlink()
    return int(finished.read_text())


def record_ensemble(
    name: str, number: int, prepared: Path, work: Path
) -> tuple[list[list[object]], list[list[object]]]:
    """Train the five runs of an ensemble; return the rows of both tables."""
    sealed = sealed_slices(prepared)
    models, recordings = [], []
    for run in range(number * FOLDS, (number + 1) * FOLDS):
        best = work / f"{name}-{run}.pt"
        began = time.monotonic()
        trained = train(CONFIGURATIONS[name], prepared, run, best)
        print(f"{name} run {run}: {trained} epochs, {time.monotonic() - began:.0f} s", flush=True)
        model = TrainedModel.load(best)
        validation = PreparedData.open(prepared, fold=run % FOLDS).val
        models.append(model)
        recordings.append(Recording(run, trained, histograms([model], validation), histograms([model], sealed)))
    threshold = threshold_of_curves(np.concatenate([patient_dice(one.validation) for one in recordings]))
    run_rows: list[list[object]] = []
    for recording in recordings:
        argmax = best_bin(patient_dice(recording.validation).sum(axis=0))
        curves = patient_dice(recording.sealed)
        for patient, curve in zip(sealed.patient_names, curves, strict=True):
            scores = [f"{curve[place]:.5f}" for place in (round(threshold * BINS), BINS // 2, argmax)]
            fold = recording.run % FOLDS
            run_rows.append([name, recording.run, fold, recording.run, recording.epochs, patient, *scores])
    ensemble_rows: list[list[object]] = [
        [name, number, threshold, patient, f"{curve[round(threshold * BINS)]:.5f}", f"{curve[BINS // 2]:.5f}"]
        for patient, curve in zip(sealed.patient_names, patient_dice(histograms(models, sealed)), strict=True)
    ]
    return run_rows, ensemble_rows


def recorded_ensembles(path: Path) -> set[tuple[str, int]]:
    """Return configuration and number of the ensembles in ensembles.csv."""
    if not path.exists():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        return {(row["configuration"], int(row["ensemble"])) for row in csv.DictReader(file)}


def append(path: Path, columns: tuple[str, ...], rows: list[list[object]]) -> None:
    """Append rows to a table in one write."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists():
        writer.writerow(columns)
    writer.writerows(rows)
    with path.open("a", encoding="utf-8") as file:
        file.write(text.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", type=int, default=30, help="runs of each configuration")
    parser.add_argument("--minutes", type=float, default=60, help="begin no ensemble after this time")
    parser.add_argument("--work", type=Path, help="folder for the data and the networks; default: a temporary one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        prepared = make_data(work)
        for number in range(options.until // FOLDS):
            for name in CONFIGURATIONS:
                if (name, number) in recorded_ensembles(HERE / "ensembles.csv"):
                    continue
                if time.monotonic() - began > 60 * options.minutes:
                    return
                run_rows, ensemble_rows = record_ensemble(name, number, prepared, work)
                append(HERE / "recorded.csv", RUN_COLUMNS, run_rows)
                append(HERE / "ensembles.csv", ENSEMBLE_COLUMNS, ensemble_rows)


if __name__ == "__main__":
    main()
