"""An ensemble: the networks of one configuration, averaged, with one threshold for all of them and their mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from wmlsearch.data.slices import PreparedData, Slices
from wmlsearch.inference.predictor import BATCH, HERE, Predictions
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.metrics import ValidationCounts, patient_dice
from wmlsearch.model.thresholds import threshold_of_curves


def out_of_fold_threshold(models: Sequence[TrainedModel], data: PreparedData, predictions: Predictions = HERE) -> float:
    """Return the threshold of a configuration, chosen on patients that the networks have not been trained on.

    Each network predicts the patients of its own fold. A patient's Dice at each threshold is averaged over the networks
    that did not see it. The ensemble has seen every patient of the other folds, so it gets the same threshold.
    """
    curves = out_of_fold_curves(models, data, predictions)
    return threshold_of_curves(np.array(list(curves.values())), data.val.patients_known)


def out_of_fold_curves(
    models: Sequence[TrainedModel], data: PreparedData, predictions: Predictions = HERE
) -> dict[str, np.ndarray]:
    """Return the Dice of each patient with lesions at each threshold, (BINS,), averaged over networks, by patient."""
    curves: dict[str, list[np.ndarray]] = {}
    for model in models:
        validation = data.with_fold(model.fold or 0).with_input_of(model.config).val
        for patient, curve in _patient_curves(model, validation, predictions).items():
            curves.setdefault(patient, []).append(curve)
    return {patient: np.mean(of_patient, axis=0) for patient, of_patient in curves.items()}


def grouped_probabilities(
    model: TrainedModel, slices: Slices, groups: Iterable[torch.Tensor], predictions: Predictions
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Yield the positions (n,) of each group of slices, and their probabilities (n, S, S) float32.

    A group is a whole volume for a model of several slices.
    """
    for positions in groups:
        images = slices.images[slices.rows[positions]].cpu().numpy()
        head_grey = () if slices.head_grey is None else slices.head_grey[positions].tolist()
        (probabilities,) = predictions.probabilities([model], images, head_grey)
        yield positions, probabilities


def _patient_curves(model: TrainedModel, slices: Slices, predictions: Predictions) -> dict[str, np.ndarray]:
    """Return the Dice of each patient with lesions at each threshold, (BINS,), by patient."""
    counts = ValidationCounts(len(slices.patient_names))
    groups: Sequence[torch.Tensor] = torch.arange(len(slices)).split(BATCH)  # pictures are volumes of one slice
    if model.needs_whole_volumes:
        groups = slices.by_volume()
    for positions, probabilities in grouped_probabilities(model, slices, groups, predictions):
        masks, counted = slices.lesions(slices.masks[slices.rows[positions]].unsqueeze(1).float().cpu())
        counts.add_to_histograms(
            torch.from_numpy(probabilities).unsqueeze(1), masks, slices.patients[positions].cpu(), counted
        )
    histograms = counts.patient_histograms()
    names = [name for name, histogram in zip(slices.patient_names, histograms, strict=True) if histogram[1].any()]
    return dict(zip(names, patient_dice(histograms), strict=True))
