"""Triton kernels for what follows a convolution in training: normalisation, ReLU and dropout. See `kernels.py`.

Importing this module needs Triton. A tensor (N, C, H, W) in the memory format channels last is a matrix here: `sets`
times `rows` rows of C columns. Batch normalisation has one set of N * H * W rows, instance normalisation has N sets of
H * W rows. All arithmetic is float32, whatever the type in memory.

A reduction has two stages: each program writes what it knows of one part of the rows, and a second kernel combines the
parts in a fixed order. There are no atomics, so the same input gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Philox-4x32 passes all tests of BigCrush from 7 rounds on: Salmon et al., "Parallel random numbers: as easy as 1, 2,
# 3", SC 2011. One call gives 128 bits, so eight neighbouring channels of a row share it.
PHILOX_ROUNDS = tl.constexpr(7)


@triton.jit
def _columns(CHANNELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """Return the columns of a program, (1, BLOCK_CHANNELS), and which of them exist."""
    columns = (tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS))[None, :]
    return columns, columns < CHANNELS


@triton.jit
def _multipliers(
    seed,
    stream,
    rows,
    threshold,
    scale,
    CHANNELS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Return `scale` where an element is kept and 0 elsewhere, (BLOCK_ROWS, BLOCK_CHANNELS), for rows (BLOCK_ROWS, 1).

    It depends on the seed, the stream, the row and the column only, not on the sizes of blocks.
    """
    OCTETS: tl.constexpr = BLOCK_CHANNELS // 8
    octets = rows * tl.cdiv(CHANNELS, 8) + (tl.program_id(1) * OCTETS + tl.arange(0, OCTETS))[None, :]
    low, high = (octets & 0xFFFFFFFF).to(tl.uint32), (octets >> 32).to(tl.uint32)
    first, second, third, fourth = tl.philox(tl.load(seed), low, high, stream, 0, n_rounds=PHILOX_ROUNDS)
    words = tl.join(tl.join(first, third), tl.join(second, fourth))
    bits = tl.reshape(tl.join(words & 0xFFFF, words >> 16), (BLOCK_ROWS, BLOCK_CHANNELS)).to(tl.int32)
    return tl.where(bits >= threshold, scale, 0.0)


