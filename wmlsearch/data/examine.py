"""Read and check one volume before anything is written: its grid, its head and its lesions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from wmlsearch.data.findings import Finding
from wmlsearch.data.head_detection import Box, HeadRegion, find_head, head_grey
from wmlsearch.data.labels import MaskRule
from wmlsearch.data.padding import find_padding
from wmlsearch.data.plausibility import check_mask, is_image
from wmlsearch.data.reading import load_volume
from wmlsearch.data.sources import Source
from wmlsearch.data.stack import MaskLabels, Stack, VolumeFault, mask_sha256, voxels_sha256


@dataclass(frozen=True)
class VolumeFacts:
    """What `examine` has measured in one volume. Positions are pixels of the upright slices."""

    shape: tuple[int, int, int]  # of the input as stored; (pictures, rows, columns) for 2-D pictures
    orientation: str  # of the input's axes, such as "LAS"; "" for 2-D pictures
    voxel_mm: tuple[float, ...] | None  # along the input's axes; None for 2-D pictures
    axis: int | None  # slicing axis in RAS+; None for 2-D pictures
    picture: tuple[int, int]  # rows, columns of a slice
    picture_mm: tuple[float, float] | None  # of a pixel, down and across; None for 2-D pictures
    box: Box  # the head: top, left, bottom, right (the last two exclusive)
    background: float  # grey value around the head
    low: float  # grey value that becomes 0
    high: float  # grey value that becomes 255
    head: tuple[int, ...]  # pixels of head per slice
    lesion: tuple[int, ...]  # pixels of lesion per slice, before anything is cut or resampled
    voxels_sha256: str  # see `stack.voxels_sha256`
    labels: tuple[MaskLabels, ...] = ()  # of each mask file whose values are labels
    voxel_mm3: float | None = None  # volume of a voxel; None for 2-D pictures
    lesion_sha256: str = ""  # of the lesion mask in RAS+ order; "" without lesions
    findings: tuple[Finding, ...] = ()  # what is doubtful about the volume or its mask
    nan_background: bool = False  # voxels that are not finite are background wherever they are
    head_grey: tuple[tuple[float, float], ...] = ()  # see `VolumeGeometry`
    floor: float | None = None  # see `VolumeGeometry`

    @property
    def lesion_load(self) -> float:
        """Size of all lesions: ml, or pixels for 2-D pictures."""
        return sum(self.lesion) * (1.0 if self.voxel_mm3 is None else self.voxel_mm3 / 1000)


class ExaminedVolume(NamedTuple):
    """A volume without faults."""

    facts: VolumeFacts
    head: HeadRegion


def examine(
    source: Source,
    axis: int | None,
    rule: MaskRule | None = None,
    nan_background: bool = False,
    padding_background: bool = True,
) -> tuple[VolumeFacts | None, list[str]]:
    """Return the facts of a volume and no faults, or None and a line for each fault.

    Args:
        source: The volume's files.
        axis: Slicing axis in RAS+; None for 2-D pictures.
        rule: Which values of the mask are lesions; by default all but 0.
        nan_background: Whether voxels that are not finite are background wherever they are, not only at the border.
        padding_background: Whether padding (see `find_padding`) is background. Data of older versions took it for grey.
    """
    examined, faults = examine_head(source, axis, rule, nan_background, padding_background)
    return None if examined is None else examined.facts, faults


def examine_head(
    source: Source,
    axis: int | None,
    rule: MaskRule | None = None,
    nan_background: bool = False,
    padding_background: bool = True,
) -> tuple[ExaminedVolume | None, list[str]]:
    """Return what `examine` does, and the head's pixels, which take as much memory as a mask of the volume."""
    name = source.name(source.image[0])
    try:
        stack = load_volume(source, axis, rule, nan_background)
    except VolumeFault as fault:
        return None, list(fault.lines)
    if stack.pictures.min() == stack.pictures.max():
        grey = stack.pictures.flat[0]
        return None, [f"{name}: the FLAIR is empty, every voxel is {grey:g}; leave it out or replace it"]
    if stack.mask is not None and is_image(stack.pictures, stack.mask):
        mask = source.name(source.mask[0])
        return None, [f"{mask}: its image {name} has two grey values and is the mask itself; name the FLAIR image"]
    checksum = voxels_sha256(stack, axis)
    findings = stack.findings
    padding = find_padding(stack.pictures) if padding_background else None
    if padding is not None:
        stack = replace(stack, pictures=np.maximum(stack.pictures, np.float32(padding.floor)))
        findings += (padding.finding,)
    head = find_head(stack.pictures)
    if stack.mask is not None:
        findings += () if stack.mask.any() else (Finding("empty", "the mask is empty"),)
        findings += tuple(check_mask(stack.pictures, stack.mask, head.pixels, axis, stack.ignored))
    lesion = stack.mask.sum(axis=(1, 2)) if stack.mask is not None else np.zeros(len(head.area))
    low, high = (0.0, 255.0) if stack.is_8_bit else (head.low, head.high)
    facts = VolumeFacts(
        shape=stack.shape,
        orientation=stack.orientation,
        voxel_mm=stack.voxel_mm,
        axis=axis,
        picture=(stack.pictures.shape[1], stack.pictures.shape[2]),
        picture_mm=stack.pixel_mm,
        box=head.box,
        background=head.background,
        low=low,
        high=high,
        head=tuple(int(n) for n in head.area),
        lesion=tuple(int(n) for n in lesion),
        voxels_sha256=checksum,
        labels=stack.labels,
        voxel_mm3=stack.voxel_mm3,
        lesion_sha256=mask_sha256(stack, axis),
        findings=findings,
        nan_background=nan_background,
        head_grey=_head_grey(stack, head, axis, low, high),
        floor=None if padding is None else padding.floor,
    )
    return ExaminedVolume(facts, head), []


def _head_grey(
    stack: Stack, head: HeadRegion, axis: int | None, low: float, high: float
) -> tuple[tuple[float, float], ...]:
    """Return mean and standard deviation of the head's grey values: of a volume, or of each picture by itself."""
    if axis is not None or len(stack.pictures) == 1:
        return (head_grey(stack.pictures, head.pixels, low, high),)
    pictures = [picture[None] for picture in stack.pictures]  # a picture may be predicted without the others
    return tuple(head_grey(picture, find_head(picture).pixels, low, high) for picture in pictures)
