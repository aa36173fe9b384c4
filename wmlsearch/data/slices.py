"""Prepared slices as batches: memory-mapped on CPUs, resident on a GPU; augmentation; each rank's part."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wmlsearch.config import InputError
from wmlsearch.data.manifest import IMAGES, MASKS, Manifest


@dataclass(frozen=True)
class Slices:
    """The slices of one split: some rows of the stored 8-bit arrays, which all processes of a machine share.

    `images` and `masks` are (M, S, S) uint8, `rows` (N,) the rows of this split in them, `patients` (N,) the number of
    each slice's patient in `patient_names`.
    """

    images: Tensor
    masks: Tensor
    rows: Tensor
    patients: Tensor
    patient_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (n,) among this split's slices -> images in [0, 1] and masks 0 or 1, (n, 1, S, S) float32."""
        rows = self.rows[positions]
        return self.images[rows].unsqueeze(1).float().div_(255), self.masks[rows].unsqueeze(1).float()


@dataclass(frozen=True)
class PreparedData:
    """The training and validation slices of a prepared data set. The sealed test slices can't be reached from here."""

    manifest: Manifest
    train: Slices
    val: Slices

    @classmethod
    def open(cls, folder: Path, device: torch.device | str = "cpu") -> PreparedData:
        """Open a prepared folder; nothing is read into memory on a CPU. Raises InputError where it isn't one."""
        manifest = Manifest.read(folder)
        arrays = []
        for name in (IMAGES, MASKS):
            try:  # mode "c": all processes that map the file share its pages; torch wants arrays that may be written
                arrays.append(np.lib.format.open_memmap(folder / name, mode="c"))
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{folder / name}: can't be read ({error}); make it again with `wmlsearch prepare`"
                ) from None
        wanted = (len(manifest.slices), manifest.size, manifest.size)
        for name, array in zip((IMAGES, MASKS), arrays, strict=True):
            if array.shape != wanted or array.dtype != np.uint8:
                raise InputError(
                    f"{folder / name}: the manifest says {wanted} uint8, but it holds {array.shape} {array.dtype}; "
                    "make it again with `wmlsearch prepare`"
                )
        images, masks = (torch.from_numpy(array) for array in arrays)
        return cls(
            manifest,
            _split(manifest, images, masks, "train", torch.device(device)),
            _split(manifest, images, masks, "val", torch.device(device)),
        )


def _split(manifest: Manifest, images: Tensor, masks: Tensor, split: str, device: torch.device) -> Slices:
    # Training sees the kept slices; validation all slices of its patients (an image-level split has kept ones only).
    rows = torch.from_numpy(manifest.indices(split, kept_only=split == "train"))
    names = tuple(sorted({manifest.slices[row].patient for row in rows}))
    patients = torch.tensor([names.index(manifest.slices[row].patient) for row in rows], dtype=torch.int64)
    if device.type != "cpu":  # the whole split fits in a GPU's memory: 322 MB for the paper's data
        images, masks = images[rows].to(device), masks[rows].to(device)
        rows = torch.arange(len(rows), device=device)
    return Slices(images, masks, rows, patients.to(device), names)


def batches(slices: int, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """The positions of one epoch in random order, dealt into ceil(slices / batch_size) batches.

    Their sizes differ by one at most, so that no small remainder disturbs batch normalisation.
    """
    return torch.randperm(slices, generator=generator).tensor_split(math.ceil(slices / batch_size))


@dataclass(frozen=True)
class Augmentation:
    """What chance has drawn for some slices: each field (n,). Applying it is deterministic."""

    mirror: Tensor  # -1 or 1
    angle: Tensor  # radians
    scale: Tensor
    shift: Tensor  # (n, 2), as a share of half the image

    def tensors(self) -> list[Tensor]:
        return [self.mirror, self.angle, self.scale, self.shift]

    def to(self, device: torch.device) -> Augmentation:
        return Augmentation(*(tensor.to(device) for tensor in self.tensors()))

    def __getitem__(self, positions: Tensor) -> Augmentation:
        return Augmentation(*(tensor[positions] for tensor in self.tensors()))

    @classmethod
    def draw(cls, kind: Literal["flip", "affine"], slices: int, generator: torch.Generator) -> Augmentation:
        """flip: mirrored left-right with probability 1/2. affine: that, +-15 degrees, +-10 % size, +-5 % shift."""
        uniform = torch.rand(slices, 5, generator=generator) * 2 - 1
        mirror = torch.where(uniform[:, 0] < 0, -1.0, 1.0)
        if kind == "flip":
            return cls(mirror, torch.zeros(slices), torch.ones(slices), torch.zeros(slices, 2))
        return cls(mirror, uniform[:, 1] * math.radians(15), 1 + 0.1 * uniform[:, 2], 0.1 * uniform[:, 3:])

    def apply(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, 1, S, S) resampled linearly, masks to the nearest pixel, so that they stay 0 or 1.

        On the device that holds all of it, and without waiting for it.
        """
        cos, sin = (self.angle.cos() / self.scale, self.angle.sin() / self.scale)
        rows = (
            torch.stack([cos * self.mirror, -sin, self.shift[:, 0]], dim=1),
            torch.stack([sin * self.mirror, cos, self.shift[:, 1]], dim=1),
        )
        grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
        return (
            F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False),
            F.grid_sample(masks, grid, mode="nearest", padding_mode="zeros", align_corners=False),
        )
