"""Raw FLAIR images and lesion masks to checked, cropped, scaled slices, and back onto the input's own grid.

A volume is turned to the closest RAS+ orientation and seen as a stack of pictures `(n, rows, columns)`, upright as
radiologists see them: anterior up in axial, superior up and anterior left in sagittal, superior up in coronal pictures;
the patient's right is on the left. Pictures are brought to one in-plane spacing, and a square window is cut out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform
from PIL import Image

from wmlsearch.config import InputError
from wmlsearch.data.reading import Array, Fault, load, upright, voxel_edges
from wmlsearch.data.sources import Source, discover

__all__ = [
    "PLANES", "Cut", "Facts", "Source", "VolumeGeometry",
    "as_pictures", "choose_axis", "cut", "discover", "examine", "plan", "restore", "voxel_edges",
]  # fmt: skip

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}
THICK = 1.25  # slices are thick when a volume's longest voxel edge is longer than this times the next longest
SAME_SPACING = 0.01  # relative: spacings closer than this are not resampled
HEAD = 0.1  # a pixel belongs to the head when it differs from the background by more than this share of the range
MARGIN = 0.02  # `fit="resize"` leaves this share of the head's size free on each side


@dataclass(frozen=True)
class Facts:
    """What `examine` saw in one volume. Lengths in mm (None for 2-D pictures), positions in pixels of the pictures."""

    shape: tuple[int, int, int]  # of the input as stored; (pictures, rows, columns) for 2-D pictures
    orientation: str  # of the input's axes, such as "LAS"; "" for 2-D pictures
    voxel_mm: tuple[float, ...] | None  # along the input's axes
    axis: int | None  # the slicing axis in RAS+
    picture: tuple[int, int]  # rows, columns
    picture_mm: tuple[float, float] | None  # of a pixel, down and across
    box: tuple[int, int, int, int]  # the head: top, left, bottom, right (the last two exclusive)
    background: float  # grey value around the head
    low: float  # grey value that becomes 0
    high: float  # grey value that becomes 255
    head: tuple[int, ...]  # pixels of head per slice
    lesion: tuple[int, ...]  # pixels of lesion per slice, before anything is cut or resampled


@dataclass(frozen=True)
class VolumeGeometry:
    """How one volume's slices are cut, and all that `restore` needs to put them back."""

    patient: str
    timepoint: str
    images: tuple[str, ...]  # one NIfTI or the pictures in order, relative to the raw data's root
    masks: tuple[str, ...]
    shape: tuple[int, int, int]
    orientation: str
    voxel_mm: tuple[float, ...] | None
    axis: int | None
    picture: tuple[int, int]
    resampled: tuple[int, int]  # rows, columns after resampling; equal to `picture` where nothing is resampled
    spacing_mm: float | None  # of a pixel that is cut
    window: tuple[int, int]  # top, left of the size x size window in the resampled picture; may be negative
    size: int
    low: float
    high: float
    background: float
    lost_lesion_pixels: int = 0  # lesion pixels (resampled) outside the window

    @property
    def source(self) -> str:
        """The volume's image, or its first picture."""
        return self.images[0]

    @property
    def picture_mm(self) -> tuple[float, float] | None:
        """Of a pixel of the upright pictures, down and across; None for 2-D pictures."""
        if self.axis is None or self.voxel_mm is None:
            return None
        down, across = (self.voxel_mm[_input_axis(self, ras)] for ras in (2, 1, 0) if ras != self.axis)
        return down, across

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels after resampling per input pixel, down and across."""
        return self.resampled[0] / self.picture[0], self.resampled[1] / self.picture[1]


@dataclass(frozen=True)
class Cut:
    """Slices of one volume: images and masks (0/1), (k, size, size) uint8; lesion pixels each has lost, (k,)."""

    images: Array
    masks: Array
    lost: Array


# ------------------------------------------------------------------------------------------------- choosing the plane


def choose_axis(edges: Mapping[str, tuple[float, float, float]], plane: str | None) -> tuple[str, int]:
    """The plane and slicing axis (in RAS+) for volumes with these voxel edges (mm), by file name.

    None means native for thick slices (along the longest voxel edge), sagittal for isotropic volumes. Raises InputError
    where native makes no sense, or the volumes don't agree.
    """
    if plane in PLANES:
        return plane, PLANES[plane]
    thick = {name: sorted(e)[2] > THICK * sorted(e)[1] for name, e in edges.items()}
    shown = {name: f"{name}: {' x '.join(f'{edge:.4g}' for edge in e)} mm" for name, e in edges.items()}
    if plane == "native" and not all(thick.values()):
        raise InputError(
            f"--plane native needs thick slices, one voxel edge longer than {THICK} x the next longest; "
            "give --plane sagittal, axial or coronal",
            [text for name, text in shown.items() if not thick[name]],
        )
    if not any(thick.values()):
        return "sagittal", 0
    if not all(thick.values()):
        raise InputError(
            "thick and isotropic volumes are mixed; give --plane sagittal, axial or coronal",
            [f"{text} ({'thick slices' if thick[name] else 'isotropic'})" for name, text in shown.items()],
        )
    axes = {name: int(np.argmax(e)) for name, e in edges.items()}
    if len(set(axes.values())) > 1:
        names = list(PLANES)
        raise InputError(
            "the volumes have thick slices in different planes; give --plane sagittal, axial or coronal",
            [f"{text} ({names[axes[name]]})" for name, text in shown.items()],
        )
    return "native", next(iter(axes.values()))


# ------------------------------------------------------------------------------------------------ reading and checking


def examine(source: Source, axis: int | None, mask_threshold: float | None = None) -> tuple[Facts | None, list[str]]:
    """Read a volume along `axis` (None for 2-D pictures) and check it: its facts, or what is wrong with it."""
    try:
        stack = load(source, axis, mask_threshold)
        finite = np.isfinite(stack.pictures)
        name = source.name(source.image[0])
        if not finite.all():
            count = finite.size - int(finite.sum())
            raise Fault(
                f"{name}: every voxel must be a finite number, but {count} are NaN or infinite; correct the image"
            )
        if stack.pictures.min() == stack.pictures.max():
            raise Fault(
                f"{name}: the FLAIR is empty, every voxel is {stack.pictures.flat[0]:g}; leave it out or replace it"
            )
    except Fault as fault:
        return None, list(fault.lines)
    box, background, head, low, high = _find_head(stack.pictures)
    lesion = stack.mask.sum(axis=(1, 2)) if stack.mask is not None else np.zeros(len(head))
    facts = Facts(
        shape=stack.shape,
        orientation=stack.orientation,
        voxel_mm=stack.voxel_mm,
        axis=axis,
        picture=(stack.pictures.shape[1], stack.pictures.shape[2]),
        picture_mm=stack.pixel_mm,
        box=box,
        background=background,
        low=0.0 if stack.grey8 else low,
        high=255.0 if stack.grey8 else high,
        head=tuple(int(n) for n in head),
        lesion=tuple(int(n) for n in lesion),
    )
    return facts, []


# --------------------------------------------------------------------------------------------------- finding the head


Box = tuple[int, int, int, int]


def _find_head(stack: Array) -> tuple[Box, float, Array, float, float]:
    """The head's box over all slices, the grey around it, the head's area per slice, and the grey range (low, high).

    A black picture in a white frame takes a second round, inside the frame. Where the border is neither dark nor bright
    the whole picture counts as head.
    """
    box: Box = (0, 0, stack.shape[1], stack.shape[2])
    background, white, head, inner = 0.0, False, None, stack
    while (found := _background(inner)) is not None and (head is None or found[1] != white):
        background, white, ref = found
        head = np.abs(inner - background) > HEAD * ref
        rows, columns = head.sum(axis=2).max(axis=0), head.sum(axis=1).max(axis=0)
        ys = np.flatnonzero(rows >= max(2, 0.01 * len(columns)))
        xs = np.flatnonzero(columns >= max(2, 0.01 * len(rows)))
        if not len(ys) or not len(xs):  # specks only
            break
        top, left, bottom, right = int(ys[0]), int(xs[0]), int(ys[-1]) + 1, int(xs[-1]) + 1
        head, inner = head[:, top:bottom, left:right], inner[:, top:bottom, left:right]
        box = (box[0] + top, box[1] + left, box[0] + bottom, box[1] + right)
        if not white:  # a black picture may lie in a white frame, not the other way round
            break
    if head is None:
        low, high = (float(v) for v in np.percentile(_sample(stack), (0.1, 99.9)))
        background, head = low, np.ones_like(stack, dtype=bool)
    else:
        voxels = inner[head]
        high = float(np.percentile(voxels, 99.9))
        low = float(np.percentile(voxels, 0.1)) if white else background
    if high <= low:
        low, high = float(stack.min()), float(stack.max())
    return box, background, head.sum(axis=(1, 2)), low, high


def _background(pictures: Array) -> tuple[float, bool, float] | None:
    """The border's grey, whether it is white rather than black, and how far the brightest of the rest is from it.

    None where the border is not mostly of one grey near the darkest or the brightest.
    """
    low, high = np.percentile(_sample(pictures), (0.1, 99.9))
    if high <= low:
        low, high = pictures.min(), pictures.max()
    edge = np.concatenate([pictures[:, (0, -1), :].ravel(), pictures[:, :, (0, -1)].ravel()])
    level = float(np.median(edge))
    if high <= low or 0.25 < (level - low) / (high - low) < 0.75:
        return None
    if np.mean(np.abs(edge - level) <= HEAD * (high - low)) < 0.5:
        return None
    apart = np.abs(_sample(pictures) - level)
    if not (apart > 0).any():
        apart = np.abs(pictures - level)
    return level, bool(level - low > high - level), float(np.percentile(apart[apart > 0], 99))


def _sample(array: Array, most: int = 2_000_000) -> Array:
    """About `most` of the values, evenly spread (the step is odd, so that it doesn't run along a column)."""
    flat = array.ravel()
    return flat[:: (flat.size // most) | 1]


# --------------------------------------------------------------------------------------------- cutting, and the inverse


def plan(source: Source, facts: Facts, size: int, fit: str, spacing_mm: float | None) -> VolumeGeometry:
    """Where a volume's slices are cut: a size x size window centred on the head's box.

    `fit="crop"` brings the pixels to `spacing_mm`; `fit="resize"` scales the head's box, made square, to the window.
    """
    rows, columns = facts.picture
    down, across = facts.picture_mm or (1.0, 1.0)
    top, left, bottom, right = facts.box
    pixel = spacing_mm or 1.0
    if fit == "resize":
        side = max((bottom - top) * down, (right - left) * across) * (1 + 2 * MARGIN)
        pixel = max(side, 0.125 * max(rows * down, columns * across)) / size
    new_rows = rows if abs(down / pixel - 1) <= SAME_SPACING else max(1, round(rows * down / pixel))
    new_columns = columns if abs(across / pixel - 1) <= SAME_SPACING else max(1, round(columns * across / pixel))
    return VolumeGeometry(
        patient=source.patient,
        timepoint=source.timepoint,
        images=tuple(source.name(path) for path in source.image),
        masks=tuple(source.name(path) for path in source.mask),
        shape=facts.shape,
        orientation=facts.orientation,
        voxel_mm=facts.voxel_mm,
        axis=facts.axis,
        picture=facts.picture,
        resampled=(new_rows, new_columns),
        spacing_mm=None if facts.picture_mm is None else pixel,
        window=(
            round((top + bottom) / 2 * new_rows / rows - size / 2),
            round((left + right) / 2 * new_columns / columns - size / 2),
        ),
        size=size,
        low=facts.low,
        high=facts.high,
        background=facts.background,
    )


def cut(
    source: Source, geometry: VolumeGeometry, indices: Sequence[int] | None = None, mask_threshold: float | None = None
) -> Cut:
    """The volume's slices (all, or those of `indices`), scaled to 8 bit, and how many lesion pixels they lose."""
    try:
        stack = load(source, geometry.axis, mask_threshold)
    except Fault as fault:
        raise InputError("a file has changed since it was checked", fault.lines) from None
    wanted = range(len(stack.pictures)) if indices is None else indices
    images = np.zeros((len(wanted), geometry.size, geometry.size), np.uint8)
    masks = np.zeros_like(images)
    lost = np.zeros(len(wanted), np.int64)
    for row, index in enumerate(wanted):
        picture = _resample(stack.pictures[index], geometry.resampled)
        images[row] = _window(_grey8(picture, geometry), geometry, _grey8(np.float32(geometry.background), geometry))
        if stack.mask is not None and stack.mask[index].any():
            mask = _resample(stack.mask[index], geometry.resampled) >= 0.5
            masks[row] = _window(mask, geometry, 0)
            lost[row] = int(mask.sum()) - int(masks[row].sum())
    return Cut(images, masks, lost)


def restore(prediction: Array, geometry: VolumeGeometry) -> Array:
    """Slices (n, size, size) of all of a volume, back onto the input's own grid: `geometry.shape`.

    Floats (probabilities) come back as float32, interpolated linearly, 0 outside the window. Whole numbers and booleans
    are masks: they come back as uint8 0/1. Without resampling nothing but what lies outside the window is changed.
    """
    n = geometry.shape[0] if geometry.axis is None else geometry.shape[_input_axis(geometry, geometry.axis)]
    if prediction.shape != (n, geometry.size, geometry.size):
        raise ValueError(f"expected slices of shape {(n, geometry.size, geometry.size)}, got {prediction.shape}")
    is_mask = prediction.dtype.kind in "biu"
    pictures = np.zeros((n, *geometry.picture), np.uint8 if is_mask else np.float32)
    top, left = geometry.window
    inverse = replace(geometry, window=(-top, -left))
    for index in range(n):
        canvas = np.zeros(geometry.resampled, np.float32)
        _window(prediction[index].astype(np.float32), inverse, 0.0, canvas)
        picture = _resample(canvas, geometry.picture)
        pictures[index] = picture >= 0.5 if is_mask else picture
    return _onto_input(pictures, geometry)


def expert_mask(source: Source, geometry: VolumeGeometry, mask_threshold: float | None = None) -> Array:
    """The source's own mask on the input's own grid, checked as `cut` does: `geometry.shape`, uint8 0/1."""
    try:
        mask = load(source, geometry.axis, mask_threshold).mask
    except Fault as fault:
        raise InputError("a file has changed since it was checked", fault.lines) from None
    if mask is None:
        raise ValueError(f"{source.name(source.image[0])} has no mask")
    return _onto_input(mask.astype(np.uint8), geometry)


def _onto_input(pictures: Array, geometry: VolumeGeometry) -> Array:
    """Upright pictures (n, rows, columns) turned back to the axes of the input."""
    if geometry.axis is None:
        return pictures
    canonical = np.moveaxis(pictures.transpose(0, 2, 1)[:, ::-1, ::-1], 0, geometry.axis)
    back = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(geometry.orientation))
    return np.ascontiguousarray(apply_orientation(canonical, back))


def as_pictures(array: Array, geometry: VolumeGeometry) -> Array:
    """An array on the input's grid, as upright pictures `(n, rows, columns)`."""
    if geometry.axis is None:
        return array
    return upright(apply_orientation(array, axcodes2ornt(geometry.orientation)), geometry.axis)


def _input_axis(geometry: VolumeGeometry, ras: int) -> int:
    """Which of the input's axes runs along an axis of RAS+."""
    return [int(a) for a in axcodes2ornt(geometry.orientation)[:, 0]].index(ras)


def _resample(picture: Array, shape: tuple[int, int]) -> Array:
    """A picture (rows, columns) with another number of pixels, float32; smoothed where it gets smaller."""
    if picture.shape == shape:
        return picture.astype(np.float32)
    image = Image.fromarray(picture.astype(np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def _grey8(values: Any, geometry: VolumeGeometry) -> Array:
    scaled = (values - geometry.low) * (255 / (geometry.high - geometry.low))
    return np.asarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _window(picture: Array, geometry: VolumeGeometry, fill: Any, canvas: Array | None = None) -> Array:
    """The part of a picture under the window, on a canvas (by default size x size) filled with `fill` elsewhere."""
    if canvas is None:
        canvas = np.full((geometry.size, geometry.size), fill, picture.dtype)
    spans = []
    for start, have, want in zip(geometry.window, picture.shape, canvas.shape, strict=True):
        first, last = max(start, 0), min(start + want, have)
        spans.append((slice(first, max(first, last)), slice(first - start, max(first, last) - start)))
    (rows, new_rows), (columns, new_columns) = spans
    canvas[new_rows, new_columns] = picture[rows, columns]
    return canvas
