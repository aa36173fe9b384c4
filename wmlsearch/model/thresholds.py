"""The threshold of a model: the best one for the mean Dice over patients, drawn to 0.5 as far as patients disagree.

The threshold that is best for a few patients can be far from the one that is best for the next patient. 0.5 needs no
patients: it is the threshold of a network whose probabilities are right.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from wmlsearch.model.metrics import BINS, best_bin, patient_dice

LEAST_SHARE = 0.5  # of the highest mean Dice over the patients, which a threshold must give them


def choose_threshold(histograms: np.ndarray, patients_known: bool = True) -> float:
    """Return the threshold for patients with these histograms of probability, (patients, 2, BINS).

    Patients without lesions are left out, since no threshold is best for them.
    """
    return threshold_of_curves(patient_dice(histograms), patients_known)


def threshold_of_curves(curves: np.ndarray, patients_known: bool = True) -> float:
    """Return the threshold for patients with lesions whose Dice at each threshold k/BINS is known, (patients, BINS).

    The logit of the best threshold for the mean Dice is multiplied by the positive-part James-Stein factor
    1 - SE^2 / logit^2, with its standard error SE over patients by the jackknife (Efron and Morris, "Stein's Estimation
    Rule and Its Competitors", JASA 1973). A single patient has no standard error: 0.5.

    A threshold that gives these patients less than `LEAST_SHARE` of the highest mean Dice is not used: probabilities
    after a short training are far from right, and 0.5 may find nothing. Then it is the best one itself. So it is where
    no patient is known: then all images are one curve, and how far patients disagree cannot be seen.
    """
    if not len(curves):
        return 0.5
    total = curves.sum(axis=0)
    best = best_bin(total.round(9))
    if not patients_known:
        return best / BINS
    without_one = [best_bin((total - curve).round(9)) for curve in curves]  # rounded, so that equal sums stay equal
    drawn = _draw_to_half(best, without_one)
    return (best if total[drawn] < LEAST_SHARE * total[best] else drawn) / BINS


def _draw_to_half(best: int, without_one: Sequence[int]) -> int:
    """Return the best bin of all patients, drawn to the middle by what it is without each of them."""
    if len(without_one) < 2:
        return BINS // 2
    variance = (len(without_one) - 1) * statistics.pvariance([_logit(k) for k in without_one])
    factor = max(0.0, 1 - variance / _logit(best) ** 2) if _logit(best) else 0.0
    return min(max(round(BINS / (1 + math.exp(-factor * _logit(best)))), 1), BINS - 1)


def _logit(k: int) -> float:
    return math.log(k / (BINS - k))
