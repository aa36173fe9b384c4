"""Augmentation of slices: random parameters are drawn first, then applied deterministically to images and masks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_ANGLE_DEG = 15
MAX_SCALING = 0.1  # of the size, up or down
MAX_SHIFT = 0.1  # of half the image, so 5 % of the image


@dataclass(frozen=True)
class Augmentation:
    """The parameters drawn for n slices."""

    mirror: Tensor  # (n,) -1 or 1
    angle: Tensor  # (n,) radians
    scale: Tensor  # (n,)
    shift: Tensor  # (n, 2), as a share of half the image

    def tensors(self) -> list[Tensor]:
        return [self.mirror, self.angle, self.scale, self.shift]

    def to(self, device: torch.device) -> Augmentation:
        return Augmentation(*(tensor.to(device) for tensor in self.tensors()))

    def __getitem__(self, positions: Tensor) -> Augmentation:
        return Augmentation(*(tensor[positions] for tensor in self.tensors()))

    @classmethod
    def draw(cls, kind: Literal["flip", "affine"], slices: int, generator: torch.Generator) -> Augmentation:
        """Draw the parameters of `slices` slices.

        flip: mirrored left to right with probability 1/2. affine: that, and uniformly +-15 degrees, +-10 % size, +-5 %
        shift.
        """
        uniform = torch.rand(slices, 5, generator=generator) * 2 - 1
        mirror = torch.where(uniform[:, 0] < 0, -1.0, 1.0)
        if kind == "flip":
            return cls(mirror, torch.zeros(slices), torch.ones(slices), torch.zeros(slices, 2))
        angle = uniform[:, 1] * math.radians(MAX_ANGLE_DEG)
        return cls(mirror, angle, 1 + MAX_SCALING * uniform[:, 2], MAX_SHIFT * uniform[:, 3:])

    def apply(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the augmented images and masks, (n, 1, S, S) float32 each.

        Images are interpolated linearly, masks take the nearest pixel, so that their labels stay what they are: ignored
        regions move with the image. All runs on the device that holds the tensors, without synchronization.
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
