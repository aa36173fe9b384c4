"""The door to the sealed test patients: whoever opens it is written down first."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wmlsearch.config import InputError
from wmlsearch.data.cutting import cut
from wmlsearch.data.manifest import (  # fmt: skip
    AGAIN,
    IMAGES,
    MANIFEST,
    MASKS,
    ORIGINALS,
    SEAL,
    SEALED,
    Manifest,
    SliceRow,
    checksum,
)
from wmlsearch.data.sources import Source
from wmlsearch.runs.files import append_line, read_lines

_UNWRITABLE = "can't be written ({}), and without a line there the test patients are not read; make the folder writable"


@dataclass(frozen=True)
class SealedVolume:
    """A test patient's scan as it came, with its mask, and which of its slices belong to the kept ones."""

    source: Source
    kept: tuple[int, ...]


@dataclass(frozen=True)
class SealedTest:
    """An opened test split. `opened_before` says how often it was opened, `opened` when this time (Unix seconds)."""

    folder: Path
    manifest: Manifest
    opened_before: int
    opened: float

    @property
    def by_patient(self) -> bool:
        """Whether each slice's patient is known, so that scores can be paired over patients."""
        return all(row.patient for row in self.manifest.slices)

    def volumes(self) -> Iterator[SealedVolume]:
        """Each test volume, in the manifest's order. The files are those that `prepare` has copied."""
        root = self.folder / ORIGINALS
        for number, geometry in enumerate(self.manifest.volumes):
            images, masks = (tuple(root / name for name in names) for names in (geometry.images, geometry.masks))
            if missing := [str(path) for path in (*images, *masks) if not path.is_file()]:
                raise InputError(f"{self.folder}: test patients' files are missing; {AGAIN}", missing)
            rows = [row for row in self.manifest.slices if row.volume == number]
            source = Source(geometry.patient, geometry.timepoint, root, images, masks)
            slices = cut(source, geometry, [row.index for row in rows], self.manifest.mask_threshold)
            found = [checksum(image, mask) for image, mask in zip(slices.images, slices.masks, strict=True)]
            if found != [row.checksum for row in rows]:
                raise InputError(f"{images[0]}: is not the file that was sealed, its slices differ; {AGAIN}")
            yield SealedVolume(source, tuple(row.index for row in rows if row.kept))

    def kept_slices(self) -> tuple[list[SliceRow], np.ndarray, np.ndarray]:
        """The kept slices: their rows, images and masks (n, size, size) uint8. InputError where they are damaged."""
        rows = [i for i, row in enumerate(self.manifest.slices) if row.kept]
        self.manifest.verify(self.folder)
        try:
            images, masks = (np.load(self.folder / name, mmap_mode="r") for name in (IMAGES, MASKS))
            wanted = (len(self.manifest.slices), self.manifest.size, self.manifest.size)
            if (images.shape, masks.shape, images.dtype, masks.dtype) != (wanted, wanted, np.uint8, np.uint8):
                raise ValueError(f"expected {wanted} uint8, got {images.shape} {images.dtype}")
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder}: the test slices can't be read ({error}); {AGAIN}") from None
        return [self.manifest.slices[i] for i in rows], np.array(images[rows]), np.array(masks[rows])


def openings(data: Path) -> list[dict[str, Any]]:
    """Who has opened the test patients of a prepared data set, oldest first."""
    return read_lines(data / SEALED / SEAL)


def open_sealed_test(data: Path, by: Mapping[str, Any]) -> SealedTest:
    """Open the test split of a prepared data set; `by` says for what, and is in its ledger before any image is read.

    Raises InputError where it isn't what was sealed, or the ledger can't be written.
    """
    manifest = check_sealed_test(data)
    now = record_opening(data, by)
    return SealedTest(data / SEALED, manifest, len(openings(data)) - 1, now)


def check_sealed_test(data: Path) -> Manifest:
    """Refuse data whose test patients could not be opened later: known before a search, not after it.

    Returns their manifest. Raises InputError where they are not what was sealed, or their ledger can't be written.
    Nothing is opened.
    """
    path, ledger, main = data / SEALED / MANIFEST, data / SEALED / SEAL, Manifest.read(data)
    try:
        whole = hashlib.sha256(path.read_bytes()).hexdigest() == main.checksums.get(f"{SEALED}/{MANIFEST}")
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); {AGAIN}") from None
    if not whole:
        raise InputError(f"{path}: is not the one that was sealed, its checksum differs; {AGAIN}")
    try:
        ledger.open("ab").close()
    except OSError as error:
        raise InputError(f"{ledger}: {_UNWRITABLE.format(error.strerror or error)}") from None
    return Manifest.read(path.parent)


def record_opening(data: Path, by: Mapping[str, Any]) -> float:
    """Write a line into the ledger of a prepared data set; returns its time. InputError where that is not possible."""
    path, now = data / SEALED / SEAL, time.time()
    try:
        append_line(path, {"time": now, **by})
    except OSError as error:
        raise InputError(f"{path}: {_UNWRITABLE.format(error.strerror or error)}") from None
    return now
