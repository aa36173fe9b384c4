"""Prediction: from a raw image to the probability of lesion on the image's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from wmlsearch.data.cutting import cut, restore
from wmlsearch.data.geometry import VolumeGeometry
from wmlsearch.data.sources import Source
from wmlsearch.data.stack import Array
from wmlsearch.errors import InputError
from wmlsearch.inference.preprocessing import slicing_geometry
from wmlsearch.inference.trained_model import TrainedModel, common_preprocessing

BATCH = 64  # slices whose probabilities are held in memory at a time, where a data set is predicted


@dataclass(frozen=True)
class Prediction:
    """The prediction of one or several models for one image, on the image's own grid (`geometry.shape`)."""

    probabilities: Array  # float32
    mask: Array  # uint8, 1 where the probability is at least `threshold`, without lesions that the model removes
    threshold: float
    voxel_mm: tuple[float, ...] | None  # along the input's axes; None for 2-D pictures
    geometry: VolumeGeometry


class Predictions(Protocol):
    """Where networks predict: in this process, or on the slots of a cluster."""

    def probabilities(
        self, models: Sequence[TrainedModel], images: Array, head_grey: Sequence[tuple[float, float]] = ()
    ) -> list[Array]:
        """Return the probabilities of each model: 8-bit slices (N, H, W) -> (N, H, W) float32.

        `head_grey` as in `TrainedModel.probabilities`.
        """


class PredictionsHere:
    """Predictions in this process. The networks are moved to a GPU if there is one, and stay there."""

    def probabilities(
        self, models: Sequence[TrainedModel], images: Array, head_grey: Sequence[tuple[float, float]] = ()
    ) -> list[Array]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        for model in models:
            model.unet.to(device)
        return [model.probabilities(images, head_grey) for model in models]


HERE = PredictionsHere()


def predict(
    models: Sequence[TrainedModel],
    source: Source,
    threshold: float | None = None,
    geometry: VolumeGeometry | None = None,
) -> Prediction:
    """Predict an image with one model, or with several as an ensemble.

    The image is cut as the training data were. The probabilities of its slices are averaged over the models, put back
    onto the image's grid, and thresholded there. A mask of the source is never opened. The networks are moved to a GPU
    if there is one, and stay there.

    Args:
        threshold: None: the model's own, or the mean of several.
        geometry: The result of `slicing_geometry` for this source, if it is known already.

    Raises InputError for an image that cannot be read or cut (see `slicing_geometry`), and for models that were not
    trained on data prepared in the same way.
    """
    preprocessing = common_preprocessing(models)
    if len({model.postprocessing for model in models}) > 1:
        raise InputError("models can only be used together if they have the same postprocessing")
    if threshold is None:
        threshold = float(np.mean([model.threshold for model in models]))
    geometry = geometry or slicing_geometry(source, preprocessing)
    images = cut(replace(source, mask=()), geometry).images
    probabilities = restore(mean_probabilities(HERE.probabilities(models, images, geometry.head_grey)), geometry)
    mask = models[0].postprocessing.finish((probabilities >= threshold).astype(np.uint8), geometry.voxel_ml)
    return Prediction(probabilities, mask, threshold, geometry.voxel_mm, geometry)


def mean_probabilities(members: Sequence[Array]) -> Array:
    """Return the mean of the probabilities of several networks, float32. All arrays have one shape."""
    total = np.zeros(members[0].shape, np.float32)
    for probabilities in members:
        total += probabilities
    return total / np.float32(len(members))
