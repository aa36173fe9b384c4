"""The grey values of the head in prepared slices, by which z-scores are computed: as recorded, or measured again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from wmlsearch.data.head_detection import find_head, head_grey
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.stack import Array


def head_grey_of_stored(images: Array) -> tuple[float, float]:
    """Return mean and standard deviation of the head in prepared slices (n, S, S), for data that do not record them."""
    return head_grey(images, find_head(images).pixels, 0.0, 255.0)


def slice_head_grey(manifest: Manifest, read: Callable[[Sequence[int]], Array]) -> list[tuple[float, float]]:
    """Return mean and standard deviation of the head's grey values in the volume (in the picture) of each slice.

    Data of older versions do not record them: then they are those of the volume's stored slices.

    Args:
        manifest: N slices.
        read: Returns the images of some rows, (n, S, S) uint8. Only asked where the data are old.
    """
    rows_of: dict[tuple[int, int], list[int]] = defaultdict(list)  # by volume, and by picture
    for number, row in enumerate(manifest.slices):
        rows_of[row.volume, row.index if manifest.axis is None else 0].append(number)
    levels = [(0.0, 0.0)] * len(manifest.slices)
    for (volume, picture), rows in rows_of.items():
        recorded = manifest.volumes[volume].head_grey
        level = recorded[picture] if recorded else head_grey_of_stored(read(rows))
        for number in rows:
            levels[number] = level
    return levels
