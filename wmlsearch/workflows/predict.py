"""Images as they come to masks, probability maps, overlays and a table of lesions: all of `wmlsearch predict`."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from wmlsearch.config import InputError
from wmlsearch.data.cutting import upright_slices
from wmlsearch.data.geometry import VolumeGeometry
from wmlsearch.data.reading import load_volume
from wmlsearch.data.sources import PICTURE_TYPES, Source, natural_key
from wmlsearch.data.stack import Array
from wmlsearch.inference.export import ExportedModel
from wmlsearch.inference.overlay import draw_overlay
from wmlsearch.inference.predictor import Prediction, TrainedModel, common_preprocessing, predict, slicing_geometry
from wmlsearch.runs.files import write_text
from wmlsearch.runs.wording import plural
from wmlsearch.verdict.scores import label_lesions

NIFTI = (".nii", ".nii.gz")
TABLE = "lesions.csv"
OWN = ("_mask", "_probability", "_overlay")  # how names of our own outputs end: not images to predict
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Row:
    """What was found in one image, by the model or by its ensemble: a line of lesions.csv."""

    input: str
    predicted_by: str  # model, ensemble
    model: str
    threshold: float
    lesions: int
    volume_ml: float | None  # None for 2-D pictures
    area_pixels: int | None  # None for volumes
    mask: str  # the file of the mask; "" where it isn't written


@dataclass(frozen=True)
class _Input:
    path: Path
    name: str  # how names of its files begin

    @property
    def source(self) -> Source:
        return Source("", "", self.path.parent, (self.path,))

    def file(self, kind: str) -> str:
        volume = self.source.is_nifti
        endings = {"mask": ".nii.gz" if volume else ".png", "probability": ".nii.gz" if volume else ".tif"}
        return f"{self.name}_{kind}{endings.get(kind, '.png')}"


def predict_files(
    model: ExportedModel,
    given: Sequence[Path],
    out: Path,
    threshold: float | None = None,
    ensemble: bool = False,
    progress: Progress = lambda *_: None,
) -> list[Row]:
    """Predict the images `given` (files, or folders of them) and write into `out` what was found.

    For each image NAME: NAME_mask and NAME_probability on its own grid (NIfTI with its affine; of pictures a PNG with
    0 and 255, and a TIFF of floats), NAME_overlay.png, and a row in lesions.csv; with `ensemble` two rows, and the
    files are the ensemble's. All images are read and checked before the first is predicted, and nothing is overwritten.
    Raises InputError with all faults. `progress(what, done, total)` is called after each image.
    """
    if ensemble and len(model.members) < 2:
        raise InputError(
            f"--ensemble: needs a model of several seeds, but there is only {model.members[0].name}; name a search "
            "that has a champion, or an export of one, or leave --ensemble out"
        )
    inputs = _inputs(given)
    _check_out(out, inputs)
    geometries = _check_all(model, inputs, progress)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    progress("predicting", 0, len(inputs))
    for done, (it, geometry) in enumerate(zip(inputs, geometries, strict=True), 1):
        found = predict(model.members[:1], it.source, threshold, geometry)
        rows.append(_row(it, "model", model.members[:1], found, "" if ensemble else it.file("mask")))
        if ensemble:
            common = model.ensemble_threshold if threshold is None else threshold
            found = predict(model.members, it.source, common, geometry)
            rows.append(_row(it, "ensemble", model.members, found, it.file("mask")))
        _write(it, found, out)
        write_text(out / TABLE, _table(rows))
        progress("predicting", done, len(inputs))
    return rows


# ------------------------------------------------------------------------------------------------------------- inputs


def _inputs(given: Sequence[Path]) -> list[_Input]:
    """All images that were given, each once. Raises InputError for what is none."""
    faults: list[str] = []
    found: dict[Path, Path] = {}
    for path in given:
        if path.is_dir():
            images = _in_folder(path)
            if not images:
                faults.append(f"{path}: no image in this folder; {_KINDS}, or BIDS (sub-*/[ses-*/]anat/*_FLAIR.nii.gz)")
        else:
            images = [path]
            if not path.is_file():
                faults.append(f"{path}: no such file or folder; check the path")
            elif not path.name.lower().endswith((*NIFTI, *PICTURE_TYPES)):
                faults.append(f"{path}: must be one of {_KINDS}; convert it")
        for image in images:
            found.setdefault(Path(os.path.realpath(image)), image)  # which bears loops of links
    if faults:
        raise InputError(f"{plural(len(faults), 'fault')}, nothing was written", faults)
    return [_Input(path, name) for path, name in zip(found.values(), _names(list(found.values())), strict=True)]


_KINDS = ", ".join((*NIFTI, *PICTURE_TYPES))


def _in_folder(folder: Path) -> list[Path]:
    """The FLAIR images of a BIDS data set, subject or session; else all images directly in the folder."""
    places = ("", "anat/", "ses-*/anat/", "sub-*/anat/", "sub-*/ses-*/anat/")
    images = [path for place in places for end in NIFTI for path in folder.glob(f"{place}*_FLAIR{end}")]
    if not images:
        images = [
            path
            for path in folder.iterdir()
            if path.is_file()
            and not path.name.startswith(".")
            and path.name.lower().endswith((*NIFTI, *PICTURE_TYPES))
            and not _stem(path).endswith(OWN)
        ]
    return sorted(images, key=lambda path: natural_key(path.as_posix()))


def _names(paths: Sequence[Path]) -> list[str]:
    """A name for each image's files: its own, with as many folders before it as make it the only one."""
    whole = [Path(os.path.realpath(path.parent)) / path.name for path in paths]  # the name of a link itself counts
    same = Counter((path.parent, _stem(path)) for path in whole)  # but for their ending
    parts = []
    for path in whole:
        own = _stem(path) if same[path.parent, _stem(path)] == 1 else path.name.replace(".", "_")
        parts.append((*path.parent.parts[1:], own))
    length = [1] * len(parts)
    while True:
        names = ["_".join(p[-n:]) for p, n in zip(parts, length, strict=True)]
        count = Counter(name.lower() for name in names)  # on some file systems a is A
        alike = [place for place, name in enumerate(names) if count[name.lower()] > 1]
        if not alike:
            return names
        longer = [place for place in alike if length[place] < len(parts[place])]
        if not longer:
            raise InputError(
                "these images' outputs would have the same name; predict them apart",
                [str(paths[place]) for place in alike],
            )
        for place in longer:
            length[place] += 1


