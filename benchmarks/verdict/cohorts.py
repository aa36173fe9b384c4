"""Simulated Dice scores of equal configurations: runs crossed with patients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SYMMETRIC, SKEWED, ZERO_HEAVY = "symmetric", "skewed", "zero-heavy"
SHAPES = (SYMMETRIC, SKEWED, ZERO_HEAVY)
MEAN, MEAN_OF_ZERO_HEAVY = 0.6, 0.03  # Dice; around 0.03 about a third of the scores are 0
PATIENT_SD = 0.15  # between patients, of the score of both configurations


@dataclass(frozen=True)
class Scenario:
    """How scores vary; standard deviations of Dice."""

    shape: str = SYMMETRIC  # of all deviations; skewed: a long tail of low scores
    run_sds: tuple[float, float] = (0.015, 0.015)  # between seeds, of each configuration
    fold_sd: float = 0.02  # between folds, which the configurations share
    interaction_sd: float = 0.03  # of a configuration in one patient
    residual_sd: float = 0.03  # of a run in one patient
    folds: int = 5

    def folds_of(self, runs: int) -> list[int]:
        """Return the fold of each run."""
        return [run % self.folds for run in range(runs)]


def draw(
    scenario: Scenario, cohorts: int, runs: int, patients: int, rng: np.random.Generator, shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores of two configurations, (cohorts, runs, patients) each; the second is better by `shift`.

    Zero-heavy scores are cut at 0 and 1 after the shift.
    """

    def deviations(*shape: int) -> np.ndarray:
        if scenario.shape == SYMMETRIC:
            return rng.normal(0, 1, shape)
        return 1 - rng.exponential(1, shape)

    common = PATIENT_SD * deviations(cohorts, 1, patients)
    common = common + scenario.fold_sd * deviations(cohorts, scenario.folds, 1)[:, scenario.folds_of(runs)]
    mean = MEAN_OF_ZERO_HEAVY if scenario.shape == ZERO_HEAVY else MEAN
    configurations = []
    for run_sd, better in zip(scenario.run_sds, (0.0, shift), strict=True):
        scores = mean + better + common
        scores = scores + run_sd * deviations(cohorts, runs, 1)
        scores = scores + scenario.interaction_sd * deviations(cohorts, 1, patients)
        scores = scores + scenario.residual_sd * deviations(cohorts, runs, patients)
        configurations.append(np.clip(scores, 0, 1) if scenario.shape == ZERO_HEAVY else scores)
    return configurations[0], configurations[1]


def true_difference(scenario: Scenario, shift: float, rng: np.random.Generator) -> float:
    """Return the difference of the means of all possible runs and patients: `shift`, where scores are not cut."""
    if scenario.shape != ZERO_HEAVY:
        return shift
    baseline, champion = draw(scenario, 100_000, 1, 10, rng, shift)
    return float(champion.mean() - baseline.mean())
