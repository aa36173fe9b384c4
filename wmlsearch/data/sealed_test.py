"""Open the sealed test patients of a prepared data set: the one way to them. A ledger records each opening first."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from wmlsearch.data.cutting import cut
from wmlsearch.data.examine import examine
from wmlsearch.data.geometry import VolumeGeometry
from wmlsearch.data.head_grey import has_head_grey, slice_head_grey
from wmlsearch.data.kept_slices import choose_kept
from wmlsearch.data.manifest import (  # fmt: skip
    IMAGES,
    LEDGER,
    MANIFEST,
    MASKS,
    ORIGINALS,
    PREPARE_AGAIN,
    SEALED,
    Manifest,
    SliceRow,
    slice_checksum,
)
from wmlsearch.data.sources import Source
from wmlsearch.data.stack import Array
from wmlsearch.errors import InputError
from wmlsearch.runs.files import append_line, read_lines


@dataclass(frozen=True)
class Opener:
    """Who opens the sealed test, as the ledger records it."""

    run: str = ""  # name of the search or run
    key: str | None = None  # of its folder
    path: str | None = None  # its folder
    models: Mapping[str, str] | None = None  # of a search: names of the models, by role
    where: str | None = None  # where a copy of the data is opened, such as a cluster; None: on this machine

    def as_json(self) -> dict[str, Any]:
        """Return the values that the ledger holds."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Opening:
    """A line of the ledger."""

    time: float  # Unix seconds
    by: Opener

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Opening:
        """Return the opening that a line records. What it lacks has the default."""
        names = {field.name for field in fields(Opener)} & line.keys()
        return cls(line.get("time", 0.0), Opener(**{name: line[name] for name in names}))


@dataclass(frozen=True)
class SealedVolume:
    """A test patient's scan with its mask, on the input's own grid."""

    source: Source  # the files that `prepare` has copied
    kept: tuple[int, ...]  # numbers of the slices with enough of the head, or a lesion: as --keep says
    nan_background: bool  # voxels that are not finite are background wherever they are


@dataclass(frozen=True)
class SealedSlices:
    """The kept slices of the test patients, n of them, in the manifest's order."""

    rows: list[SliceRow]
    images: Array  # (n, size, size) uint8
    masks: Array  # (n, size, size) uint8, the expert's
    head_grey: list[tuple[float, float]]  # see `VolumeGeometry`; empty where the data do not record it


@dataclass(frozen=True)
class SealedTest:
    """The opened test split."""

    folder: Path  # `sealed/` of the prepared data set
    manifest: Manifest
    opened_before: int  # number of earlier openings
    opened: float  # time of this opening, Unix seconds

    @property
    def by_patient(self) -> bool:
        """Whether each slice's patient is known, so that scores can be paired over patients."""
        return all(row.patient for row in self.manifest.slices)

    def volumes(self, axis: int | None = None) -> Iterator[SealedVolume]:
        """Yield each test volume in the manifest's order.

        Args:
            axis: Along which its kept slices are counted, in RAS+; None: that of the data. Along another one they are
                those that `prepare` would keep in that plane.

        Raises:
            InputError: Where files cannot be read, or their slices are not those that were sealed.
        """
        root = self.folder / ORIGINALS
        for number, geometry in enumerate(self.manifest.volumes):
            images, masks = (tuple(root / name for name in names) for names in (geometry.images, geometry.masks))
            rows = [row for row in self.manifest.slices if row.volume == number]
            source = Source(geometry.patient, geometry.timepoint, root, images, masks)
            slices = cut(source, geometry, [row.index for row in rows], self.manifest.mask_rule)
            checksums = [slice_checksum(image, mask) for image, mask in zip(slices.images, slices.masks, strict=True)]
            if checksums != [row.checksum for row in rows]:
                raise InputError(f"{images[0]}: is not the file that was sealed, its slices differ; {PREPARE_AGAIN}")
            if axis is None or axis == self.manifest.axis:
                kept = tuple(row.index for row in rows if row.kept)
            else:
                kept = self._kept_along(axis, source, geometry)
            yield SealedVolume(source, kept, geometry.nan_background)

    def _kept_along(self, axis: int, source: Source, geometry: VolumeGeometry) -> tuple[int, ...]:
        """Return the numbers of the slices along an axis that `prepare` would keep."""
        facts, faults = examine(
            source, axis, self.manifest.mask_rule, geometry.nan_background, self.manifest.padding_background
        )
        if facts is None:
            raise InputError(f"{self.folder}: a test patient's file cannot be read; {PREPARE_AGAIN}", faults)
        return tuple(number for number, kept in enumerate(choose_kept(facts, self.manifest.keep)) if kept)

    def kept_slices(self) -> SealedSlices:
        """Return the kept slices. Raises InputError where the arrays are damaged."""
        self.manifest.verify(self.folder)
        try:
            images, masks = (np.load(self.folder / name, mmap_mode="r") for name in (IMAGES, MASKS))
            shape = (len(self.manifest.slices), self.manifest.size, self.manifest.size)
            if (images.shape, masks.shape, images.dtype, masks.dtype) != (shape, shape, np.uint8, np.uint8):
                raise ValueError(f"expected {shape} uint8, got {images.shape} {images.dtype}")
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder}: the test slices cannot be read ({error}); {PREPARE_AGAIN}") from None
        kept = [i for i, row in enumerate(self.manifest.slices) if row.kept]
        levels = slice_head_grey(self.manifest) if has_head_grey(self.manifest) else []
        return SealedSlices(
            rows=[self.manifest.slices[i] for i in kept],
            images=np.array(images[kept]),
            masks=np.array(masks[kept]),
            head_grey=[levels[i] for i in kept] if levels else [],
        )


