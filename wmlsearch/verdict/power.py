"""The smallest difference between two configurations that a design would find with a probability of 80 %."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from wmlsearch.runs.evaluation import ConfigurationClaim
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


QUANTILES = (np.arange(40) + 0.5) / 40

# Assumed where no earlier search on the data says more.
ASSUMED = Spread(run=0.03, patient=0.04, residual=0.05)


def detectable(
    run_sd: float,
    patient_sd: float,
    residual_sd: float,
    runs: int,
    patients: int,
    alpha: float = ALPHA,
    blocks: int = 1,
) -> float:
    """Return the smallest true difference in Dice that claim (a) calls better with a probability of `POWER`.

    Infinite below `MIN_RUNS` runs or `MIN_PATIENTS` patients, where nothing is claimed.

    Args:
        run_sd: between runs of one configuration, of their mean over all patients.
        patient_sd: between patients, of the difference between the configurations.
        residual_sd: between runs in one patient, beside `run_sd`.
        runs: of each configuration.
        patients: with lesions.
        alpha: level of the test.
        blocks: the number of folds, where they are taken out of `run_sd` (see `configuration_claim`).
    """
    if runs < MIN_RUNS or patients < MIN_PATIENTS:
        return math.inf
    of_residual = 2 * residual_sd**2 / (runs * patients)
    of_runs, of_patients = 2 * run_sd**2 / runs + of_residual, patient_sd**2 / patients + of_residual
    se = math.sqrt(of_runs + of_patients - of_residual)
    if not se:
        return 0.0
    limits = _limits(of_runs, of_patients, of_residual, 2 * runs - blocks - 1, patients, alpha)

    def missing_power(difference: float) -> float:
        return float(stats.norm.cdf((difference - limits) / se).mean()) - POWER

    highest = 4 * se
    while missing_power(highest) < 0:
        highest *= 2
    return float(optimize.brentq(missing_power, 0.0, highest))


def _limits(
    of_runs: float, of_patients: float, of_residual: float, df_of_runs: int, patients: int, alpha: float
) -> np.ndarray:
    """Return the difference from which on the test says better, for each of many cohorts that are equally likely.

    The cohorts differ in the estimates that claim (a) rests on: the spread between runs, the baseline's part of it, and
    the spread between patients, each at `QUANTILES` of its distribution. Both configurations vary alike between runs.
    """
    df_of_patients = patients - 1
    part = stats.beta.ppf(QUANTILES, df_of_runs / 4, df_of_runs / 4)
    quantile_of_runs = stats.t.ppf(1 - alpha / 2, df_of_runs / 2 / (part**2 + (1 - part) ** 2))[:, None, None]
    estimate_of_runs = of_runs * (stats.chi2.ppf(QUANTILES, df_of_runs) / df_of_runs)[:, None]
    estimate_of_patients = of_patients * stats.chi2.ppf(QUANTILES, df_of_patients) / df_of_patients
    total = estimate_of_runs + estimate_of_patients
    quantile_of_patients = float(stats.t.ppf(1 - alpha / 2, df_of_patients))
    quantile = (estimate_of_runs * quantile_of_runs + estimate_of_patients * quantile_of_patients) / total
    largest = np.maximum(estimate_of_runs, estimate_of_patients)
    limits: np.ndarray = quantile * np.sqrt(np.maximum(total - of_residual, largest))
    return limits
