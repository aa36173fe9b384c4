"""The grey values of the head in prepared slices, by which z-scores are computed."""

from __future__ import annotations

from wmlsearch.data.manifest import Manifest


def has_head_grey(manifest: Manifest) -> bool:
    """Whether the data record the grey values of the head in each volume: those of older versions do not."""
    return all(volume.head_grey for volume in manifest.volumes)


def slice_head_grey(manifest: Manifest) -> list[tuple[float, float]]:
    """Return mean and standard deviation of the head's grey values in the volume (in the picture) of each slice.

    Raises ValueError for data that do not record them: see `has_head_grey`.
    """
    if not has_head_grey(manifest):
        raise ValueError("the data do not record the grey values of the head")
    places = (0 if manifest.axis is not None else row.index for row in manifest.slices)
    return [manifest.volumes[row.volume].head_grey[place] for row, place in zip(manifest.slices, places, strict=True)]
