"""Checks before a training starts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from wmlsearch.config import TrialConfig
from wmlsearch.data.geometry import PLANES
from wmlsearch.data.head_grey import has_head_grey
from wmlsearch.data.manifest import PREPARE_AGAIN, Manifest
from wmlsearch.data.slices import PreparedData
from wmlsearch.errors import InputError


def check_trainable(config: TrialConfig, data: PreparedData, workers: int = 1) -> None:
    """Refuse a configuration that cannot be trained on this data. Raises InputError with the rule and the numbers."""
    size, slices = data.manifest.size, len(data.train)
    faults = []
    if size < smallest_size(config.depth):
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
        smallest = smallest_batch(slices, config.batch_size)
        if smallest < workers:
            faults.append(
                f"each worker needs a slice of each batch, but batch_size={config.batch_size} of {slices} slices makes "
                f"batches of {smallest} for {workers} workers: raise `batch_size` or use fewer workers"
            )
        faults += _lesion_share_faults(config, data)
    faults += [f"{reason}: {remedy}" for reason, remedy in input_faults(config, data.manifest, data.fold)]
    if faults:
        raise InputError("this configuration cannot be trained on this data", faults)


def check_validation_lesions(manifest: Manifest, data: Path, folds: Sequence[int]) -> None:
    """Refuse folds whose validation slices hold no lesion. Raises InputError.

    Dice would be undefined in each epoch, and the weights of the first one would be kept.

    Args:
        manifest: Of the prepared data set.
        data: Its folder.
        folds: On which runs will validate.
    """
    empty = [fold for fold in folds if not manifest.has_lesion(fold)]
    if not empty:
        return
    if not manifest.folds:
        raise InputError(
            f"{data}: the validation slices hold no lesion, so no Dice can be computed; "
            "prepare the data with other --val-patients or another --seed"
        )
    another = "validate another --fold, or " if len(folds) < manifest.fold_count else ""
    raise InputError(
        f"{data}: the slices of {'fold' if len(empty) == 1 else 'folds'} {', '.join(map(str, empty))} hold no lesion, "
        f"so runs that validate on them would have no Dice; {another}prepare the data with other --val-patients, "
        "another --seed or fewer --folds"
    )


def smallest_size(depth: int) -> int:
    """Return the fewest pixels of an edge that a network of this depth can have: two at its lowest level."""
    return 2 ** (depth + 1)


def smallest_batch(slices: int, batch_size: int) -> int:
    """Return the slices of the smallest batch of an epoch: batches differ by one at most, and none is larger."""
    return slices // math.ceil(slices / batch_size)


def mirrors_nothing(config: TrialConfig, axis: int | None) -> bool:
    """Return whether `augment: flip` leaves every slice as it is.

    Left and right of the body are not in a sagittal slice, but in the order of its neighbours: a single one stays.
    `axis` is the slicing axis of the data.
    """
    is_single = config.input_slices == 1
    return config.augment == "flip" and config.flip_axis == "left-right" and is_single and axis == PLANES["sagittal"]


MIRRORS_NOTHING = (
    "augment=flip changes nothing in sagittal slices with input_slices=1, since left and right are not in them; "
    "`flip_axis` columns mirrors front to back, and `affine` turns, scales and shifts"
)


def balances_nothing(config: TrialConfig, manifest: Manifest) -> bool:
    """Return whether `lesion_share` leaves every batch as it is: all slices that are trained show a lesion."""
    if config.lesion_share is None:
        return False
    rows = {row for fold in range(manifest.fold_count) for row in manifest.indices("train", kept_only=True, fold=fold)}
    return all(manifest.slices[row].lesion_pixels for row in rows)


BALANCES_NOTHING = (
    "lesion_share changes nothing, since all training slices have lesions; "
    "`prepare --keep brain` keeps slices without lesions too"
)


def _lesion_share_faults(config: TrialConfig, data: PreparedData) -> list[str]:
    if config.lesion_share is None or data.training_slices_with_lesions().any():
        return []
    where = f" where fold {data.fold} is validated" if data.manifest.folds else ""
    return [
        f"lesion_share={config.lesion_share:g} needs training slices with lesions, but none of the {len(data.train)} "
        f"has one{where}; leave `lesion_share` out, or prepare the data again with other patients"
    ]


def input_faults(config: TrialConfig, manifest: Manifest, fold: int = 0) -> Iterator[tuple[str, str]]:
    """Yield why the network's input cannot be made of these slices, each with what to do instead."""
    count = config.input_slices
    if config.intensity == "zscore" and not has_head_grey(manifest):
        yield (
            "intensity=zscore needs the grey values of the head in each volume, which data that were prepared by an "
            "older version do not record",
            f"{PREPARE_AGAIN}, or use `intensity` range",
        )
    if count == 1:
        return
    remedy = "use `input_slices` 1"
    if manifest.axis is None:
        yield f"input_slices={count} needs volumes, but the data are 2-D pictures", remedy
    elif manifest.split_level != "patient":
        yield (
            f"input_slices={count} needs a split by patient, but the data are split by {manifest.split_level}, so a "
            "neighbour of a training slice may be a test slice",
            f"{remedy}, or prepare with --split patient",
        )
    elif manifest.keep == "lesion" and manifest.lacks_neighbours(
        manifest.indices("train", kept_only=True, fold=fold), count
    ):
        yield (
            f"input_slices={count} needs the neighbours of training slices, but --keep lesion left out those without "
            "lesions, so a missing neighbour would tell where lesions end",
            f"{remedy}, or prepare with --keep brain",
        )
