"""The grid of a NIfTI file: where its voxels lie in the scanner, in mm, and what is doubtful about its header."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from wmlsearch.data.findings import Finding
from wmlsearch.data.stack import Array

EDGES_MM = (0.02, 60.0)  # of a voxel: others are a mistake in the header
PLAUSIBLE_MM = (0.1, 20.0)  # voxel edges of images of the head
UNITS_MM = {"meter": 1000.0, "micron": 0.001}
UNIT_NAMES = {"meter": "metres", "micron": "micrometres"}
SAME_GRID = 0.01  # voxels: corners that are nearer are rounding
NEAR_GRID = 0.5  # voxels: from here on a voxel of the mask belongs to another voxel of the image
SHEARED = 1e-4  # relative difference of a voxel's volume from the product of its edges


def affine_mm(image: Any) -> Array:
    """Return the affine (4, 4) of a NIfTI image from voxels to mm. The header's unit is used where it makes sense."""
    affine = np.array(image.affine, np.float64)
    affine[:3] *= _unit(image)[0]
    return affine


def check_header(image: Any) -> list[Finding]:
    """Return what is doubtful about a header: its unit of length, and its orientation."""
    findings = []
    factor, name = _unit(image)
    if name:
        edges = " x ".join(f"{edge:.4g}" for edge in nib.affines.voxel_sizes(image.affine))
        used = "taken so" if factor != 1 else "taken as mm, because no head has voxels of that size"
        text = f"the header gives voxel edges of {edges} {UNIT_NAMES[name]}, {used}; correct the header if it is wrong"
        findings.append(Finding("units", text, UNIT_NAMES[name]))
    return findings + _check_orientation(image)


def _unit(image: Any) -> tuple[float, str]:
    """Return the factor that turns the affine into mm, and the header's unit, "" where it is mm or not given."""
    try:
        unit = image.header.get_xyzt_units()[0]
    except (AttributeError, KeyError):  # no NIfTI header, or a code that means nothing
        return 1.0, ""
    if unit not in UNITS_MM:
        return 1.0, ""
    low, high = PLAUSIBLE_MM
    edges = nib.affines.voxel_sizes(image.affine) * UNITS_MM[unit]
    return (UNITS_MM[unit] if low <= edges.min() and edges.max() <= high else 1.0), unit


def _check_orientation(image: Any) -> list[Finding]:
    """Return whether the header's two descriptions of the grid, sform and qform, disagree or are both missing."""
    header = image.header
    if not hasattr(header, "get_sform"):
        return []
    codes = int(header["sform_code"]), int(header["qform_code"])
    taken = "".join(nib.aff2axcodes(image.affine))
    if max(codes) <= 0:
        text = (
            f"the header gives no orientation (sform_code and qform_code are 0), so its axes are taken as {taken}; "
            "check left, right and the order of the slices"
        )
        return [Finding("no orientation", text, taken)]
    if min(codes) <= 0:
        return []
    try:
        qform = np.asarray(header.get_qform(), np.float64)
    except Exception as error:  # nibabel raises several kinds for a quaternion that is none
        return [Finding("two orientations", f"the header's qform is not valid ({error}), so the sform is taken")]
    offset = grid_offset(image.shape[:3], np.asarray(image.affine, np.float64), qform)
    if offset <= NEAR_GRID:
        return []
    other = "".join(str(code) for code in nib.aff2axcodes(qform))
    text = (
        f"the header's sform ({taken}) and qform ({other}) differ by up to {offset:.3g} voxels; the sform is taken; "
        "check left, right and the order of the slices"
    )
    return [Finding("two orientations", text, f"{offset:.3g} voxels", min(offset, 1e9))]


def grid_offset(shape: Sequence[int], affine: Array, other: Array) -> float:
    """Return how far, in voxels of `affine`, two grids of a shape lie apart at their corners, at most."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1])).reshape(4, -1)
    displacement = np.linalg.solve(affine[:3, :3], ((other - affine) @ corners)[:3])
    return float(np.linalg.norm(displacement, axis=0).max())


def turned_onto(affine: Array, other_affine: Array, other: Array) -> tuple[Array, Array]:
    """Return a volume with its axes ordered and directed as those of `affine` are, and its affine."""
    change = ornt_transform(io_orientation(other_affine), io_orientation(affine))
    turned = apply_orientation(other, change)
    return turned, other_affine @ inv_ornt_aff(change, other.shape)


def voxel_mm3(affine: Array) -> float:
    """Return the volume of a voxel. In a sheared grid it is less than the product of the edges."""
    edges = float(np.prod(nib.affines.voxel_sizes(affine)))
    volume = abs(float(np.linalg.det(affine[:3, :3])))
    return volume if abs(volume - edges) > SHEARED * edges else edges
