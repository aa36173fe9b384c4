"""What a network sees of a slice: neighbouring slices of its scan as channels.

Training, validation, the sealed test and prediction build their input here, so that it is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stack_positions(slices: int, channels: int) -> Tensor:
    """Return the positions of each slice and of its neighbours in a whole scan, (slices, channels) int64.

    The channels are in the order of the scan, the slice itself in the middle. Beyond an edge of the scan its last slice
    is repeated.

    Args:
        slices: number of the scan's slices, which are stored in its order.
        channels: an odd number.
    """
    offsets = torch.arange(channels) - channels // 2
    return (torch.arange(slices).unsqueeze(1) + offsets).clamp_(0, slices - 1)


def scale_grey_values(images: Tensor) -> Tensor:
    """Return 8-bit images (N, C, H, W) as float32 in [0, 1]."""
    return images.float().div_(255)
