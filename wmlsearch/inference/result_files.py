"""The files of a prediction: mask and probability map on the image's own grid, and an overlay to look at."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from wmlsearch.data.cutting import upright_slices
from wmlsearch.data.nifti import clear_text
from wmlsearch.data.reading import load_volume
from wmlsearch.data.sources.source import NIFTI_TYPES, stem
from wmlsearch.data.stack import Array
from wmlsearch.errors import InputError
from wmlsearch.inference.inputs import InputImage
from wmlsearch.inference.lesion_table import LESION_TABLE
from wmlsearch.inference.overlay import draw_overlay
from wmlsearch.inference.predictor import Prediction
from wmlsearch.runs.wording import plural


def check_nothing_overwritten(out: Path, images: Sequence[InputImage]) -> None:
    """Refuse a folder that has a result file already, that cannot be a folder, or whose file system takes no names as
    long as those of the results. Raises InputError.
    """
    existing_parent = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not existing_parent.is_dir():
        file = "" if existing_parent == out else f"{existing_parent} "
        raise InputError(f"--out {out}: {file}is a file; name a folder")
    names = [LESION_TABLE]
    longest = os.pathconf(existing_parent, "PC_NAME_MAX")
    for image in images:
        of_image = [image.mask_file, image.probability_file, image.overlay_file]
        length, name = max((len(os.fsencode(name)), name) for name in of_image)
        if length > longest:
            raise InputError(
                f"{image.path}: the name of its result {name} has {length} bytes, and {existing_parent} takes names of "
                f"at most {longest}; give the image a name that is {plural(length - longest, 'byte')} shorter"
            )
        names += of_image
    if existing := [name for name in names if (out / name).exists()]:
        raise _overwrites(out, existing)


def _overwrites(out: Path, existing: Sequence[str]) -> InputError:
    more = f" and {len(existing) - 3} more" if len(existing) > 3 else ""
    return InputError(
        f"--out {out}: has {', '.join(existing[:3])}{more} already, and nothing is overwritten; name another "
        "folder, or delete them"
    )


@contextmanager
def new_table(out: Path) -> Iterator[Path]:
    """Make the folder `out` and an empty table of lesions in it; yield its path for the block that fills it.

    Of several processes that predict into one folder, all but one are refused. If the block fails before it has
    written a row, no table is left. Raises InputError if there is a table.
    """
    out.mkdir(parents=True, exist_ok=True)
    table = out / LESION_TABLE
    try:
        table.touch(exist_ok=False)
    except FileExistsError:
        raise _overwrites(out, [LESION_TABLE]) from None
    try:
        yield table
    finally:
        with suppress(FileNotFoundError):
            if not table.stat().st_size:
                table.unlink()


def write_result_files(image: InputImage, prediction: Prediction, out: Path) -> None:
    """Write mask, probability map and overlay: NIfTI for a volume; for a picture PNG (0 and 255) and TIFF (floats)."""
    geometry = prediction.geometry
    _write_mask(image, prediction, out / image.mask_file)
    if image.source.is_nifti:
        _write_nifti(prediction.probabilities, nib.load(image.path), out / image.probability_file)
    else:
        _write_picture(Image.fromarray(prediction.probabilities[0]), out / image.probability_file)
    pictures = load_volume(image.source, geometry.axis, nan_background=geometry.nan_background).pictures
    masks = upright_slices(prediction.mask, geometry)
    _write_picture(draw_overlay(pictures, masks, geometry), out / image.overlay_file)


def write_mask(image: InputImage, prediction: Prediction, path: Path) -> None:
    """Write the mask alone. Raises InputError if the file exists, or its type is not that of the image's mask."""
    types = NIFTI_TYPES if image.source.is_nifti else (".png",)
    if not path.name.lower().endswith(types):
        raise InputError(f"{path}: the mask of this image must be a {' or '.join(types)} file; name it so")
    if path.exists():
        raise InputError(f"{path}: exists already, and nothing is overwritten; name another file, or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_mask(image, prediction, path)


def _write_mask(image: InputImage, prediction: Prediction, path: Path) -> None:
    if image.source.is_nifti:
        _write_nifti(prediction.mask, nib.load(image.path), path)
    else:
        _write_picture(Image.fromarray(prediction.mask[0] * np.uint8(255)), path)


def _write_nifti(data: Array, original: Any, path: Path) -> None:
    """Write on the grid of `original`, with its header but not the text and extensions there, which may name people."""
    header = original.header.copy()
    clear_text(header)
    header.extensions.clear()
    header.set_data_dtype(data.dtype)
    header["cal_min"], header["cal_max"] = 0, 1  # what viewers show as black and white
    with _atomic_file(path) as temporary:
        type(original)(data.reshape(original.shape), original.affine, header).to_filename(temporary)


def _write_picture(image: Image.Image, path: Path) -> None:
    with _atomic_file(path) as temporary:
        image.save(temporary)


@contextmanager
def _atomic_file(path: Path) -> Iterator[Path]:
    """Yield a hidden path of the same type, which is renamed to `path` after the block."""
    # A file system that takes the name of `path` takes this one too, which is not made from it.
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.name.removeprefix(stem(path))}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
