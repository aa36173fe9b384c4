"""Which plane volumes are sliced in, and where the square window of each volume lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.orientations import axcodes2ornt

from wmlsearch.data.examine import VolumeFacts
from wmlsearch.data.findings import Finding
from wmlsearch.data.head_detection import Box
from wmlsearch.data.nifti import Extent
from wmlsearch.data.sources import Source
from wmlsearch.errors import InputError

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # slicing axis in RAS+
MIN_THICKNESS = 1.25  # slices are thick when the longest voxel edge is longer than this times the next longest
SAME_SPACING = 0.01  # relative: spacings closer than this are not resampled
MAX_SPACING_FACTOR = 8  # an in-plane spacing that differs more from the data set's is a mistake in the header
SIZE_STEP = 16  # pixels: sizes that are advised are multiples of it
RESIZE_MARGIN = 0.02  # `fit="resize"` leaves this share of the head's size free on each side


@dataclass(frozen=True)
class VolumeGeometry:
    """How one volume's slices are cut, and all that `restore` needs to put them back onto the input's grid."""

    patient: str
    timepoint: str
    images: tuple[str, ...]  # one NIfTI file or the pictures in order, relative to the raw data's root
    masks: tuple[str, ...]
    shape: tuple[int, int, int]  # of the input as stored
    orientation: str  # of the input's axes, such as "LAS"; "" for 2-D pictures
    voxel_mm: tuple[float, ...] | None  # along the input's axes
    axis: int | None  # slicing axis in RAS+; None for 2-D pictures
    picture: tuple[int, int]  # rows, columns of an upright slice
    resampled: tuple[int, int]  # rows, columns after resampling; equal to `picture` where nothing is resampled
    spacing_mm: float | None  # of a pixel after resampling
    window: tuple[int, int]  # top, left of the size x size window in the resampled slice; may be negative
    size: int  # pixels, edge of the window
    low: float  # grey value that becomes 0
    high: float  # grey value that becomes 255
    background: float  # grey value outside the slice
    lost_lesion_pixels: int = 0  # lesion pixels (resampled) outside the window
    voxels_sha256: str = ""  # see `stack.voxels_sha256`; "" in data of format 2
    voxel_mm3: float | None = None  # volume of a voxel; None for 2-D pictures, and in data of formats 2 and 3
    site: str = ""  # hospital or scanner; "" where it is not known
    findings: tuple[Finding, ...] = ()  # what is doubtful about the volume or its mask
    nan_background: bool = False  # voxels that are not finite are background wherever they are
    lesion_voxels: int | None = None  # of the whole mask as stored; None without a mask, and in older data
    # Mean and standard deviation of the head's grey values, from 0 to 255: of the volume, or of each picture; empty in
    # older data.
    head_grey: tuple[tuple[float, float], ...] = ()
    floor: float | None = None  # lower grey values, which are padding, count as this; None without, and in older data

    @property
    def source(self) -> str:
        """The volume's image, or its first picture."""
        return self.images[0]

    @property
    def picture_mm(self) -> tuple[float, float] | None:
        """Edges of a pixel of the upright slices, down and across; None for 2-D pictures."""
        return None if self.axis is None else self.picture_mm_along(self.axis)

    def picture_mm_along(self, axis: int) -> tuple[float, float] | None:
        """Return the edges of a pixel of upright slices along an axis of RAS+, down and across; None for pictures."""
        if self.voxel_mm is None:
            return None
        down, across = (self.voxel_mm[self.input_axis(ras)] for ras in (2, 1, 0) if ras != axis)
        return down, across

    @property
    def pixel_ml(self) -> float | None:
        """Volume of a pixel after resampling, in ml; None for 2-D pictures."""
        if self.voxel_ml is None:
            return None
        rows, columns = self.scale
        return self.voxel_ml / rows / columns

    @property
    def voxel_ml(self) -> float | None:
        """Volume of a voxel of the input, in ml; None for 2-D pictures."""
        if self.axis is None or self.voxel_mm is None:
            return None
        return (math.prod(self.voxel_mm) if self.voxel_mm3 is None else self.voxel_mm3) / 1000

    def lesion_ml(self, resampled_pixels: int) -> float | None:
        """Return the lesion load of the whole scan, in ml; None for 2-D pictures.

        Args:
            resampled_pixels: All lesion pixels after resampling, those outside the window too: the load of older data,
                which do not hold the number of voxels.
        """
        if self.voxel_ml is None or self.pixel_ml is None:
            return None
        return resampled_pixels * self.pixel_ml if self.lesion_voxels is None else self.lesion_voxels * self.voxel_ml

    @property
    def scan(self) -> str:
        """The patient and time point, or the file's name where they are not known."""
        return "/".join(part for part in (self.patient, self.timepoint) if part) or Path(self.source).name.split(".")[0]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should look at, a sentence each that begins with the image's file."""
        return tuple(f"{self.source}: {one.text}" for one in self.findings if one.is_warning)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done with the volume, a sentence each that begins with the image's file."""
        return tuple(f"{self.source}: {one.text}" for one in self.findings if not one.is_warning)

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels after resampling per input pixel, down and across."""
        return self.resampled[0] / self.picture[0], self.resampled[1] / self.picture[1]

    @property
    def slices(self) -> int:
        """Number of the volume's slices."""
        return self.shape[0] if self.axis is None else self.shape[self.input_axis(self.axis)]

    def input_axis(self, ras: int) -> int:
        """Return which of the input's axes runs along an axis of RAS+."""
        return [int(axis) for axis in axcodes2ornt(self.orientation)[:, 0]].index(ras)


