"""Reading a volume: voxels and mask as upright pictures, checked, with one line for the user where a file is bad."""

from __future__ import annotations

import gzip
import math
import warnings
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from PIL import Image

from wmlsearch.config import InputError
from wmlsearch.data.sources import Source

Array = np.ndarray[Any, Any]
MOST_VOXELS = 2**28  # 645 x 645 x 645; they are read into memory
MOST_BEFORE = 2**20  # bytes that may stand before the voxels: the header and its extensions
MOST_SURPLUS = 2**20  # bytes that may follow the voxels in a gzip file
MOST_DEFLATION = 1032  # no deflated file gets smaller than by this factor (zlib's technical details)
PICTURE_FORMATS = ("PNG", "TIFF", "JPEG")  # of all that Pillow knows: for EPS it would run Ghostscript
SAME_GRID = 0.01  # voxels: how far a mask's corners may lie from its image's


@dataclass(frozen=True)
class Stack:
    """A volume as upright pictures (n, rows, columns), float32; `mask` bool."""

    pictures: Array
    mask: Array | None
    shape: tuple[int, int, int]
    orientation: str = ""
    voxel_mm: tuple[float, ...] | None = None
    pixel_mm: tuple[float, float] | None = None
    grey8: bool = False


class Fault(Exception):
    """What is wrong with the files of a volume, as the lines the user reads."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines


def voxel_edges(source: Source) -> tuple[float, float, float]:
    """The voxel edges (mm) of a NIfTI volume along right, anterior, superior. Reads the header only.

    Raises InputError when the file can't be read as a volume.
    """
    try:
        image = _open(source, source.image[0])
    except Fault as fault:
        raise InputError("a volume cannot be read", fault.lines) from None
    edges = np.empty(3)
    edges[io_orientation(image.affine)[:, 0].astype(int)] = nib.affines.voxel_sizes(image.affine)
    return float(edges[0]), float(edges[1]), float(edges[2])


def load(source: Source, axis: int | None, threshold: float | None) -> Stack:
    return _load_pictures(source, threshold) if axis is None else _load_nifti(source, axis, threshold)


def _load_nifti(source: Source, axis: int, threshold: float | None) -> Stack:
    opened: list[tuple[Any, Array]] = []
    faults: list[str] = []
    for path in (*source.image, *source.mask):
        try:
            image = _open(source, path)
            opened.append((image, _voxels(source, path, image)))
        except Fault as fault:
            faults += fault.lines
    if faults:
        raise Fault(*faults)
    image, data = opened[0]
    turn = io_orientation(image.affine)
    edges = nib.affines.voxel_sizes(image.affine)
    canonical = edges[np.argsort(turn[:, 0])]
    mask = None
    if source.mask:
        other, raw = opened[1]
        name, of = source.name(source.mask[0]), source.name(source.image[0])
        if raw.shape != data.shape:
            raise Fault(f"{name}: shape must be that of {of}, {data.shape}, but is {raw.shape}; resample the mask")
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in data.shape], [1])).reshape(4, -1)
        apart = np.linalg.norm(((image.affine - other.affine) @ corners)[:3], axis=0).max() / edges.min()
        if apart > SAME_GRID:
            raise Fault(
                f"{name}: affine must be that of {of} to {SAME_GRID} voxel, but the grids lie up to {apart:.3g} voxels "
                "apart; resample the mask onto the image"
            )
        mask = upright(apply_orientation(_binary(raw, name, threshold), turn), axis)
    down, across = [n for n in (2, 1, 0) if n != axis]
    return Stack(
        upright(apply_orientation(data, turn), axis),
        mask,
        (data.shape[0], data.shape[1], data.shape[2]),
        "".join(nib.aff2axcodes(image.affine)),
        tuple(float(edge) for edge in edges),
        (float(canonical[down]), float(canonical[across])),
    )


def _load_pictures(source: Source, threshold: float | None) -> Stack:
    faults: list[str] = []
    images: list[Array] = []
    masks: list[Array] = []
    shape: tuple[int, ...] = ()
    of = source.name(source.image[0])
    for place, path in enumerate((*source.image, *source.mask)):
        is_mask = place >= len(source.image)
        try:
            array = _read_picture(source, path)
            shape = shape or array.shape
            if array.shape != shape:
                remedy = "resample the mask" if is_mask else "slices of another size need another time point"
                raise Fault(f"{source.name(path)}: shape must be that of {of}, {shape}, but is {array.shape}; {remedy}")
            (masks if is_mask else images).append(_binary(array, source.name(path), threshold) if is_mask else array)
        except Fault as fault:
            faults += fault.lines
    if faults:
        raise Fault(*faults)
    stack = np.stack(images)
    return Stack(
        stack.astype(np.float32), np.stack(masks) if masks else None, stack.shape, grey8=stack.dtype == np.uint8
    )


def _open(source: Source, path: Path) -> Any:
    """A NIfTI image, its header read and sane, its voxels still on disk."""
    name = source.name(path)
    _check_before_voxels(name, path)
    try:
        with nib.imageglobals.LoggingOutputSuppressor():  # what it says of odd headers names no file
            image: Any = nib.load(path)
        shape, affine, kind = image.shape, image.affine, image.get_data_dtype()
    except Exception as error:  # nibabel, gzip and zlib raise many kinds
        raise Fault(f"{name}: cannot be read ({_brief(error, path)}); replace the file") from None
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or 0 in shape:
        raise Fault(f"{name}: must be one 3-D volume, but its shape is {tuple(shape)}; extract one volume")
    if math.prod(shape) > MOST_VOXELS:
        raise Fault(
            f"{name}: may have {MOST_VOXELS:,} voxels, but its header promises {tuple(shape)}; correct the header"
        )
    if kind.kind not in "biuf":
        raise Fault(f"{name}: voxels must be plain numbers, but are {kind}; convert it")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise Fault(
            f"{name}: the affine must be finite and invertible, but is {affine[:3].tolist()}; correct the header"
        )
    promised = math.prod(shape) * kind.itemsize
    if path.name.lower().endswith(".gz") and promised > MOST_DEFLATION * (size := path.stat().st_size):
        raise Fault(
            f"{name}: its header promises {promised:,} bytes of voxels, which can't be in a gzip file of {size:,}; "
            "replace the file"
        )
    return image


def _check_before_voxels(name: str, path: Path) -> None:
    """Refuse a header that sends nibabel far: it reads all extensions into memory, be they as long as they say."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            before = file.read(MOST_BEFORE)
    except (OSError, EOFError, zlib.error):
        return  # nibabel finds it too, and says what it is
    kind = next((kind for kind in (nib.Nifti1Header, nib.Nifti2Header) if kind.may_contain_header(before)), None)
    if kind is None:
        return
    place = kind.template_dtype.itemsize
    header = kind(before[:place], check=False)
    start = float(header["vox_offset"])
    if start == 0 or start > MOST_BEFORE:
        raise Fault(
            f"{name}: its voxels must begin between byte {place + 4} and byte {MOST_BEFORE}, but its header says byte "
            f"{start:.0f}; write it anew, without extensions of its header"
        )
    if before[place : place + 1] in (b"", b"\0"):
        return
    place += 4
    while place + 16 <= min(start, len(before)):
        size = int(np.frombuffer(before, f"{header.endianness}i4", 1, place)[0])
        if not 8 <= size <= start - place:
            raise Fault(
                f"{name}: an extension of its header must have from 8 to {start - place:.0f} bytes, up to the voxels, "
                f"but it says {size}; write it anew, without extensions of its header"
            )
        place += size


