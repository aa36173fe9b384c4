"""Read NIfTI volumes and check them against damaged and hostile headers; copy them without identifying text."""

from __future__ import annotations

import gzip
import math
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation

from wmlsearch.data.findings import Finding, about_other_file
from wmlsearch.data.grids import (
    EDGES_MM,
    NEAR_GRID,
    SAME_GRID,
    affine_mm,
    check_header,
    grid_offset,
    turned_onto,
    voxel_mm3,
)
from wmlsearch.data.labels import MaskRule
from wmlsearch.data.non_finite import (
    NAN_ADVICE,
    Cut,
    FilledVolume,
    check_filled_mask,
    check_lesions_have_values,
    enclosed_finding,
    fill_background,
)
from wmlsearch.data.number_type import check_number_type
from wmlsearch.data.sources import Source
from wmlsearch.data.stack import Array, Stack, VolumeFault, unreadable, upright
from wmlsearch.errors import InputError
from wmlsearch.runs.wording import percent

MAX_VOXELS = 2**28  # 645 x 645 x 645; they are read into memory
MAX_HEADER_BYTES = 2**20  # header and extensions, which stand before the voxels
MAX_TRAILING_BYTES = 2**20  # after the voxels in a gzip file
MAX_DEFLATE_RATIO = 1032  # zlib's technical details: no deflated file is smaller than by this factor


@dataclass(frozen=True)
class Extent:
    """What the header of a NIfTI volume says of its size, along right, anterior and superior."""

    edges: tuple[float, float, float]  # of a voxel in mm
    shape: tuple[int, int, int]

    @property
    def voxels(self) -> int:
        return math.prod(self.shape)


def read_extent(source: Source) -> Extent:
    """Return how large a NIfTI volume and its voxels are. Reads the header only.

    Raises:
        InputError: Where the file cannot be read as a volume.
    """
    try:
        image = _open(source, source.image[0])
    except VolumeFault as fault:
        raise InputError("a volume cannot be read", fault.lines) from None
    affine = affine_mm(image)
    right, anterior, superior = np.argsort(io_orientation(affine)[:, 0])  # the file's axes
    edges, shape = nib.affines.voxel_sizes(affine).tolist(), image.shape
    return Extent((edges[right], edges[anterior], edges[superior]), (shape[right], shape[anterior], shape[superior]))


def load_nifti(source: Source, axis: int, rule: MaskRule, nan_background: bool = False) -> Stack:
    """Return a NIfTI volume and its mask as upright slices along an axis of RAS+. Raises VolumeFault."""
    opened: list[tuple[Any, Array]] = []
    faults: list[str] = []
    for path in (*source.image, *source.mask):
        try:
            image = _open(source, path)
            opened.append((image, _voxels(source, path, image)))
        except VolumeFault as fault:
            faults += fault.lines
    if faults:
        raise VolumeFault(*faults)
    image, data = opened[0]
    affine = affine_mm(image)
    findings = check_header(image) + check_number_type(image, data)
    missing = ~np.isfinite(data)
    data, notes = _with_background(source, source.image[0], image, data, nan_background)
    findings += notes
    orientation = io_orientation(affine)
    edges = nib.affines.voxel_sizes(affine)
    ras_edges = edges[np.argsort(orientation[:, 0])]
    pictures = upright(apply_orientation(data, orientation), axis)
    mask, ignored, labels = None, None, None
    if source.mask:
        mask_data, mask_findings = _mask_on_grid(source, data.shape, affine, *opened[1], nan_background)
        findings += mask_findings
        if np.array_equal(mask_data, data):
            image_name, mask_name = source.name(source.image[0]), source.name(source.mask[0])
            raise VolumeFault(f"{mask_name}: is its image {image_name}, voxel for voxel; name the mask of its lesions")
        labelled = rule.read(mask_data, source.name(source.mask[0]))
        findings += check_lesions_have_values(source, labelled.lesion, missing, nan_background)
        mask, labels = upright(apply_orientation(labelled.lesion, orientation), axis), labelled.labels
        if labelled.ignored is not None:
            ignored = upright(apply_orientation(labelled.ignored, orientation), axis)
        with_value = int(np.isfinite(opened[1][1]).sum())
        findings += check_filled_mask(with_value, mask if ignored is None else mask | ignored, pictures)
    down, across = [ras for ras in (2, 1, 0) if ras != axis]
    return Stack(
        pictures,
        mask,
        (data.shape[0], data.shape[1], data.shape[2]),
        "".join(nib.aff2axcodes(affine)),
        tuple(float(edge) for edge in edges),
        (float(ras_edges[down]), float(ras_edges[across])),
        ignored=ignored,
        labels=(labels,) if labels else (),
        voxel_mm3=voxel_mm3(affine),
        findings=tuple(findings),
    )


