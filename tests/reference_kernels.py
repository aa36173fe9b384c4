"""What the Triton kernels of `wmlsearch/model/kernels.py` compute, by PyTorch's functions, which tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from wmlsearch.model.kernels import AfterConvolution

PHILOX_MULTIPLIERS, PHILOX_KEYS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 7  # as in `triton_kernels.py`


def normalise_eagerly(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    after: AfterConvolution,
    multipliers: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_variance: Tensor | None = None,
) -> Tensor:
    """Return what `normalise` computes, by PyTorch's layers in the type of `x`.

    `multipliers` are those of dropout, (N, C, H, W), such as `dropout_multipliers` returns.
    """
    if after.per_image:
        x = F.instance_norm(x, weight=weight, bias=bias, eps=after.epsilon)
    else:
        x = F.batch_norm(x, running_mean, running_variance, weight, bias, True, after.momentum, after.epsilon)
    x = F.relu(x) if after.relu else x
    return x if multipliers is None else x * multipliers


def dropout_multipliers(shape: tuple[int, int, int, int], after: AfterConvolution, seed: int, stream: int) -> Tensor:
    """Return what the kernels multiply each element of (N, C, H, W) by, float64, on the CPU.

    Philox-4x32: the counter of eight neighbouring channels of a pixel is (their number, `stream`), the key is `seed`.
    """
    images, channels, height, width = shape
    pixels, octets, low_half = images * height * width, -(-channels // 8), 0xFFFFFFFF
    number = torch.arange(pixels * octets, dtype=torch.int64)
    counter = [number & low_half, number >> 32, torch.full_like(number, stream), torch.zeros_like(number)]
    keys = [seed & low_half, seed >> 32]
    for _ in range(PHILOX_ROUNDS):
        first, second = (factor * word for factor, word in zip(PHILOX_MULTIPLIERS, counter[::2], strict=True))
        high = [product >> 32 & low_half for product in (second, first)]
        counter = [
            high[0] ^ counter[1] ^ keys[0],
            second & low_half,
            high[1] ^ counter[3] ^ keys[1],
            first & low_half,
        ]
        keys = [(key + step) & low_half for key, step in zip(keys, PHILOX_KEYS, strict=True)]
    halves = torch.stack([half for word in counter for half in (word & 0xFFFF, word >> 16)], 1)  # (.., 8)
    bits = halves.reshape(images, height, width, octets * 8)[..., :channels].permute(0, 3, 1, 2)
    return (bits >= after.threshold).double() * after.scale
