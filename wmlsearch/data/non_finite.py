"""Voxels that are NaN or infinite: background where they reach the border of the volume, else a fault.

Masked images (SPM, fMRIPrep, HD-BET) often hold NaN outside the brain. Images masked by a threshold hold it in
dark tissue, too: with `--nan-background` it is background wherever it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from wmlsearch.data.findings import Finding
from wmlsearch.data.head_detection import find_head
from wmlsearch.data.sources import Source
from wmlsearch.data.stack import Array, VolumeFault
from wmlsearch.runs.wording import percent, plural

NAN_ADVICE = "give --nan-background if they are background"
FEW_LESION_VOXELS = 10  # and at most half of them: masks go a little beyond the brain
MASK_OF_LESIONS, MASK_OF_HEAD = 0.1, 0.1  # share of a mask's finite voxels; these as a share of the head
PIECE = 0.01  # share of the finite voxels: smaller pieces are no part of the head
# A slice with less of the head than this share of what slices on both sides of it have was cut. Brains without
# their surroundings, whose fissure is empty, have 0.4 to 1 (three scans, thresholds from low to too high).
CUT = 0.3
CLEARLY_NEGATIVE = 0.02  # share of the grey range: interpolation makes values that are slightly below 0


@dataclass(frozen=True)
class Cut:
    """Slices without much of the head, between others that have it."""

    axis: int
    first: int
    last: int


@dataclass(frozen=True)
class FilledVolume:
    """A volume whose background is finite, and what was there before."""

    voxels: Array  # float32, as given but for the background
    filled: int  # voxels that were filled
    level: float  # grey value with which they were filled
    enclosed: int  # voxels that are not finite and do not reach the border
    first_enclosed: tuple[int, ...] | None  # index of one of them
    cut: Cut | None  # where what was filled goes through the head

    @property
    def share(self) -> float:
        """Share of the volume that was filled."""
        return self.filled / self.voxels.size


def fill_background(voxels: Array, everywhere: bool = False) -> FilledVolume:
    """Return a volume in which non-finite voxels that reach its border have the grey value of the background.

    A voxel reaches the border through its 26 neighbours (8 in a 2-D picture). The background is 0, or the darkest grey
    where some are clearly below 0, as in an image whose mean is 0.

    Args:
        voxels: (i, j, k), or a picture (rows, columns). Unchanged, and returned as it is where all values are finite.
        everywhere: Fill those that do not reach the border, too.
    """
    missing = ~np.isfinite(voxels)
    if not missing.any():
        return FilledVolume(voxels, 0, 0.0, 0, None, None)
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
    filled[missing if everywhere else background] = level
    cut = find_cut(~missing) if voxels.ndim == 3 else None
    return FilledVolume(filled, int(background.sum()), level, count, first, cut)


def find_cut(finite: Array, axes: tuple[int, ...] = (0, 1, 2)) -> Cut | None:
    """Return where slices have much less of the head than slices on both sides of them.

    Args:
        finite: (i, j, k) bool: the head, as all else is NaN; or a head with air around it.
        axes: Axes along which slices are compared.
    """
    pieces, count = ndimage.label(finite)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    head = (sizes >= PIECE * sizes.sum())[pieces] & finite
    for axis in axes:
        area = head.sum(axis=tuple(other for other in range(head.ndim) if other != axis))
        on_both_sides = np.minimum(np.maximum.accumulate(area), np.maximum.accumulate(area[::-1])[::-1])
        if len(places := np.flatnonzero(area < CUT * on_both_sides)):
            return Cut(axis, int(places[0]), int(places[-1]))
    return None


def _darkest(values: Array) -> float:
    """Return 0, or the darkest of finite values where they go clearly below 0."""
    if not len(values):
        return 0.0
    low, high = (float(value) for value in np.percentile(values, (0.1, 99.9)))
    return low if low < -CLEARLY_NEGATIVE * max(high - low, 0) else 0.0


def enclosed_finding(filled: FilledVolume, where: str) -> list[Finding]:
    """Return a warning of voxels inside that were treated as background, as the user has asked for; else nothing."""
    if not filled.enclosed:
        return []
    text = (
        f"{plural(filled.enclosed, 'voxel')} inside {where}, not at its border, NaN or infinite: treated as "
        "background, as --nan-background says"
    )
    return [Finding("enclosed", text, plural(filled.enclosed, "voxel"), filled.enclosed)]


def check_filled_mask(with_value: int, marked: Array, pictures: Array) -> list[Finding]:
    """Return a warning if too few voxels of a mask have a value: those with one should be the lesions, or the head.

    Args:
        with_value: Voxels of the mask that are finite.
        marked: (n, rows, columns) bool: lesions and ignored voxels.
        pictures: The image, in the same shape.
    """
    if with_value == marked.size:
        return []
    left, share = int(marked.sum()), percent(with_value / marked.size)
    held = f"only {share} of the mask's voxels have a finite value"
    if not left:
        return [Finding("mask filled", f"{held}, and none of them is lesion; is the mask damaged?", share, 1.0)]
    if left >= MASK_OF_LESIONS * with_value or with_value >= MASK_OF_HEAD * find_head(pictures).pixels.sum():
        return []
    text = f"{held}, too many for the lesions and too few for the head; is the mask damaged?"
    return [Finding("mask filled", text, share, 1 - with_value / marked.size)]


def check_lesions_have_values(source: Source, lesion: Array, missing: Array, nan_background: bool) -> list[Finding]:
    """Return a warning of lesions where the image has no finite value.

    Args:
        source: The files, for their names.
        lesion: Lesion voxels of the mask, bool.
        missing: Voxels of the image that are not finite, bool, in the same shape.
        nan_background: Whether such voxels are background, wherever they are.

    Raises:
        VolumeFault: For more than a few lesion voxels of that kind, unless such voxels are background everywhere.
    """
    count, total = int((lesion & missing).sum()), int(lesion.sum())
    if not count:
        return []
    share = percent(count / total)
    held = f"{count} of {plural(total, 'lesion voxel')} ({share}) lie where the image is NaN or infinite"
    if (count > FEW_LESION_VOXELS or 2 * count > total) and not nan_background:
        raise VolumeFault(
            f"{source.name(source.image[0])}: {held}; the image is cut off, or the mask is of another scan: make the "
            f"image again, or {NAN_ADVICE}"
        )
    return [Finding("lesions without values", f"{held}; is the image cut off?", share, count / total)]
