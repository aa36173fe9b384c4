"""The threshold follows the patients as far as they agree, and is 0.5 where they do not or where there is one."""

from __future__ import annotations

import numpy as np
import pytest

from wmlsearch.model.metrics import BINS
from wmlsearch.model.thresholds import choose_threshold, threshold_of_curves


def curves(*peaks: tuple[float, float]) -> np.ndarray:
    """Return the curve of each patient, which is `height` at one `threshold` and 0.5 elsewhere."""
    lines = np.full((len(peaks), BINS), 0.5)
    for line, (threshold, height) in zip(lines, peaks, strict=True):
        line[round(threshold * BINS)] = height
    return lines


def test_images_without_patients_have_their_best_threshold() -> None:
    """All images are one curve, so it cannot be seen how far patients disagree."""
    assert threshold_of_curves(curves((0.2, 0.9)), patients_known=False) == 0.2


def test_one_patient_or_none_gives_one_half() -> None:
    assert threshold_of_curves(curves()) == 0.5
    assert threshold_of_curves(curves((0.2, 0.9))) == 0.5


def test_two_patients_who_disagree_give_one_half() -> None:
    # best for both: 0.2; without the first 0.8, without the second 0.2, so that SE^2 = logit(0.2)^2: factor 0
    assert threshold_of_curves(curves((0.2, 0.9), (0.8, 0.7))) == 0.5


def test_patients_who_agree_give_their_threshold() -> None:
    assert threshold_of_curves(curves((0.2, 0.9), (0.2, 0.6), (0.2, 0.7))) == 0.2


def test_patients_who_agree_in_part() -> None:
    # Best: 0.2, logit -1.3863. Without each: -0.4055, -1.3863, -1.3863; their variance is (2/9) 0.9808^2 = 0.2138,
    # so SE^2 = 2 * 0.2138 = 0.4275. Factor 1 - 0.4275 / 1.3863^2 = 0.7775, logit -1.0779, threshold 0.2539.
    assert threshold_of_curves(curves((0.2, 0.9), (0.4, 0.7), (0.4, 0.6))) == 0.254


@pytest.mark.parametrize(("at_half", "threshold"), [(0.0, 0.15), (0.19, 0.15), (0.2, 0.5), (0.4, 0.5)])
def test_one_half_is_not_used_where_it_costs_more_than_half_of_the_dice(at_half: float, threshold: float) -> None:
    line = np.full((1, BINS), at_half)
    line[0, 150] = 0.4
    assert threshold_of_curves(line) == (threshold if at_half < 0.4 else 0.5)


def test_patients_who_disagree_where_one_half_finds_nothing() -> None:
    lines = np.zeros((2, BINS))
    lines[0, 10:90], lines[1, 60:400] = 0.6, 0.5  # without the first 0.06, without the second 0.01; at 0.5 none
    # Best for both: 0.06, logit -2.7515; SE^2 is the variance of (-2.7515, -4.5951) = 0.9218^2 = 0.8497.
    # Factor 1 - 0.8497 / 7.5708 = 0.8878, logit -2.4427, threshold 0.0800, where both still have all of their Dice.
    assert threshold_of_curves(lines) == 0.08
    lines[1, 60:70] = 0.0
    lines[0, 70:90] = 0.0  # they share no threshold: 0.01 is best, without the first it is 0.07
    # SE^2 is the variance of (-2.5867, -4.5951) = 1.0084; factor 1 - 1.0084 / 21.1150 = 0.9522, threshold 0.0124
    assert threshold_of_curves(lines) == 0.012


def test_patients_without_lesions_have_no_say() -> None:
    histograms = np.zeros((3, 2, BINS), dtype=np.int64)
    histograms[:, 0, 100] = 50  # background, below 0.101
    histograms[:2, 1, 600] = 10  # lesion of two patients, missed above 0.6: best from 0.101 to 0.6
    assert choose_threshold(histograms) == 0.101
    assert choose_threshold(histograms[1:]) == 0.5, "one patient with lesions"
    assert choose_threshold(histograms[2:]) == 0.5


def test_the_threshold_is_never_0_or_1() -> None:
    assert threshold_of_curves(curves((0.001, 1.0), (0.001, 1.0))) == 0.001
    assert threshold_of_curves(curves((0.999, 1.0), (0.999, 1.0))) == 0.999


@pytest.mark.parametrize("height", [0.0, 1.0])
def test_curves_without_a_best_threshold(height: float) -> None:
    """All thresholds are equally good: the network finds nothing, or is perfect at each."""
    assert 0 < threshold_of_curves(np.full((3, BINS), height)) < 1
