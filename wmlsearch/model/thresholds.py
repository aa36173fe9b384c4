"""The threshold of a model: the best one for the mean Dice over patients, drawn to 0.5 as far as patients disagree.

The threshold that is best for a few patients can be far from the one that is best for the next patient. 0.5 needs no
patients: it is the threshold of a network whose probabilities are right.
"""

from __future__ import annotations

import math

import numpy as np

from wmlsearch.model.metrics import BINS, best_bin, patient_dice


def choose_threshold(histograms: np.ndarray) -> float:
    """Return the threshold for patients with these histograms of probability, (patients, 2, BINS).

    Patients without lesions are left out, since no threshold is best for them.
    """
    return threshold_of_curves(patient_dice(histograms))


def threshold_of_curves(curves: np.ndarray) -> float:
    """Return the threshold for patients with lesions whose Dice at each threshold k/BINS is known, (patients, BINS).

    The logit of the best threshold for the mean Dice is multiplied by the positive-part James-Stein factor
    1 - SE^2 / logit^2, with its standard error SE over patients by the jackknife (Efron and Morris, "Stein's Estimation
    Rule and Its Competitors", JASA 1973). A single patient has no standard error: 0.5. The best threshold itself is
    returned if nothing is found in any patient at 0.5, as after a short training.
    """
    patients, total = len(curves), curves.sum(axis=0)
    if patients and not total[BINS // 2]:
        return best_bin(total) / BINS
    if patients < 2:
        return 0.5
    best = _logit(best_bin(total))
    without_one = np.array([_logit(best_bin(total - curve)) for curve in curves])
    variance = (patients - 1) * float(without_one.var())
    factor = max(0.0, 1 - variance / best**2) if best else 0.0
    return min(max(round(BINS / (1 + math.exp(-factor * best))), 1), BINS - 1) / BINS


def _logit(k: int) -> float:
    return math.log(k / (BINS - k))
