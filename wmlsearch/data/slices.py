"""Prepared slices as batches for training: memory-mapped on CPUs, resident on a GPU."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wmlsearch.config import TrialConfig
from wmlsearch.data.head_grey import slice_head_grey
from wmlsearch.data.labels import IGNORED, LESION
from wmlsearch.data.manifest import IMAGES, MASKS, PREPARE_AGAIN, Manifest
from wmlsearch.data.network_input import scale_grey_values
from wmlsearch.data.stack import Array
from wmlsearch.errors import InputError


@dataclass(frozen=True)
class Slices:
    """The N slices of one split: rows of the stored 8-bit arrays."""

    images: Tensor  # (M, S, S) uint8, all stored slices; on a CPU they are mapped by all processes of the machine
    masks: Tensor  # (M, S, S) uint8: BACKGROUND, LESION or IGNORED (data/labels.py)
    rows: Tensor  # (N,) int64, the rows of this split
    patients: Tensor  # (N,) int64, the place of each slice's patient in `patient_names`
    patient_names: tuple[str, ...]
    has_ignored: bool = False  # whether the data set has ignored pixels: without them nothing is computed for them
    # (N, C) int64, the rows of each slice and its neighbours, which are the network's channels; None: the slice alone
    channels: Tensor | None = None
    head_grey: Tensor | None = None  # (N, 2) float32, see `scale_grey_values`; None: grey values are scaled to [0, 1]
    volumes: Tensor | None = None  # (N,) int64, the place of each slice's volume in the manifest; None: not known

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def patients_known(self) -> bool:
        """Whether the slices have patients; images without any are all of the patient ""."""
        return self.patient_names != ("",)

    def by_volume(self) -> list[Tensor]:
        """Return the positions of the slices of each volume, in its order; where none is known, of each patient."""
        groups = self.patients if self.volumes is None else self.volumes
        return [torch.nonzero(groups == group).flatten() for group in groups.unique()]

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's input and masks of labels at positions (n,) in this split.

        The input is (n, C, S, S) float32, with C = 1 unless there are `channels`, and in [0, 1] unless there is
        `head_grey`; the masks are (n, 1, S, S) float32. The labels are 0, 1 and, where `has_ignored`, 2: see `lesions`.
        """
        rows = self.rows[positions]
        images = self.images[rows].unsqueeze(1) if self.channels is None else self.images[self.channels[positions]]
        head_grey = None if self.head_grey is None else self.head_grey[positions]
        return scale_grey_values(images, head_grey), self.masks[rows].unsqueeze(1).float()

    def lesions(self, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return masks of 0 or 1, and which pixels count (1) or are ignored (0); None where all count.

        The shapes and the type are those of the labels, (n, 1, S, S) float32.
        """
        if not self.has_ignored:
            return labels, None
        return (labels == LESION).to(labels.dtype), (labels != IGNORED).to(labels.dtype)


@dataclass(frozen=True)
class PreparedData:
    """The training and validation slices of a prepared data set. The sealed test slices cannot be reached from here."""

    manifest: Manifest
    fold: int  # whose patients `val` holds, from 0 to `manifest.fold_count` - 1
    train: Slices
    val: Slices

    @classmethod
    def open(cls, folder: Path, device: torch.device | str = "cpu", fold: int = 0) -> PreparedData:
        """Open a prepared data set. On a CPU nothing is read into memory before it is used.

        Args:
            folder: The prepared data set.
            device: Where the slices are held: a GPU's memory, or mapped files.
            fold: The patients of this fold are for validation, modulo the number of folds.

        Raises:
            InputError: Where the folder is not a prepared data set, or its arrays are damaged.
        """
        manifest = Manifest.read(folder)
        images, masks = (torch.from_numpy(open_array(folder / name, manifest)) for name in (IMAGES, MASKS))
        if torch.device(device).type != "cpu":  # all slices fit in a GPU's memory: 322 MB for the paper's images
            images, masks = images.to(device), masks.to(device)
        return cls._of_fold(manifest, images, masks, fold)

    @classmethod
    def _of_fold(cls, manifest: Manifest, images: Tensor, masks: Tensor, fold: int) -> PreparedData:
        fold %= manifest.fold_count
        train, val = (_split(manifest, images, masks, split, fold) for split in ("train", "val"))
        return cls(manifest, fold, train, val)

    def training_slices_with_lesions(self) -> Tensor:
        """Return which training slices show a lesion, (N,) bool, on the CPU."""
        return torch.tensor([self.manifest.slices[row].lesion_pixels > 0 for row in self.train.rows.tolist()])

    def with_fold(self, fold: int) -> PreparedData:
        """Return the data with another fold, modulo the number of folds, for validation. They share the arrays."""
        if fold % self.manifest.fold_count == self.fold:
            return self
        return self._of_fold(self.manifest, self.train.images, self.train.masks, fold)

    def with_input_of(self, config: TrialConfig) -> PreparedData:
        """Return the data whose batches are the input of a configuration's network. They share the arrays."""
        train, val = (self._input(slices, config) for slices in (self.train, self.val))
        return replace(self, train=train, val=val)

    def _input(self, slices: Slices, config: TrialConfig) -> Slices:
        channels = head_grey = None
        device, rows = slices.rows.device, slices.rows.tolist()
        if config.input_slices > 1:
            channels = torch.from_numpy(self.manifest.neighbours(rows, config.input_slices)).to(device)
        if config.intensity == "zscore":
            levels = slice_head_grey(self.manifest)
            head_grey = torch.tensor([levels[row] for row in rows], dtype=torch.float32).view(-1, 2).to(device)
        return replace(slices, channels=channels, head_grey=head_grey)


def open_array(path: Path, manifest: Manifest) -> Array:
    """Return an array of a prepared data set, mapped. Raises InputError where it is not the one that was written."""
    try:  # mode "c": processes that map the file share its pages, and torch gets the writable array it asks for
        array = np.lib.format.open_memmap(path, mode="c")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {PREPARE_AGAIN}") from None
    shape = (len(manifest.slices), manifest.size, manifest.size)
    if array.shape != shape or array.dtype != np.uint8:
        raise InputError(
            f"{path}: the manifest says {shape} uint8, but it holds {array.shape} {array.dtype}; {PREPARE_AGAIN}"
        )
    return array


def _split(manifest: Manifest, images: Tensor, masks: Tensor, split: str, fold: int) -> Slices:
    # Training uses the kept slices, validation all slices of its patients (an image-level split has kept ones only).
    rows = torch.from_numpy(manifest.indices(split, split == "train", fold))
    names = tuple(sorted({manifest.slices[row].patient for row in rows}))
    patients = torch.tensor([names.index(manifest.slices[row].patient) for row in rows], dtype=torch.int64)
    volumes = torch.tensor([manifest.slices[row].volume for row in rows], dtype=torch.int64)
    device = images.device
    return Slices(
        images, masks, rows.to(device), patients.to(device), names, manifest.has_ignored, volumes=volumes.to(device)
    )


def batches(slices: int, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return the positions of one epoch in random order, in ceil(slices / batch_size) batches.

    Batch sizes differ by one at most, so that no small last batch disturbs batch normalization.
    """
    return torch.randperm(slices, generator=generator).tensor_split(math.ceil(slices / batch_size))


def batches_with_share(
    with_lesion: Tensor, batch_size: int, share: float, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Return the positions of one epoch, in batches as big as those of `batches`, with a share of slices with lesions.

    Of the first n positions of an epoch, n * share have lesions, rounded; so each batch differs from the share by less
    than one slice. Slices of a kind are drawn without replacement, and again when all have been drawn: of the kind that
    has less than its share each slice is drawn almost equally often, of the other kind some are left out.

    Args:
        with_lesion: (N,) bool, which slices have lesions. Both kinds are needed, lesions alone with share 1.
        batch_size: Slices in a batch, over all ranks.
        share: From 0 to 1.
        generator: Draws the order.
    """
    slices = len(with_lesion)
    sizes = [len(part) for part in torch.arange(slices).tensor_split(math.ceil(slices / batch_size))]
    ends = [0, *itertools.accumulate(sizes)]
    lesions = [math.floor(share * end + 0.5) for end in ends]  # of all batches so far
    kinds = (torch.nonzero(with_lesion)[:, 0], torch.nonzero(~with_lesion)[:, 0])
    drawn = [
        _draw_repeatedly(kind, count, generator)
        for kind, count in zip(kinds, (lesions[-1], slices - lesions[-1]), strict=True)
    ]
    order = []
    for number, size in enumerate(sizes):
        first, last = lesions[number], lesions[number + 1]
        others = slice(ends[number] - first, ends[number + 1] - last)
        batch = torch.cat([drawn[0][first:last], drawn[1][others]])
        order.append(batch[torch.randperm(size, generator=generator)])  # ranks take every other position
    return tuple(order)


def _draw_repeatedly(positions: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` positions, (count,): all in random order, and again in another order until there are enough."""
    if not count:
        return positions[:0]
    rounds = math.ceil(count / len(positions))
    orders = [positions[torch.randperm(len(positions), generator=generator)] for _ in range(rounds)]
    return torch.cat(orders)[:count]
