"""NIfTI files that tests read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np


def voxels(path: Path) -> np.ndarray:
    """Return the voxels as stored."""
    image: Any = nib.load(path)
    return np.array(image.dataobj[...])
