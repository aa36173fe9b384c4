"""Choose a model's threshold and postprocessing on patients that its networks have not been trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
from scipy import stats

from wmlsearch.data.labels import IGNORED, LESION
from wmlsearch.data.slices import PreparedData
from wmlsearch.inference.ensemble import grouped_probabilities, out_of_fold_curves
from wmlsearch.inference.postprocessing import NO_POSTPROCESSING, Postprocessing, without_small_lesions
from wmlsearch.inference.predictor import HERE, Predictions
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.metrics import BINS, dice
from wmlsearch.model.thresholds import threshold_of_curves

SIZES_MM3 = (3.0, 7.0, 14.0)  # 14 mm3 is a sphere of 3 mm, the smallest lesion that counts for a diagnosis
LEVEL = 0.05  # probability that anything is switched on which makes no difference
TESTS = 1 + len(SIZES_MM3)
FEWEST_PATIENTS = 5  # with lesions; fewer say nothing about the next patient


def choose_postprocessing(
    models: Sequence[TrainedModel], data: PreparedData, predictions: Predictions = HERE
) -> tuple[float, Postprocessing]:
    """Return the threshold and the postprocessing of a configuration.

    Each network predicts the patients of its own fold. First mirror averaging is compared with the plain prediction,
    each at its own threshold; then lesion sizes are compared at the threshold that was chosen. What is compared is a
    patient's Dice, averaged over the networks that did not see the patient. See `is_gain` for what counts as better.
    """
    by_patient = data.val.patients_known
    curves = out_of_fold_curves(models, data, predictions)
    threshold, choice = threshold_of_curves(np.array(list(curves.values())), by_patient), NO_POSTPROCESSING
    if all(model.can_mirror for model in models):
        mirrored = [replace(model, postprocessing=Postprocessing(mirror_averaging=True)) for model in models]
        mirrored_curves = out_of_fold_curves(mirrored, data, predictions)
        mirrored_threshold = threshold_of_curves(np.array(list(mirrored_curves.values())), by_patient)
        if is_gain(
            [mirrored_curves[name][_bin(mirrored_threshold)] - curve[_bin(threshold)] for name, curve in curves.items()]
        ):
            models, threshold, choice = mirrored, mirrored_threshold, Postprocessing(mirror_averaging=True)
    if data.manifest.has_volumes and by_patient:
        plain, *by_size = _dice_by_size(models, data, threshold, predictions)
        gains = {
            size: [scores[name] - value for name, value in plain.items()]
            for size, scores in zip(SIZES_MM3, by_size, strict=True)
        }
        better = {size: fmean(gain) for size, gain in gains.items() if is_gain(gain)}
        if better:
            choice = replace(choice, smallest_lesion_mm3=max(better, key=lambda size: better[size]))
    return threshold, choice


def is_gain(differences: Sequence[float]) -> bool:
    """Return whether differences of Dice, one for each patient, show a gain that is not chance.

    Their mean is above 0 by a one-sided t test over patients. Each of the `TESTS` comparisons of a configuration has
    the level `LEVEL` / `TESTS` (Bonferroni), so where nothing helps, something is switched on in at most 5 % of cases.
    """
    if len(differences) < FEWEST_PATIENTS or fmean(differences) <= 0:
        return False
    error = float(np.std(differences, ddof=1)) / len(differences) ** 0.5
    return fmean(differences) > error * float(stats.t.ppf(1 - LEVEL / TESTS, len(differences) - 1))


def _bin(threshold: float) -> int:
    return round(threshold * BINS)


def _dice_by_size(
    models: Sequence[TrainedModel], data: PreparedData, threshold: float, predictions: Predictions
) -> list[Mapping[str, float]]:
    """Return the Dice of each patient with lesions: with all lesions, and without those below each of `SIZES_MM3`."""
    scores: list[dict[str, list[float]]] = [{} for _ in range(TESTS)]
    for model in models:
        validation = data.with_fold(model.fold or 0).with_input_of(model.config).val
        counts = np.zeros((len(validation.patient_names), TESTS, 3), np.int64)  # TP, FP, FN
        groups = validation.by_volume()
        for positions, probabilities in grouped_probabilities(model, validation, groups, predictions):
            rows, patient = validation.rows[positions], int(validation.patients[positions[0]])
            expert = validation.masks[rows].cpu().numpy()
            geometry = data.manifest.volumes[data.manifest.slices[int(rows[0])].volume]
            mask = probabilities >= threshold
            for place, size in enumerate((0.0, *SIZES_MM3)):
                lesion = without_small_lesions(mask, size, geometry.pixel_ml or 0.0) if size else mask
                lesion, truth = lesion & (expert != IGNORED), expert == LESION
                counts[patient, place] += [(lesion & truth).sum(), (lesion & ~truth).sum(), (~lesion & truth).sum()]
        for name, of_patient in zip(validation.patient_names, counts, strict=True):
            if of_patient[0, 0] + of_patient[0, 2]:
                for place, (tp, fp, fn) in enumerate(of_patient):
                    scores[place].setdefault(name, []).append(float(dice(tp, fp, fn)))
    return [{name: fmean(values) for name, values in of_size.items()} for of_size in scores]