def openings(data: Path) -> list[Opening]:
    """Return the lines of the ledger of a prepared data set, oldest first. Raises InputError."""
    return [Opening.from_json(line) for line in read_lines(data / SEALED / LEDGER)]


def open_sealed_test(data: Path, by: Opener) -> SealedTest:
    """Open the test split of a prepared data set.

    Args:
        data: The prepared data set.
        by: Who opens it. The ledger records that before any image is read.

    Raises:
        InputError: Where the test split is not what was sealed, files are missing, or the ledger cannot be written.
    """
    manifest = check_sealed_test(data)
    names = [name for volume in manifest.volumes for name in (*volume.images, *volume.masks)]
    files = [data / SEALED / ORIGINALS / name for name in names] if manifest.has_volumes else []
    if missing := [str(path) for path in files if not path.is_file()]:
        raise InputError(f"{data / SEALED}: test patients' files are missing; {PREPARE_AGAIN}", missing)
    opened = record_opening(data, by)
    return SealedTest(data / SEALED, manifest, len(openings(data)) - 1, opened)


def check_sealed_test(data: Path) -> Manifest:
    """Return the manifest of the test split, without opening it, so that a search is refused before it starts.

    Raises:
        InputError: Where the test split is not what was sealed, or its ledger cannot be written.
    """
    ledger, manifest = data / SEALED / LEDGER, sealed_manifest(data, Manifest.read(data))
    try:
        ledger.open("ab").close()
    except OSError as error:
        raise _unwritable(ledger, error) from None
    return manifest


def sealed_manifest(data: Path, main: Manifest) -> Manifest:
    """Return the manifest of the test split: names, sizes and lesion loads. No image is read, so nothing is opened.

    Args:
        data: The prepared data set.
        main: Manifest of the prepared data set.

    Raises:
        InputError: Where it is not the one that was sealed.
    """
    path = data / SEALED / MANIFEST
    try:
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {PREPARE_AGAIN}") from None
    if checksum != main.checksums.get(f"{SEALED}/{MANIFEST}"):
        raise InputError(f"{path}: is not the one that was sealed, its checksum differs; {PREPARE_AGAIN}")
    return Manifest.read(path.parent)


def record_opening(data: Path, by: Opener) -> float:
    """Append a line to the ledger of a prepared data set, and return its time (Unix seconds).

    Raises:
        InputError: Where the ledger cannot be written.
    """
    ledger, now = data / SEALED / LEDGER, time.time()
    try:
        append_line(ledger, {"time": now, **by.as_json()})
    except OSError as error:
        raise _unwritable(ledger, error) from None
    return now


def _unwritable(ledger: Path, error: OSError) -> InputError:
    return InputError(
        f"{ledger}: cannot be written ({error.strerror or error}); test patients are read only after a line is "
        "written there, so make the folder writable"
    )
