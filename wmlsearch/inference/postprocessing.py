"""What a model does with its predictions beside the threshold: mirror averaging, and removing small lesions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from wmlsearch.data.stack import Array


@dataclass(frozen=True)
class Postprocessing:
    """The part of a model that is chosen after its training (`inference/postprocessing_choice.py`)."""

    mirror_averaging: bool = False  # average the prediction with that of the head mirrored from left to right
    smallest_lesion_mm3: float = 0.0  # predicted lesions of a smaller volume are removed; 0 removes none

    def __bool__(self) -> bool:
        """Whether the model does more than to compare with its threshold."""
        return self.mirror_averaging or self.smallest_lesion_mm3 > 0

    def __str__(self) -> str:
        """Return what is done in words, "nothing" where nothing is."""
        parts = ["averaged with the mirrored head"] if self.mirror_averaging else []
        parts += [f"lesions below {self.smallest_lesion_mm3:g} mm3 removed"] if self.smallest_lesion_mm3 else []
        return ", ".join(parts) or "nothing"

    def finish(self, mask: Array, voxel_ml: float | None) -> Array:
        """Return a mask of predicted lesions (i, j, k) without those that are too small, in its own type.

        Args:
            mask: Mask of a whole volume; lesion where not 0.
            voxel_ml: Volume of a voxel in ml. None: 2-D pictures, from which nothing is removed.
        """
        if not self.smallest_lesion_mm3 or voxel_ml is None:
            return mask
        return without_small_lesions(mask, self.smallest_lesion_mm3, voxel_ml)


NO_POSTPROCESSING = Postprocessing()


def without_small_lesions(mask: Array, smallest_mm3: float, voxel_ml: float) -> Array:
    """Return a mask (i, j, k) without the lesions whose volume is below `smallest_mm3`, in its own type.

    `voxel_ml` is the volume of a voxel, in ml.
    """
    labels, count = label_lesions(mask)
    volumes = np.bincount(labels.ravel(), minlength=count + 1) * (1000 * voxel_ml)
    kept = volumes >= smallest_mm3 * (1 - 1e-9)  # a lesion of exactly this volume stays, whatever the rounding
    kept[0] = False
    return np.asarray(np.where(kept[labels], mask, 0).astype(mask.dtype))


def label_lesions(mask: Array) -> tuple[Array, int]:
    """Number the lesions of a mask: components of full connectivity (26 neighbours in a volume, 8 in a slice).

    Args:
        mask: (i, j, k) or (rows, columns); lesion where not 0.

    Returns:
        The lesion number of each voxel, int32 of the mask's shape, 0 for background; and the number of lesions.
    """
    labels = np.zeros(mask.shape, np.int32)
    count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim), output=labels)
    return labels, int(count)
