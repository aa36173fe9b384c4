"""Read a volume, NIfTI or 2-D pictures, as upright slices."""

from __future__ import annotations

from wmlsearch.data.labels import MaskRule
from wmlsearch.data.nifti import load_nifti
from wmlsearch.data.pictures import load_pictures
from wmlsearch.data.sources import Source
from wmlsearch.data.stack import Stack


def load_volume(source: Source, axis: int | None, rule: MaskRule | None = None, nan_background: bool = False) -> Stack:
    """Return the slices and the mask of a source.

    Args:
        source: The volume's files.
        axis: Slicing axis in RAS+; None for 2-D pictures.
        rule: Which values of the mask are lesions; by default all but 0.
        nan_background: Whether voxels that are not finite are background wherever they are, not only at the border.

    Raises:
        VolumeFault: Where a file is unreadable, or image and mask do not fit together.
    """
    rule = rule or MaskRule()
    if axis is None:
        return load_pictures(source, rule, nan_background)
    return load_nifti(source, axis, rule, nan_background)