def _voxels(source: Source, path: Path, image: Any) -> Array:
    try:
        with np.errstate(over="ignore"):  # infinite voxels are found later
            if not path.name.lower().endswith(".gz"):
                return np.asarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
            with gzip.open(path) as file, nib.imageglobals.LoggingOutputSuppressor():
                voxels = np.asarray(type(image).from_stream(file).dataobj, dtype=np.float32)
                # to its end, where its checksum stands: one flipped byte is found
                if len(file.read(MOST_SURPLUS + 1)) > MOST_SURPLUS:
                    raise ValueError(f"more than {MOST_SURPLUS:,} bytes follow the voxels that its header promises")
            return voxels.reshape(image.shape[:3])
    except Exception as error:
        raise Fault(f"{source.name(path)}: cannot be read ({_brief(error, path)}); replace the file") from None


def copy_without_words(path: Path, target: Path) -> None:
    """Copy a NIfTI file: the same grid and voxels, byte for byte, but no text in its header and no extension."""
    kind: Any = type(nib.load(path)).header_class
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file, target.open("wb") as bare:
        header = kind.from_fileobj(file)
        for name in header.template_dtype.names:
            if header.template_dtype[name].kind == "S" and name != "magic":  # that says that it is NIfTI
                header[name] = b""
        start = int(header.get_data_offset())
        file.seek(start)
        voxels = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
        packed = target.name.endswith(".gz")  # without a file name or a time of its own
        with gzip.GzipFile("", "wb", fileobj=bare, mtime=0) if packed else nullcontext(bare) as out:
            out.write(header.binaryblock.ljust(start, b"\0"))
            while voxels and (part := file.read(min(voxels, 2**20))):
                out.write(part)
                voxels -= len(part)


