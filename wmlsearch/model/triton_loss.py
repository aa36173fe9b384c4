"""Triton kernels for the loss of a training: the sums that it is made of in one pass, its gradient in another.

Importing this module needs Triton. `loss_kernels.py` says what is computed. All arithmetic is float32. A program adds
one part of a slice, and the parts are added in a fixed order, without atomics: the same input gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

# The values of KIND. Any other is cross-entropy.
NO_PIXELS = tl.constexpr(0)  # the loss has no mean over pixels
FOCAL = tl.constexpr(2)  # with the exponent 2, as in `losses.py`


@triton.jit
def _places(pixels, BLOCK: tl.constexpr):
    """Return the places of a program's pixels among those of all slices, and which of them exist."""
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return tl.program_id(1).to(tl.int64) * pixels + pixel, pixel < pixels


@triton.jit
def _sigmoid(x):
    """Return the probability, that of the other class, and log(1 + exp(-|x|)), without cancellation.

    The logarithm is 2 artanh(s) with s = e / (2 + e), at most 1/3, by its series: a GPU's fast logarithm is inaccurate
    near 1.
    """
    small = tl.exp(-tl.abs(x))
    share = 1.0 / (1.0 + small)
    s = small / (2.0 + small)
    q = s * s
    series = q * (1.0 / 11 + q * (1.0 / 13 + q * (1.0 / 15)))
    series = q * (1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * (1.0 / 9 + series))))
    logarithm = 2.0 * s * (1.0 + series)
    return tl.where(x >= 0.0, share, small * share), tl.where(x >= 0.0, small * share, share), logarithm


@triton.jit
def loss_sums(
    logits,
    masks,
    counted,
    of_parts,
    pixels,
    KIND: tl.constexpr,
    HAS_COUNTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the sums of `loss_kernels.slice_sums` of each part of each slice, (5, slices, parts).

    The grid is (parts, slices).
    """
    place, valid = _places(pixels, BLOCK)
    x = tl.load(logits + place, mask=valid, other=0.0)
    mask = tl.load(masks + place, mask=valid, other=0.0)
    weight = tl.where(valid, 1.0, 0.0)
    if HAS_COUNTED:
        weight = tl.load(counted + place, mask=valid, other=0.0)
    probability, other, logarithm = _sigmoid(x)
    loss = tl.zeros((BLOCK,), tl.float32)
    if KIND != NO_PIXELS:
        loss = tl.where(x > 0.0, x, 0.0) - x * mask + logarithm
        if KIND == FOCAL:
            wrong = tl.where(mask > 0.5, other, probability)
            loss *= wrong * wrong
    to = of_parts + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    row = tl.num_programs(0) * tl.num_programs(1)
    tl.store(to, tl.sum(loss * weight))
    tl.store(to + row, tl.sum(probability * mask * weight))
    tl.store(to + 2 * row, tl.sum(probability * weight))
    tl.store(to + 3 * row, tl.sum(mask * weight))
    tl.store(to + 4 * row, tl.sum(weight))


@triton.jit
def loss_gradients(
    logits,
    masks,
    counted,
    of_sums,
    of_logits,
    pixels,
    KIND: tl.constexpr,
    HAS_COUNTED: tl.constexpr,
    HAS_REGION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the gradient of the logits from those of the sums, (5, slices). The grid is (parts, slices)."""
    place, valid = _places(pixels, BLOCK)
    x = tl.load(logits + place, mask=valid, other=0.0)
    mask = tl.load(masks + place, mask=valid, other=0.0)
    of_slice, slices = of_sums + tl.program_id(1), tl.num_programs(1)
    probability, other, logarithm = _sigmoid(x)
    gradient = tl.zeros((BLOCK,), tl.float32)
    if KIND != NO_PIXELS:
        wrong = tl.where(mask > 0.5, other, probability)
        slope = wrong
        if KIND == FOCAL:
            loss = tl.where(x > 0.0, x, 0.0) - x * mask + logarithm
            right = tl.where(mask > 0.5, probability, other)
            slope = wrong * wrong * (2.0 * right * loss + wrong)
        gradient += tl.load(of_slice) * slope * (1.0 - 2.0 * mask)
    if HAS_REGION:
        of_probability = tl.load(of_slice + slices) * mask + tl.load(of_slice + 2 * slices)
        gradient += of_probability * probability * other
    if HAS_COUNTED:
        gradient *= tl.load(counted + place, mask=valid, other=0.0)
    tl.store(of_logits + place, gradient, mask=valid)
