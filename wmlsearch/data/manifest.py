"""The manifest of a prepared data set: a row per slice, the geometry of each volume, the split, and checksums."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import fmean
from typing import Any

import numpy as np

from wmlsearch.data.certificate import Certificate
from wmlsearch.data.findings import Finding, FindingLine, NamedFinding, lines, named
from wmlsearch.data.geometry import VolumeGeometry
from wmlsearch.data.labels import MaskRule
from wmlsearch.data.lesions_cut_off import KIND as CUT_OFF
from wmlsearch.data.lesions_cut_off import cut_off_line
from wmlsearch.data.manifest_summary import as_html, one_line
from wmlsearch.data.split import SPLITS
from wmlsearch.data.stack import Array
from wmlsearch.data.typed_json import from_json
from wmlsearch.errors import InputError
from wmlsearch.runs.wording import command

FORMAT = 4
READ_FORMATS = (2, 3, FORMAT)  # 2 has no folds and no checksums of voxels, 2 and 3 have no labels
IMAGES, MASKS, MANIFEST, CONTACT_SHEET = "images.npy", "masks.npy", "manifest.json", "contact_sheet.png"
DESCRIPTION = "description.html"
SEALED = "sealed"  # folder with the test slices, their manifest, and:
LEDGER, ORIGINALS = "seal.jsonl", "originals"
PREPARE_AGAIN = "make it again with `wmlsearch prepare`"


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
    ignored_pixels: int = 0  # left out of every count


@dataclass(frozen=True)
class SplitCounts:
    """The size of one split."""

    patients: int  # 0 where no patient is known
    timepoints: int
    slices: int
    kept: int  # slices with enough of the head, or a lesion
    lesion_pixels: int
    lesion_share: float  # of the kept slices' pixels
    lost_lesion_pixels: int  # outside the window
    size_needed: int = 0  # pixels: a `--size` that loses none; 0 where none is lost, with fit resize, and in older data


@dataclass(frozen=True, repr=False)
class Manifest:
    """A prepared data set. Row i of `slices` describes images.npy[i] and masks.npy[i], both (N, size, size) uint8.

    The main manifest lists the slices of train and val, the one in `sealed/` those of test.
    """

    format: int
    plane: str  # sagittal, axial, coronal, native; image for 2-D pictures
    axis: int | None  # slicing axis in RAS+; None for 2-D pictures
    size: int  # pixels, edge of the slices
    fit: str  # crop or resize
    keep: str  # brain, lesion or all
    split_level: str  # patient or image
    optimistic: bool  # results look better than they are: see the certificate
    protocol: str | None
    seed: int
    mask_threshold: float | None
    lesion_labels: tuple[float, ...]  # of the raw masks; empty where they are binary
    ignore_labels: tuple[float, ...]
    mask_labels: dict[str, int]  # how many raw masks hold each label; empty in data of older formats
    spacing_mm: float | None  # in-plane; with fit resize the volumes have their own, and this is their median
    padding_background: bool  # padding was looked for and is background; False in data of older versions
    counts: dict[str, SplitCounts]  # by split, test included
    certificate: Certificate
    checksums: dict[str, str]  # sha256 of files, by path relative to the folder
    fingerprint: str  # identifies the data: see `fingerprint`
    test_findings: tuple[NamedFinding, ...]  # what is doubtful about the sealed volumes, in the main manifest
    volumes: tuple[VolumeGeometry, ...]
    slices: tuple[SliceRow, ...]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest in `folder`. Raises InputError where it is missing, damaged or of another format."""
        path = folder / MANIFEST
        if not folder.exists():
            raise InputError(f"{folder}: no such folder; make it with `{command('prepare', 'RAW', folder)}`")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{folder}: not a prepared data set, {MANIFEST} is missing; {PREPARE_AGAIN}") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: is damaged ({error}); {PREPARE_AGAIN}") from None
        except RecursionError:
            raise InputError(f"{path}: is damaged (nested too deeply); {PREPARE_AGAIN}") from None
        if isinstance(data, dict) and data.get("format") not in READ_FORMATS:
            formats = f"{', '.join(map(str, READ_FORMATS[:-1]))} or {READ_FORMATS[-1]}"
            raise InputError(f"{path}: format must be {formats}, but is {data.get('format')!r}; {PREPARE_AGAIN}")
        try:
            _complete_old_format(data)
            manifest = from_json(cls, data, "manifest")
            manifest._check_rows()
        except ValueError as error:
            raise InputError(f"{path}: is damaged ({error}); {PREPARE_AGAIN}") from None
        return manifest

    def write(self, folder: Path) -> None:
        """Write `manifest.json`, a line per slice and per volume."""
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("volumes", "slices"):
                rows = ",\n".join(f"  {json.dumps(dataclasses.asdict(row))}" for row in value)
                lines.append(f'"{field.name}": [\n{rows}\n]')
            else:
                lines.append(f'"{field.name}": {json.dumps(value, default=dataclasses.asdict)}')
        (folder / MANIFEST).write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {one_line(self)}>"

    def _repr_html_(self) -> str:
        """Return the data set as a notebook shows it."""
        return as_html(self)

    def _check_rows(self) -> None:
        """Raise ValueError for slices in no known split or volume, names of files that lead out of the folder, labels
        that are no numbers, and folds that are not train and val."""
        for name in (name for volume in self.volumes for name in (*volume.images, *volume.masks)):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"the name {name!r} leads out of the folder")
        for label in self.mask_labels:
            float(label)
        for i, row in enumerate(self.slices):
            if row.split not in SPLITS or not 0 <= row.volume < len(self.volumes):
                raise ValueError(f"slice {i} is in split {row.split!r} and volume {row.volume}")
        if self.folds:
            train, val = (self.certificate.patients.get(split, ()) for split in ("train", "val"))
            members = sorted(name for fold in self.folds for name in fold)
            if members != sorted(train + val) or set(self.folds[0]) != set(val):
                raise ValueError("the folds are not the patients of train and val, with val as the first fold")

    @property
    def mask_rule(self) -> MaskRule:
        """Which values of the raw masks are lesions, and which are ignored."""
        return MaskRule(self.mask_threshold, self.lesion_labels, self.ignore_labels)

    @property
    def folds(self) -> tuple[tuple[str, ...], ...]:
        """The patients of each fold; empty where the data have one validation set."""
        return self.certificate.folds

    @property
    def fold_count(self) -> int:
        """Number of validation sets, at least 1."""
        return max(1, len(self.folds))

    @property
    def has_volumes(self) -> bool:
        """Whether the test patients' volumes are stored beside their slices: NIfTI, split by patient."""
        return self.split_level == "patient" and self.axis is not None

    def indices(self, split: str, kept_only: bool, fold: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the rows (n,) of a split, ascending.

        Args:
            split: `train`, `val` or `test`.
            kept_only: Only the rows flagged `kept`.
            fold: The patients of this fold, modulo `fold_count`, are val; those of the others are train.
        """
        val = set(self.folds[fold % self.fold_count]) if self.folds else set()
        rows = []
        for i, row in enumerate(self.slices):
            if self.folds and row.split != "test":
                in_split = split == ("val" if row.patient in val else "train")
            else:
                in_split = split == row.split
            if in_split and (row.kept or not kept_only):
                rows.append(i)
        return np.array(rows, dtype=np.int64)

    def neighbours(self, rows: Iterable[int], count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the rows of slices and of their neighbours in the same volume, in its order: (n, count).

        A neighbour that is not stored is replaced by the next one towards the slice, or by the slice itself: one beyond
        the edge of the volume, or one that `--keep` left out.

        Args:
            rows: Rows of the slices.
            count: An odd number; the slice itself is in the middle.
        """
        row_of = {(row.volume, row.index): number for number, row in enumerate(self.slices)}
        stacks = []
        for row in rows:
            volume, index = self.slices[row].volume, self.slices[row].index
            stacked = [row]
            for distance in range(1, count // 2 + 1):
                before = row_of.get((volume, index - distance), stacked[0])
                after = row_of.get((volume, index + distance), stacked[-1])
                stacked = [before, *stacked, after]
            stacks.append(stacked)
        return np.array(stacks, dtype=np.int64).reshape(-1, count)

    def lacks_neighbours(self, rows: Iterable[int], count: int) -> bool:
        """Whether any of the `count` slices around one of these rows is in the volume, but was not stored."""
        stored = {(row.volume, row.index) for row in self.slices}
        for row in (self.slices[number] for number in rows):
            first = max(row.index - count // 2, 0)
            last = min(row.index + count // 2, self.volumes[row.volume].slices - 1)
            if any((row.volume, index) not in stored for index in range(first, last + 1)):
                return True
        return False

    @property
    def has_ignored(self) -> bool:
        """Whether the slices hold ignored pixels."""
        return any(row.ignored_pixels for row in self.slices)

    def has_lesion(self, fold: int) -> bool:
        """Whether the validation slices of a fold hold a lesion."""
        return any(self.slices[row].lesion_pixels for row in self.indices("val", kept_only=False, fold=fold))

    def fold_loads(self) -> list[float]:
        """Return the lesion load of each fold, in ml: the mean over its patients of the mean over their scans.

        It is that of the whole scans, not of the windows. Empty for 2-D pictures.
        """
        if self.axis is None:
            return []
        pixels = [volume.lost_lesion_pixels for volume in self.volumes]
        for row in self.slices:
            pixels[row.volume] += row.lesion_pixels
        scans: dict[str, list[float]] = defaultdict(list)  # of each patient
        for volume, count in zip(self.volumes, pixels, strict=True):
            scans[volume.patient].append(volume.lesion_ml(count) or 0.0)
        return [fmean(fmean(scans[name]) for name in fold) for fold in self.folds]

    def verify(self, folder: Path) -> None:
        """Compare the arrays in `folder` and the rows with their checksums.

        It opens nothing in `sealed/`: the test slices have a manifest of their own.

        Raises:
            InputError: With a line for each file that is missing or differs.
        """
        faults = []
        for name in (IMAGES, MASKS):
            try:
                with (folder / name).open("rb") as file:
                    checksum = hashlib.file_digest(file, "sha256").hexdigest()
                if checksum != self.checksums.get(name):
                    faults.append(f"{name}: is damaged, its checksum is not the manifest's; {PREPARE_AGAIN}")
            except OSError as error:
                faults.append(f"{name}: cannot be read ({error.strerror}); {PREPARE_AGAIN}")
        if fingerprint(self.slices, self.certificate) != self.fingerprint:
            faults.append(f"{MANIFEST}: is damaged, its fingerprint does not fit its slices; {PREPARE_AGAIN}")
        if faults:
            raise InputError(f"{folder}: the prepared data set is damaged", faults)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for the user: doubtful volumes, labels that no option names, and lesions outside the window."""
        doubtful = (line.text for line in self._finding_lines() if line.is_warning)
        return (
            *doubtful,
            *self.mask_rule.notes(self.mask_labels),
            *self._splits_without_lesions(),
            *self._lost_lesions(),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done with volumes that were unusual."""
        return tuple(line.text for line in self._finding_lines() if not line.is_warning)

    @property
    def findings(self) -> tuple[NamedFinding, ...]:
        """What is doubtful about each volume, those of the sealed test included."""
        of_volumes = (row for v in self.volumes for row in named(v.scan, v.source, v.findings))
        return tuple(dict.fromkeys((*of_volumes, *self.test_findings)))  # a split by image has volumes in both

    def _finding_lines(self) -> list[FindingLine]:
        scans = sum(count.timepoints for count in self.counts.values())
        others = (row for row in self.findings if row.finding.kind != CUT_OFF)  # that has its own line, with the totals
        return lines(others, scans or len(self.volumes))

    def _splits_without_lesions(self) -> tuple[str, ...]:
        """Return a line for validation and test where no mask has a lesion, so that scores of them say little."""
        warnings = []
        for split, name in (("val", "validation"), ("test", "test")):
            counts = self.counts.get(split)
            if counts is None or not counts.slices or counts.lesion_pixels + counts.lost_lesion_pixels:
                continue
            if self.split_level == "patient":
                who = f"the only {name} patient has no lesion"
                if counts.patients != 1:
                    who = f"none of the {counts.patients} {name} patients has a lesion"
                advice = f"name others with --{split}-patients"
            else:
                who, advice = f"none of the {counts.slices} {name} images has a lesion", "give another --seed"
            them = "it" if self.split_level == "patient" and counts.patients == 1 else "them"
            warnings.append(f"{who}, so scores on {them} only tell of false lesions; {advice}")
        return tuple(warnings)

    def _lost_lesions(self) -> tuple[str, ...]:
        """Return how many lesion pixels are outside the window, in all splits, and in which of these volumes."""
        lost = sum(counts.lost_lesion_pixels for counts in self.counts.values())
        if not lost:
            return ()
        total = lost + sum(counts.lesion_pixels for counts in self.counts.values())
        needed = max(counts.size_needed for counts in self.counts.values())
        findings = [row for row in self.findings if row.finding.kind == CUT_OFF] or self._losses_of_older_data()
        return (cut_off_line(lost, total, findings, self.fit, self.size, needed),)

    def _losses_of_older_data(self) -> list[NamedFinding]:
        """Return a finding for each volume with lesions outside the window: older data hold no such finding."""
        return [
            NamedFinding(v.scan, v.source, Finding(CUT_OFF, "", f"{v.lost_lesion_pixels} px", v.lost_lesion_pixels))
            for v in self.volumes
            if v.lost_lesion_pixels
        ]


def _complete_old_format(data: Any) -> None:
    """Add what the format has more than an older one to a manifest of the older one, as read from JSON."""
    if not isinstance(data, dict):
        return
    counts = data.get("counts")
    added: list[tuple[str, Any, Any]] = [("nan_background", False, data.get("volumes"))]
    added += [("lesion_voxels", None, data.get("volumes")), ("head_grey", [], data.get("volumes"))]
    added += [("padding_background", False, [data]), ("floor", None, data.get("volumes"))]
    added += [("size_needed", 0, list(counts.values()) if isinstance(counts, dict) else None)]
    if data["format"] != FORMAT:
        added += [("ignored_pixels", 0, data.get("slices"))]
        added += [("lesion_labels", [], [data]), ("ignore_labels", [], [data]), ("mask_labels", {}, [data])]
        added += [("test_findings", [], [data])]
        added += [
            (name, value, data.get("volumes")) for name, value in (("voxel_mm3", None), ("site", ""), ("findings", []))
        ]
    if data["format"] == 2:
        added += [("folds", [], [data.get("certificate")]), ("voxels_sha256", "", data.get("volumes"))]
    for name, value, parts in added:
        for part in parts if isinstance(parts, list) else []:
            if isinstance(part, dict):
                part.setdefault(name, value)


def slice_checksum(image: Array, mask: Array) -> str:
    """Return sha256 of a slice: its image's bytes and its mask's."""
    return hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest()


def manifest_sha256(folder: Path) -> str:
    """Return sha256 of the manifest of a prepared data set, "" if the folder has none.

    It tells copies of a data set apart which have the same slices, and so the same fingerprint: data that were prepared
    again by a newer version can say more about their volumes.
    """
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def fingerprint(rows: Iterable[SliceRow], certificate: Certificate) -> str:
    """Return sha256 over the slices' identities, splits and checksums, and the assignment of the split and folds."""
    digest = hashlib.sha256(certificate.assignment_sha256.encode())
    if certificate.folds:
        digest.update(json.dumps(certificate.folds).encode())
    for row in rows:
        line = [row.patient, row.timepoint, row.source, row.index, row.split, row.kept, row.checksum]
        digest.update(json.dumps(line).encode())
    return digest.hexdigest()


def count_split(
    rows: Sequence[SliceRow], split: str, size: int, lost_lesion_pixels: int, size_needed: int
) -> SplitCounts:
    """Return the counts of one split among rows of all splits."""
    rows = [row for row in rows if row.split == split]
    kept = [row for row in rows if row.kept]
    return SplitCounts(
        patients=len({row.patient for row in rows} - {""}),
        timepoints=len({(row.patient, row.timepoint) for row in rows if row.patient}),
        slices=len(rows),
        kept=len(kept),
        lesion_pixels=sum(row.lesion_pixels for row in rows),
        lesion_share=sum(row.lesion_pixels for row in kept) / max(1, len(kept) * size**2),
        lost_lesion_pixels=lost_lesion_pixels,
        size_needed=size_needed,
    )
