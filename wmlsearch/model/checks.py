"""Checks before a training starts."""

from __future__ import annotations

import math

from wmlsearch.config import InputError, TrialConfig
from wmlsearch.data.slices import PreparedData


def check_trainable(config: TrialConfig, data: PreparedData, workers: int = 1) -> None:
    """Refuse a configuration that cannot be trained on this data. Raises InputError with the rule and the numbers."""
    size, slices = data.manifest.size, len(data.train)
    faults = []
    if size < 2 ** (config.depth + 1):
        faults.append(
            f"size >= 2^(depth + 1) must hold, but got (size={size}, depth={config.depth}): "
            "the lowest level would have a single pixel; lower `depth` or prepare with a larger --size"
        )
    if slices == 0 or len(data.val) == 0:
        faults.append(
            f"training and validation slices are needed, but there are {slices} training and {len(data.val)} "
            "validation slices; prepare the data again with other patients"
        )
    else:
        smallest = slices // math.ceil(slices / config.batch_size)
        if smallest < workers:
            faults.append(
                f"each worker needs a slice of each batch, but batch_size={config.batch_size} of {slices} slices makes "
                f"batches of {smallest} for {workers} workers: raise `batch_size` or use fewer workers"
            )
        faults += _lesion_share_faults(config, data)
    if faults:
        raise InputError("this configuration cannot be trained on this data", faults)


def _lesion_share_faults(config: TrialConfig, data: PreparedData) -> list[str]:
    if config.lesion_share is None:
        return []
    with_lesion = int(data.training_slices_with_lesions().sum())
    without = len(data.train) - with_lesion
    if with_lesion and (without or config.lesion_share == 1):
        return []
    kinds = "with lesions" if config.lesion_share == 1 else "with and without lesions"
    change = "--keep" if with_lesion else "patients"
    return [
        f"lesion_share={config.lesion_share:g} needs training slices {kinds}, but there are {with_lesion} with and "
        f"{without} without; leave `lesion_share` out, or prepare the data again with other {change}"
    ]