def choose_plane(extents: Mapping[str, Extent], plane: str | None) -> tuple[str, int]:
    """Return the plane and its slicing axis in RAS+.

    Args:
        extents: Size of each volume, by file name.
        plane: The plane that the user has chosen. None: native for single slices and for thick ones (along the longest
            voxel edge), sagittal for isotropic volumes.

    Raises:
        InputError: Where native makes no sense, or the volumes do not agree.
    """
    if plane in PLANES:
        return plane, PLANES[plane]
    axes = {name: _native_axis(extent) for name, extent in extents.items()}
    lines = {name: f"{name}: {' x '.join(f'{edge:.4g}' for edge in one.edges)} mm" for name, one in extents.items()}
    if plane == "native" and None in axes.values():
        raise InputError(
            f"--plane native needs thick slices, one voxel edge longer than {MIN_THICKNESS} x the next longest; "
            "give --plane sagittal, axial or coronal",
            [line for name, line in lines.items() if axes[name] is None],
        )
    native = {axis for axis in axes.values() if axis is not None}
    if not native:
        return "sagittal", 0
    if None in axes.values():
        raise InputError(
            "thick and isotropic volumes are mixed; give --plane sagittal, axial or coronal",
            [f"{line} ({_kind(extents[name])})" for name, line in lines.items()],
        )
    if len(native) > 1:
        planes = list(PLANES)
        raise InputError(
            "the volumes have thick slices in different planes; give --plane sagittal, axial or coronal",
            [
                f"{line} ({planes[axis]})"
                for axis, line in zip(axes.values(), lines.values(), strict=True)
                if axis is not None
            ],
        )
    return "native", native.pop()


def _native_axis(extent: Extent) -> int | None:
    """Return the axis across the slices: the only one along which there is one voxel, or the longest voxel edge.

    None for an isotropic volume.
    """
    if extent.shape.count(1) == 1:
        return extent.shape.index(1)
    _, middle, longest = sorted(extent.edges)
    return int(np.argmax(extent.edges)) if longest > MIN_THICKNESS * middle else None


def _kind(extent: Extent) -> str:
    if extent.shape.count(1) == 1:
        return "a single slice"
    return "isotropic" if _native_axis(extent) is None else "thick slices"


def place_window(source: Source, facts: VolumeFacts, size: int, fit: str, spacing_mm: float | None) -> VolumeGeometry:
    """Return where a volume's slices are cut: a size x size window centred on the head's box.

    Args:
        source: The volume, for its name and files.
        facts: The volume's measures.
        size: Edge of the window in pixels.
        fit: "crop": pixels are brought to `spacing_mm`. "resize": the head's box, made square, is scaled to the window.
        spacing_mm: In-plane spacing of the data set; None for 2-D pictures, whose pixels stay as they are.
    """
    rows, columns = facts.picture
    down, across = facts.picture_mm or (1.0, 1.0)
    top, left, bottom, right = facts.box
    pixel = spacing_mm or 1.0
    if fit == "resize":
        side = max((bottom - top) * down, (right - left) * across) * (1 + 2 * RESIZE_MARGIN)
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
        voxels_sha256=facts.voxels_sha256,
        voxel_mm3=facts.voxel_mm3,
        site=source.site,
        findings=facts.findings,
        nan_background=facts.nan_background,
        lesion_voxels=sum(facts.lesion) if source.mask else None,
        head_grey=facts.head_grey,
        floor=facts.floor,
    )


def size_that_holds(box: Box, geometry: VolumeGeometry) -> int:
    """Return the `--size` whose window, around the same point, holds a box too: a multiple of `SIZE_STEP`.

    Args:
        box: Top, left, bottom, right in pixels of the resampled slice; the last two exclusive.
        geometry: The window that is too small.
    """
    top, left = geometry.window
    beyond = max(top - box[0], left - box[1], box[2] - top - geometry.size, box[3] - left - geometry.size)
    size = -(-geometry.size // SIZE_STEP) * SIZE_STEP
    while True:
        grown = size - geometry.size
        moved = grown % 4 != 0  # rounding may then place the window another pixel aside
        if grown >= 2 * (beyond + moved):
            return size
        size += SIZE_STEP
