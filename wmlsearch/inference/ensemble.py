"""Several networks of one configuration as one: the mean of their probabilities, at a threshold of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wmlsearch.data.slices import Slices
from wmlsearch.inference.predictor import TrainedModel, mean_probabilities
from wmlsearch.model.metrics import ValidationCounts

AT_ONCE = 64  # slices, of which each network's probabilities are held


def ensemble_threshold(models: Sequence[TrainedModel], val: Slices) -> float | None:
    """The threshold by which the networks' mean probability has the best pooled Dice on validation slices.

    None for a single network, which has its own, and where no threshold finds anything.
    """
    if len(models) == 1:
        return None
    for model in models:
        model.unet.to("cuda" if torch.cuda.is_available() else "cpu")
    counts = ValidationCounts(1)
    for positions in torch.arange(len(val)).split(AT_ONCE):
        images, masks = val.batch(positions.to(val.rows.device))
        eight_bit = (images[:, 0] * 255).round().to(torch.uint8).cpu().numpy()
        likely = torch.from_numpy(mean_probabilities([model.probabilities(eight_bit) for model in models]))
        counts.add_to_histograms(likely.unsqueeze(1), masks.cpu(), torch.zeros(len(positions), dtype=torch.int64))
    found = counts.metrics()
    return found["val_threshold"] if found["val_dice_best"] else None
