"""The images to predict: which files the given paths mean, and how the names of their results begin."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wmlsearch.data.patient_names import patient_name
from wmlsearch.data.sources.bids_files import SESSION, SUBJECT
from wmlsearch.data.sources.case_names import entities
from wmlsearch.data.sources.content import content_faults
from wmlsearch.data.sources.flair_images import find_flair_images
from wmlsearch.data.sources.patient_pattern import check_pattern, match_names
from wmlsearch.data.sources.source import NIFTI_TYPES, PICTURE_TYPES, Source, is_nifti, is_picture, shown_name, stem
from wmlsearch.data.spelling import composed
from wmlsearch.errors import InputError
from wmlsearch.inference.lesion_table import LESION_TABLE
from wmlsearch.runs.names import natural_key
from wmlsearch.runs.wording import plural

RESULT_SUFFIXES = ("_mask", "_probability", "_overlay")  # files named so are results, not images to predict
FILE_TYPES = ", ".join((*NIFTI_TYPES, *PICTURE_TYPES))


@dataclass(frozen=True)
class InputImage:
    """An image to predict."""

    path: Path
    name: str  # the names of its result files begin with it
    volume: tuple[Path, ...] = ()  # the pictures of its volume in order, itself among them; empty: it stands alone

    @property
    def source(self) -> Source:
        return Source("", "", self.path.parent, (self.path,))

    @property
    def volume_source(self) -> Source:
        """The volume that the picture is a slice of; of another image the same as `source`."""
        return Source("", "", self.path.parent, self.volume or (self.path,))

    @property
    def mask_file(self) -> str:
        return f"{self.name}_mask" + (".nii.gz" if self.source.is_nifti else ".png")

    @property
    def probability_file(self) -> str:
        return f"{self.name}_probability" + (".nii.gz" if self.source.is_nifti else ".tif")

    @property
    def overlay_file(self) -> str:
        return f"{self.name}_overlay.png"


@dataclass(frozen=True)
class Inputs:
    """The images to predict, and what was left out of folders, a sentence each."""

    images: tuple[InputImage, ...]
    notes: tuple[str, ...]


def find_images(paths: Sequence[Path], patient_pattern: str | None = None) -> Inputs:
    """Return all images that `paths` (files, or folders of images) mean, each once. Raises InputError.

    Pictures of one folder whose names have the same patient and time point are slices of one volume, as for `prepare`:
    by `patient_pattern`, a regular expression, or else by `sub-` and `ses-` in the names, or in those of their folders.
    """
    faults: list[str] = []
    notes: list[str] = []
    images: dict[Path, Path] = {}  # by real path, which also works for loops of links
    roots: dict[Path, Path] = {}  # of images whose subfolders count as part of their names
    for path in paths:
        files = [path]
        if path.is_dir():
            try:
                flairs = find_flair_images(path, RESULT_SUFFIXES, LESION_TABLE)
            except OSError as error:
                reason = f"{shown_name(Path(error.filename or path), path)} cannot be read ({error.strerror or error})"
                faults.append(f"{path}: {reason}; check its permissions")
                continue
            files, left_out = list(flairs.images), "; ".join(flairs.left_out)
            left_out = left_out and f"left out: {left_out}; name a file to predict it whatever its name"
            notes += [f"{path}: {doubt}" for doubt in flairs.doubts]
            roots |= dict.fromkeys(files, flairs.root)
            faults += content_faults(path, [Source("", "", path, (file,)) for file in files])
            if not files:
                rule = f"{FILE_TYPES}, or BIDS (sub-*/[ses-*/]anat/*_FLAIR.nii.gz)"
                faults.append(f"{path}: no image in this folder; {rule}{left_out and f'; {left_out}'}")
            elif left_out:
                notes.append(f"{path}: {left_out}")
        elif not path.is_file():
            faults.append(f"{path}: no such file or folder; check the path")
        elif not is_nifti(path) and not is_picture(path):
            faults.append(f"{path}: must be one of {FILE_TYPES}; convert it")
        for file in files:
            images.setdefault(Path(os.path.realpath(file)), file)
    if faults:
        raise InputError(f"{plural(len(faults), 'fault')}, nothing was written", faults)
    files = list(images.values())
    volumes = _volumes({path: roots.get(path, path.parent) for path in files if is_picture(path)}, patient_pattern)
    names = zip(files, _unique_names(files), strict=True)
    input_images = [InputImage(path, name, volumes.get(path, ())) for path, name in names]
    return Inputs(tuple(input_images), tuple(notes))


def _volumes(roots: Mapping[Path, Path], pattern: str | None) -> dict[Path, tuple[Path, ...]]:
    """Return the pictures of its volume for each picture whose name says which that is, where there are several.

    Args:
        roots: The folder that the name of each picture begins in, so that subfolders are part of it.
        pattern: Finds patient and time point in the names; None: `sub-` and `ses-` do, also in the two folders above.
    """
    pictures = list(roots)
    names = [(path.relative_to(roots[path]).parent / stem(path)).as_posix() for path in pictures]
    if pattern is None:
        scans = [entities("/".join([*_subject_folders(path), stem(path)])) for path in pictures]
    else:
        check_pattern(pattern)
        if not pictures:
            raise InputError("--patient-pattern: finds the slices of a volume, but there is no picture; leave it out")
        groups = match_names(pattern, names)
        scans = [(group.get("patient") or "", group.get("timepoint") or "") for group in groups]
        if faults := [
            f"{path}: --patient-pattern {pattern!r} finds no patient in the name {name!r}"
            for path, name, (patient, _) in zip(pictures, names, scans, strict=True)
            if not patient
        ]:
            raise InputError(f"{plural(len(faults), 'fault')}, nothing was written", faults)
    volumes: dict[tuple[str, str, str], list[Path]] = defaultdict(list)
    for path, (patient, timepoint) in zip(pictures, scans, strict=True):
        if patient:
            volumes[os.path.realpath(roots[path]), patient_name(patient), composed(timepoint)].append(path)
    in_order = [tuple(sorted(volume, key=lambda path: natural_key(path.as_posix()))) for volume in volumes.values()]
    return {path: volume for volume in in_order if len(volume) > 1 for path in volume}


def _subject_folders(path: Path) -> list[str]:
    """Return which of the two folders above a file are named as those of a subject or a session."""
    above = Path(os.path.normpath(path.absolute())).parts[-3:-1]
    return [name for name in above if name.startswith((SUBJECT, SESSION))]


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each image: its file name, preceded by as many folders as make it unique."""
    full_paths = [Path(os.path.realpath(path.parent)) / path.name for path in paths]  # a link keeps its own name
    same_stem = Counter((path.parent, stem(path)) for path in full_paths)  # names that differ in their ending only
    parts = []
    for path in full_paths:
        name = stem(path) if same_stem[path.parent, stem(path)] == 1 else path.name.replace(".", "_")
        parts.append((*path.parent.parts[1:], name))
    lengths = [1] * len(parts)
    while True:
        names = ["_".join(part[-length:]) for part, length in zip(parts, lengths, strict=True)]
        count = Counter(name.lower() for name in names)  # some file systems ignore case
        ambiguous = [index for index, name in enumerate(names) if count[name.lower()] > 1]
        if not ambiguous:
            return names
        extendable = [index for index in ambiguous if lengths[index] < len(parts[index])]
        if not extendable:
            raise InputError(
                "the results of these images would have the same name; predict them separately",
                [str(paths[index]) for index in ambiguous],
            )
        for index in extendable:
            lengths[index] += 1
