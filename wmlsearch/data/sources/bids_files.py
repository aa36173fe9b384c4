"""List the files of a BIDS data set by patient: those of the subjects' folders, and those of the derivatives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmlsearch.data.sources.bids_names import BidsFile, read_name
from wmlsearch.data.sources.layout import list_folders, walk_files
from wmlsearch.data.sources.other_formats import is_other_format
from wmlsearch.data.sources.source import is_nifti

if TYPE_CHECKING:
    from pathspec import PathSpec

SUBJECT, SESSION, DERIVATIVES, RAW_DATA = "sub-", "ses-", "derivatives", "rawdata"
IGNORE = ".bidsignore"
_FLAIR = "flair"
_LIKE_SUBJECT = re.compile(r"(?!sub-)(?i:sub(ject)?([-_ ][a-z]{0,4})?[0-9]+)")


@dataclass
class BidsFolder:
    """A BIDS data set: the folder that names are relative to, its subjects' folders, and the derivatives' folders."""

    root: Path
    subjects: Path  # holds sub-*: the root, or its folder rawdata
    derivatives: tuple[Path, ...]

    @classmethod
    def open(cls, raw: Path) -> BidsFolder:
        """Find the parts of a BIDS data set. A study may have its images in rawdata/, its derivatives beside it."""
        subjects = raw if has_subjects(raw) or not has_subjects(raw / RAW_DATA) else raw / RAW_DATA
        folders = dict.fromkeys(
            path for folder in (raw, subjects) for path in list_folders(folder) if path.name.lower() == DERIVATIVES
        )
        if subjects == raw and raw.name == RAW_DATA and not (raw / DERIVATIVES).is_dir():
            study = raw.absolute().parent
            if (study / DERIVATIVES).is_dir():
                return cls(study, study / RAW_DATA, (study / DERIVATIVES,))
        return cls(raw, subjects, tuple(folders))

    def misnamed(self) -> list[str]:
        """Return the names of folders that look like a subject's, but are not named `sub-`."""
        return [folder.name for folder in list_folders(self.subjects) if _LIKE_SUBJECT.fullmatch(folder.name)]

    def files(self, other_formats: bool = False) -> Iterator[BidsFile]:
        """Yield the NIfTI files of all subjects, links to files that are not here included.

        Args:
            other_formats: Yield images in the subjects' folders that are named FLAIR, but are not NIfTI, too.
        """
        for subject in list_folders(self.subjects):
            if subject.name.startswith(SUBJECT):
                for path, folders in walk_files(subject):
                    is_flair = other_formats and _FLAIR in path.name.lower() and is_other_format(path)
                    if is_nifti(path) or is_flair:
                        yield read_name(self.root, path, subject.name, _session(folders), "", folders)
        for derivatives in self.derivatives:
            for path, folders in walk(derivatives):
                above = [i for i, name in enumerate(folders) if name.startswith(SUBJECT)]
                place = above[-1] if above else len(folders)
                subject_name = folders[place] if above else ""
                derivative, inside = "/".join(folders[:place]), folders[place + 1 :]
                file = read_name(self.root, path, subject_name, _session(inside), derivative, inside)
                if file.patient != SUBJECT:  # else nothing says whose it is, such as a template
                    yield file

    def is_ignored(self, file: BidsFile) -> bool:
        """Whether `.bidsignore` leaves a file out. It has the form of a .gitignore."""
        if self._ignored is None or not file.path.is_relative_to(self.subjects):
            return False
        return bool(self._ignored.match_file(file.path.relative_to(self.subjects).as_posix()))

    @cached_property
    def _ignored(self) -> PathSpec[Any] | None:
        from pathspec import PathSpec

        path = self.subjects / IGNORE
        if not path.is_file():
            return None
        return PathSpec.from_lines("gitignore", path.read_text(encoding="utf-8", errors="replace").splitlines())


def has_subjects(folder: Path) -> bool:
    return any(path.name.startswith(SUBJECT) for path in list_folders(folder))


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the NIfTI files below a folder, as `walk_files` does."""
    return ((path, folders) for path, folders in walk_files(folder) if is_nifti(path))


def _session(folders: list[str]) -> str:
    return next((name.removeprefix(SESSION) for name in folders if name.startswith(SESSION)), "")
