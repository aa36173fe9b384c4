"""Claim (a): the estimate agrees with one worked out by hand, and with simpler tests where it must."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from wmlsearch.runs.evaluation import ConfigurationClaim
from wmlsearch.verdict.configuration_claim import count_blocks, df_of_runs, estimate
from wmlsearch.verdict.power import Spread, detectable


def test_two_runs_and_two_patients_by_hand() -> None:
    baseline, champion = np.array([[0.50, 0.60], [0.54, 0.68]]), np.array([[0.60, 0.70], [0.66, 0.76]])
    # Means of runs: 0.55, 0.61 and 0.65, 0.71; variance 0.06^2 / 2 = 0.0018 each. Of runs: 2 x 0.0018 / 2 = 0.0018.
    # Differences of patients: 0.11, 0.09; variance 0.02^2 / 2 = 0.0002. Of patients: 0.0002 / 2 = 0.0001.
    # Residuals: +-0.01 in the baseline, mean square 4 x 0.0001 / 1 = 0.0004; none in the champion; mean 0.0002.
    # Of the residual: 2 x 0.0002 / (2 x 2) = 0.0001. Variance: 0.0018 + 0.0001 - 0.0001 = 0.0018.
    # Quantiles of t: runs have 0.0018^2 / (0.0009^2 + 0.0009^2) = 2 degrees of freedom: 4.302653. Patients have 1:
    # 12.706205. Weighted by 0.0018 and 0.0001: 4.744945. The half-width is 4.744945 x sqrt(0.0018).
    it = estimate(baseline, champion)
    assert (it.difference, it.se) == pytest.approx((0.10, math.sqrt(0.0018)))
    assert (it.high - it.difference, it.difference - it.low) == pytest.approx((4.744945 * math.sqrt(0.0018),) * 2)
    assert (it.run_sd, it.residual_sd) == pytest.approx((math.sqrt(0.0017), math.sqrt(0.0002)))
    assert it.patient_sd == pytest.approx(0, abs=1e-6)
    # p in closed form, with the degrees of freedom that have this quantile
    df = optimize.brentq(lambda df: special.betainc(df / 2, 0.5, df / (df + 4.744945**2)) - 0.05, 1, 2)
    t = 0.10 / math.sqrt(0.0018)
    assert (it.df, it.p) == pytest.approx((df, special.betainc(df / 2, 0.5, df / (df + t**2))), rel=1e-5)


def test_runs_that_are_all_the_same_leave_a_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    baseline, champion = rng.normal(0.6, 0.1, 9), rng.normal(0.62, 0.1, 9)
    it = estimate(np.tile(baseline, (3, 1)), np.tile(champion, (3, 1)))
    known = stats.ttest_rel(champion, baseline)
    assert (it.p, it.df) == pytest.approx((known.pvalue, 8), rel=1e-5)
    assert (it.low, it.high) == pytest.approx(tuple(known.confidence_interval()), rel=1e-5)


def test_patients_that_all_differ_alike_leave_welchs_test() -> None:
    rng = np.random.default_rng(1)
    baseline, champion, patients = rng.normal(0, 0.01, 4), rng.normal(0.02, 0.05, 4), rng.normal(0.6, 0.1, 9)
    it = estimate(baseline[:, None] + patients, champion[:, None] + patients)
    known = stats.ttest_ind(champion, baseline, equal_var=False)
    assert (it.p, it.df) == pytest.approx((known.pvalue, known.df), rel=1e-5)
    assert (it.low, it.high) == pytest.approx(tuple(known.confidence_interval()), rel=1e-5)


def test_folds_are_a_block() -> None:
    """By hand: two folds, two runs of each configuration in both, patients that do not differ."""
    baseline, champion = np.array([0.50, 0.52, 0.70, 0.74]), np.array([0.55, 0.61, 0.73, 0.83])
    folds, patients = [0, 0, 1, 1], np.linspace(0, 0.3, 7)
    # Means 0.615 and 0.68; of folds over both sides, as deviations: 0.545 - 0.6475 = -0.1025 and +0.1025.
    # Deviations: baseline -0.0125, 0.0075, -0.0175, 0.0225; champion -0.0275, 0.0325, -0.0525, 0.0475.
    # Squares: 0.001025 and 0.006825; sum 0.00785 with 2 x 4 - 2 - 1 = 5 degrees of freedom: mean 0.00157.
    it = estimate(baseline[:, None] + patients, champion[:, None] + patients, folds)
    assert it.difference == pytest.approx(0.065)
    assert it.se == pytest.approx(math.sqrt(2 * 0.00157 / 4))
    assert it.df == pytest.approx(5 * 0.00785**2 / (2 * (0.001025**2 + 0.006825**2)), rel=1e-5)
    one_fold = estimate(baseline[:, None] + patients, champion[:, None] + patients)
    assert it.se < 0.5 * one_fold.se
    # A fold with a single run of each stays in the spread between runs.
    designs = ([0, 0, 1, 1], [0, 1, 0, 1, 0], [0, 1, 2, 0, 1], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0])
    assert [count_blocks(design) for design in designs] == [2, 2, 1, 1, 1]
    assert [df_of_runs(design) for design in designs] == [5, 7, 8, 8, 8]
    three = baseline[:3, None] + patients, champion[:3, None] + patients
    assert estimate(*three, folds[:3]).se == estimate(*three).se


def test_the_variance_is_not_below_its_largest_part() -> None:
    # Residuals of +-0.1, mean square 4 x 0.01 / 1 in one configuration, 0 in the other: 2 x 0.02 / 4 = 0.01. Means of
    # runs 0.52 and 0.50: variance 0.0002, of runs 0.0001. Differences of patients do not vary.
    it = estimate(np.full((2, 2), 0.5), np.array([[0.62, 0.42], [0.4, 0.6]]))
    assert it.se == pytest.approx(0.01)


def test_scores_that_do_not_vary_are_not_tested() -> None:
    it = estimate(np.full((3, 7), 0.4), np.full((3, 7), 0.6))
    assert (it.difference, it.se) == (pytest.approx(0.2), 0)
    assert np.isnan([it.df, it.p, it.low, it.high]).all()


def test_many_cohorts_at_once_have_the_numbers_of_each() -> None:
    scores = np.random.default_rng(2).normal(0.6, 0.1, (2, 5, 3, 7))
    together = estimate(*scores)
    for number in range(5):
        alone = estimate(*scores[:, number])
        assert (alone.difference, alone.se, alone.df, alone.low, alone.p) == pytest.approx(
            tuple(
                values[number] for values in (together.difference, together.se, together.df, together.low, together.p)
            )
        )


def test_swapped_configurations_have_the_opposite_difference() -> None:
    baseline, champion = np.random.default_rng(3).normal(0.6, 0.1, (2, 3, 7))
    one, other = estimate(baseline, champion), estimate(champion, baseline)
    assert (one.difference, one.low, one.p) == pytest.approx((-other.difference, -other.high, other.p))


def test_the_detectable_difference_of_many_runs_and_patients_is_that_of_the_normal_distribution() -> None:
    # z(0.975) + z(0.8) = 1.959964 + 0.841621, times sqrt(2 x 0.03^2 / 2000 + 0.04^2 / 2000)
    assert detectable(0.03, 0.04, 0, 2000, 2000) == pytest.approx(2.801585 * math.sqrt(0.0034 / 2000), rel=2e-3)


def test_the_detectable_difference_of_patients_alone_is_that_of_a_t_test() -> None:
    """No spread between runs: a t test with 8 degrees of freedom, whose power the noncentral t distribution gives."""
    ratio = detectable(0, 0.04, 0, 5, 9) / (0.04 / 3)
    assert stats.nct.sf(stats.t.ppf(0.975, 8), 8, ratio) == pytest.approx(0.8, abs=2e-3)


@pytest.mark.parametrize("folds", [[0, 0], [0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 1, 2, 0, 1, 2]])
@pytest.mark.parametrize("spread", [Spread(0.03, 0.04, 0.05), Spread(0.07, 0.0, 0.05), Spread(0.0, 0.04, 0.03)])
def test_the_detectable_difference_is_found_in_four_of_five_cohorts(folds: list[int], spread: Spread) -> None:
    rng, runs = np.random.default_rng(4), len(folds)
    shift = detectable(spread.run, spread.patient, spread.residual, folds, patients=9)
    common = rng.normal(0, 0.15, (4000, 1, 9)) + rng.normal(0, 0.05, (4000, 5, 1))[:, folds]
    scores = common + rng.normal(0, spread.patient / math.sqrt(2), (2, 4000, 1, 9))
    scores = scores + rng.normal(0, spread.run, (2, 4000, runs, 1))
    scores = scores + rng.normal(0, spread.residual, (2, 4000, runs, 9))
    it = estimate(scores[0], scores[1] + shift, folds)
    assert np.mean((it.p < 0.05) & (it.low > 0)) == pytest.approx(0.8, abs=0.02)


def test_an_estimated_spread_makes_the_detectable_difference_larger() -> None:
    """With spreads that are estimated by 5 runs and 9 patients, four of five cohorts is a mean over the true ones."""
    rng, runs, patients, cohorts = np.random.default_rng(7), 5, 9, 10_000
    shift = detectable(0.03, 0.04, 0.05, runs, patients, estimated=True)
    assert shift > 1.1 * detectable(0.03, 0.04, 0.05, runs, patients)
    of_residual = 2 * 0.05**2 / (runs * patients)
    of_runs = (2 * 0.03**2 / runs + of_residual) * 8 / rng.chisquare(8, cohorts)
    of_patients = (0.04**2 / patients + of_residual) * 8 / rng.chisquare(8, cohorts)
    run_sds = np.sqrt(np.maximum(0, (of_runs - of_residual) * runs / 2))[:, None, None]
    patient_sds = np.sqrt(np.maximum(0, (of_patients - of_residual) * patients))[:, None, None]
    scores = patient_sds / math.sqrt(2) * rng.normal(0, 1, (2, cohorts, 1, patients))
    scores = scores + run_sds * rng.normal(0, 1, (2, cohorts, runs, 1))
    scores = scores + rng.normal(0, 0.05, (2, cohorts, runs, patients))
    it = estimate(scores[0], scores[1] + shift)
    assert np.mean((it.p < 0.05) & (it.low > 0)) == pytest.approx(0.8, abs=0.025)


def test_more_runs_and_more_patients_find_smaller_differences() -> None:
    sizes = [detectable(0.03, 0.04, 0.05, runs, patients) for runs, patients in ((2, 9), (5, 9), (5, 20), (10, 50))]
    assert sizes == sorted(sizes, reverse=True)
    assert detectable(0.03, 0.04, 0.05, runs=1, patients=9) == math.inf
    assert detectable(0.03, 0.04, 0.05, runs=5, patients=5) == math.inf
    assert detectable(0, 0, 0, runs=5, patients=9) == 0


def test_the_spread_of_earlier_searches_is_a_root_mean_square() -> None:
    nothing = dict.fromkeys(("baseline", "champion", "difference", "se", "df", "low", "high", "p", "detectable"))
    sds = dict.fromkeys(("run_sd", "patient_sd", "residual_sd"))
    claim = ConfigurationClaim.model_validate(
        {"outcome": "not shown", "sentence": "", "runs": 5, "patients": 9, **nothing, **sds}
    )
    one = claim.model_copy(update={"run_sd": 0.01, "patient_sd": 0.0, "residual_sd": 0.02})
    other = claim.model_copy(update={"run_sd": 0.07, "patient_sd": 0.02, "residual_sd": 0.02})
    assert Spread.of([claim]) is None
    assert Spread.of([one, claim, other]) == Spread(0.05, pytest.approx(math.sqrt(0.0002)), pytest.approx(0.02))


def test_a_plain_computation_gives_the_same_numbers() -> None:
    """The formulas of docs/verdict.md, written with sums over all scores, on a design like that of `make demo`."""
    rng = np.random.default_rng(0)
    runs, patients = 3, 11
    sides = [
        0.6
        + mean
        + rng.normal(0, 0.04, (runs, 1))
        + rng.normal(0, 0.1, patients)
        + rng.normal(0, 0.05, (runs, patients))
        for mean in (0.0, 0.05)
    ]
    means = [float(sum(map(sum, side))) / (runs * patients) for side in sides]
    of_runs = [[float(sum(row)) / patients for row in side] for side in sides]
    of_patients = [[float(sum(column)) / runs for column in side.T] for side in sides]
    squares = [sum((one - mean) ** 2 for one in ones) / (runs - 1) for ones, mean in zip(of_runs, means, strict=True)]
    difference = means[1] - means[0]
    differences = [champion - baseline for baseline, champion in zip(*of_patients, strict=True)]
    s_runs = sum(squares) / runs
    s_patients = sum((one - difference) ** 2 for one in differences) / (patients - 1) / patients
    residuals = sum(
        (side[r][p] - of_runs[number][r] - of_patients[number][p] + means[number]) ** 2
        for number, side in enumerate(sides)
        for r in range(runs)
        for p in range(patients)
    )
    s_residual = 2 * residuals / (2 * (runs - 1) * (patients - 1)) / (runs * patients)
    variance = max(s_runs + s_patients - s_residual, s_runs, s_patients)
    df_runs = sum(squares) ** 2 / sum(square**2 / (runs - 1) for square in squares)
    parts = [(s_runs, stats.t.ppf(0.975, df_runs)), (s_patients, stats.t.ppf(0.975, patients - 1))]
    quantile = sum(part * value for part, value in parts) / sum(part for part, _ in parts)
    crossed = estimate(*sides)
    assert float(crossed.difference) == pytest.approx(difference)
    assert float(crossed.low) == pytest.approx(difference - quantile * variance**0.5)
    assert float(crossed.high) == pytest.approx(difference + quantile * variance**0.5)
    assert stats.t.ppf(0.975, float(crossed.df)) == pytest.approx(quantile)
    assert float(crossed.p) == pytest.approx(2 * stats.t.sf(difference / variance**0.5, float(crossed.df)))
