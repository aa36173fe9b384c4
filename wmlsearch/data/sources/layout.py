"""What a raw layout provides, and the file listing and grouping that the layouts share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wmlsearch.data.sources.source import Source, is_nifti


@dataclass(frozen=True)
class RawData:
    """What the user has given: the data set's path and the options that a layout may use."""

    path: Path
    patient_pattern: str | None = None  # regular expression that finds the patient in a file name


@dataclass(frozen=True)
class Layout:
    """One way in which raw data sets are laid out on disk.

    `find` returns the sources it can read and appends a line to its second argument for each fault, so that the user
    learns of all faults at once. It raises InputError where no source can be found at all.
    """

    description: str  # completes "RAW must be ..."
    matches: Callable[[Path], bool]  # whether a path has this layout; must not open images
    find: Callable[[RawData, list[str]], list[Source]]
    takes_patient_pattern: bool = False  # else `--patient-pattern` is refused


@dataclass(frozen=True)
class Scan:
    """The identity by which image files are grouped into one source."""

    patient: str
    timepoint: str
    file: str = ""  # tells files without a patient apart, each of which is a source of its own


ImageAndMask = tuple[Path, Path]


def group_into_sources(
    root: Path, scans: Mapping[Scan, list[ImageAndMask]], faults: list[str], sites: Mapping[Scan, str] | None = None
) -> list[Source]:
    """Return a source per scan. A scan of several NIfTI volumes, or of a NIfTI file and a picture, is a fault."""
    sources = []
    for scan, files in scans.items():
        images, masks = zip(*files, strict=True)
        source = Source(scan.patient, scan.timepoint, root, images, masks, (sites or {}).get(scan, ""))
        names = ", ".join(source.name(path) for path in images)
        if len(files) > 1 and any(is_nifti(path) for path in images):
            faults.append(
                f"patient {scan.patient!r}, time point {scan.timepoint!r}: must be one NIfTI volume, but got {names}; "
                "give each volume its own time point"
            )
        elif any(is_nifti(image) != is_nifti(mask) for image, mask in files):
            faults.append(f"{names}: image and mask must both be NIfTI or both be pictures; convert one of them")
        else:
            sources.append(source)
    return sources


def list_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted; none where it does not exist."""
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def list_files(folder: Path) -> list[Path]:
    """Return the files in a folder, sorted, without hidden ones; broken links too, so that they become faults."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if not path.name.startswith(".") and not path.is_dir()]
