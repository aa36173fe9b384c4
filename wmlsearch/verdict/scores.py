"""Scores of a pair of masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage


def label_lesions(mask: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], int]:
    """Number the lesions of a 2-D or 3-D mask: labels (int32), and how many. Pixels that touch at a corner are one."""
    labels, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return labels.astype(np.int32, copy=False), int(count)
