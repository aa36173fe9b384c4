"""Both claims on recorded scores: equal things drawn against each other, and a planted better configuration.

`recorded.csv` holds the Dice of single networks: configuration, run, fold, seed, patient, dice. `ensembles.csv` holds
that of ensembles of five networks: configuration, ensemble, patient, dice. Other columns are not read.

Claim (a): runs of a configuration against other runs of the same one. As in a search, run r of each side validated on
the r-th of the folds, and starts again with the first after the last. Claim (b): the differences between two models of
one configuration, less their mean, so that the models are equal on average; patients are drawn with replacement.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.verdict.rows import Row
from benchmarks.verdict.simulated import CHUNK_B, RUNS, generator, in_chunks, wrong_claims, wrong_models
from wmlsearch.errors import InputError
from wmlsearch.verdict.configuration_claim import CrossedEstimate, estimate
from wmlsearch.verdict.power import detectable
from wmlsearch.verdict.statistics import ALPHA, MIN_PATIENTS

HERE = Path(__file__).parent
NETWORKS, ENSEMBLES = HERE / "recorded.csv", HERE / "ensembles.csv"
DRAWS, DRAWS_B = 1_000, 4_000  # more draws from thirty trainings would not tell more: they are a sample themselves
PATIENTS = (6, 9, 20)  # of claim (a), drawn without replacement, and all; of claim (b), with replacement
ENDINGS, RUNS_OF_ENDING = 50, 5


@dataclass(frozen=True)
class Recording:
    """The scores of one configuration."""

    configuration: str
    scores: np.ndarray  # (runs or ensembles, patients)
    folds: tuple[int, ...]  # of each run; all 0 for ensembles


def read_networks(path: Path = NETWORKS) -> list[Recording]:
    """Return the scores of all configurations. Raises InputError where a run lacks a patient of the others."""
    return _read(path, "run", ("configuration", "run", "fold", "seed", "patient", "dice"))


def read_ensembles(path: Path = ENSEMBLES) -> list[Recording]:
    """Return the scores of all configurations' ensembles. Raises InputError where one lacks a patient of the others."""
    return _read(path, "ensemble", ("configuration", "ensemble", "patient", "dice"))


def _read(path: Path, name: str, columns: Sequence[str]) -> list[Recording]:
    scores: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    folds: dict[tuple[str, str], int] = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
            raise InputError(f"{path}: must have the columns {', '.join(columns)}, but lacks {', '.join(missing)}")
        for row in reader:
            scores[row["configuration"]][row[name]][row["patient"]] = float(row["dice"])
            folds[row["configuration"], row[name]] = int(row.get("fold") or 0)
    recordings = []
    for configuration, by_run in scores.items():
        patients = sorted({patient for values in by_run.values() for patient in values})
        if incomplete := [run for run, values in by_run.items() if len(values) < len(patients)]:
            raise InputError(f"{path}: {configuration}, {name} {incomplete[0]} lacks patients that others have")
        table = np.array([[values[patient] for patient in patients] for values in by_run.values()])
        recordings.append(Recording(configuration, table, tuple(folds[configuration, run] for run in by_run)))
    return recordings


def replay_configurations(recordings: Sequence[Recording], draws: int = DRAWS) -> Iterator[Row]:
    """Yield claim (a) about runs of one configuration drawn against others of it, where there are enough runs."""
    for recording in recordings:
        everyone = recording.scores.shape[1]
        for runs in RUNS:
            for patients in (*(number for number in PATIENTS if number < everyone), everyone):
                rng = generator("recorded", recording.configuration, runs, patients)
                drawn = _draw(recording, runs, patients, draws, rng)
                if drawn is not None:
                    wrong = wrong_claims(_judge(recording, drawn))
                    yield Row("recorded", "a", recording.configuration, str(runs), patients, draws, wrong)


@dataclass(frozen=True)
class Drawn:
    """Runs of one configuration for two sides, and the patients that they are judged on, for many endings."""

    runs: np.ndarray  # (draws, 2, runs)
    patients: np.ndarray  # (draws, patients)


def _draw(recording: Recording, runs: int, patients: int, draws: int, rng: np.random.Generator) -> Drawn | None:
    """Return runs drawn against others; None where a fold has too few."""
    by_fold = _runs_of_folds(recording)
    sides, columns = [], []
    for _ in range(draws):
        drawn = _two_sides(by_fold, runs, rng)
        if drawn is None:
            return None
        sides.append(drawn)
        columns.append(rng.permutation(recording.scores.shape[1])[:patients])
    return Drawn(np.array(sides), np.array(columns))


