"""The FLAIR images of a folder, with or without masks: `predict` finds by their names what `prepare` finds.

In a BIDS data set, or the folder of one of its subjects or sessions, they are the FLAIRs of each scan, in any folder;
where a scan has none of its own, the one among its derivatives; and where there is none either, what is named like a
mask of lesions, because the word may name the protocol (`acq-wmh_FLAIR`). `.bidsignore` is not read: `prepare` advises
to name scans without a mask there, and those may well be predicted. In any other folder they are the NIfTI files that
are named FLAIR, or all images where none is. Of a folder with images/ and masks/ it is images/ that counts, and its
subfolders where no image lies right in it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wmlsearch.data.sources import pairs
from wmlsearch.data.sources.bids import is_flair_suffix, shows_lesions
from wmlsearch.data.sources.bids_files import RAW_DATA, SESSION, SUBJECT, BidsFolder, has_subjects
from wmlsearch.data.sources.bids_masks import as_mask_named_like_image
from wmlsearch.data.sources.bids_names import BidsFile, read_name
from wmlsearch.data.sources.discovery import first_names
from wmlsearch.data.sources.layout import list_files, list_folders, walk_files
from wmlsearch.data.sources.other_formats import FORMATS, is_other_format
from wmlsearch.data.sources.source import is_nifti, is_picture, stem
from wmlsearch.data.spelling import composed
from wmlsearch.runs.names import natural_key
from wmlsearch.runs.wording import plural


@dataclass(frozen=True)
class FlairImages:
    """The images of a folder, in natural order, and what is to be said of it."""

    images: tuple[Path, ...]
    left_out: tuple[str, ...]  # what could be another image: a phrase each
    doubts: tuple[str, ...]  # why one of the images may be none: a sentence each
    root: Path  # the folder that names of images with their subfolders begin in: the given one, or its images/


def find_flair_images(folder: Path, result_suffixes: tuple[str, ...], result_table: str) -> FlairImages:
    """Return the FLAIR images that a folder holds. Opens none.

    Args:
        folder: A BIDS data set, the folder of one of its subjects or sessions, or any folder with images.
        result_suffixes: A file right in a folder outside of BIDS whose name, without extension, ends so is no image.
            In subfolders of images/, where `prepare` takes any name, it is none beside its image or the table.
        result_table: Name of the table of results, which lies beside them.
    """
    scans = _scans(folder)
    listed = [path for path in list_files(folder) if not stem(path).endswith(result_suffixes)]
    files = [path for path in listed if _is_image(path)]
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
        return find_flair_images(folder / pairs.FOLDERS[0], result_suffixes, result_table)
    elif folder.name == pairs.FOLDERS[0] and pairs.LAYOUT.matches(folder.parent):
        below = [path for path, _ in walk_files(folder)]
        results = _results(below, result_suffixes, result_table)
        images = [path for path in below if _is_image(path) and path not in results]
        left_out = [] if images else left_out
    if unread := [path.name for path in listed if is_other_format(path)]:
        left_out.append(f"{plural(len(unread), 'file')} not {FORMATS} ({first_names(unread)})")
    if not scans.raw and not set(images) - set(files):
        left_out += _subfolders(folder, result_suffixes)
    ordered = sorted(dict.fromkeys(images), key=lambda path: natural_key(path.as_posix()))
    return FlairImages(tuple(ordered), tuple(left_out), scans.doubts(), folder)


def _subfolders(folder: Path, result_suffixes: tuple[str, ...]) -> list[str]:
    """Return a phrase on subfolders with images; none where there is no such."""
    names = []
    for inner in list_folders(folder):
        try:
            files = [] if inner.name.startswith(".") else list_files(inner)
        except OSError:  # it may not be read, which does not matter here
            continue
        if any(_is_image(path) and not stem(path).endswith(result_suffixes) for path in files):
            names.append(inner.name)
    return [f"{plural(len(names), 'subfolder')} with images ({first_names(names)})"] if names else []


def _results(files: list[Path], suffixes: tuple[str, ...], table: str) -> set[Path]:
    """Return the files that are named as results and lie beside the image that they are of, or beside the table."""
    images = {(path.parent, stem(path)) for path in files if _is_image(path)}
    folders = {path.parent for path in files if path.name == table}
    return {
        path
        for path in files
        for suffix in suffixes
        if stem(path).endswith(suffix)
        and (path.parent in folders or (path.parent, stem(path).removesuffix(suffix)) in images)
    }


def _is_image(path: Path) -> bool:
    return is_nifti(path) or is_picture(path)


def _is_named_flair(path: Path) -> bool:
    return is_nifti(path) and is_flair_suffix(stem(path).rpartition("_")[2])


# ---------------------------------------------------------------------------------------------------------------- BIDS


@dataclass
class _Scans:
    """The FLAIR images of a BIDS data set, or of a subject or session."""

    is_data_set: bool
    raw: dict[str, dict[str, list[Path]]] = field(default_factory=lambda: defaultdict(dict))  # by subject and session
    derived: dict[tuple[str, str], list[BidsFile]] = field(default_factory=lambda: defaultdict(list))
    other_formats: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    named_lesions: dict[tuple[str, str], list[BidsFile]] = field(default_factory=lambda: defaultdict(list))
    in_lesions: list[str] = field(default_factory=list)  # files that are named FLAIR, but lie in a folder of lesions
    misnamed: list[str] = field(default_factory=list)  # folders

    def add(self, file: BidsFile) -> None:
        scan = patient, session = composed(file.patient), composed(file.session)
        images = [] if file.derivative else self.raw[patient].setdefault(session, [])
        if not is_flair_suffix(file.suffix):
            return
        if not is_nifti(file.path):
            self.other_formats[scan].append(file.name)
        elif as_mask_named_like_image(file):
            self.in_lesions += [] if file.derivative else [file.name]
        elif shows_lesions(file):
            if not file.derivative:
                self.named_lesions[scan].append(file)
        elif file.derivative:
            self.derived[scan].append(file)
        else:
            images.append(file.path)

    def images(self) -> list[Path]:
        raw = [path for sessions in self.raw.values() for paths in sessions.values() for path in paths]
        derived = [files[0].path for files in self._needed_derivatives().values() if len(files) == 1]
        return raw + derived + [file.path for file in self._needed_named_lesions()]

    def doubts(self) -> tuple[str, ...]:
        names = [file.name for file in self._needed_named_lesions()]
        if not names:
            return ()
        return (
            f"{plural(len(names), 'image')} predicted although the name says lesions, because the scan has no other "
            f"FLAIR image ({first_names(names)}); if one is a mask, delete its results",
        )

    def left_out(self) -> list[str]:
        derivatives = self._needed_derivatives()
        phrases = [
            f"{_scan_name(*scan)}, which has no FLAIR image of its own, but {len(files)} among derivatives "
            f"({first_names([file.name for file in files])})"
            for scan, files in sorted(derivatives.items())
            if len(files) > 1
        ]
        empty = [scan for scan in self._scans_without_image() if not self.named_lesions.get(scan)]
        if unread := [name for scan in empty for name in self.other_formats[scan]]:
            phrases.append(f"{plural(len(unread), 'FLAIR image')} not NIfTI ({first_names(unread)})")
        if without := [_scan_name(*scan) for scan in empty if not self.other_formats[scan]]:
            phrases.append(f"{plural(len(without), 'scan')} without a FLAIR image ({first_names(without)})")
        taken = self._needed_named_lesions()
        lesions = [file.name for files in self.named_lesions.values() for file in files if file not in taken]
        if lesions := lesions + self.in_lesions:
            phrases.append(f"{first_names(lesions)}, by the name a mask of lesions")
        if self.misnamed:
            phrases.append(f"{first_names(self.misnamed)}: the folder of a subject is named sub-..., in small letters")
        return phrases

    def _scans_without_image(self) -> list[tuple[str, str]]:
        """Return the patient and session of scans that have a FLAIR image neither of their own nor derived."""
        derivatives = self._needed_derivatives()
        return [
            (patient, session)
            for patient, sessions in sorted(self.raw.items())
            for session, paths in sorted(sessions.items())
            if not paths and not any(_is_of(scan, patient, session) for scan in derivatives)
        ]

    def _needed_named_lesions(self) -> list[BidsFile]:
        """Return the files named like masks of lesions of scans that have no other FLAIR image."""
        return [file for scan in self._scans_without_image() for file in self.named_lesions.get(scan, ())]

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
    for file in data_set.files(other_formats=True):
        scans.add(file)
    for subject in list_folders(data_set.subjects):
        if subject.name.startswith(SUBJECT) and composed(subject.name) not in scans.raw:
            scans.raw[composed(subject.name)][""] = []
    scans.misnamed = data_set.misnamed()
    return scans


def _subject_files(folder: Path) -> Iterator[BidsFile]:
    """Yield the images of a subject's or a session's folder, and of anat/ and ses-*/ in any folder."""
    *_, above, name = ("", *Path(os.path.normpath(folder.absolute())).parts)
    places, is_whole = [folder], name.startswith((SUBJECT, SESSION))
    if not is_whole:
        places = [path for path in list_folders(folder) if path.name == "anat" or path.name.startswith(SESSION)]
    subject = next((part for part in (name, above) if part.startswith(SUBJECT)), "")
    for place in places:
        for path, inside in walk_files(place):
            if not is_nifti(path) and not is_other_format(path):
                continue
            folders = [name, *inside] if is_whole else [place.name, *inside]
            session = next((part.removeprefix(SESSION) for part in folders if part.startswith(SESSION)), "")
            yield read_name(folder, path, subject, session, "", inside)


def _is_of(scan: tuple[str, str], patient: str, session: str) -> bool:
    """Whether a scan of the derivatives is that of a subject's session; one without a session is that of any."""
    return scan[0] == patient and (scan[1] == session or not scan[1] or not session)


def _scan_name(patient: str, session: str) -> str:
    return f"{patient}/ses-{session}" if session else patient
