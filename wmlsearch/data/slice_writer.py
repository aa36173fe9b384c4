"""Write prepared slices into a folder: images and masks slice after slice, and the rows that describe them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wmlsearch.data.cutting import CutSlices
from wmlsearch.data.geometry import VolumeGeometry
from wmlsearch.data.labels import IGNORED, LESION
from wmlsearch.data.manifest import IMAGES, MASKS, SliceRow, slice_checksum
from wmlsearch.data.sources import Source


@dataclass(frozen=True)
class VolumeTask:
    """What is to be stored of one volume. `stored`, `splits` and `kept` have an entry per stored slice."""

    source: Source  # the files to read
    geometry: VolumeGeometry
    stored: list[int]  # slice numbers
    splits: list[str]
    kept: list[bool]  # shows enough of the head, or a lesion: as --keep says
    fold: int | None = None  # of the patient; None for test patients, and where there is one validation set
    pseudonym: Source | None = None  # patient, time point and file names to write instead of the source's


class SliceWriter:
    """A folder of slices being written. The arrays are (count, size, size) uint8, written without seeking.

    Args:
        folder: Must not exist.
        count: Number of slices that will be added.
        size: Edge of a slice in pixels.
    """

    def __init__(self, folder: Path, count: int, size: int) -> None:
        folder.mkdir()
        self.folder = folder
        self.rows: list[SliceRow] = []
        self.volumes: list[VolumeGeometry] = []
        self._files = {name: (folder / name).open("wb") for name in (IMAGES, MASKS)}
        self._hashes = {name: hashlib.sha256() for name in self._files}
        header = io.BytesIO()
        shape = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size)}
        np.lib.format.write_array_header_1_0(header, shape)
        for name in self._files:
            self._write(name, header.getvalue())

    def __enter__(self) -> SliceWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, task: VolumeTask, slices: CutSlices, splits: Sequence[str]) -> None:
        """Write those of the task's slices that belong to one of the splits."""
        positions = [i for i, split in enumerate(task.splits) if split in splits]
        source = task.pseudonym or task.source
        for i in positions:
            image, mask = slices.images[i], slices.masks[i]
            self._write(IMAGES, image.tobytes())
            self._write(MASKS, mask.tobytes())
            self.rows.append(
                SliceRow(
                    patient=source.patient,
                    timepoint=source.timepoint,
                    source=source.name(source.image[0 if source.is_nifti else task.stored[i]]),
                    index=task.stored[i],
                    split=task.splits[i],
                    kept=task.kept[i],
                    lesion_pixels=int((mask == LESION).sum()),
                    checksum=slice_checksum(image, mask),
                    volume=len(self.volumes),
                    ignored_pixels=int((mask == IGNORED).sum()),
                )
            )
        if positions:
            self.volumes.append(replace(task.geometry, lost_lesion_pixels=int(slices.lost[positions].sum())))

    def close(self) -> dict[str, str]:
        """Finish the arrays, and return their sha256 by file name."""
        self.__exit__()
        return {name: digest.hexdigest() for name, digest in self._hashes.items()}

    def _write(self, name: str, data: bytes) -> None:
        self._files[name].write(data)
        self._hashes[name].update(data)
