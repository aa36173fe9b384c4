"""Padding: one grey value far below all others, such as -32768 around a head that goes from 0 to 700.

Scanners and programs mark so what was not measured. As the darkest grey it would leave a head few grey levels of 8 bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wmlsearch.data.findings import Finding
from wmlsearch.data.head_detection import sample_values
from wmlsearch.data.non_finite import CLEARLY_NEGATIVE
from wmlsearch.data.stack import Array
from wmlsearch.runs.wording import percent

FAR_BELOW = 3.0  # times the range of the other values: less than a quarter of the 8-bit levels would be left for them
RIM = 5.0  # percent of the others that interpolation at the rim of the padding may have made darker
DARKER = 0.2  # share of their range by which the darkest others may lie below that percentile
MIN_SHARE = 0.01  # of the voxels: fewer are specks


@dataclass(frozen=True)
class Padding:
    """What marks padding in a volume, and the background that is taken instead."""

    level: float  # grey value of the padding
    floor: float  # grey value that it counts as: 0, or about the darkest of the others where they go clearly below 0
    share: float  # of the voxels that hold the level

    @property
    def finding(self) -> Finding:
        """A note that says so."""
        share = percent(self.share)
        text = (
            f"{share} of the voxels hold {self.level:g}, far below all others: treated as padding, grey value "
            f"{self.floor:g}"
        )
        return Finding("padding", text, share, self.share)


def find_padding(voxels: Array) -> Padding | None:
    """Return the padding of a volume; None where it has none.

    It is the smallest value, below 0, and held by many voxels; to the others it is farther than `FAR_BELOW` times the
    range that they span. Values between, from interpolation at the rim of the padding, do not count.
    """
    level = float(voxels.min())
    if level >= 0:
        return None
    sample = sample_values(voxels).astype(np.float64)
    rest = sample[sample > (level + float(np.percentile(sample, 99.9))) / 2]
    share = float(np.mean(voxels == level))
    if share < MIN_SHARE or not len(rest):
        return None
    low, high = (float(value) for value in np.percentile(rest, (RIM, 99.9)))
    if not 0 < FAR_BELOW * (high - low) < low - level:
        return None
    is_negative = low < -CLEARLY_NEGATIVE * (high - low)
    return Padding(level, low - DARKER * (high - low) if is_negative else 0.0, share)