def _with_background(
    source: Source, path: Path, image: Any, data: Array, nan_background: bool
) -> tuple[Array, list[Finding]]:
    """Return voxels that are all finite, where those that are not may be background. Raises VolumeFault."""
    filled = fill_background(data, everywhere=nan_background)
    if not filled.filled and not filled.enclosed:
        return data, []
    name, is_mask = source.name(path), path in source.mask
    if image.get_data_dtype().kind in "biu":
        slope, inter = image.dataobj.slope, image.dataobj.inter
        raise VolumeFault(
            f"{name}: its header's scale (scl_slope {slope:g}, scl_inter {inter:g}) makes "
            f"{filled.filled + filled.enclosed} voxels infinite; correct the header"
        )
    if filled.filled + filled.enclosed == data.size or (filled.enclosed and not nan_background):
        raise VolumeFault(_enclosed_fault(name, filled, "mask" if is_mask else "head"))
    share = percent(filled.share)
    if is_mask:
        text = f"{share} of the mask's voxels, at its border, are NaN or infinite: treated as background"
        notes = [Finding("filled", text, share, filled.share)] if filled.filled else []
        return np.where(np.isfinite(data), data, np.float32(0)), notes + enclosed_finding(filled, "the mask")
    if filled.cut is not None and not nan_background:
        raise VolumeFault(_cut_fault(name, filled.cut))
    where = "at the border of the volume" if nan_background else "around the head"
    text = f"{share} of the voxels, {where}, are NaN or infinite: treated as background, grey value {filled.level:g}"
    notes = [Finding("filled", text, share, filled.share)] if filled.filled else []
    return filled.voxels, notes + enclosed_finding(filled, "the volume")


def _cut_fault(name: str, cut: Cut) -> str:
    return (
        f"{name}: NaN or infinite voxels go through the head: some of the slices {cut.first} to {cut.last} along axis "
        f"{cut.axis} show little or none of it, and those on both sides show more; make the image again without "
        f"them, or {NAN_ADVICE}"
    )


def _enclosed_fault(name: str, filled: FilledVolume, place: str) -> str:
    if filled.first_enclosed is None:
        return f"{name}: every voxel is NaN or infinite; replace the file"
    around = f" ({filled.filled} more, at the border of the volume, would be background)" if filled.filled else ""
    position = ", ".join(map(str, filled.first_enclosed))
    return (
        f"{name}: every voxel must be a finite number, but {filled.enclosed} inside the {place} are NaN or infinite, "
        f"such as voxel ({position}){around}; make it again without them, or {NAN_ADVICE}"
    )


def _mask_on_grid(
    source: Source, shape: tuple[int, ...], affine: Array, mask_image: Any, mask_data: Array, nan_background: bool
) -> tuple[Array, list[Finding]]:
    """Return a mask with its image's axes. Raises VolumeFault where its grid is another one.

    Args:
        shape: Shape of the image.
        affine: Affine of the image, to mm.
        mask_image: The mask as a nibabel image.
        mask_data: Voxels of the mask.
        nan_background: Whether voxels of the mask that are not finite are background, wherever they are.
    """
    path = source.mask[0]
    image_name, mask_name = source.name(source.image[0]), source.name(path)
    mask_data, notes = _with_background(source, path, mask_image, mask_data, nan_background)
    turned, turned_affine = turned_onto(affine, affine_mm(mask_image), mask_data)
    if turned.shape != shape:
        raise VolumeFault(
            f"{mask_name}: shape must be that of {image_name}, {shape}, but is {mask_data.shape}; resample the mask"
        )
    offset = grid_offset(shape, affine, turned_affine)
    if not offset < NEAR_GRID:
        header = check_header(mask_image)
        unknown = any(finding.kind == "no orientation" for finding in header)
        advice = (
            "its header gives no orientation, so if it was drawn on this image, copy the image's header to it"
            if unknown
            else "resample the mask onto the image, or copy the image's header to it if it was drawn on this image"
        )
        raise VolumeFault(
            f"{mask_name}: affine must be that of {image_name} to half a voxel, but the grids lie up to {offset:.3g} "
            f"voxels apart; {advice}"
        )
    findings = notes + about_other_file(
        [one for one in check_header(mask_image) if one.kind == "two orientations"], "mask"
    )
    if offset > SAME_GRID:
        text = (
            f"the mask's grid lies up to {offset:.2g} voxels from the image's, less than half a voxel, and is taken as "
            "the same; resample the mask if its lesions look moved"
        )
        findings.append(Finding("grid", text, f"{offset:.2g} voxels", offset))
    return turned, findings


