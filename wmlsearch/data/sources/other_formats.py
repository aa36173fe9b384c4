"""Images in formats that `prepare` does not read, and in folders where it does not look: they are told, not dropped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from wmlsearch.data.sources.discovery import LayoutReport, Unused, first_names
from wmlsearch.data.sources.layout import list_folders, walk_files
from wmlsearch.data.sources.source import is_nifti, is_picture, shown_name
from wmlsearch.runs.wording import plural

FORMATS = "NIfTI, PNG, TIFF or JPEG"
# Files that lie beside images: what describes them, and the second file of formats that have two.
_BESIDE = re.compile(
    r"(?i)README|LICENSE|CHANGES|.*\.(json|ya?ml|xml|html?|txt|md|rst|pdf|csv|tsv|xlsx?|docx?|log|ini|db|bvals?|bvecs?"
    r"|lut|mat|lta|xfm|z?raw|py|sh|m)"
)
_EXTENSION = re.compile(r"(?i)(\.[a-z0-9]+)?\.(gz|bz2|xz|zst|zip)$|\.[a-z0-9]+$")


def is_other_format(path: Path) -> bool:
    """Whether a file may be an image or a mask, but of a format that is not read."""
    if is_nifti(path) or is_picture(path) or _BESIDE.fullmatch(path.name):
        return False
    return not (path.suffix.lower() == ".hdr" and any(path.with_suffix(end).exists() for end in (".img", ".IMG")))


def name_without_extension(path: Path) -> str:
    """Return a file's name without its extension, or without both as of `.img.gz`."""
    return _EXTENSION.sub("", path.name)


def conversions(root: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return advice to convert each of these files, by its path in the data set without its extension."""
    return {
        (path.relative_to(root).parent / name_without_extension(path)).as_posix(): f"convert {shown_name(path, root)}"
        for path in files
    }


def report_other_formats(root: Path, files: Sequence[Path], report: LayoutReport, formats: str = FORMATS) -> None:
    """Add a note of files in formats that are not read, if there are any.

    Args:
        root: The data set.
        files: Files for which `is_other_format` is true.
        report: Gets the note, and each file as not used.
        formats: Description of the formats that are read.
    """
    names = [shown_name(path, root) for path in files]
    report.unused += [Unused(name, f"not {formats}") for name in names]
    if names:
        them = "it if it is an image or a mask" if len(names) == 1 else "them if they are images or masks"
        report.notes.append(
            f"{plural(len(names), 'file')} not used, because {'it is' if len(names) == 1 else 'they are'} not "
            f"{formats} ({first_names(names)}); convert {them}"
        )


def report_subfolders(root: Path, folders: Iterable[Path], report: LayoutReport) -> dict[str, str]:
    """Add a note of folders below others of which only the files right in them are read, where they hold images.

    Folders that cannot be read are passed over: nothing of them would be used.

    Returns advice to move each of these images up, by the path without extension that it has then.
    """
    names: list[str] = []
    moves: dict[str, str] = {}
    below = ((outer, inner) for outer in folders for inner in list_folders(outer) if not inner.name.startswith("."))
    for outer, folder in below:
        images = [path for path, _ in walk_files(folder, skip_unreadable=True) if not _BESIDE.fullmatch(path.name)]
        if images:
            count = plural(len(images), "file")
            names.append(f"{shown_name(folder, root)} with {count}")
            report.unused.append(Unused(shown_name(folder, root), f"a subfolder, with {count}"))
        for path in images:
            place = outer.relative_to(root) / name_without_extension(path)
            moves.setdefault(place.as_posix(), f"move {shown_name(path, root)} up to {shown_name(outer, root)}/")
    if names:
        report.notes.append(
            f"subfolders beside the files are not read ({first_names(names)}); move their files up if they are part of "
            "the data"
        )
    return moves
