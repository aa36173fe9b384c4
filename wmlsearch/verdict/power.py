"""The smallest difference between two configurations that a design would find with a probability of 80 %."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from wmlsearch.runs.evaluation import ConfigurationClaim
from wmlsearch.verdict.configuration_claim import df_of_runs
from wmlsearch.verdict.statistics import ALPHA, MIN_PATIENTS, MIN_RUNS, POWER


@dataclass(frozen=True)
class Spread:
    """How far scores of equal configurations are from each other, as standard deviations of Dice per patient."""

    run: float  # between runs of one configuration, of their mean over all patients
    patient: float  # between patients, of the difference between two configurations
    residual: float  # between runs of one configuration in one patient, beside `run`

    @classmethod
    def of(cls, claims: Iterable[ConfigurationClaim]) -> Spread | None:
        """Return the spread that earlier searches had: the root mean square of theirs. None where none has any."""
        rows = [
            (claim.run_sd, claim.patient_sd, claim.residual_sd)
            for claim in claims
            if claim.run_sd is not None and claim.patient_sd is not None and claim.residual_sd is not None
        ]
        if not rows:
            return None
        return cls(*(math.sqrt(sum(value**2 for value in values) / len(rows)) for values in zip(*rows, strict=True)))


# Assumed where no earlier search on the data says more.
ASSUMED = Spread(run=0.03, patient=0.04, residual=0.05)


def detectable(
    run_sd: float,
    patient_sd: float,
    residual_sd: float,
    runs: int | Sequence[int],
    patients: int,
    alpha: float = ALPHA,
    estimated: bool = False,
) -> float:
    """Return the smallest true difference in Dice that claim (a) calls better with a probability of `POWER`.

    Infinite below `MIN_RUNS` runs or `MIN_PATIENTS` patients, where nothing is claimed.

    Args:
        run_sd: Standard deviation between runs of one configuration, of their mean over all patients.
        patient_sd: Standard deviation between patients, of the difference between the configurations.
        residual_sd: Standard deviation between runs in one patient, in addition to `run_sd`.
        runs: Number of runs of each configuration, or the fold of each run.
        patients: Number of patients with lesions.
        alpha: Level of the test.
        estimated: Whether the three standard deviations are estimates from only this many runs and patients. The
            probability is then a mean over their possible true values.
    """
    folds = [0] * runs if isinstance(runs, int) else runs
    if len(folds) < MIN_RUNS or patients < MIN_PATIENTS:
        return math.inf
    parts = _Parts.of(Spread(run_sd, patient_sd, residual_sd), len(folds), patients)
    if not parts.runs + parts.patients:
        return 0.0
    limits, se = _limits(parts, folds, patients, alpha, estimated)

    def missing_power(difference: float) -> float:
        return float(stats.norm.cdf((difference - limits) / se).mean()) - POWER

    highest = 4 * float(se.max())
    while missing_power(highest) < 0:
        highest *= 2
    return float(optimize.brentq(missing_power, 0.0, highest))


@dataclass(frozen=True)
class _Parts:
    """The parts of the variance of a difference, as claim (a) adds them up."""

    runs: float
    patients: float
    residual: float

    @classmethod
    def of(cls, spread: Spread, runs: int, patients: int) -> _Parts:
        residual = 2 * spread.residual**2 / (runs * patients)
        return cls(2 * spread.run**2 / runs + residual, spread.patient**2 / patients + residual, residual)


def _limits(
    parts: _Parts, folds: Sequence[int], patients: int, alpha: float, estimated: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the difference from which on the test says better, and the true standard error, for many equal chances.

    They differ in the estimates that claim (a) rests on: the spread between runs, the baseline's part of it, and the
    spread between patients, each at equally likely points of its distribution; and, where `parts` are `estimated`, in
    the true spreads. Both configurations vary alike between runs.
    """
    chances = (np.arange(12 if estimated else 40) + 0.5) / (12 if estimated else 40)
    df, df_of_patients = df_of_runs(folds), patients - 1
    chi2_of_runs, chi2_of_patients = (stats.chi2.ppf(chances, number) / number for number in (df, df_of_patients))
    as_given = np.ones(1)
    true_of_runs = parts.runs / (chi2_of_runs if estimated else as_given)[:, None]
    true_of_patients = parts.patients / (chi2_of_patients if estimated else as_given)
    se = np.sqrt(
        np.maximum(true_of_runs + true_of_patients - parts.residual, np.maximum(true_of_runs, true_of_patients))
    )
    part = stats.beta.ppf(chances, df / 4, df / 4)
    quantile_of_runs = stats.t.ppf(1 - alpha / 2, df / 2 / (part**2 + (1 - part) ** 2))[:, None, None, None, None]
    estimate_of_runs = true_of_runs * chi2_of_runs[:, None, None, None]
    estimate_of_patients = true_of_patients * chi2_of_patients[:, None, None]
    total = estimate_of_runs + estimate_of_patients
    quantile_of_patients = float(stats.t.ppf(1 - alpha / 2, df_of_patients))
    quantile = (estimate_of_runs * quantile_of_runs + estimate_of_patients * quantile_of_patients) / total
    largest = np.maximum(estimate_of_runs, estimate_of_patients)
    limits: np.ndarray = quantile * np.sqrt(np.maximum(total - parts.residual, largest))
    return limits, se
