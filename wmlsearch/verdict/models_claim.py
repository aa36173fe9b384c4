"""Claim (b): two trained models' scores of the same patients, compared in pairs. Only the patients are a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from wmlsearch.runs.evaluation import Comparison
from wmlsearch.verdict.statistics import ALPHA, MIN_PATIENTS

RESAMPLES = 9999


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
        seed: of the bootstrap and of the sign flips.
        resamples: the number of bootstrap samples, and of sign flips where all 2^n are more.

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
    """Return the 95 % interval of the mean difference, of one cohort or of many.

    A percentile bootstrap over patients. Its level is raised for small samples, to 99.5 % for 6 pairs, for which a
    plain percentile interval is too narrow (the "expanded" interval of Hesterberg 2015, doi
    10.1080/00031305.2015.1089789).

    Args:
        differences: (..., n), of each patient.

    Returns:
        Its ends, (...).
    """
    pairs = differences.shape[-1]
    tail = float(stats.norm.cdf(math.sqrt(pairs / (pairs - 1)) * stats.t.ppf(ALPHA / 2, pairs - 1)))
    ends = stats.bootstrap(
        (differences,),
        np.mean,
        axis=-1,
        n_resamples=resamples,
        confidence_level=1 - 2 * tail,
        method="percentile",
        batch=1000,  # limits memory with thousands of images
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return ends.low, ends.high


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
