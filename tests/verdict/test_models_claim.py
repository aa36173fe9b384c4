"""Claim (b): equal models are seldom called better, better ones mostly; numbers equal those computed otherwise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from wmlsearch.runs.evaluation import Comparison
from wmlsearch.verdict.models_claim import interval, paired, sign_flip
from wmlsearch.verdict.statistics import holm
from wmlsearch.verdict.statistics import outcome as outcome_of


def cohort(rng: np.random.Generator, patients: int, difference: float) -> tuple[np.ndarray, np.ndarray]:
    """Dice of two models: patients differ more than models do, and differences have a deviation of 0.08."""
    patient = rng.normal(0.6, 0.15, patients)
    return patient + rng.normal(0, 0.0566, patients), patient + rng.normal(difference, 0.0566, patients)


def compared(pairs: int, low: float, high: float, p: float, left_out: int = 0) -> Comparison:
    mean = (low + high) / 2
    return Comparison(
        pairs=pairs, left_out=left_out, baseline=0.63, champion=0.63 + mean, difference=mean, low=low, high=high, p=p
    )


def outcome(comparison: Comparison) -> str:
    return outcome_of(comparison.low, comparison.high, comparison.p)


def test_equal_models_are_seldom_called_better() -> None:
    rng = np.random.default_rng(1)
    verdicts = [outcome(paired(*cohort(rng, 12, 0.0), seed, resamples=999)) for seed in range(1000)]
    assert 0 < verdicts.count("better") <= 50
    assert 0 < verdicts.count("worse") <= 50
    assert verdicts.count("better") + verdicts.count("worse") <= 65  # 5 % and two standard deviations


def test_a_true_difference_is_mostly_found_and_seldom_in_few_patients() -> None:
    rng = np.random.default_rng(2)
    verdicts = [outcome(paired(*cohort(rng, 30, 0.05), seed, resamples=999)) for seed in range(200)]
    assert verdicts.count("better") > 160
    assert verdicts.count("worse") == 0
    few = [outcome(paired(*cohort(rng, 6, 0.05), seed, resamples=999)) for seed in range(200)]
    assert 0 < few.count("better") < 100


def test_the_interval_is_a_bootstrap_t_over_patients() -> None:
    """Agrees with one that draws patient by patient, and for many patients with that of the t test."""
    baseline, champion = cohort(np.random.default_rng(3), 12, 0.05)
    differences = champion - baseline
    rng, drawn = np.random.default_rng(6), []
    for _ in range(20_000):
        sample = rng.choice(differences, 12)
        drawn.append((sample.mean() - differences.mean()) / stats.sem(sample))
    lowest, highest = np.quantile(drawn, [0.025, 0.975])
    error = stats.sem(differences)
    ours = paired(baseline, champion, seed=0)
    by_hand = differences.mean() - highest * error, differences.mean() - lowest * error
    assert (ours.low, ours.high) == pytest.approx(by_hand, abs=0.2 * error)
    baseline, champion = cohort(np.random.default_rng(4), 400, 0.05)
    ours, known = paired(baseline, champion, seed=0), stats.ttest_rel(champion, baseline).confidence_interval()
    assert (ours.low, ours.high) == pytest.approx(tuple(known), abs=0.1 * stats.sem(champion - baseline))


def test_the_interval_of_six_patients_holds_the_truth() -> None:
    rng = np.random.default_rng(4)
    differences = rng.normal(0.05, 0.08, (2000, 6))
    low, high = interval(differences, seed=0, resamples=999)
    assert np.mean((low <= 0.05) & (high >= 0.05)) > 0.93
    skewed = 0.05 + 0.08 * (1 - rng.exponential(1, (2000, 6)))
    low, high = interval(skewed, seed=0, resamples=999)
    assert np.mean((low <= 0.05) & (high >= 0.05)) > 0.92


def test_mostly_equal_differences_leave_every_difference_possible() -> None:
    """Most resamples hold equal differences only, so their mean has no standard error."""
    it = paired([0.5] * 7, [0.5] * 6 + [0.6], seed=0)
    assert it.difference == pytest.approx(0.1 / 7)
    assert (it.high, it.low) == (1, pytest.approx(0, abs=0.02))
    assert outcome(it) == "not shown"


def test_p_counts_all_flips_of_signs() -> None:
    baseline, champion = cohort(np.random.default_rng(5), 8, 0.04)
    differences = champion - baseline
    flipped = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=8)]
    by_hand = np.mean(np.array(flipped) >= abs(differences.sum()) - 1e-12)
    assert paired(baseline, champion, seed=0).p == pytest.approx(by_hand)
    baseline, champion = cohort(np.random.default_rng(6), 14, 0.02)
    exact = paired(baseline, champion, seed=0, resamples=2**14).p
    assert paired(baseline, champion, seed=0).p == pytest.approx(exact, abs=0.015)


def test_the_same_seed_gives_the_same_numbers_and_swapped_models_the_opposite() -> None:
    baseline, champion = cohort(np.random.default_rng(7), 20, 0.05)
    it = paired(baseline, champion, seed=3)
    assert it == paired(list(baseline), list(champion), seed=3)
    assert it != paired(baseline, champion, seed=4)
    swapped = paired(champion, baseline, seed=3)
    assert (swapped.difference, swapped.baseline) == (pytest.approx(-float(it.difference or 0)), it.champion)
    assert (outcome(it), outcome(swapped)) == ("better", "worse")


def test_a_pair_without_a_score_is_left_out_and_counted() -> None:
    it = paired([0.5, None, 0.7, 0.2, 0.3], [0.6, 0.9, math.nan, 0.4, 0.4], seed=0)
    assert (it.pairs, it.left_out, it.baseline) == (3, 2, pytest.approx(1 / 3))
    assert (it.difference, it.low, it.high, it.p) == (pytest.approx(0.4 / 3), None, None, 0.25)
    none = dict.fromkeys(("baseline", "champion", "difference", "low", "high", "p"))
    assert paired([None], [0.5], seed=0) == Comparison(pairs=0, left_out=1, **none)
    one = {**none, "baseline": 0.4, "champion": 0.5, "difference": 0.5 - 0.4}
    assert paired([0.4], [0.5], seed=0) == Comparison(pairs=1, left_out=0, **one)
    with pytest.raises(ValueError, match=r"one score for each patient, but got \(2,\) and \(3,\)"):
        paired([1, 2], [1, 2, 3], seed=0)


def test_differences_that_are_all_equal() -> None:
    scores = np.linspace(0.4, 0.9, 12)
    same = paired(scores, scores, seed=0)
    assert (same.difference, same.low, same.high, same.p, outcome(same)) == (0, 0, 0, 1, "not shown")
    shifted = paired(scores, scores + 0.1, seed=0)
    assert (shifted.low, shifted.high) == pytest.approx((0.1, 0.1))
    assert (shifted.p, outcome(shifted)) == (2 / 2**12, "better")


def test_a_verdict_needs_interval_and_test() -> None:
    assert outcome(compared(9, 0.03, 0.12, 0.004)) == "better"
    assert outcome(compared(9, -0.12, -0.03, 0.004)) == "worse"
    assert outcome(compared(9, -0.01, 0.12, 0.04)) == "not shown"
    assert outcome(compared(9, 0.01, 0.12, 0.06)) == "not shown"
    clear = paired(np.linspace(0.1, 0.2, 6), np.linspace(0.8, 0.9, 6), seed=0)
    assert (clear.p, outcome(clear)) == (2 / 2**6, "better")
    fewer = paired(np.linspace(0.1, 0.2, 5), np.linspace(0.8, 0.9, 5), seed=0)
    assert (fewer.p, fewer.low, outcome(fewer)) == (2 / 2**5, None, "not shown")


def test_many_cohorts_at_once_have_the_numbers_of_each() -> None:
    differences = np.random.default_rng(9).normal(0.02, 0.05, (3, 8))
    low, high = interval(differences, seed=1)
    p = sign_flip(differences, seed=1)
    each = [paired(np.zeros(8), row, seed=1) for row in differences]
    assert [(one.low, one.high, one.p) for one in each] == [
        pytest.approx(numbers) for numbers in zip(low, high, p, strict=True)
    ]


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5, None, 0.5]) == [1, 1, None, 1]
    with_nan = holm([math.nan, 0.02])
    assert math.isnan(with_nan[0] or 0)
    assert with_nan[1] == 0.02
    assert holm([]) == []
    rng = np.random.default_rng(8)
    rejected = [min(p or 0 for p in holm(list(rng.random(5)))) < 0.05 for _ in range(2000)]
    assert np.mean(rejected) == pytest.approx(1 - (1 - 0.01) ** 5, abs=0.015)  # of five true hypotheses, any at all