@triton.jit
def partial_statistics(
    x,
    part_means,
    part_squares,
    rows,
    rows_per_part,
    CHANNELS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Write mean and sum of squared deviations of each part's rows, (sets, parts, channels): Welford, then Chan.

    The grid is (parts, blocks of channels, sets).
    """
    part, one_set = tl.program_id(0), tl.program_id(2)
    columns, exists = _columns(CHANNELS, BLOCK_CHANNELS)
    first = part * rows_per_part
    last = tl.minimum(first + rows_per_part, rows)
    lanes = tl.arange(0, BLOCK_ROWS)[:, None]
    base = x + one_set.to(tl.int64) * rows * CHANNELS
    mean = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    squares = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    for start in range(first, last, BLOCK_ROWS):
        row = start + lanes
        valid = (row < last) & exists
        values = tl.load(base + row.to(tl.int64) * CHANNELS + columns, mask=valid, other=0.0).to(tl.float32)
        deviation = tl.where(valid, values - mean, 0.0)
        mean += deviation * (1.0 / ((start - first) // BLOCK_ROWS + 1).to(tl.float32))
        squares += deviation * (values - mean)
    counts = ((last - first - lanes + BLOCK_ROWS - 1) // BLOCK_ROWS).to(tl.float32)  # of each lane
    part_mean = tl.sum(mean * counts, 0, keep_dims=True) / (last - first).to(tl.float32)
    apart = mean - part_mean
    part_square = tl.sum(squares + counts * apart * apart, 0, keep_dims=True)
    place = (one_set.to(tl.int64) * tl.num_programs(0) + part) * CHANNELS + columns
    tl.store(part_means + place, part_mean, mask=exists)
    tl.store(part_squares + place, part_square, mask=exists)


@triton.jit
def finish_statistics(
    part_means,
    part_squares,
    means,
    inverses,
    running_mean,
    running_variance,
    parts,
    rows,
    rows_per_part,
    epsilon,
    momentum,
    CHANNELS: tl.constexpr,
    HAS_RUNNING: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Write mean and 1 / standard deviation, (sets, channels), and move the running statistics.

    The grid is (1, blocks of channels, sets); a program reads all parts at once.
    """
    one_set = tl.program_id(2)
    columns, exists = _columns(CHANNELS, BLOCK_CHANNELS)
    part = tl.arange(0, BLOCK_PARTS)[:, None]
    valid = (part < parts) & exists
    place = (one_set.to(tl.int64) * parts + part) * CHANNELS + columns
    counts = tl.where(part < parts, tl.minimum(rows - part * rows_per_part, rows_per_part), 0).to(tl.float32)
    part_mean = tl.load(part_means + place, mask=valid, other=0.0)
    part_square = tl.load(part_squares + place, mask=valid, other=0.0)
    mean = tl.sum(part_mean * counts, 0, keep_dims=True) / rows
    apart = part_mean - mean
    squares = tl.sum(part_square + counts * apart * apart, 0, keep_dims=True)
    to = one_set.to(tl.int64) * CHANNELS + columns
    tl.store(means + to, mean, mask=exists)
    tl.store(inverses + to, 1.0 / tl.sqrt(squares / rows + epsilon), mask=exists)
    if HAS_RUNNING:
        old_mean = tl.load(running_mean + columns, mask=exists)
        old_variance = tl.load(running_variance + columns, mask=exists)
        tl.store(running_mean + columns, (1.0 - momentum) * old_mean + momentum * mean, mask=exists)
        variance = squares / (rows - 1)  # unbiased, as torch's
        tl.store(running_variance + columns, (1.0 - momentum) * old_variance + momentum * variance, mask=exists)


@triton.jit
def _elements(rows, columns, exists, CHANNELS: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Return a program's rows among those of all sets, the places of its elements, and which elements there are."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    valid = (row < rows) & exists
    row = tl.program_id(2).to(tl.int64) * rows + row
    return row, row * CHANNELS + columns, valid


@triton.jit
def _normalisation(means, inverses, weight, bias, statistic, columns, exists):
    """Return mean, 1 / standard deviation, weight and bias of a program's channels, (1, BLOCK_CHANNELS) each."""
    mean = tl.load(means + statistic, mask=exists, other=0.0)
    inverse = tl.load(inverses + statistic, mask=exists, other=0.0)
    factor = tl.load(weight + columns, mask=exists, other=0.0)
    shift = tl.load(bias + columns, mask=exists, other=0.0)
    return mean, inverse, factor, shift


@triton.jit(do_not_specialize=["stream", "threshold"])
def normalise(
    x,
    result,
    means,
    inverses,
    weight,
    bias,
    seed,
    stream,
    threshold,
    scale,
    rows,
    CHANNELS: tl.constexpr,
    RELU: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Write dropout(relu(normalised x)). The grid is (blocks of rows, blocks of channels, sets)."""
    one_set = tl.program_id(2)
    columns, exists = _columns(CHANNELS, BLOCK_CHANNELS)
    row, place, valid = _elements(rows, columns, exists, CHANNELS, BLOCK_ROWS)
    statistic = one_set.to(tl.int64) * CHANNELS + columns
    mean, inverse, factor, shift = _normalisation(means, inverses, weight, bias, statistic, columns, exists)
    values = tl.load(x + place, mask=valid, other=0.0).to(tl.float32)
    values = (values - mean) * inverse * factor + shift
    if RELU:
        values = tl.where(values <= 0.0, 0.0, values)  # NaN stays NaN, as in torch
    if DROPOUT:
        values *= _multipliers(seed, stream, row, threshold, scale, CHANNELS, BLOCK_ROWS, BLOCK_CHANNELS)
    tl.store(result + place, values, mask=valid)


@triton.jit
def _gradient(
    gradient,
    normalised,
    factor,
    shift,
    seed,
    stream,
    threshold,
    scale,
    row,
    CHANNELS: tl.constexpr,
    RELU: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Return the gradient of the normalisation's result from that of the last result."""
    if DROPOUT:
        gradient *= _multipliers(seed, stream, row, threshold, scale, CHANNELS, BLOCK_ROWS, BLOCK_CHANNELS)
    if RELU:
        gradient = tl.where(normalised * factor + shift <= 0.0, 0.0, gradient)
    return gradient


@triton.jit(do_not_specialize=["stream", "threshold"])
def partial_gradients(
    x,
    gradients,
    part_sums,
    part_products,
    means,
    inverses,
    weight,
    bias,
    seed,
    stream,
    threshold,
    scale,
    rows,
    rows_per_part,
    CHANNELS: tl.constexpr,
    RELU: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Write each part's sum of gradients, and of gradients times normalised values: (sets, parts, channels).

    The grid is (parts, blocks of channels, sets).
    """
    part, one_set = tl.program_id(0), tl.program_id(2)
    columns, exists = _columns(CHANNELS, BLOCK_CHANNELS)
    statistic = one_set.to(tl.int64) * CHANNELS + columns
    mean, inverse, factor, shift = _normalisation(means, inverses, weight, bias, statistic, columns, exists)
    first = part * rows_per_part
    last = tl.minimum(first + rows_per_part, rows)
    lanes = tl.arange(0, BLOCK_ROWS)[:, None]
    sums = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    products = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    for start in range(first, last, BLOCK_ROWS):
        valid = (start + lanes < last) & exists
        row = one_set.to(tl.int64) * rows + start + lanes
        place = row * CHANNELS + columns
        normalised = (tl.load(x + place, mask=valid, other=0.0).to(tl.float32) - mean) * inverse
        gradient = tl.load(gradients + place, mask=valid, other=0.0).to(tl.float32)  # 0 adds nothing
        gradient = _gradient(
            gradient,
            normalised,
            factor,
            shift,
            seed,
            stream,
            threshold,
            scale,
            row,
            CHANNELS,
            RELU,
            DROPOUT,
            BLOCK_ROWS,
            BLOCK_CHANNELS,
        )
        sums += gradient
        products += gradient * normalised
    to = (one_set.to(tl.int64) * tl.num_programs(0) + part) * CHANNELS + columns
    tl.store(part_sums + to, tl.sum(sums, 0, keep_dims=True), mask=exists)
    tl.store(part_products + to, tl.sum(products, 0, keep_dims=True), mask=exists)


@triton.jit
def finish_gradients(
    part_sums,
    part_products,
    sums,
    products,
    parts,
    CHANNELS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Add the parts: (sets, channels). The grid is (1, blocks of channels, sets)."""
    one_set = tl.program_id(2)
    columns, exists = _columns(CHANNELS, BLOCK_CHANNELS)
    part = tl.arange(0, BLOCK_PARTS)[:, None]
    valid = (part < parts) & exists
    place = (one_set.to(tl.int64) * parts + part) * CHANNELS + columns
    to = one_set.to(tl.int64) * CHANNELS + columns
    of_parts = tl.load(part_sums + place, mask=valid, other=0.0)
    tl.store(sums + to, tl.sum(of_parts, 0, keep_dims=True), mask=exists)
    of_parts = tl.load(part_products + place, mask=valid, other=0.0)
    tl.store(products + to, tl.sum(of_parts, 0, keep_dims=True), mask=exists)


@triton.jit(do_not_specialize=["stream", "threshold"])
def input_gradients(
    x,
    gradients,
    result,
    means,
    inverses,
    weight,
    bias,
    sums,
    products,
    seed,
    stream,
    threshold,
    scale,
    rows,
    CHANNELS: tl.constexpr,
    RELU: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Write the gradient of x. The grid is (blocks of rows, blocks of channels, sets)."""
    one_set = tl.program_id(2)
    columns, exists = _columns(CHANNELS, BLOCK_CHANNELS)
    row, place, valid = _elements(rows, columns, exists, CHANNELS, BLOCK_ROWS)
    statistic = one_set.to(tl.int64) * CHANNELS + columns
    mean, inverse, factor, shift = _normalisation(means, inverses, weight, bias, statistic, columns, exists)
    total = tl.load(sums + statistic, mask=exists, other=0.0)
    product = tl.load(products + statistic, mask=exists, other=0.0)
    normalised = (tl.load(x + place, mask=valid, other=0.0).to(tl.float32) - mean) * inverse
    gradient = tl.load(gradients + place, mask=valid, other=0.0).to(tl.float32)
    gradient = _gradient(
        gradient,
        normalised,
        factor,
        shift,
        seed,
        stream,
        threshold,
        scale,
        row,
        CHANNELS,
        RELU,
        DROPOUT,
        BLOCK_ROWS,
        BLOCK_CHANNELS,
    )
    tl.store(result + place, (gradient - (total + normalised * product) / rows) * inverse * factor, mask=valid)
