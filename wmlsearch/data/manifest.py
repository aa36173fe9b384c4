"""What a prepared folder says about itself: a row per slice, the geometry of each volume, the split, checksums."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wmlsearch.config import InputError
from wmlsearch.data.certificate import Certificate
from wmlsearch.data.cutting import CutSlices
from wmlsearch.data.geometry import VolumeGeometry
from wmlsearch.data.sources import Source
from wmlsearch.data.split import SPLITS

FORMAT = 2
IMAGES, MASKS, MANIFEST, CONTACT_SHEET = "images.npy", "masks.npy", "manifest.json", "contact_sheet.png"
SEALED, SEAL, ORIGINALS = "sealed", "seal.jsonl", "originals"  # a folder in the prepared one, and what lies in it
AGAIN = "make it again with `wmlsearch prepare`"


@dataclass(frozen=True)
class SliceRow:
    """Slice i of the arrays: where it came from, and what it is for."""

    patient: str  # "" where unknown (image-level splits)
    timepoint: str
    source: str  # the file, relative to the raw data's root
    index: int  # slice number in the RAS+ volume, or place among the volume's pictures
    split: str
    kept: bool  # shows enough of the head, or a lesion: as --keep says
    lesion_pixels: int
    checksum: str  # sha256 of the image's bytes and the mask's
    volume: int  # place in `volumes`


@dataclass(frozen=True)
class Manifest:
    """A prepared data set. Row i of `slices` describes images.npy[i] and masks.npy[i], both (N, size, size) uint8.

    The main manifest has the slices of train and validation; the one in `sealed/` those of the test. `counts` holds per
    split: patients, timepoints, slices, kept, lesion_pixels, lesion_share (of the kept slices' pixels) and
    lost_lesion_pixels (outside the window). `checksums` are sha256 of the files, by path relative to the folder.
    """

    format: int
    plane: str  # sagittal, axial, coronal, native; image for 2-D pictures
    axis: int | None  # slicing axis in RAS+; None for 2-D pictures
    size: int
    fit: str
    keep: str
    split_level: str
    optimistic: bool
    protocol: str | None
    seed: int
    mask_threshold: float | None
    spacing_mm: float | None  # in-plane; with fit resize the volumes have their own, and this is their median
    counts: dict[str, dict[str, float]]
    certificate: Certificate
    checksums: dict[str, str]
    fingerprint: str
    volumes: tuple[VolumeGeometry, ...]
    slices: tuple[SliceRow, ...]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest in `folder`. Raises InputError when there is none, or it is damaged or of another format."""
        path = folder / MANIFEST
        if not folder.exists():
            raise InputError(f"{folder}: no such folder; make it with `wmlsearch prepare RAW {folder}`")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{folder}: not a prepared data set, {MANIFEST} is missing; {AGAIN}") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: is damaged ({error}); {AGAIN}") from None
        except RecursionError:
            raise InputError(f"{path}: is damaged (nested too deeply); {AGAIN}") from None
        if isinstance(data, dict) and data.get("format") != FORMAT:
            raise InputError(f"{path}: format must be {FORMAT}, but is {data.get('format')!r}; {AGAIN}")
        try:
            manifest = typing.cast(Manifest, _built(cls, data, "manifest"))
            for i, row in enumerate(manifest.slices):
                if row.split not in SPLITS or not 0 <= row.volume < len(manifest.volumes):
                    raise ValueError(f"slice {i} is in split {row.split!r} and volume {row.volume}")
        except ValueError as error:
            raise InputError(f"{path}: is damaged ({error}); {AGAIN}") from None
        return manifest

    def write(self, folder: Path) -> None:
        """Write `manifest.json`, one line per slice."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        lines = []
        for name, value in data.items():
            if name in ("volumes", "slices"):
                rows = ",\n".join(f"  {json.dumps(dataclasses.asdict(row))}" for row in value)
                lines.append(f'"{name}": [\n{rows}\n]')
            else:
                value = dataclasses.asdict(value) if isinstance(value, Certificate) else value
                lines.append(f'"{name}": {json.dumps(value)}')
        (folder / MANIFEST).write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")

    @property
    def has_volumes(self) -> bool:
        """Whether its test patients' whole volumes are kept as they came: NIfTI, split by patient."""
        return self.split_level == "patient" and self.axis is not None

    def indices(self, split: str, kept_only: bool) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The rows (n,) of a split, ascending; only those flagged `kept` if so asked."""
        rows = [i for i, row in enumerate(self.slices) if row.split == split and (row.kept or not kept_only)]
        return np.array(rows, dtype=np.int64)

    def verify(self, folder: Path) -> None:
        """Compare the arrays in `folder` and the rows with their checksums; InputError names what differs.

        Opens nothing in `sealed/`: the test slices have a manifest of their own.
        """
        faults = []
        for name in (IMAGES, MASKS):
            try:
                with (folder / name).open("rb") as file:
                    same = hashlib.file_digest(file, "sha256").hexdigest() == self.checksums.get(name)
                faults += [] if same else [f"{name}: is damaged, its checksum is not the manifest's; {AGAIN}"]
            except OSError as error:
                faults.append(f"{name}: cannot be read ({error.strerror}); {AGAIN}")
        if fingerprint(self.slices, self.certificate) != self.fingerprint:
            faults.append(f"{MANIFEST}: is damaged, its fingerprint does not fit its slices; {AGAIN}")
        if faults:
            raise InputError(f"{folder}: the prepared data set is damaged", faults)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know: lesion pixels cut off, in any split, and where, of the volumes listed here."""
        lost = int(sum(c["lost_lesion_pixels"] for c in self.counts.values()))
        if not lost:
            return ()
        total = lost + int(sum(c["lesion_pixels"] for c in self.counts.values()))
        worst = sorted((v for v in self.volumes if v.lost_lesion_pixels), key=lambda v: -v.lost_lesion_pixels)[:3]
        names = ", ".join(f"{v.source} {v.lost_lesion_pixels}" for v in worst)
        return (
            f"the window cuts off {lost} of {total} lesion pixels ({100 * lost / total:.2g} %"
            f"{f'; {names}' if names else ''}); take --fit resize or a bigger --size than {self.size}",
        )


