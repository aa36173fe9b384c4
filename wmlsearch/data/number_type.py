"""Whether the whole numbers of a file have overflowed: values beyond the type's largest come back as its smallest."""

from __future__ import annotations

from typing import Any

import numpy as np

from wmlsearch.data.findings import Finding
from wmlsearch.data.stack import Array

NEAR_END = 0.75  # share of the type's range: values beyond it on both sides that are neighbours have wrapped
MIN_PAIRS = 10  # such neighbours; fewer may be noise


def check_number_type(image: Any, voxels: Array) -> list[Finding]:
    """Return whether bright voxels of a signed file have wrapped around to large negative values.

    Files that were scaled to the whole range of their type have a scale in their header, and are not meant.
    """
    dtype = image.get_data_dtype()
    slope, inter = image.dataobj.slope, image.dataobj.inter
    if dtype.kind != "i" or dtype.itemsize not in (2, 4) or (slope, inter) != (1, 0):
        return []
    low, high = NEAR_END * np.iinfo(dtype).min, NEAR_END * np.iinfo(dtype).max
    if voxels.min() >= low or voxels.max() <= high:
        return []
    bright, dark = voxels > high, voxels < low
    pairs = 0
    for axis in range(3):
        one, next_one = (np.moveaxis(array, axis, 0) for array in (bright, dark))
        pairs += int((one[1:] & next_one[:-1]).sum() + (one[:-1] & next_one[1:]).sum())
    if pairs < MIN_PAIRS:
        return []
    text = (
        f"{pairs} pairs of neighbouring voxels lie at opposite ends of the file's number type ({dtype}); did bright "
        "values overflow? Save the image again as float or unsigned"
    )
    return [Finding("wrapped", text, f"{pairs} pairs", pairs)]
