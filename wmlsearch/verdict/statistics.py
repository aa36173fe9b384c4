"""Statistics of the verdict: two models' scores of the same patients, compared in pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from wmlsearch.runs.evaluation import Comparison

ALPHA = 0.05  # level of the test; the interval has 1 - ALPHA
MIN_PAIRS = 6  # with 5 pairs even the clearest difference has p = 2 / 2^5, above ALPHA
RESAMPLES = 9999
BETTER, WORSE, NOT_SHOWN = "better", "worse", "not shown"


def paired(
    baseline: Sequence[float | None] | np.ndarray,
    champion: Sequence[float | None] | np.ndarray,
    seed: int,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare two models' scores in pairs. The same scores and the same seed give the same numbers.

    Args:
        baseline: (n,), a score of each patient, averaged over the model's seeds; None or NaN where it is undefined.
        champion: (n,), in the same order.
        seed: of the bootstrap and of the sign flips.
        resamples: the number of bootstrap samples, and of sign flips where all 2^n are more.

    The interval is a percentile bootstrap over patients. Its level is raised for small samples, for which a plain
    percentile interval is too narrow (the "expanded" interval of Hesterberg 2015, doi 10.1080/00031305.2015.1089789).
    For simulated differences of Dice over 6, 12 and 30 patients, the plain interval covers the true difference in 86,
    90 and 94 % of cohorts instead of 95 %, BCa in 85, 89 and 93 %, this one in 93, 94 and 95 %. Very skewed differences
    lower the coverage of all three.

    The test flips the signs of the differences: if the models were equal, both signs would be equally likely. It uses
    all 2^n sign patterns where `resamples` allows (up to 13 patients by default). Fewer than `MIN_PAIRS` pairs give no
    interval, fewer than two give no p.

    Raises ValueError for arrays of unequal length.
    """
    champion, baseline = (np.asarray(scores, dtype=np.float64) for scores in (champion, baseline))
    if champion.ndim != 1 or champion.shape != baseline.shape:
        raise ValueError(f"both must have one score for each patient, but got {baseline.shape} and {champion.shape}")
    complete = ~(np.isnan(champion) | np.isnan(baseline))
    champion, baseline = champion[complete], baseline[complete]
    differences = champion - baseline
    pairs = len(differences)
    low, high = _interval(differences, seed, resamples) if pairs >= MIN_PAIRS else (None, None)
    return Comparison(
        pairs=pairs,
        left_out=len(complete) - pairs,
        baseline=float(baseline.mean()) if pairs else None,
        champion=float(champion.mean()) if pairs else None,
        difference=float(differences.mean()) if pairs else None,
        low=low,
        high=high,
        p=_sign_flip(differences, seed, resamples) if pairs > 1 else None,
    )


def outcome(comparison: Comparison, unit: str = "patients") -> str:
    """Return `BETTER` or `WORSE` where the interval excludes 0 and p < `ALPHA`, else `NOT_SHOWN`.

    `: too few patients` is appended below `MIN_PAIRS` pairs, where nothing could be shown. Higher scores are better.
    """
    low, high, p = comparison.low, comparison.high, comparison.p
    if low is None or high is None or p is None:
        return f"{NOT_SHOWN}: too few {unit}"
    if p < ALPHA and low > 0:
        return BETTER
    if p < ALPHA and high < 0:
        return WORSE
    return NOT_SHOWN


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values corrected for their number (Holm 1979, step down). None and NaN stay and do not count."""
    adjusted = list(p_values)
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None and not math.isnan(p))
    highest = 0.0
    for rank, (p, i) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = highest
    return adjusted


def _interval(differences: np.ndarray, seed: int, resamples: int) -> tuple[float, float]:
    """Return an expanded percentile interval: its level is 99.5 % for 6 pairs."""
    pairs = len(differences)
    tail = float(stats.norm.cdf(math.sqrt(pairs / (pairs - 1)) * stats.t.ppf(ALPHA / 2, pairs - 1)))
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=resamples,
        confidence_level=1 - 2 * tail,
        method="percentile",
        batch=1000,  # limits memory with thousands of images
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _sign_flip(differences: np.ndarray, seed: int, resamples: int) -> float:
    """Return the two-sided p of the sign-flip test."""
    test = stats.permutation_test(
        (differences,),  # SciPy flips the signs of a single sample
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)
