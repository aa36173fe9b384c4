"""Whether one model is better than another: their scores of the same patients, compared in pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

ALPHA = 0.05  # of the test, and of the interval
FEWEST = 6  # pairs: of fewer, even the clearest difference has p = 2 / 2^5, and no resampling spans 95 %
RESAMPLES = 9999
BETTER, WORSE, NOT_SHOWN = "better", "worse", "not shown"


@dataclass(frozen=True)
class Comparison:
    """Two models over the same patients; None is what can't be computed from so few.

    `baseline` and `champion` are the means over the `pairs`, `difference` is champion less baseline, `low` and `high`
    are its 95 % interval, and `p` is of the two-sided test. `left_out` counts the pairs in which a score is missing.
    """

    pairs: int
    left_out: int
    baseline: float | None
    champion: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None


def paired(
    baseline: Sequence[float | None] | np.ndarray,
    champion: Sequence[float | None] | np.ndarray,
    seed: int,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare two models. The same scores and the same seed give the same numbers.

    Args:
        baseline: (n,), a score for each patient, already the mean over the model's seeds; None or NaN where there is
            none.
        champion: (n,), in the same order.
        seed: of both kinds of resampling.
        resamples: how many bootstrap samples, and how many sign flips where all 2^n are more.

    The interval is a percentile bootstrap over patients, at the level that makes up for how narrow it is with few of
    them (Hesterberg 2015, doi 10.1080/00031305.2015.1089789: the "expanded" percentile interval). For simulated
    differences of Dice over 6, 12 and 30 patients, the plain one holds the truth in 86, 90 and 94 % of cohorts instead
    of 95 %, BCa in 85, 89 and 93 %, this one in 93, 94 and 95 %; where differences are very skewed, all hold it less.

    The test flips the signs of the differences: were the models equal, either sign would be as likely. It goes through
    all 2^n of them where `resamples` allows (13 patients by default). There is no interval of fewer than `FEWEST` pairs
    and no p of fewer than two.

    Raises ValueError for arrays of unequal length.
    """
    ours, theirs = (np.asarray(scores, dtype=np.float64) for scores in (champion, baseline))
    if ours.ndim != 1 or ours.shape != theirs.shape:
        raise ValueError(f"both must have one score for each patient, but got {theirs.shape} and {ours.shape}")
    whole = ~(np.isnan(ours) | np.isnan(theirs))
    ours, theirs = ours[whole], theirs[whole]
    pairs, left_out = len(ours), len(whole) - len(ours)
    if pairs == 0:
        return Comparison(0, left_out, None, None, None, None, None, None)
    differences = ours - theirs
    means = float(theirs.mean()), float(ours.mean()), float(differences.mean())
    low, high = _interval(differences, seed, resamples) if pairs >= FEWEST else (None, None)
    p = _sign_flip(differences, seed, resamples) if pairs > 1 else None
    return Comparison(pairs, left_out, *means, low, high, p)


def verdict(comparison: Comparison, unit: str = "patients") -> str:
    """`BETTER` or `WORSE` where the interval leaves out 0 and p < 0.05, else `NOT_SHOWN`.

    `: too few patients` is added where there are so few (below `FEWEST`) that nothing could be shown. A higher score is
    taken to be better.
    """
    it = comparison
    if it.low is None or it.high is None or it.p is None:
        return f"{NOT_SHOWN}: too few {unit}"
    if it.p < ALPHA and it.low > 0:
        return BETTER
    if it.p < ALPHA and it.high < 0:
        return WORSE
    return NOT_SHOWN


def sentence(
    comparison: Comparison,
    champion: str,
    baseline: str,
    metric: str = "Dice",
    unit: str = "patients",
    optimistic: bool = False,
) -> str:
    """The verdict with its numbers, for the terminal.

    Args:
        champion: as a sentence begins, "The found configuration (trial-0007)".
        baseline: as it goes on, "the paper's".
        metric: the score's name.
        unit: what the pairs are, "patients" or "images".
        optimistic: slices of a patient, or copies, can stand on both sides of the split: a warning is added.
    """
    it, one = comparison, unit.removesuffix("s")
    where = f"{it.pairs} sealed test {one if it.pairs == 1 else unit}"
    if it.pairs == 0:
        text = f"{champion} can't be compared with {baseline}: no sealed test {one} has {metric} scores of both."
    elif it.pairs < FEWEST:
        text = (
            f"{champion} is not shown to be better or worse than {baseline}: {where} {_be(it.pairs)} too few, since "
            f"fewer than {FEWEST} can't reach p < {ALPHA} in a paired test. Mean {_numbers(it, metric, one)}"
        )
    else:
        shown = verdict(it, unit)
        word = "not shown to be better or worse" if shown == NOT_SHOWN else shown
        text = f"{champion} is {word} than {baseline} on {where}: mean {_numbers(it, metric, one)}"
    if it.left_out:
        who = one if it.left_out == 1 else unit
        text += f" {it.left_out} {who} without {metric} scores of both {_be(it.left_out)} left out."
    if optimistic:
        text += " Mind: the split is optimistic, since slices of a patient can stand on both sides."
    return text


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust the p values of several metrics so that all hold together (Holm 1979, step down).

    What is None or NaN stays, and doesn't count as a test.
    """
    adjusted = list(p_values)
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None and not math.isnan(p))
    so_far = 0.0
    for rank, (p, i) in enumerate(tested):
        so_far = max(so_far, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = so_far
    return adjusted


def _interval(differences: np.ndarray, seed: int, resamples: int) -> tuple[float, float]:
    """A percentile interval whose level makes up for few pairs: 99.5 % for 6."""
    pairs = len(differences)
    tail = float(stats.norm.cdf(math.sqrt(pairs / (pairs - 1)) * stats.t.ppf(ALPHA / 2, pairs - 1)))
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=resamples,
        confidence_level=1 - 2 * tail,
        method="percentile",
        batch=1000,  # of memory, for thousands of images
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _sign_flip(differences: np.ndarray, seed: int, resamples: int) -> float:
    test = stats.permutation_test(
        (differences,),  # of one sample, SciPy flips the signs
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def _numbers(it: Comparison, metric: str, one: str) -> str:
    text = f"{metric} per {one} {it.champion:.3f} against {it.baseline:.3f}, difference {it.difference:+.3f}"
    shown = [] if it.low is None else [f"95 % interval {it.low:.3f} to {it.high:.3f}"]
    shown += [] if it.p is None else [f"p = {it.p:.3g}"]
    return f"{text} ({', '.join(shown)})." if shown else f"{text}."


def _be(count: int) -> str:
    return "is" if count == 1 else "are"
