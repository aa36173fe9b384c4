"""Claim (b): two trained models' scores of the same patients, compared in pairs. Only the patients are a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from wmlsearch.runs.evaluation import Comparison
from wmlsearch.verdict.statistics import ALPHA, MIN_PATIENTS

RESAMPLES = 9999
ROUNDING = 1e-9  # a standard error below this share of the largest deviation is rounding
NO_ERROR = 1e9  # t of a resampled mean without a standard error


def paired(
    baseline: Sequence[float | None] | np.ndarray,
    champion: Sequence[float | None] | np.ndarray,
    seed: int,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare two models' scores in pairs. The same scores and the same seed give the same numbers.

    Args:
        baseline: (n,), a score of each patient; None or NaN where it is undefined.
        champion: (n,), in the same order.
        seed: Seed of the bootstrap and of the sign flips.
        resamples: The number of bootstrap samples, and of sign flips where all 2^n are more.

    Fewer than `MIN_PATIENTS` pairs give no interval, fewer than two give no p.

    Raises ValueError for arrays of unequal length.
    """
    champion, baseline = (np.asarray(scores, dtype=np.float64) for scores in (champion, baseline))
    if champion.ndim != 1 or champion.shape != baseline.shape:
        raise ValueError(f"both must have one score for each patient, but got {baseline.shape} and {champion.shape}")
    complete = ~(np.isnan(champion) | np.isnan(baseline))
    champion, baseline = champion[complete], baseline[complete]
    differences = champion - baseline
    pairs = len(differences)
    low, high = interval(differences, seed, resamples) if pairs >= MIN_PATIENTS else (None, None)
    return Comparison(
        pairs=pairs,
        left_out=len(complete) - pairs,
        baseline=float(baseline.mean()) if pairs else None,
        champion=float(champion.mean()) if pairs else None,
        difference=float(differences.mean()) if pairs else None,
        low=None if low is None else float(low),
        high=None if high is None else float(high),
        p=float(sign_flip(differences, seed, resamples)) if pairs > 1 else None,
    )


def interval(differences: np.ndarray, seed: int, resamples: int = RESAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval of the mean difference in Dice, of one cohort or of many.

    A bootstrap-t interval over patients: each resampled mean is divided by its own standard error (Efron and Tibshirani
    1993, chapter 12). Percentile intervals are too narrow with few patients, and off to one side where differences are
    skewed (Hesterberg 2015, doi 10.1080/00031305.2015.1089789). Where most differences are equal, some resamples have
    no standard error, and the interval can reach as far as Dice allows, from -1 to 1.

    Args:
        differences: (..., n), of each patient.

    Returns:
        Its ends, (...).
    """
    patients = differences.shape[-1]
    mean = differences.mean(axis=-1, keepdims=True)
    deviations = differences - mean
    shares = np.random.default_rng(seed).multinomial(patients, np.full(patients, 1 / patients), resamples).T / patients
    means = deviations @ shares  # (..., resamples)
    se = np.sqrt(np.maximum(deviations**2 @ shares - means**2, 0) / (patients - 1))
    least = ROUNDING * np.abs(deviations).max(axis=-1, keepdims=True)
    t = np.where(se > least, means / np.where(se > least, se, 1), np.sign(means) * NO_ERROR)
    lowest, highest = np.quantile(t, (ALPHA / 2, 1 - ALPHA / 2), axis=-1)
    own_se = deviations.std(axis=-1, ddof=1) / math.sqrt(patients)
    mean = mean[..., 0]
    return np.clip(mean - highest * own_se, -1, 1), np.clip(mean - lowest * own_se, -1, 1)


def sign_flip(differences: np.ndarray, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Return the two-sided p of the sign-flip test, of one cohort or of many.

    If the models were equal, both signs of a difference would be equally likely. All 2^n sign patterns are used where
    `resamples` allows (up to 13 patients by default).

    Args:
        differences: (..., n), of each patient.

    Returns:
        p, (...).
    """
    test = stats.permutation_test(
        (differences,),  # SciPy flips the signs of a single sample
        np.mean,
        axis=-1,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return test.pvalue
