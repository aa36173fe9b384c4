"""Does the threshold of few patients help the next ones? Dice at 0.5, at the best threshold, and at the chosen one.

    python -m benchmarks.thresholds                 the table, from the recorded curves
    python -m benchmarks.thresholds --record [--ms-flair FOLDER]      record them anew, half an hour on a core

A recorded run is the baseline configuration, trained on few patients. Its curves are the Dice of each other patient at
each threshold. Some of these patients choose the threshold, as validation patients do; the rest are scored.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmlsearch.config import TrialConfig
from wmlsearch.data.manifest import SEALED, Manifest
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData, Slices
from wmlsearch.model.metrics import BINS, best_bin, patient_dice
from wmlsearch.model.thresholds import threshold_of_curves
from wmlsearch.model.training import Trainer
from wmlsearch.model.validation import Validation

CURVES = Path(__file__).parent / "thresholds.npz"
SCALE = 10_000  # Dice is stored as a whole number
PHANTOM_PATIENTS, PHANTOM_SHAPE, LESION_SIZE = 24, (48, 48, 16), 3.0
PHANTOM_EPOCHS = {2: 60, 4: 40, 8: 24}  # by the number of training patients
PHANTOM_RUNS, MS_FLAIR_RUNS, MS_FLAIR_EPOCHS = 4, 2, 32
MS_FLAIR_SIZE = 64  # pixels
DRAWS = 200  # of choosing patients, for each run

RULES: dict[str, Callable[[np.ndarray], float]] = {
    "0.5": lambda _curves: 0.5,
    "best": lambda curves: best_bin(curves.sum(axis=0)) / BINS,
    "chosen": threshold_of_curves,
}


def record_phantom(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Train on random patients of a phantom; yield cohort and curves (other patients with lesions, BINS) of a run."""
    raw = write_phantom(
        folder / "raw", patients=PHANTOM_PATIENTS, timepoints=1, shape=PHANTOM_SHAPE, lesion_size=LESION_SIZE
    )
    options = PrepareOptions(size=PHANTOM_SHAPE[0], test_patients=(f"{PHANTOM_PATIENTS}",), jobs=1)
    prepare(raw, folder / "prepared", options)
    data = PreparedData.open(folder / "prepared")
    patients = sorted({row.patient for row in data.manifest.slices})
    rng = np.random.default_rng(0)
    for seed in range(PHANTOM_RUNS):
        for count, epochs in PHANTOM_EPOCHS.items():
            order = rng.permutation(patients).tolist()
            train, others = order[:count], order[count:]
            val = _slices(data, others[:2], kept_only=False)  # for early stopping
            part = replace(data, train=_slices(data, train, kept_only=True), val=val)
            yield (
                f"phantom, {count} training patients",
                _curves(part, epochs, seed, [_slices(data, others, kept_only=False)]),
            )


