"""Whether a mask can be a mask of the lesions in its image: its size, its place, and how bright the image is there.

White matter lesions are brighter than the tissue around them on FLAIR. `Fit` is how much brighter they are, in standard
deviations of the head's grey values. A mask that is turned over, moved, or of another scan fits badly; where it was
turned over or moved it fits well once that is undone. Limits by measurement: on three expert masks (Lesjak et al. 2017)
and 12 phantoms the fit was 1.0 to 1.7, of their mirror images and of other patients' masks -0.7 to 0.7.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

from wmlsearch.data.findings import Finding
from wmlsearch.data.stack import Array
from wmlsearch.runs.wording import percent, plural

WHOLE_HEAD, LARGE = 0.5, 0.1  # shares of the head; the largest known lesion loads are below a tenth of the brain
OUTSIDE = 0.1  # share of the lesions
INVERTED = 0.5  # share of what is outside the head
MIN_VOXELS = 10  # of lesion: the fit of fewer is a matter of chance
DARK, DARK_FEW = 0.4, 0.2  # fit below which lesions are not brighter than their surroundings, and where they are few
FEW_VOXELS, FEW_LESIONS = 100, 3  # fewer of both: somewhere else is a brighter place by chance
MIN_TURNED_FIT, MIN_MOVED_FIT = 0.5, 0.8  # fit that a mask must have once that is undone: moves are many
TURNED_FACTOR, MOVED_FACTOR = 1.5, 1.1  # by which it must then be better than as it is
NEAR = 3  # voxels: lesions that are bright where they are find a brighter place farther away by chance
FAR = 20  # voxels along each axis by which a mask may have been moved, at most a quarter of the volume
RING = (1, 3)  # pixels: the surroundings of a lesion, within its slice
SAMPLES = 20_000  # voxels of lesion, and of surroundings, from which a fit is taken
MAX_TRANSFORM = 2**22  # voxels of a Fourier transform, which takes 24 bytes each
MIN_SLICES = 8  # of lesions in a transform

PICTURE_AXES = ("in the order of its slices", "top to bottom", "left to right")
RAS_AXES = ("left to right", "front to back", "top to bottom")


def check_mask(
    pictures: Array, lesion: Array, head: Array, axis: int | None, ignored: Array | None = None
) -> list[Finding]:
    """Return what is doubtful about a mask.

    Args:
        pictures: (n, rows, columns), upright slices.
        lesion: The same shape, bool.
        head: The same shape, bool; holes count as head.
        axis: Slicing axis in RAS+; None for 2-D pictures.
        ignored: Ignored voxels, which do not count as surroundings of a lesion, bool, in the same shape. None: nothing
            is ignored.
    """
    voxels = int(lesion.sum())
    if not voxels:
        return []
    inside = _without_holes(head, lesion)
    findings = _check_size(lesion, inside, voxels)
    if voxels >= MIN_VOXELS and all(finding.kind == "outside" for finding in findings):
        findings += _check_fit(_Masked(pictures, lesion, inside, ignored), axis)
    return findings


def is_image(pictures: Array, lesion: Array) -> bool:
    """Whether the image is the mask: it has two grey values, and the brighter one is where the lesions are."""
    low, high = pictures.min(), pictures.max()
    return bool(low < high and np.array_equal(pictures == high, lesion) and (pictures[~lesion] == low).all())


def _without_holes(head: Array, lesion: Array) -> Array:
    """Return the head with the holes filled of those slices in which lesions lie outside it."""
    slices = np.flatnonzero((lesion & ~head).any(axis=(1, 2)))
    if not len(slices):
        return head
    head = head.copy()
    for index in slices:
        head[index] = ndimage.binary_fill_holes(head[index])
    return head


def _check_size(lesion: Array, head: Array, voxels: int) -> list[Finding]:
    """Return what the mask's share of the head, and of what is outside it, tells."""
    head_voxels = int(head.sum())
    in_head = int((lesion & head).sum())
    outside, air = voxels - in_head, head.size - head_voxels
    share = in_head / max(1, head_voxels)
    of_outside = outside / voxels
    if air and outside / air >= INVERTED:
        text = (
            f"the mask covers {percent(outside / air)} of the space outside the head and {percent(share)} of the "
            "head; is it inverted, with 1 for background?"
        )
        return [Finding("inverted", text, percent(outside / air), outside / air)]
    if share >= WHOLE_HEAD:
        text = (
            f"the mask covers {percent(share)} of the head, as no lesions do; is it a mask of the head or the brain, "
            "or of all tissue?"
        )
        return [Finding("whole head", text, percent(share), share)]
    findings = []
    if of_outside >= OUTSIDE:
        text = f"{percent(of_outside)} of the mask lies outside the head; is it moved, or of another scan?"
        findings.append(Finding("outside", text, percent(of_outside), of_outside))
    if share >= LARGE:
        text = f"the mask covers {percent(share)} of the head, which lesions hardly do; is it a mask of lesions?"
        findings.append(Finding("large", text, percent(share), share))
    return findings


