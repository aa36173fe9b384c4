"""Voxels that are NaN or infinite: background where they reach the border of the volume, else a fault.

Masked images (SPM, fMRIPrep, HD-BET) often hold NaN outside the brain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from wmlsearch.data.stack import Array

CLEARLY_NEGATIVE = 0.02  # share of the grey range: interpolation makes values that are slightly below 0


@dataclass(frozen=True)
class FilledVolume:
    """A volume whose background is finite, and what was there before."""

    voxels: Array  # float32, as given but for the background
    filled: int  # voxels that were filled
    level: float  # grey value with which they were filled
    enclosed: int  # voxels that are not finite and do not reach the border
    first_enclosed: tuple[int, ...] | None  # index of one of them

    @property
    def share(self) -> float:
        """Share of the volume that was filled."""
        return self.filled / self.voxels.size


def fill_background(voxels: Array) -> FilledVolume:
    """Return a volume in which non-finite voxels that reach its border have the grey value of the background.

    A voxel reaches the border through its 26 neighbours (8 in a 2-D picture). The background is 0, or the darkest grey
    where some are clearly below 0, as in an image whose mean is 0.

    Args:
        voxels: (i, j, k), or a picture (rows, columns). Unchanged, and returned as it is where all values are finite.
    """
    missing = ~np.isfinite(voxels)
    if not missing.any():
        return FilledVolume(voxels, 0, 0.0, 0, None)
    labels, _ = ndimage.label(missing, np.ones((3,) * voxels.ndim))
    at_border = np.zeros(labels.max() + 1, bool)
    for axis in range(voxels.ndim):
        for end in (0, -1):
            at_border[labels.take(end, axis)] = True
    at_border[0] = False
    background = at_border[labels]
    enclosed = missing & ~background
    count = int(enclosed.sum())
    first = tuple(int(n) for n in np.unravel_index(int(enclosed.argmax()), enclosed.shape)) if count else None
    level = _darkest(voxels[~missing])
    filled = voxels.copy()
    filled[background] = level
    return FilledVolume(filled, int(background.sum()), level, count, first)


def _darkest(values: Array) -> float:
    """Return 0, or the darkest of finite values where they go clearly below 0."""
    if not len(values):
        return 0.0
    low, high = (float(value) for value in np.percentile(values, (0.1, 99.9)))
    return low if low < -CLEARLY_NEGATIVE * max(high - low, 0) else 0.0
