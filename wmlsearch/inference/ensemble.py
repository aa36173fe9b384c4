"""An ensemble: the networks of one configuration, averaged, with a threshold of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wmlsearch.data.slices import Slices
from wmlsearch.inference.predictor import BATCH, mean_probabilities
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.metrics import ValidationCounts


def ensemble_threshold(models: Sequence[TrainedModel], val: Slices) -> float | None:
    """Return the threshold at which the mean probability has the best pooled Dice on validation slices.

    None for a single network, which has a threshold of its own, and if no threshold gives a Dice above 0.
    """
    if len(models) == 1:
        return None
    for model in models:
        model.unet.to("cuda" if torch.cuda.is_available() else "cpu")
    counts = ValidationCounts(1)
    for positions in torch.arange(len(val)).split(BATCH):
        images, masks = val.batch(positions.to(val.rows.device))
        eight_bit = (images[:, 0] * 255).round().to(torch.uint8).cpu().numpy()
        mean = torch.from_numpy(mean_probabilities([model.probabilities(eight_bit) for model in models]))
        counts.add_to_histograms(mean.unsqueeze(1), masks.cpu(), torch.zeros(len(positions), dtype=torch.int64))
    metrics = counts.metrics()
    return metrics["val_threshold"] if metrics["val_dice_best"] else None
