"""What a network sees of a slice: its grey values scaled, and neighbouring slices of its scan as channels.

Training, validation, the sealed test and prediction build their input here, so that it is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_DEVIATION = 1.0  # of 255 grey values


def stack_positions(slices: int, channels: int) -> Tensor:
    """Return the positions of each slice and of its neighbours in a whole scan, (slices, channels) int64.

    The channels are in the order of the scan, the slice itself in the middle. Beyond an edge of the scan its last slice
    is repeated.

    Args:
        slices: Number of the scan's slices, which are stored in its order.
        channels: An odd number.
    """
    offsets = torch.arange(channels) - channels // 2
    return (torch.arange(slices).unsqueeze(1) + offsets).clamp_(0, slices - 1)


def scale_grey_values(images: Tensor, head_grey: Tensor | None = None) -> Tensor:
    """Return 8-bit images (N, C, H, W) as the float32 that a network sees.

    Args:
        head_grey: (N, 2) float32, mean and standard deviation of the grey values of the head that each image shows, for
            z-scores; None to scale the whole range to [0, 1]. A head of one grey has z-scores of 0.
    """
    if head_grey is None:
        return images.float().div_(255)
    mean, deviation = (column.view(-1, 1, 1, 1) for column in head_grey.unbind(1))
    return images.float().sub_(mean).div_(deviation.clamp(min=LEAST_DEVIATION))