def _judge(recording: Recording, drawn: Drawn, shift: np.ndarray | float = 0.0) -> CrossedEstimate:
    """Return the estimates, with the second side better by `shift`, cut to what Dice can be."""
    scores = recording.scores[drawn.runs[..., None], drawn.patients[:, None, None, :]]
    return estimate(scores[:, 0], np.clip(scores[:, 1] + shift, 0, 1), _places(recording, drawn.runs.shape[-1]))


def _places(recording: Recording, runs: int) -> list[int]:
    """Return the fold of each run, as its place in the drawn order."""
    return [place for place, count in enumerate(_counts(len(set(recording.folds)), runs)) for _ in range(count)]


def _counts(folds: int, runs: int) -> list[int]:
    """Return how many runs each fold has, in the drawn order."""
    return [runs // folds + (place < runs % folds) for place in range(folds)]


def _runs_of_folds(recording: Recording) -> Mapping[int, list[int]]:
    by_fold: dict[int, list[int]] = defaultdict(list)
    for run, fold in enumerate(recording.folds):
        by_fold[fold].append(run)
    return by_fold


def _two_sides(by_fold: Mapping[int, Sequence[int]], runs: int, rng: np.random.Generator) -> np.ndarray | None:
    """Return different runs for two sides, (2, runs): run r of both validated on one fold. None with too few runs.

    Which folds come first is drawn, so that all of them count where there are fewer runs.
    """
    order = rng.permutation(sorted(by_fold))
    counts = dict(zip(order, _counts(len(order), runs), strict=True))
    if any(2 * count > len(by_fold[fold]) for fold, count in counts.items()):
        return None
    sides: list[np.ndarray] = []
    for fold, count in counts.items():
        sides.append(rng.permutation(by_fold[fold])[: 2 * count].reshape(2, count))
    return np.concatenate(sides, axis=1)


def replay_models(recordings: Sequence[Recording], what: str, draws: int = DRAWS_B) -> Iterator[Row]:
    """Yield claim (b) about two models of one configuration, made equal on average."""
    for recording in recordings:
        models, everyone = recording.scores.shape
        if models < 2:
            continue
        for patients in sorted({*(number for number in PATIENTS if number < everyone), max(everyone, MIN_PATIENTS)}):
            rng, wrong = generator("recorded", recording.configuration, what, patients), 0
            for number, count in enumerate(in_chunks(draws, CHUNK_B)):
                pairs = np.array([rng.permutation(models)[:2] for _ in range(count)])
                differences = recording.scores[pairs[:, 1]] - recording.scores[pairs[:, 0]]
                centred = differences - differences.mean(axis=1, keepdims=True)
                columns = rng.integers(0, everyone, (count, patients))
                wrong += wrong_models(np.take_along_axis(centred, columns, axis=1), number)
            yield Row("recorded", "b", recording.configuration, what, patients, draws, wrong)


@dataclass(frozen=True)
class Planted:
    """How often a configuration that is better by the detectable difference is called better."""

    configuration: str
    runs: int
    patients: int
    planned: float  # the difference that `plan` would state, from the spread of all recorded runs
    found_percent: float  # of all drawn endings, better by that
    stated: float  # mean of the differences that the verdicts of `ENDINGS` endings state
    better: int  # of these endings, each better by what its verdict states


def replay_planted(recordings: Sequence[Recording]) -> Iterator[Planted]:
    """Yield endings in which runs of a configuration, made better, are judged against others of it.

    They are made better by the difference that `plan` would state, and some by that of the ending's own verdict.
    """
    for recording in recordings:
        patients, folds = recording.scores.shape[1], _places(recording, RUNS_OF_ENDING)
        rng = generator("planted", recording.configuration)
        drawn, endings = (_draw(recording, RUNS_OF_ENDING, patients, count, rng) for count in (DRAWS, ENDINGS))
        if drawn is None or endings is None:
            continue

        sds = [float(np.sqrt(np.mean(sd**2))) for sd in _sds(_judge(recording, drawn))]
        planned = detectable(sds[0], sds[1], sds[2], folds, patients)
        stated = np.array(
            [
                detectable(float(run), float(patient), float(residual), folds, patients, estimated=True)
                for run, patient, residual in zip(*_sds(_judge(recording, endings)), strict=True)
            ]
        )
        found = _better(_judge(recording, drawn, planned)).mean()
        better = int(_better(_judge(recording, endings, stated[:, None, None])).sum())
        yield Planted(
            recording.configuration, RUNS_OF_ENDING, patients, planned, 100 * float(found), float(stated.mean()), better
        )


def _better(crossed: CrossedEstimate) -> np.ndarray:
    """Return in which cohorts the second side is called better."""
    return (crossed.p < ALPHA) & (crossed.low > 0)


def _sds(crossed: CrossedEstimate) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return crossed.run_sd, crossed.patient_sd, crossed.residual_sd