def checksum(image: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> str:
    """Of a slice: sha256 of its image's bytes and its mask's."""
    return hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest()


def fingerprint(rows: Iterable[SliceRow], certificate: Certificate) -> str:
    """sha256 over the slices' identities, splits and checksums, and the assignment: same data, same text."""
    digest = hashlib.sha256(certificate.assignment_sha256.encode())
    for r in rows:
        line = [r.patient, r.timepoint, r.source, r.index, r.split, r.kept, r.checksum]
        digest.update(json.dumps(line).encode())
    return digest.hexdigest()


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _built(kind: Any, value: Any, where: str) -> Any:
    """JSON to the annotated type, strictly. Raises ValueError naming the place."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = _hints(typing.cast(type, kind))
        if hints.keys() != value.keys():
            odd = ", ".join(sorted(hints.keys() ^ value.keys()))
            raise ValueError(f"{where}: missing or unknown fields: {odd}")
        return typing.cast(Any, kind)(**{name: _built(hint, value[name], name) for name, hint in hints.items()})
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _built(next(arg for arg in args if arg is not types.NoneType), value, where)
    if origin is tuple and isinstance(value, list) and (args[-1] is Ellipsis or len(args) == len(value)):
        each = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(_built(arg, item, where) for arg, item in zip(each, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {name: _built(args[1], item, where) for name, item in value.items()}
    if (kind is float and type(value) in (int, float)) or type(value) is kind:
        return value
    raise ValueError(f"{where}: {str(value)[:40]!r} is not of type {getattr(kind, '__name__', kind)}")


@dataclass(frozen=True)
class Task:
    """What is to be stored of one volume: slice numbers, and the split and the `kept` flag of each."""

    source: Source
    geometry: VolumeGeometry
    stored: list[int]
    splits: list[str]
    kept: list[bool]
    shown: Source | None = None  # how patient, time point and files are named in what is written; None: as they are


class Store:
    """One folder of slices being written: two arrays, slice after slice, and the rows that describe them."""

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
            self._put(name, header.getvalue())

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()

    def add(self, task: Task, slices: CutSlices, splits: Sequence[str]) -> None:
        """Write those of the task's slices that belong to one of the splits."""
        rows = [row for row, split in enumerate(task.splits) if split in splits]
        for row in rows:
            image, mask = slices.images[row], slices.masks[row]
            self._put(IMAGES, image.tobytes())
            self._put(MASKS, mask.tobytes())
            s, index = task.shown or task.source, task.stored[row]
            self.rows.append(
                SliceRow(
                    patient=s.patient,
                    timepoint=s.timepoint,
                    source=s.name(s.image[0 if s.is_nifti else index]),
                    index=index,
                    split=task.splits[row],
                    kept=task.kept[row],
                    lesion_pixels=int(slices.masks[row].sum()),
                    checksum=checksum(image, mask),
                    volume=len(self.volumes),
                )
            )
        if rows:
            self.volumes.append(replace(task.geometry, lost_lesion_pixels=int(slices.lost[rows].sum())))

    def close(self) -> dict[str, str]:
        """Finish the arrays; their checksums by name."""
        self.__exit__()
        return {name: digest.hexdigest() for name, digest in self._hashes.items()}

    def _put(self, name: str, data: bytes) -> None:
        self._files[name].write(data)
        self._hashes[name].update(data)


def split_facts(rows: Sequence[SliceRow], split: str, size: int, lost: int) -> dict[str, float]:
    """The `counts` of one split, as `Manifest` explains them."""
    own = [row for row in rows if row.split == split]
    kept = [row for row in own if row.kept]
    return {
        "patients": len({row.patient for row in own} - {""}),
        "timepoints": len({(row.patient, row.timepoint) for row in own if row.patient}),
        "slices": len(own),
        "kept": len(kept),
        "lesion_pixels": sum(row.lesion_pixels for row in own),
        "lesion_share": sum(row.lesion_pixels for row in kept) / max(1, len(kept) * size**2),
        "lost_lesion_pixels": lost,
    }
