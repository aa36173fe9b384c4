"""What a raw layout provides, and the file listing and grouping that the layouts share."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from wmlsearch.data.sources.choices import Choices
from wmlsearch.data.sources.discovery import LayoutReport, first_names
from wmlsearch.data.sources.source import Source, is_nifti
from wmlsearch.data.spelling import as_on_disk
from wmlsearch.runs.wording import plural

_LOST_AND_FOUND = "lost+found"


@dataclass(frozen=True)
class RawData:
    """What the user has given: the data set's path and the options that a layout may use."""

    path: Path
    choices: Choices


@dataclass(frozen=True)
class Layout:
    """One way in which raw data sets are laid out on disk.

    `find` returns the sources it can read and adds faults and remarks to its second argument, so that the user learns
    of all at once. It raises InputError where no source can be found at all.
    """

    description: str  # completes "RAW must be ..."
    matches: Callable[[Path], bool]  # whether a path has this layout; must not open images
    find: Callable[[RawData, LayoutReport], list[Source]]
    takes_patient_pattern: bool = False  # else `--patient-pattern` is refused
    takes_select: bool = False  # else `--select` is refused
    takes_mask_select: bool = False  # else `--mask-select` is refused


@dataclass(frozen=True)
class Scan:
    """The identity by which image files are grouped into one source."""

    patient: str
    timepoint: str
    file: str = ""  # tells files without a patient apart, each of which is a source of its own


ImageAndMask = tuple[Path, Path]


def group_into_sources(
    root: Path,
    scans: Mapping[Scan, list[ImageAndMask]],
    report: LayoutReport,
    sites: Mapping[Scan, list[str]] | None = None,
) -> list[Source]:
    """Return a source per scan. A scan of several NIfTI volumes, or of a NIfTI file and a picture, is a fault.

    Args:
        root: The data set.
        scans: Images and masks of each scan.
        report: Gets the faults, and a note of patients at several sites.
        sites: Site of each image of a scan, "" where it is not known. The first is the scan's.
    """
    sources: list[Source] = []
    faults, sites = report.faults, sites or {}
    report.notes += _several_sites(sites)
    for scan, files in scans.items():
        images, masks = zip(*files, strict=True)
        source = Source(scan.patient, scan.timepoint, root, images, masks, next(iter(sites.get(scan, ())), ""))
        names = ", ".join(source.name(path) for path in images)
        if len(files) > 1 and any(is_nifti(path) for path in images):
            faults.append(
                f"patient {scan.patient!r}, time point {scan.timepoint!r}: must be one NIfTI volume, but got {names}; "
                "give each volume its own time point or, if they are of two people, its own patient"
            )
        elif any(is_nifti(image) != is_nifti(mask) for image, mask in files):
            faults.append(f"{names}: image and mask must both be NIfTI or both be pictures; convert one of them")
        else:
            sources.append(source)
    return sources


def _several_sites(sites: Mapping[Scan, list[str]]) -> list[str]:
    """Return a note of patients with scans at several sites, who may be different people of one id; else nothing."""
    of_patient: dict[str, dict[str, None]] = defaultdict(dict)
    for scan, names in sites.items():
        of_patient[scan.patient].update(dict.fromkeys(filter(None, names)))
    several = {patient: names for patient, names in of_patient.items() if patient and len(names) > 1}
    if not several:
        return []
    listed = first_names([f"{patient!r}: {' and '.join(names)}" for patient, names in several.items()])
    return [
        f"{plural(len(several), 'patient')} with scans at several sites ({listed}); if these are different people, "
        "give each an id of their own, such as the site's name before the number"
    ]


def locate(folder: Path, text: str) -> Path:
    """Return the file that a list names: relative to the list's folder, absolute, or from the user's home (~).

    `..` is resolved as a person reads it. Where that is no file, it is resolved as the system does, which differs if
    the folder is a link. Backslashes of a list that was written on Windows are slashes where that is a file. Accented
    letters may be composed in the list and decomposed on disk, or the other way round.
    """
    slashed = text.replace("\\", "/")
    if slashed != text and not os.path.lexists(folder / text) and os.path.lexists(folder / slashed):
        text = slashed
    path = folder / Path(text).expanduser() if text.startswith("~/") else folder / text
    plain = Path(os.path.normpath(path))
    if ".." in path.parts and not os.path.lexists(plain) and os.path.lexists(path):
        return Path(os.path.realpath(path.parent), path.name)
    return as_on_disk(plain)


def common_root(folder: Path, files: Iterable[Path]) -> Path:
    """Return the folder to which files are named: the list's own, or where files lie elsewhere the one above all.

    Names never lead out of it (no `..`), because the prepared data keep copies of test volumes by these names.
    """
    paths = [path.absolute() for path in files]
    home = Path(os.path.normpath(folder.absolute()))
    if all(path.is_relative_to(home) for path in paths):
        return folder
    return Path(os.path.commonpath([home, *(path.parent for path in paths)]))


def list_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted; none where it does not exist."""
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def list_files(folder: Path) -> list[Path]:
    """Return the files in a folder, sorted, without hidden ones; broken links too, so that they become faults."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if not path.name.startswith(".") and not path.is_dir()]


def walk_files(folder: Path, skip_unreadable: bool = False) -> Iterator[tuple[Path, list[str]]]:
    """Yield the files below a folder, sorted, each with the names of the folders between.

    Hidden files and folders are left out, and `lost+found`, which the system makes where a disk is mounted. Links to
    folders are followed, each folder once, under its own name rather than a link's. Broken links are yielded, so that
    they become faults.

    Args:
        folder: The folder.
        skip_unreadable: Leave out folders that cannot be read. They raise OSError otherwise.
    """
    yield from _walk(folder, [], set(), skip_unreadable)


def _walk(folder: Path, names: list[str], seen: set[str], skip_unreadable: bool) -> Iterator[tuple[Path, list[str]]]:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        with os.scandir(folder) as iterator:
            entries = sorted(iterator, key=lambda entry: entry.name)
    except OSError:
        if skip_unreadable:
            return
        raise
    folders = []
    for entry in entries:
        if entry.name.startswith(".") or entry.name == _LOST_AND_FOUND:
            continue
        if _is_folder(entry):
            folders.append(entry)
        else:
            yield Path(entry.path), names
    for entry in sorted(folders, key=lambda entry: entry.is_symlink()):
        yield from _walk(Path(entry.path), [*names, entry.name], seen, skip_unreadable)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False