def _stem(path: Path) -> str:
    return re.sub(r"(?i)(\.nii(\.gz)?|\.[a-z]+)$", "", path.name)


def _check_out(out: Path, inputs: Sequence[_Input]) -> None:
    above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not above.is_dir():
        raise InputError(f"--out {out}: {'' if above == out else f'{above} '}is a file; name a folder")
    names = [TABLE, *(it.file(kind) for it in inputs for kind in ("mask", "probability", "overlay"))]
    there = [name for name in names if (out / name).exists()]
    if there:
        more = f" and {len(there) - 3} more" if len(there) > 3 else ""
        raise InputError(
            f"--out {out}: has {', '.join(there[:3])}{more} already, and nothing is overwritten; name another folder, "
            "or delete them"
        )


def _check_all(model: ExportedModel, inputs: Sequence[_Input], progress: Progress) -> list[VolumeGeometry]:
    preprocessing = common_preprocessing(model.members)
    geometries, faults = [], list[str]()
    for done, it in enumerate(inputs, 1):
        try:
            geometries.append(slicing_geometry(it.source, preprocessing))
        except InputError as error:  # its lines begin with the name of the file
            folder = "" if it.path.parent == Path() else f"{it.path.parent}/"
            faults += [f"{folder}{line}" for line in error.faults or [error.headline]]
        progress("checking", done, len(inputs))
    if faults:
        raise InputError(f"{plural(len(faults), 'fault')}, nothing was written", faults)
    return geometries


# ------------------------------------------------------------------------------------------------------------ outputs


def _row(it: _Input, by: str, members: Sequence[TrainedModel], found: Prediction, mask: str) -> Row:
    pixels = int(found.mask.sum())
    # A picture is a stack of one.
    _, lesions = label_lesions(found.mask[0] if found.voxel_mm is None else found.mask)
    volume = None if found.voxel_mm is None else pixels * float(np.prod(found.voxel_mm)) / 1000
    area = pixels if found.voxel_mm is None else None
    names = " ".join(member.name for member in members)
    return Row(str(it.path), by, names, found.threshold, lesions, volume, area, mask)


def _table(rows: Sequence[Row]) -> str:
    """CSV with `volume_ml` for volumes, `area_pixels` for pictures."""
    size = "area_pixels" if rows[0].volume_ml is None else "volume_ml"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["input", "predicted_by", "model", "threshold", "lesions", size, "mask"])
    for row in rows:
        amount = row.area_pixels if row.volume_ml is None else f"{row.volume_ml:.4f}"
        writer.writerow([row.input, row.predicted_by, row.model, f"{row.threshold:.6g}", row.lesions, amount, row.mask])
    return text.getvalue()


def _write(it: _Input, found: Prediction, out: Path) -> None:
    if it.source.is_nifti:
        like = nib.load(it.path)
        _nifti(found.mask, like, out / it.file("mask"))
        _nifti(found.probabilities, like, out / it.file("probability"))
    else:
        _picture(Image.fromarray(found.mask[0] * np.uint8(255)), out / it.file("mask"))
        _picture(Image.fromarray(found.probabilities[0]), out / it.file("probability"))
    pictures = load_volume(it.source, found.geometry.axis, None).pictures
    _picture(
        draw_overlay(pictures, upright_slices(found.mask, found.geometry), found.geometry), out / it.file("overlay")
    )


def _nifti(data: Array, like: Any, path: Path) -> None:
    """On the grid of `like`, with its header; not the header's extensions, which may name people."""
    header = like.header.copy()
    header.extensions.clear()
    header.set_data_dtype(data.dtype)
    header["cal_min"], header["cal_max"] = 0, 1  # what viewers show as black and white
    with _aside(path) as aside:
        type(like)(data.reshape(like.shape), like.affine, header).to_filename(aside)


def _picture(image: Image.Image, path: Path) -> None:
    with _aside(path) as aside:
        image.save(aside)


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A hidden name of the same type, which takes its own when it is written."""
    aside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