def _read_picture(source: Source, path: Path) -> Array:
    """One grey picture (rows, columns); colours are accepted when all channels are equal."""
    name = source.name(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=PICTURE_FORMATS)
        with image:
            pages = getattr(image, "n_frames", 1)
            array = np.asarray(image.convert("RGBA") if image.mode in ("P", "PA", "CMYK") else image)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, DecompressionBombError, ...
        raise Fault(f"{name}: cannot be read ({_brief(error, path)}); replace the file") from None
    if pages > 1:
        raise Fault(f"{name}: must hold one picture, but holds {pages}; save one file per slice")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.ndim == 3:
        if array.shape[2] in (2, 4):  # the last channel is opacity
            if array[..., -1].min() != 255:
                raise Fault(f"{name}: must be opaque, but has transparent pixels; save it as grey")
            array = array[..., :-1]
        if (array != array[..., :1]).any():
            raise Fault(f"{name}: must be grey, but its colour channels differ; convert it to grey")
        array = array[..., 0]
    return array


def _binary(mask: Array, name: str, threshold: float | None) -> Array:
    values = np.unique(mask)
    if not np.isfinite(values).all():
        raise Fault(
            f"{name}: every voxel must be a finite number, but the mask has NaN or infinite ones; correct the mask"
        )
    if threshold is not None:
        return np.asarray(mask > threshold)
    shown = ", ".join(f"{value:g}" for value in values[:6]) + (
        f", ... ({len(values)} values)" if len(values) > 6 else ""
    )
    if len(values) > 2 or (len(values) == 2 and values[0] != 0 and values[1] != 0):
        raise Fault(
            f"{name}: a mask must hold 0 and one other value, but holds {shown}; "
            "give --mask-threshold T to take every value above T as lesion"
        )
    if 0 not in values:
        raise Fault(f"{name}: a mask must have background, but every voxel is {shown}; replace the mask")
    return np.asarray(mask != 0)


def _brief(error: Exception, path: Path) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error).split("\n")[0]
    return text.replace(str(path), path.name)[:120] or type(error).__name__


def upright(volume: Array, axis: int) -> Array:
    """A volume in RAS+ as upright pictures along `axis`; undone by the same flips and transposition in `restore`."""
    return np.ascontiguousarray(np.moveaxis(volume, axis, 0)[:, ::-1, ::-1].transpose(0, 2, 1))
