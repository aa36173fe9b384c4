"""A volume in memory as a stack of upright slices, and what reading NIFTI files and pictures have in common.

A volume is turned to the closest RAS+ orientation and seen as slices `(n, rows, columns)`, upright as radiologists see
them: anterior up in axial, superior up and anterior left in sagittal, superior up in coronal slices; the patient's
right is on the left.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wmlsearch.data.findings import Finding

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class MaskLabels:
    """The labels of one mask file: whole numbers other than 0, and how many voxels hold each."""

    file: str
    voxels: tuple[tuple[float, int], ...]  # (label, voxels), ascending


@dataclass(frozen=True)
class Stack:
    """The slices of one volume, as read: neither scaled nor cropped."""

    pictures: Array  # (n, rows, columns) float32, upright
    mask: Array | None  # (n, rows, columns) bool: lesion; None where the source has no mask
    shape: tuple[int, int, int]  # of the input as stored
    orientation: str = ""  # of the input's axes, such as "LAS"; "" for 2-D pictures
    voxel_mm: tuple[float, ...] | None = None  # along the input's axes; None for 2-D pictures
    pixel_mm: tuple[float, float] | None = None  # of an upright slice, down and across; None for 2-D pictures
    is_8_bit: bool = False  # the grey values are 8 bit and need no scaling
    ignored: Array | None = None  # (n, rows, columns) bool: left out of every count; None where nothing is
    labels: tuple[MaskLabels, ...] = ()  # of each mask file whose values are labels
    voxel_mm3: float | None = None  # volume of a voxel; None for 2-D pictures
    findings: tuple[Finding, ...] = ()  # what reading has told of the files


def voxels_sha256(stack: Stack, axis: int | None) -> str:
    """Return sha256 of an image's voxels in RAS+ order: whatever its file, header, compression and slicing axis."""
    voxels = stack.pictures if axis is None else from_upright(stack.pictures, axis)
    voxels = np.ascontiguousarray(voxels, np.dtype("<f4")) + np.float32(0)  # -0 becomes 0
    return hashlib.sha256(repr(voxels.shape).encode() + voxels.tobytes()).hexdigest()


def mask_sha256(stack: Stack, axis: int | None) -> str:
    """Return sha256 of the lesion mask in RAS+ order; "" where there is no lesion."""
    if stack.mask is None or not stack.mask.any():
        return ""
    mask = stack.mask if axis is None else from_upright(stack.mask, axis)
    return hashlib.sha256(repr(mask.shape).encode() + np.packbits(mask).tobytes()).hexdigest()


class VolumeFault(Exception):
    """The files of a volume cannot be used; `lines` holds a line for the user for each fault."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines


def upright(volume: Array, axis: int) -> Array:
    """Return a RAS+ volume as upright slices along an axis: (n, rows, columns)."""
    return np.ascontiguousarray(np.moveaxis(volume, axis, 0)[:, ::-1, ::-1].transpose(0, 2, 1))


def from_upright(pictures: Array, axis: int) -> Array:
    """Return upright slices (n, rows, columns) as a RAS+ volume: the inverse of `upright`."""
    return np.moveaxis(pictures.transpose(0, 2, 1)[:, ::-1, ::-1], 0, axis)


def unreadable(name: str, path: Path, error: Exception) -> VolumeFault:
    """Return the fault of a file that a library could not read, with the library's reason on one line."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error).split("\n")[0]
    reason = reason.replace(str(path), path.name)[:120] or type(error).__name__
    return VolumeFault(f"{name}: cannot be read ({reason}); replace the file")
