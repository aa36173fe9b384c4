"""One volume of a raw data set: which files hold the image and the mask, and whose they are."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

NIFTI_TYPES = (".nii", ".nii.gz")
PICTURE_TYPES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Source:
    """The files of one scan: one NIfTI volume, or 2-D pictures in slice order."""

    patient: str  # without the BIDS prefix `sub-`; "" where it is not known
    timepoint: str  # "" where the patient was scanned once
    root: Path  # folder of the raw data set
    image: tuple[Path, ...]  # one NIfTI file, or one picture per slice
    mask: tuple[Path, ...] = ()  # as many files as `image`; empty for a prediction
    site: str = ""  # hospital or scanner; "" where it is not known

    @property
    def is_nifti(self) -> bool:
        return is_nifti(self.image[0])

    def name(self, path: Path) -> str:
        """Return a path relative to the root of the data set, with forward slashes."""
        return Path(os.path.relpath(path, self.root)).as_posix()

    def slice_name(self, index: int) -> str:
        """Return the name of one slice: the volume's path and the slice's number, or the picture's path."""
        return f"{self.name(self.image[0])}#{index}" if self.is_nifti else self.name(self.image[index])


def shown_name(path: Path, folder: Path) -> str:
    """Return a path relative to a folder where it lies below it; otherwise the path itself."""
    # Until Python 3.12 an absolute path counts as below ".", and would lose its first slash.
    below = path.is_absolute() == folder.is_absolute() and path.is_relative_to(folder)
    return (path.relative_to(folder) if below else path).as_posix()


def is_nifti(path: Path) -> bool:
    """Whether the file name is that of a NIfTI file."""
    return path.name.lower().endswith(NIFTI_TYPES)


def is_picture(path: Path) -> bool:
    """Whether the file name is that of a 2-D picture which `prepare` reads."""
    return path.name.lower().endswith(PICTURE_TYPES)


def stem(path: Path) -> str:
    """Return the file name without its extension, or without both of `.nii.gz`."""
    return re.sub(r"(?i)(\.nii(\.gz)?|\.[a-z]+)$", "", path.name)
