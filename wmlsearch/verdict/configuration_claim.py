"""Claim (a): would a configuration, trained again, be better on patients like these? Runs and patients are samples.

A score belongs to a configuration, a run and a patient. All runs meet the same patients, so patients are crossed with
configurations and with runs; runs are nested in configurations. The difference between two configurations varies
because their runs do, and because it differs between patients. The spread of the runs' means holds the first part and
a share of the residual (run by patient), the spread of the patients' differences the second part and the same share:

    variance = of runs + of patients - of residual

The spread of runs has the degrees of freedom of Welch's test, since one configuration can be steadier than the other,
the spread of patients has one less than patients. The quantile of t is the mean of the quantiles of both, weighted by
their parts of the variance (Cochran and Cox 1950, for two means with unequal variances). Satterthwaite's degrees of
freedom for the sum are too many with few runs: where two runs are close to each other by chance, they count the
patients' instead. With two runs and 50 patients they made 6 % false claims about simulated equal configurations, and
10 % where one of the two is less steady.

Run r of both configurations validates on the same fold, so what runs of a fold have in common cancels in the
difference. It is taken out of the spread between runs (each fold is a block) where every fold has at least two runs of
each configuration. With fewer it stays in, which is cautious: with one run on each of five folds, blocks would halve
the degrees of freedom. The rule goes by the design alone: one that looked at the spread between folds would make too
many false claims.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

from wmlsearch.verdict.statistics import ALPHA

ROUNDING = 1e-9  # a standard error below this share of the largest score is rounding


@dataclass(frozen=True)
class CrossedEstimate:
    """The difference between two configurations; each field an array, one value for each cohort."""

    difference: np.ndarray  # champion minus baseline, mean over runs and patients
    se: np.ndarray  # 0 where all runs and all patients' differences are equal: then nothing can be tested
    df: np.ndarray  # of t, between those of runs and of patients; NaN where `se` is 0, as are low, high and p
    low: np.ndarray  # 95 % interval
    high: np.ndarray
    p: np.ndarray  # of the two-sided t test
    run_sd: np.ndarray  # between runs of one configuration, of their mean over patients
    patient_sd: np.ndarray  # between patients, of the difference
    residual_sd: np.ndarray  # between runs in one patient, beside `run_sd`


def count_blocks(folds: Sequence[int]) -> int:
    """Return how many folds are taken out of the spread between runs as blocks; 1 where they stay in.

    Args:
        folds: Fold of each run, the same for both configurations.
    """
    runs_of_folds = Counter(folds).values()
    return len(runs_of_folds) if min(runs_of_folds, default=0) > 1 else 1


def df_of_runs(folds: Sequence[int]) -> int:
    """Return the degrees of freedom of the spread between runs, of both configurations together."""
    return 2 * len(folds) - 1 - count_blocks(folds)


def estimate(baseline: np.ndarray, champion: np.ndarray, folds: Sequence[int] | None = None) -> CrossedEstimate:
    """Return the difference between two configurations with its standard error, interval and test.

    Args:
        baseline: (..., runs, patients), scores of one cohort or of many; at least 2 runs and 2 patients.
        champion: The same shape.
        folds: Fold of each run, the same for both configurations. None: all runs belong to one fold.

    The variance is not below its largest part: the estimate of the residual can be too large by chance.
    """
    scores = np.stack([baseline, champion])  # (2, ..., R, P)
    runs, patients = scores.shape[-2:]
    run_means, patient_means = scores.mean(axis=-1), scores.mean(axis=-2)
    differences = patient_means[1] - patient_means[0]
    difference = differences.mean(axis=-1)
    residuals = scores - run_means[..., None] - patient_means[..., None, :] + scores.mean(axis=(-2, -1), keepdims=True)
    residual = (residuals**2).sum(axis=(-2, -1)).mean(axis=0) / ((runs - 1) * (patients - 1))

    deviations, df = _deviations_of_runs(run_means, folds or [0] * runs)
    squares = (deviations**2).sum(axis=-1)  # (2, ...), of each configuration
    of_runs = 2 * squares.sum(axis=0) / df / runs
    of_patients = differences.var(axis=-1, ddof=1) / patients
    of_residual = 2 * residual / (runs * patients)
    variance = np.maximum(of_runs + of_patients - of_residual, np.maximum(of_runs, of_patients))
    variance = np.where(variance > (ROUNDING * np.abs(scores).max(axis=(0, -2, -1))) ** 2, variance, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Welch's: all of them where both configurations vary alike, half where one does not vary.
        df_of_both = df * squares.sum(axis=0) ** 2 / (2 * (squares**2).sum(axis=0))
        df_of_both = np.where(of_runs > 0, df_of_both, df / 2)
        df_of_t = np.where(variance > 0, _weighted_df(of_runs, df_of_both, of_patients, patients - 1), np.nan)
        se = np.sqrt(variance)
        half = stats.t.ppf(1 - ALPHA / 2, df_of_t) * se
        p = 2 * stats.t.sf(np.abs(difference) / se, df_of_t)
    return CrossedEstimate(
        difference=difference,
        se=se,
        df=df_of_t,
        low=difference - half,
        high=difference + half,
        p=p,
        run_sd=np.sqrt(np.maximum(0, (of_runs - of_residual) * runs / 2)),
        patient_sd=np.sqrt(np.maximum(0, (of_patients - of_residual) * patients)),
        residual_sd=np.sqrt(residual),
    )


def _deviations_of_runs(run_means: np.ndarray, folds: Sequence[int]) -> tuple[np.ndarray, int]:
    """Return how far each run is from what its configuration, and its fold where that counts, have in common.

    Also their degrees of freedom, of both configurations together.

    Args:
        run_means: (2, ..., runs), the mean of each run over patients.
    """
    deviations = run_means - run_means.mean(axis=-1, keepdims=True)
    if count_blocks(folds) > 1:
        for fold in set(folds):
            place = np.flatnonzero(np.asarray(folds) == fold)
            deviations[..., place] -= deviations[..., place].mean(axis=-1, keepdims=True).mean(axis=0)
    return deviations, df_of_runs(folds)


def _weighted_df(
    of_runs: np.ndarray, df_of_runs: np.ndarray, of_patients: np.ndarray, df_of_patients: int
) -> np.ndarray:
    """Return the degrees of freedom whose quantile of t is the mean of the quantiles of both parts, by their variances.

    NaN where both variances are 0.
    """
    quantiles = [stats.t.ppf(1 - ALPHA / 2, df) for df in (df_of_runs, df_of_patients)]
    quantile = (of_runs * quantiles[0] + of_patients * quantiles[1]) / (of_runs + of_patients)
    inverse_dfs, known_quantiles = _quantiles()
    return 1 / np.interp(quantile, known_quantiles, inverse_dfs)


@cache
def _quantiles() -> tuple[np.ndarray, np.ndarray]:
    """Return 1 / df from 0 to 1 and the quantiles of t, both rising: dense enough for six digits between them."""
    inverse_dfs = np.linspace(1e-6, 1, 20_000)
    return inverse_dfs, stats.t.ppf(1 - ALPHA / 2, 1 / inverse_dfs)
