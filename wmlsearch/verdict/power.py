"""The smallest difference between two configurations that a design would find with a probability of 80 %."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy import optimize, stats

from wmlsearch.runs.evaluation import ConfigurationClaim
from wmlsearch.verdict.configuration_claim import weighted_df
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
    run_sd: float, patient_sd: float, residual_sd: float, runs: int, patients: int, alpha: float = ALPHA
) -> float:
    """Return the smallest true difference in Dice that claim (a) finds with a probability of `POWER`.

    Infinite below `MIN_RUNS` runs or `MIN_PATIENTS` patients, where nothing is claimed.

    Args:
        run_sd: between runs of one configuration, of their mean over all patients.
        patient_sd: between patients, of the difference between the configurations.
        residual_sd: between runs in one patient, beside `run_sd`.
        runs: of each configuration.
        patients: with lesions.
        alpha: level of the test.
    """
    if runs < MIN_RUNS or patients < MIN_PATIENTS:
        return math.inf
    of_residual = 2 * residual_sd**2 / (runs * patients)
    of_runs, of_patients = 2 * run_sd**2 / runs + of_residual, patient_sd**2 / patients + of_residual
    variance = of_runs + of_patients - of_residual
    if not variance:
        return 0.0
    df = float(weighted_df(of_runs, 2 * (runs - 1), of_patients, patients - 1))
    return detectable_difference(math.sqrt(variance), df, alpha)


def detectable_difference(se: float, df: float, alpha: float = ALPHA) -> float:
    """Return the true difference that a two-sided t test calls better with a probability of `POWER`.

    From the noncentral t distribution.

    Args:
        se: standard error of the difference.
        df: its degrees of freedom.
        alpha: level of the test.
    """
    critical = float(stats.t.ppf(1 - alpha / 2, df))

    def missing_power(ratio: float) -> float:
        return float(stats.nct.sf(critical, df, ratio)) - POWER

    highest = critical + 2.0
    while missing_power(highest) < 0:
        highest *= 2
    return se * float(optimize.brentq(missing_power, 0.0, highest))
