"""The FLAIR images of a folder, with or without masks: `predict` finds by their names what `prepare` finds.

In a BIDS data set, or the folder of one of its subjects or sessions, they are the FLAIRs of each scan, in any folder;
where a scan has none of its own, the one among its derivatives. `.bidsignore` is not read: `prepare` advises to name
scans without a mask there, and those may well be predicted. In any other folder they are the NIfTI files that are named
FLAIR, or all images where none is. Of a folder with images/ and masks/ it is images/ that counts.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wmlsearch.data.sources import pairs
from wmlsearch.data.sources.bids import is_flair_suffix, shows_lesions
from wmlsearch.data.sources.bids_files import RAW_DATA, SESSION, SUBJECT, BidsFolder, has_subjects, walk
from wmlsearch.data.sources.bids_masks import as_mask_named_like_image
from wmlsearch.data.sources.bids_names import BidsFile, read_name
from wmlsearch.data.sources.findings import first_names
from wmlsearch.data.sources.layout import list_files, list_folders
from wmlsearch.data.sources.source import is_nifti, is_picture, stem
from wmlsearch.runs.names import natural_key
from wmlsearch.runs.wording import plural


@dataclass(frozen=True)
class FlairImages:
    """The images of a folder, in natural order, and what is left out that could be another: a phrase each."""

    images: tuple[Path, ...]
    left_out: tuple[str, ...]


def find_flair_images(folder: Path, result_suffixes: tuple[str, ...] = ()) -> FlairImages:
    """Return the FLAIR images that a folder holds. Opens none.

    Args:
        folder: A BIDS data set, the folder of one of its subjects or sessions, or any folder with images.
        result_suffixes: A file directly in the folder whose name, without extension, ends so is no image.
    """
    scans = _scans(folder)
    files = [
        path
        for path in list_files(folder)
        if (is_nifti(path) or is_picture(path)) and not stem(path).endswith(result_suffixes)
    ]
    images = scans.images() + [path for path in files if _is_named_flair(path)]
    left_out = scans.left_out()
    if images:
        others = [path.name for path in files if path not in images]
        if others:
            left_out.append(f"{plural(len(others), 'image')} not named FLAIR as others are ({first_names(others)})")
    elif images := [path for path in files if path.is_file()]:
        links = [path.name for path in files if path not in images]
        left_out = left_out if scans.is_data_set else []
        left_out += [f"{plural(len(links), 'link')} to files that are not here ({first_names(links)})"] if links else []
    elif pairs.LAYOUT.matches(folder):
        return find_flair_images(folder / "images", result_suffixes)
    ordered = sorted(dict.fromkeys(images), key=lambda path: natural_key(path.as_posix()))
    return FlairImages(tuple(ordered), tuple(left_out))


def _is_named_flair(path: Path) -> bool:
    return is_nifti(path) and is_flair_suffix(stem(path).rpartition("_")[2])


# ---------------------------------------------------------------------------------------------------------------- BIDS


@dataclass
class _Scans:
    """The FLAIR images of a BIDS data set, or of a subject or session."""

    is_data_set: bool
    raw: dict[str, dict[str, list[Path]]] = field(default_factory=lambda: defaultdict(dict))  # by subject and session
    derived: dict[tuple[str, str], list[BidsFile]] = field(default_factory=lambda: defaultdict(list))
    lesions: list[str] = field(default_factory=list)  # files that are named FLAIR, but are masks
    misnamed: list[str] = field(default_factory=list)  # folders

    def add(self, file: BidsFile) -> None:
        images = [] if file.derivative else self.raw[file.patient].setdefault(file.session, [])
        if not is_flair_suffix(file.suffix):
            return
        if shows_lesions(file) or as_mask_named_like_image(file):
            self.lesions += [] if file.derivative else [file.name]
        elif file.derivative:
            self.derived[file.patient, file.session].append(file)
        else:
            images.append(file.path)

    def images(self) -> list[Path]:
        raw = [path for sessions in self.raw.values() for paths in sessions.values() for path in paths]
        return raw + [files[0].path for files in self._needed_derivatives().values() if len(files) == 1]

    def left_out(self) -> list[str]:
        derivatives = self._needed_derivatives()
        phrases = [
            f"{_scan_name(*scan)}, which has no FLAIR image of its own, but {len(files)} among derivatives "
            f"({first_names([file.name for file in files])})"
            for scan, files in sorted(derivatives.items())
            if len(files) > 1
        ]
        without = [
            _scan_name(patient, session)
            for patient, sessions in sorted(self.raw.items())
            for session, paths in sorted(sessions.items())
            if not paths and not any(_is_of(scan, patient, session) for scan in derivatives)
        ]
        if without:
            phrases.append(f"{plural(len(without), 'scan')} without a FLAIR image ({first_names(without)})")
        if self.lesions:
            phrases.append(f"{first_names(self.lesions)}, by the name a mask of lesions")
        if self.misnamed:
            phrases.append(f"{first_names(self.misnamed)}: the folder of a subject is named sub-..., in small letters")
        return phrases

    def _needed_derivatives(self) -> dict[tuple[str, str], list[BidsFile]]:
        """Return the images among derivatives of scans that have none of their own."""
        return {
            scan: files
            for scan, files in self.derived.items()
            if not any(paths and _is_of(scan, scan[0], session) for session, paths in self.raw[scan[0]].items())
        }


def _scans(folder: Path) -> _Scans:
    scans = _Scans(has_subjects(folder) or has_subjects(folder / RAW_DATA))
    if not scans.is_data_set:
        for file in _subject_files(folder):
            scans.add(file)
        return scans
    data_set = BidsFolder.open(folder)
    for file in data_set.files():
        scans.add(file)
    for subject in list_folders(data_set.subjects):
        if subject.name.startswith(SUBJECT) and subject.name not in scans.raw:
            scans.raw[subject.name][""] = []
    scans.misnamed = data_set.misnamed()
    return scans


def _subject_files(folder: Path) -> Iterator[BidsFile]:
    """Yield the NIfTI files of a subject's or a session's folder, and of anat/ and ses-*/ in any folder."""
    *_, above, name = ("", *Path(os.path.normpath(folder.absolute())).parts)
    places, is_whole = [folder], name.startswith((SUBJECT, SESSION))
    if not is_whole:
        places = [path for path in list_folders(folder) if path.name == "anat" or path.name.startswith(SESSION)]
    subject = next((part for part in (name, above) if part.startswith(SUBJECT)), "")
    for place in places:
        for path, inside in walk(place):
            folders = [name, *inside] if is_whole else [place.name, *inside]
            session = next((part.removeprefix(SESSION) for part in folders if part.startswith(SESSION)), "")
            yield read_name(folder, path, subject, session, "", inside)


def _is_of(scan: tuple[str, str], patient: str, session: str) -> bool:
    """Whether a scan of the derivatives is that of a subject's session; one without a session is that of any."""
    return scan[0] == patient and (scan[1] == session or not scan[1] or not session)


def _scan_name(patient: str, session: str) -> str:
    return f"{patient}/ses-{session}" if session else patient