def record_ms_flair(raw: Path, folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Train on each of the three patients; the validation patient and the sealed one are the others."""
    patients = ("07", "19", "26")
    for seed in range(MS_FLAIR_RUNS):
        for place, train in enumerate(patients):
            val, test = patients[(place + 1) % 3], patients[(place + 2) % 3]
            out = folder / f"{train}-{seed}"
            options = PrepareOptions(
                plane="axial",
                size=MS_FLAIR_SIZE,
                fit="resize",
                train_patients=(train,),
                val_patients=(val,),
                test_patients=(test,),
                jobs=1,
            )
            prepare(raw, out, options)
            data = PreparedData.open(out)
            images, masks = (torch.from_numpy(np.load(out / SEALED / f"{name}.npy")) for name in ("images", "masks"))
            count = len(Manifest.read(out / SEALED).slices)
            sealed = Slices(images, masks, torch.arange(count), torch.zeros(count, dtype=torch.int64), (test,))
            yield "ms-flair, 1 training patient", _curves(data, MS_FLAIR_EPOCHS, seed, [data.val, sealed])


def _slices(data: PreparedData, patients: Sequence[str], kept_only: bool) -> Slices:
    """Return the slices of these patients, whatever their split."""
    names = tuple(sorted(patients))
    rows = [
        place for place, row in enumerate(data.manifest.slices) if row.patient in names and (row.kept or not kept_only)
    ]
    numbers = torch.tensor([names.index(data.manifest.slices[row].patient) for row in rows], dtype=torch.int64)
    return Slices(data.train.images, data.train.masks, torch.tensor(rows), numbers, names)


def _curves(data: PreparedData, epochs: int, seed: int, others: Sequence[Slices]) -> np.ndarray:
    """Train the baseline configuration; return the curves at its last epoch."""
    trainer = Trainer(TrialConfig(), data, epochs, seed, "auto")
    while trainer.ended is None:
        trainer.train_epoch()
    with torch.no_grad():
        counts = [Validation(trainer.unet, slices, "bce", trainer.bfloat16).run() for slices in others]
    return np.concatenate([patient_dice(count.patient_histograms()) for count in counts])


def table(runs: Sequence[tuple[str, np.ndarray]]) -> list[str]:
    """Return the lines of the table: mean Dice of the scored patients by cohort and number of choosing patients."""
    lines = [
        f"| recorded runs | patients who choose | {' | '.join(RULES)} | best for those who are scored |",
        f"|---|---:|{'---:|' * (len(RULES) + 1)}",
    ]
    for cohort in dict.fromkeys(name for name, _ in runs):
        of_cohort = [curves for name, curves in runs if name == cohort]
        for choosing in (1, 2, 3, 5):
            if min(len(curves) for curves in of_cohort) <= choosing:
                continue
            scores = np.concatenate([_scores(curves, choosing) for curves in of_cohort]).mean(axis=0)
            shown = " | ".join(f"{score:.3f}" for score in scores)
            lines.append(f"| {cohort} ({len(of_cohort)}) | {choosing} | {shown} |")
    return lines


def _scores(curves: np.ndarray, choosing: int) -> np.ndarray:
    """Return the mean Dice of the scored patients by each rule, and the highest one, (DRAWS, rules + 1)."""
    rng, scores = np.random.default_rng(0), []
    for _ in range(DRAWS):
        order = rng.permutation(len(curves))
        choose, rest = curves[order[:choosing]], curves[order[choosing:]].mean(axis=0)
        scores.append([*(rest[round(rule(choose) * BINS)] for rule in RULES.values()), rest[1:].max()])
    return np.array(scores)


def recorded(path: Path = CURVES) -> list[tuple[str, np.ndarray]]:
    """Return cohort and curves of each recorded run."""
    with np.load(path) as stored:
        return [(name[4:], stored[name] / SCALE) for name in sorted(stored)]


def main() -> None:
    """Print the table, of recorded or new curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="train, and write the curves beside this file")
    parser.add_argument("--ms-flair", type=Path, metavar="FOLDER", help="with --record: real patients, in BIDS layout")
    given = parser.parse_args()
    if given.record:
        with tempfile.TemporaryDirectory() as folder:
            runs = []
            sources = [record_phantom(Path(folder) / "phantom")]
            if given.ms_flair:
                sources.append(record_ms_flair(given.ms_flair, Path(folder) / "ms-flair"))
            for source in sources:
                for cohort, curves in source:
                    print(f"{cohort}: best mean Dice {curves.mean(axis=0)[1:].max():.3f}", flush=True)
                    runs.append((cohort, curves))
        stored = {f"{place:03d} {name}": (curves * SCALE).round() for place, (name, curves) in enumerate(runs)}
        arrays: dict[str, Any] = {name: curves.astype(np.uint16) for name, curves in stored.items()}
        np.savez_compressed(CURVES, **arrays)
    print("\n".join(table(recorded())))


if __name__ == "__main__":
    main()