# ---------------------------------------------------------------------------------------------------------------- fit


@dataclass(frozen=True)
class _Change:
    """A way in which a mask may have come off its image, and the fit once it is undone."""

    fit: float
    words: str  # "turned over left to right"


class _Masked:
    """An image with a mask, and what is around each lesion."""

    def __init__(self, pictures: Array, lesion: Array, head: Array, ignored: Array | None = None) -> None:
        self.pictures = pictures
        self.lesion = lesion
        self.ring = _ring(lesion)
        if ignored is not None:
            self.ring &= ~ignored
        sample = pictures[head] if head.any() else pictures
        self.deviation = float(sample[:: sample.size // 1_000_000 | 1].std()) or 1.0
        self._lesion_at, self._ring_at = _sample_of(lesion), _sample_of(self.ring)

    def fit(self, flips: tuple[bool, ...] = (False,) * 3, order: tuple[int, ...] = (0, 1, 2)) -> float:
        """Return the fit of the mask, with axes flipped and then brought into another order."""
        means = [float(self.pictures[self._turned(at, flips, order)].mean()) for at in (self._lesion_at, self._ring_at)]
        return (means[0] - means[1]) / self.deviation

    def _turned(self, at: Array, flips: tuple[bool, ...], order: tuple[int, ...]) -> tuple[Array, ...]:
        lengths = self.pictures.shape
        rows = [lengths[axis] - 1 - at[axis] if flips[axis] else at[axis] for axis in range(3)]
        return tuple(rows[axis] for axis in order)

    def has_few_lesions(self) -> bool:
        """Whether the lesions are so small and few that somewhere else is a brighter place by chance."""
        if int(self.lesion.sum()) >= FEW_VOXELS:
            return False
        box = tuple(_span(self.lesion, axis, 0) for axis in range(3))
        return int(ndimage.label(self.lesion[box], np.ones((3, 3, 3)))[1]) < FEW_LESIONS

    def best_move(self, reach: int) -> tuple[float, tuple[int, ...]]:
        """Return the best fit of the mask moved by whole voxels along each axis, and the move. (0, 0, 0): as it is.

        Args:
            reach: The farthest move along each axis, which is at most a quarter of the volume.
        """
        far = tuple(min(reach, n // 4) for n in self.pictures.shape)
        correlation = np.zeros([2 * steps + 1 for steps in far], np.float32)
        for part in self._parts(far):
            correlation += self._correlation(part, far)
        place = np.unravel_index(int(correlation.argmax()), correlation.shape)
        move = tuple(int(i) - steps for i, steps in zip(place, far, strict=True))
        return float(correlation[place]) / self.deviation, move

    def _parts(self, far: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
        """Yield the box of the lesions and their surroundings in parts whose transforms are small."""
        box = tuple(
            slice(span.start, min(span.stop, n))
            for span, n in zip((_span(self.lesion, axis, RING[1]) for axis in range(3)), self.lesion.shape, strict=True)
        )
        rows, columns = (span.stop - span.start + 2 * steps for span, steps in zip(box[1:], far[1:], strict=True))
        slices = max(MIN_SLICES, MAX_TRANSFORM // (rows * columns) - 2 * far[0])
        for first in range(box[0].start, box[0].stop, slices):
            yield slice(first, min(first + slices, box[0].stop)), *box[1:]

    def _correlation(self, part: tuple[slice, ...], far: tuple[int, ...]) -> Array:
        """Return the contrast of the lesions of a part with their surroundings for each move, (2 far + 1, ...)."""
        kernel = self.lesion[part] / np.float32(self.lesion.sum()) - self.ring[part] / np.float32(self.ring.sum())
        around, beyond = [], []
        for span, steps, n in zip(part, far, self.pictures.shape, strict=True):
            start, stop = span.start - steps, span.stop + steps
            around.append(slice(max(0, start), min(n, stop)))
            beyond.append((max(0, -start), max(0, stop - n)))
        pictures = np.pad(self.pictures[tuple(around)], beyond, mode="edge")
        size = [fft.next_fast_len(n, real=True) for n in pictures.shape]
        spectrum = fft.rfftn(pictures, size) * np.conj(fft.rfftn(kernel, size))
        # A kernel at the start of its box, `far` voxels into the pictures: no move is read from the other end.
        return np.asarray(fft.irfftn(spectrum, size)[tuple(slice(2 * steps + 1) for steps in far)], np.float32)

    def may_be_moved(self, fit: float) -> bool:
        """Whether a move by one voxel fits better: a quick test, as the best move takes long."""
        for axis, step in itertools.product(range(3), (-1, 1)):
            moved = [self._moved(at, axis, step) for at in (self._lesion_at, self._ring_at)]
            if (self.pictures[moved[0]].mean() - self.pictures[moved[1]].mean()) / self.deviation > fit:
                return True
        return False

    def _moved(self, at: Array, axis: int, step: int) -> tuple[Array, ...]:
        rows = [row + step if i == axis else row for i, row in enumerate(at)]
        return tuple(np.clip(row, 0, n - 1) for row, n in zip(rows, self.pictures.shape, strict=True))


def _check_fit(masked: _Masked, axis: int | None) -> list[Finding]:
    """Return whether the lesions are brighter than their surroundings, and if not, how the mask would fit."""
    if masked.ring.sum() < MIN_VOXELS:
        return []
    fit, few = masked.fit(), masked.has_few_lesions()
    if few and fit >= DARK_FEW:
        return []
    turned = max(_turned_fits(masked, axis), key=lambda change: change.fit)
    now = f"the lesions are {_brightness(fit)} than their surroundings"
    moved_fit, move = fit, tuple[int, ...]()
    if fit < MIN_MOVED_FIT or masked.may_be_moved(fit):
        moved_fit, move = masked.best_move(FAR if fit < DARK else NEAR)
        if fit >= DARK and max(map(abs, move)) == NEAR and _fits_moved(moved_fit, fit):  # the best may lie beyond
            moved_fit, move = masked.best_move(FAR)
    if turned.fit >= max(MIN_TURNED_FIT, TURNED_FACTOR * fit, moved_fit):
        text = (
            f"{now}, but {_brightness(turned.fit)} where the mask is {turned.words}; is the mask, or a header, flipped?"
        )
        return [Finding("flipped", text, f"{fit:.2g} to {turned.fit:.2g}", turned.fit - fit)]
    is_near = max(map(abs, move), default=0) <= NEAR
    if any(move) and (is_near or not few) and _fits_moved(moved_fit, fit):
        text = (
            f"{now}, but {_brightness(moved_fit)} where the mask is moved by {_move_words(move, axis)}; "
            "is it on another grid, or of another scan?"
        )
        return [Finding("moved", text, f"{fit:.2g} to {moved_fit:.2g}", moved_fit - fit)]
    if fit < DARK:
        text = f"{now}; is the mask of another scan, and the image a FLAIR?"
        return [Finding("dark", text, f"{fit:.2g}", -fit)]
    return []


def _fits_moved(moved_fit: float, fit: float) -> bool:
    return moved_fit >= max(MIN_MOVED_FIT, MOVED_FACTOR * fit)


def _turned_fits(masked: _Masked, axis: int | None) -> Iterator[_Change]:
    """Yield the fit of the mask for each way to flip and exchange axes that keeps its shape."""
    shape = masked.pictures.shape
    names = _axis_names(axis)
    for order in itertools.permutations(range(3)):
        if tuple(shape[axis] for axis in order) != shape:
            continue
        for flips in itertools.product((False, True), repeat=3):
            if order == (0, 1, 2) and not any(flips):
                continue
            words = [f"turned over {' and '.join(names[i] for i in range(3) if flips[i])}"] if any(flips) else []
            if order != (0, 1, 2):
                words.append(f"with axes exchanged ({', '.join(names[i] for i in range(3) if order[i] != i)})")
            yield _Change(masked.fit(flips, order), " and ".join(words))


def _axis_names(axis: int | None) -> tuple[str, ...]:
    """Return the directions of the axes of upright slices (n, rows, columns)."""
    if axis is None:
        return PICTURE_AXES
    return tuple(RAS_AXES[ras] for ras in (axis, *(ras for ras in (2, 1, 0) if ras != axis)))


def _move_words(move: tuple[int, ...], axis: int | None) -> str:
    names = _axis_names(axis)
    return ", ".join(f"{plural(abs(step), 'voxel')} {names[i]}" for i, step in enumerate(move) if step)


def _ring(lesion: Array) -> Array:
    """Return what is around the lesions, bool: pixels of the same slice that are near, but not next to them."""
    box = tuple(_span(lesion, axis, RING[1] + 1) for axis in range(3))
    ring = np.zeros_like(lesion)
    part = lesion[box]
    near, far = (ndimage.binary_dilation(part, _WITHIN_SLICE, steps) for steps in RING)
    ring[box] = far & ~near
    return ring


_WITHIN_SLICE = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool)


def _span(lesion: Array, axis: int, margin: int) -> slice:
    """Return where along an axis the lesions are, and `margin` more."""
    places = np.flatnonzero(lesion.any(axis=tuple(i for i in range(3) if i != axis)))
    return slice(max(0, int(places[0]) - margin), int(places[-1]) + 1 + margin)


def _sample_of(mask: Array) -> Array:
    """Return indices (3, m) of voxels of the mask, evenly spread over it."""
    at = np.array(np.nonzero(mask))
    return at[:, :: max(1, at.shape[1] // SAMPLES)]


def _brightness(fit: float) -> str:
    return f"{abs(fit):.2g} standard deviations {'brighter' if fit >= 0 else 'darker'}"
