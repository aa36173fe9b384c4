"""How much a configuration computes, and which configurations stand for a search space."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from wmlsearch.config import TrialConfig
from wmlsearch.runs.names import PAPER
from wmlsearch.space import SearchSpace

# What takes time beside convolutions, measured on a CPU by benchmarks/recipe.py: multiply-adds of the baseline that
# take as long as the augmentation of a pixel (of a slice, and of each of its channels), and the time of a residual
# network for each of its multiply-adds.
MOVING_WORK, INTENSITY_WORK = (350, 50), (350, 850)
AUGMENTATION_WORK = {
    "none": (0, 0), "flip": MOVING_WORK, "affine": MOVING_WORK,
    "light": INTENSITY_WORK, "medium": INTENSITY_WORK, "strong": INTENSITY_WORK,
}  # fmt: skip
RESIDUAL_WORK = 1.2  # its shortcuts have few multiply-adds, but a normalisation each
SAMPLES = 200  # configurations drawn from a space to stand for its trials


def multiply_adds(config: TrialConfig, image_size: int) -> int:
    """Return the multiply-adds of a U-Net's convolutions in a forward pass of one image of `image_size` pixels a side.

    The network pads an image to a multiple of 2^depth.
    """
    multiple = 2**config.depth
    side = -(-image_size // multiple) * multiple
    total, channels_in = side**2 * config.base_channels, config.input_slices  # the last layer
    for level in range(config.depth + 1):
        pixels, channels = (side // 2**level) ** 2, config.base_channels * 2**level
        shortcut = int(config.network == "residual")  # a 1 x 1 convolution beside the two of a block
        total += pixels * (9 * (channels_in * channels + channels * channels) + shortcut * channels_in * channels)
        if level < config.depth:  # on the way up: a transposed convolution, then two on its result and the skip
            total += pixels * config.up_kernel**2 * channels * channels // 2
            total += pixels * (9 * (2 * channels * channels + channels * channels) + shortcut * 2 * channels * channels)
        channels_in = channels
    return total


def work(config: TrialConfig, image_size: int) -> int:
    """Return how many of the baseline's `multiply_adds` take as long as those of an image and all else of its step."""
    factor = RESIDUAL_WORK if config.network == "residual" else 1
    of_slice, of_channel = AUGMENTATION_WORK[config.augment]
    augmentation = (of_slice + of_channel * config.input_slices) * image_size**2
    return round(factor * multiply_adds(config, image_size) + augmentation)


def sample_configurations(space: SearchSpace, seed: int) -> tuple[TrialConfig, ...]:
    """Draw `SAMPLES` configurations from a space."""
    rng = np.random.default_rng(seed)
    return tuple(space.config(space.sample(rng)) for _ in range(SAMPLES))


def configurations_to_time(sample: Sequence[TrialConfig], image_size: int) -> dict[str, TrialConfig]:
    """Return the configuration of a sample with the smallest network, the baseline and that with the largest, by name.

    The size is the `work`. Of equal ones, the one whose batch size is nearest to the median.
    """
    median = statistics.median(config.batch_size for config in sample)

    def size(config: TrialConfig) -> int:
        return work(config, image_size)

    by_batch_size = sorted(sample, key=lambda config: abs(config.batch_size - median))
    return {
        "smallest": min(by_batch_size, key=size),
        PAPER: TrialConfig(),
        "largest": max(by_batch_size, key=size),
    }