def _open(source: Source, path: Path) -> Any:
    """Return nibabel's image: its header is read and checked, its voxels are still on disk."""
    name = source.name(path)
    _check_header_size(name, path)
    try:
        with nib.imageglobals.LoggingOutputSuppressor():  # nibabel's warnings of odd headers name no file
            image: Any = nib.load(path)
        shape, affine, dtype = image.shape, image.affine, image.get_data_dtype()
    except Exception as error:  # nibabel, gzip and zlib raise many kinds
        raise unreadable(name, path, error) from None
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or 0 in shape:
        raise VolumeFault(f"{name}: must be one 3-D volume, but its shape is {tuple(shape)}; extract one volume")
    if math.prod(shape) > MAX_VOXELS:
        raise VolumeFault(
            f"{name}: may have {MAX_VOXELS:,} voxels, but its header promises {tuple(shape)}; correct the header"
        )
    if dtype.kind not in "biuf":
        raise VolumeFault(f"{name}: voxels must be plain numbers, but are {dtype}; convert it")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise VolumeFault(
            f"{name}: the affine must be finite and invertible, but is {affine[:3].tolist()}; correct the header"
        )
    edges = nib.affines.voxel_sizes(affine_mm(image))
    if not EDGES_MM[0] <= edges.min() <= edges.max() <= EDGES_MM[1]:
        raise VolumeFault(
            f"{name}: voxel edges must be from {EDGES_MM[0]:g} to {EDGES_MM[1]:g} mm, but are "
            f"{' x '.join(f'{edge:.4g}' for edge in edges)} mm; correct the header (its unit may be metres or "
            "micrometres)"
        )
    voxel_bytes = math.prod(shape) * dtype.itemsize
    if _is_gzip(path) and voxel_bytes > MAX_DEFLATE_RATIO * (size := path.stat().st_size):
        raise VolumeFault(
            f"{name}: its header promises {voxel_bytes:,} bytes of voxels, which cannot be in a gzip file of {size:,}; "
            "replace the file"
        )
    return image


def _check_header_size(name: str, path: Path) -> None:
    """Refuse a header that would make nibabel read very much: it reads all extensions into memory, however long."""
    try:
        with gzip.open(path) if _is_gzip(path) else path.open("rb") as file:
            start = file.read(MAX_HEADER_BYTES)
    except (OSError, EOFError, zlib.error):
        return  # nibabel fails as well, and with a better message
    header_class = next((kind for kind in (nib.Nifti1Header, nib.Nifti2Header) if kind.may_contain_header(start)), None)
    if header_class is None:
        return
    position = header_class.template_dtype.itemsize
    header = header_class(start[:position], check=False)
    voxel_offset = float(header["vox_offset"])
    if voxel_offset == 0 or voxel_offset > MAX_HEADER_BYTES:
        raise VolumeFault(
            f"{name}: its voxels must begin between byte {position + 4} and byte {MAX_HEADER_BYTES}, but its header "
            f"says byte {voxel_offset:.0f}; save it again, without extensions of its header"
        )
    if start[position : position + 1] in (b"", b"\0"):  # no extensions
        return
    position += 4
    while position + 16 <= min(voxel_offset, len(start)):
        size = int(np.frombuffer(start, f"{header.endianness}i4", 1, position)[0])
        if not 8 <= size <= voxel_offset - position:
            raise VolumeFault(
                f"{name}: an extension of its header must have from 8 to {voxel_offset - position:.0f} bytes, up to "
                f"the voxels, but it says {size}; save it again, without extensions of its header"
            )
        position += size


def _voxels(source: Source, path: Path, image: Any) -> Array:
    """Return the voxels as float32 in the input's orientation. Raises VolumeFault."""
    try:
        with np.errstate(over="ignore"):  # infinite voxels are reported by the caller
            if not _is_gzip(path):
                return np.asarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
            with gzip.open(path) as file, nib.imageglobals.LoggingOutputSuppressor():
                voxels = np.asarray(type(image).from_stream(file).dataobj, dtype=np.float32)
                # Read to the end of the file, where gzip's checksum stands: nibabel alone misses a flipped byte.
                if len(file.read(MAX_TRAILING_BYTES + 1)) > MAX_TRAILING_BYTES:
                    raise ValueError(
                        f"more than {MAX_TRAILING_BYTES:,} bytes follow the voxels that its header promises"
                    )
            return voxels.reshape(image.shape[:3])
    except Exception as error:
        raise unreadable(source.name(path), path, error) from None


def clear_text(header: Any) -> None:
    """Empty the text fields of a NIfTI header, such as `descrip`, which may identify the patient."""
    for name in header.template_dtype.names:
        if header.template_dtype[name].kind == "S" and name != "magic":  # the magic number identifies NIfTI
            header[name] = b""


def copy_without_text(path: Path, target: Path) -> None:
    """Copy a NIfTI file without the text and the extensions of its header, which may identify the patient.

    Grid and voxels are copied byte for byte.
    """
    header_class: Any = type(nib.load(path)).header_class
    with gzip.open(path) if _is_gzip(path) else path.open("rb") as file, target.open("wb") as raw_target:
        header = header_class.from_fileobj(file)
        clear_text(header)
        voxel_offset = int(header.get_data_offset())
        file.seek(voxel_offset)
        remaining = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
        compressed = _is_gzip(target)  # the gzip header gets neither file name nor time
        with gzip.GzipFile("", "wb", fileobj=raw_target, mtime=0) if compressed else nullcontext(raw_target) as out:
            out.write(header.binaryblock.ljust(voxel_offset, b"\0"))
            while remaining and (part := file.read(min(remaining, 2**20))):
                out.write(part)
                remaining -= len(part)


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")
