"""Both claims on simulated scores of equal things: how often they are wrong, and whether intervals hold the truth."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from benchmarks.verdict.cohorts import SHAPES, SKEWED, Scenario, draw, true_difference
from benchmarks.verdict.rows import Row
from wmlsearch.verdict.configuration_claim import CrossedEstimate, estimate
from wmlsearch.verdict.models_claim import interval, sign_flip
from wmlsearch.verdict.statistics import ALPHA

PATIENTS = (6, 9, 20, 50, 100)
RUNS = (2, 3, 5, 10)
SEED_SDS = (0.0, 0.007, 0.015, 0.07)
CANDIDATES = (1, 3, 10)
COHORTS, COHORTS_B = 10_000, 4_000
CHUNK, CHUNK_B = 2_000_000, 250  # scores of claim (a) and cohorts of claim (b) that are held in memory at a time
RESAMPLES = 999  # of claim (b)
SHIFT = 0.05  # true difference for the coverage of intervals
SELECTION_RUNS = 2
DEVELOPMENT_PATIENTS = 9
PATH = Scenario(run_sds=(0.03, 0.03), fold_sd=0.0)  # of the whole path


def calibration_of_configurations(cohorts: int = COHORTS) -> Iterator[Row]:
    """Yield claim (a) on equal configurations: each shape, seed deviation, number of runs and of patients."""
    for shape in SHAPES:
        for sd in SEED_SDS:
            for runs in RUNS:
                for patients in PATIENTS:
                    yield _configurations("calibration", Scenario(shape, (sd, sd)), runs, patients, cohorts)


def calibration_of_folds(cohorts: int = COHORTS) -> Iterator[Row]:
    """Yield claim (a) with other deviations between folds."""
    for fold_sd in (0.0, 0.07):
        for runs in RUNS:
            for patients in PATIENTS:
                yield _configurations("folds", Scenario(fold_sd=fold_sd), runs, patients, cohorts)


def unequal_spread(cohorts: int = COHORTS) -> Iterator[Row]:
    """Yield claim (a) on configurations with equal means, of which one varies ten times as much between seeds."""
    for shape in SHAPES:
        for runs in RUNS:
            for patients in PATIENTS:
                scenario = Scenario(shape, (0.007, 0.07), fold_sd=0.0)
                yield _configurations("unequal spread", scenario, runs, patients, cohorts)


def fresh_runs(cohorts: int = COHORTS) -> Iterator[Row]:
    """Yield claim (a) about the best of several equal candidates by selection runs on development patients.

    Where the baseline is best, nothing is claimed.
    """
    yield from _paths("whole path", True, cohorts)


def selection_runs(cohorts: int = COHORTS) -> Iterator[Row]:
    """Yield claim (a) about the best of several equal candidates where the runs that choose are judged as well.

    So it was before there were judgement runs. The baseline was no candidate.
    """
    yield from _paths("runs that choose are judged", False, cohorts)


def _paths(table: str, fresh: bool, cohorts: int) -> Iterator[Row]:
    for candidates in CANDIDATES:
        for runs in RUNS:
            for patients in PATIENTS:
                yield _path(table, fresh, candidates, runs, patients, cohorts)


def calibration_of_models(cohorts: int = COHORTS_B) -> Iterator[Row]:
    """Yield claim (b) on equal models: differences of two scores of the same shape."""
    for shape in SHAPES:
        for what, spread in (("single networks", 1.0), ("ensembles", 0.5)):
            for patients in PATIENTS:
                scenario = Scenario(shape, (0.0, 0.0), 0.0, 0.05 * spread, 0.05 * spread)

                def differences(
                    count: int, rng: np.random.Generator, shift: float, scenario: Scenario = scenario, n: int = patients
                ) -> np.ndarray:
                    baseline, champion = draw(scenario, count, 1, n, rng, shift)
                    return champion[:, 0] - baseline[:, 0]

                truth = true_difference(scenario, SHIFT, np.random.default_rng(0))
                yield _models("models", shape, what, patients, cohorts, differences, truth)


def skewed_differences(cohorts: int = COHORTS_B) -> Iterator[Row]:
    """Yield claim (b) on models that are equal on average only: worse in few patients by much, better in the others."""

    def differences(n: int, count: int, rng: np.random.Generator, shift: float) -> np.ndarray:
        return shift + 0.05 * (1 - rng.exponential(1, (count, n)))

    for patients in PATIENTS:
        of_patients = functools.partial(differences, patients)
        yield _models("skewed differences", SKEWED, "models", patients, cohorts, of_patients, SHIFT)


def generator(*setting: object) -> np.random.Generator:
    """Return the random numbers of a setting: the same in each run of the benchmark, whatever else is simulated."""
    return np.random.default_rng(zlib.crc32(repr(setting).encode()))


def in_chunks(cohorts: int, size: int) -> Iterator[int]:
    """Yield numbers of cohorts that add up to all."""
    for start in range(0, cohorts, size):
        yield min(size, cohorts - start)


def wrong_claims(crossed: CrossedEstimate) -> int:
    """Return how many cohorts were called better or worse."""
    return int(((crossed.p < ALPHA) & ((crossed.low > 0) | (crossed.high < 0))).sum())


def _configurations(table: str, scenario: Scenario, runs: int, patients: int, cohorts: int) -> Row:
    rng = generator(table, scenario, runs, patients)
    truth, folds = true_difference(scenario, SHIFT, rng), scenario.folds_of(runs)
    wrong = covered = 0
    for count in in_chunks(cohorts, max(1, CHUNK // (2 * runs * patients))):
        wrong += wrong_claims(estimate(*draw(scenario, count, runs, patients, rng), folds))
        crossed = estimate(*draw(scenario, count, runs, patients, rng, SHIFT), folds)
        covered += int(((crossed.low <= truth) & (truth <= crossed.high)).sum())
    sds = dict.fromkeys(f"{sd:g}" for sd in scenario.run_sds)
    return Row(
        table, "a", scenario.shape, str(runs), patients, cohorts, wrong, covered, " and ".join(sds),
        f"{scenario.fold_sd:g}",
    )  # fmt: skip


def _path(table: str, fresh: bool, candidates: int, runs: int, patients: int, cohorts: int) -> Row:
    scenario = PATH
    rng = generator(table, candidates, runs, patients)
    choosing, sd = (SELECTION_RUNS if fresh else runs), scenario.run_sds[0]
    wrong = 0
    for count in in_chunks(cohorts, max(1, CHUNK // ((candidates + 1) * runs * patients))):
        # Place 0 is the baseline's.
        effects = rng.normal(0, sd, (count, candidates + 1, choosing))  # of runs, in all patients
        development = effects.mean(axis=2) + rng.normal(
            0,
            np.sqrt((scenario.interaction_sd**2 + scenario.residual_sd**2 / choosing) / DEVELOPMENT_PATIENTS),
            (count, candidates + 1),
        )
        champion = development.argmax(axis=1)
        if fresh:
            scores = np.stack(draw(scenario, count, runs, patients, rng))
        else:
            chosen = np.where(champion == 0, 1, champion)  # the former rule: the champion is never the baseline
            steady = replace(scenario, run_sds=(0.0, 0.0))
            scores = np.stack(draw(steady, count, runs, patients, rng))
            scores[0] += effects[:, 0, :, None]
            scores[1] += np.take_along_axis(effects, chosen[:, None, None], axis=1)[:, 0, :, None]
        judged = champion > 0 if fresh else np.ones(count, bool)
        wrong += (
            wrong_claims(estimate(scores[0][judged], scores[1][judged], scenario.folds_of(runs))) if judged.any() else 0
        )
    return Row(
        table, "a", scenario.shape, str(runs), patients, cohorts, wrong, None, f"{sd:g}", f"{scenario.fold_sd:g}",
        str(candidates),
    )  # fmt: skip


def _models(
    table: str,
    shape: str,
    what: str,
    patients: int,
    cohorts: int,
    differences: Callable[[int, np.random.Generator, float], np.ndarray],
    truth: float,
) -> Row:
    rng = generator(table, shape, what, patients)
    wrong = covered = 0
    for number, count in enumerate(in_chunks(cohorts, CHUNK_B)):
        wrong += wrong_models(differences(count, rng, 0.0), number)
        low, high = interval(differences(count, rng, SHIFT), number, RESAMPLES)
        covered += int(((low <= truth) & (truth <= high)).sum())
    return Row(table, "b", shape, what, patients, cohorts, wrong, covered)


def wrong_models(differences: np.ndarray, seed: int) -> int:
    """Return in how many cohorts, (cohorts, patients), claim (b) calls the models better or worse."""
    low, high = interval(differences, seed, RESAMPLES)
    p = sign_flip(differences, seed, RESAMPLES)
    return int(((p < ALPHA) & ((low > 0) | (high < 0))).sum())
