"""The files of a prediction: mask and probability map on the image's own grid, and an overlay to look at."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from wmlsearch.data.cutting import upright_slices
from wmlsearch.data.reading import load_volume
from wmlsearch.data.sources.source import NIFTI_TYPES
from wmlsearch.data.stack import Array
from wmlsearch.errors import InputError
from wmlsearch.inference.inputs import InputImage
from wmlsearch.inference.lesion_table import LESION_TABLE
from wmlsearch.inference.overlay import draw_overlay
from wmlsearch.inference.predictor import Prediction


def check_nothing_overwritten(out: Path, images: Sequence[InputImage]) -> None:
    """Refuse a folder that has a result file already, or that cannot be a folder. Raises InputError."""
    existing_parent = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not existing_parent.is_dir():
        file = "" if existing_parent == out else f"{existing_parent} "
        raise InputError(f"--out {out}: {file}is a file; name a folder")
    names = [LESION_TABLE]
    for image in images:
        names += [image.mask_file, image.probability_file, image.overlay_file]
    existing = [name for name in names if (out / name).exists()]
    if existing:
        more = f" and {len(existing) - 3} more" if len(existing) > 3 else ""
        raise InputError(
            f"--out {out}: has {', '.join(existing[:3])}{more} already, and nothing is overwritten; name another "
            "folder, or delete them"
        )


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
    """Write on the grid of `original`, with its header but not the header's extensions, which may name people."""
    header = original.header.copy()
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
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
