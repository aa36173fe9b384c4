"""What a prepared data set holds, in numbers: patients, scanners, voxel sizes, lesion loads, slices, warnings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

from wmlsearch.data.geometry import VolumeGeometry
from wmlsearch.data.manifest import Manifest, SliceRow, SplitCounts
from wmlsearch.data.sealed_test import openings, sealed_manifest
from wmlsearch.data.split import SPLITS

_Part = tuple[VolumeGeometry, list[SliceRow]]  # a volume and its slices in one of the manifests


@dataclass(frozen=True)
class ScanDescription:
    """One scan of a patient."""

    timepoint: str
    image: str  # the file, relative to the raw data's root
    shape: tuple[int, int, int]  # of the input as stored
    voxel_mm: tuple[float, ...] | None  # along the input's axes; None for 2-D pictures
    slices: int  # stored
    slices_used: int  # with enough of the head, or a lesion: as --keep says
    lesion_ml: float | None  # of the whole scan; None for 2-D pictures
    lesion_ml_in_window: float | None  # as stored: resampled, and inside the window
    lesion_pixels: int  # as stored
    lost_lesion_pixels: int  # resampled, outside the window
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class PatientDescription:
    """A patient and the scans."""

    patient: str  # "" where patients are not known
    split: str  # train, val, test; several, separated by a comma, where the data are split by image
    fold: int | None  # None for test patients, and where there is one validation set
    scanner: str  # hospital or scanner; "" where it is not known
    scans: tuple[ScanDescription, ...]

    @property
    def lesion_ml(self) -> float | None:
        """Mean lesion load of the whole scans; None for 2-D pictures."""
        loads = [scan.lesion_ml for scan in self.scans if scan.lesion_ml is not None]
        return _rounded(fmean(loads)) if loads else None

    @property
    def lesion_ml_in_window(self) -> float | None:
        """Mean lesion load inside the windows, where lesions are cut off in a scan; otherwise None."""
        loads = [scan.lesion_ml_in_window for scan in self.scans if scan.lesion_ml_in_window is not None]
        return _rounded(fmean(loads)) if loads and any(scan.lost_lesion_pixels for scan in self.scans) else None


@dataclass(frozen=True)
class LoadDescription:
    """Lesion loads of the patients of a split, in ml."""

    patients: int
    without_lesions: int
    smallest: float
    median: float
    largest: float


@dataclass(frozen=True)
class DataDescription:
    """A prepared data set. `format` grows when a field changes its meaning or goes away."""

    format: int
    kind: str  # data
    folder: str
    plane: str
    size: int  # pixels, edge of the slices
    spacing_mm: float | None  # in-plane
    fit: str
    keep: str
    split_level: str
    optimistic: bool
    fingerprint: str
    test_openings: int  # how often the sealed test has been opened
    counts: dict[str, SplitCounts]  # by split
    loads: dict[str, LoadDescription]  # by split; empty for 2-D pictures
    scanners: dict[str, int]  # patients by hospital or scanner
    voxel_sizes: dict[str, int]  # scans by voxel size, such as "0.9 x 0.9 x 3 mm"
    patients: tuple[PatientDescription, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def describe(folder: Path) -> DataDescription:
    """Return the description of a prepared data set. It reads the manifests, and no image.

    Raises:
        InputError: Where `folder` is no prepared data set, or the sealed manifest is not the one that was sealed.
    """
    manifest = Manifest.read(folder)
    patients = _patients((manifest, sealed_manifest(folder, manifest)))
    return DataDescription(
        format=1,
        kind="data",
        folder=str(folder),
        plane=manifest.plane,
        size=manifest.size,
        spacing_mm=manifest.spacing_mm,
        fit=manifest.fit,
        keep=manifest.keep,
        split_level=manifest.split_level,
        optimistic=manifest.optimistic,
        fingerprint=manifest.fingerprint,
        test_openings=len(openings(folder)),
        counts={
            split: replace(count, lesion_share=round(count.lesion_share, 6)) for split, count in manifest.counts.items()
        },
        loads=_loads(patients),
        scanners=dict(Counter(patient.scanner for patient in patients if patient.scanner).most_common()),
        voxel_sizes=dict(Counter(_size_words(scan) for one in patients for scan in one.scans).most_common()),
        patients=patients,
        warnings=manifest.warnings,
        notes=manifest.notes,
    )


def _patients(manifests: Iterable[Manifest]) -> tuple[PatientDescription, ...]:
    """Return the patients of train, val and test in the order of the manifests; scans that stand in both are joined."""
    parts: dict[str, dict[str, list[_Part]]] = defaultdict(lambda: defaultdict(list))
    splits: dict[str, set[str]] = defaultdict(set)
    sites: dict[str, str] = {}
    folds: dict[str, int] = {}
    for manifest in manifests:
        folds |= {name: number for number, fold in enumerate(manifest.folds) for name in fold}
        rows: dict[int, list[SliceRow]] = defaultdict(list)  # of each volume
        for row in manifest.slices:
            rows[row.volume].append(row)
        for number, volume in enumerate(manifest.volumes):
            splits[volume.patient] |= {row.split for row in rows[number]}
            parts[volume.patient][volume.source].append((volume, rows[number]))
            sites.setdefault(volume.patient, volume.site)
    return tuple(
        PatientDescription(
            patient=name,
            split=", ".join(split for split in SPLITS if split in splits[name]),
            fold=folds.get(name),
            scanner=sites[name],
            scans=tuple(_scan(of_scan) for of_scan in scans.values()),
        )
        for name, scans in parts.items()
    )


def _scan(parts: Sequence[_Part]) -> ScanDescription:
    """Return a scan, which has a part in each manifest that holds slices of it."""
    volume, rows = parts[0][0], [row for _, of_part in parts for row in of_part]
    pixels = sum(row.lesion_pixels for row in rows)
    lost = sum(part.lost_lesion_pixels for part, _ in parts)
    load = volume.lesion_ml(pixels + lost)
    return ScanDescription(
        timepoint=volume.timepoint,
        image=volume.source,
        shape=volume.shape,
        voxel_mm=volume.voxel_mm,
        slices=len(rows),
        slices_used=sum(row.kept for row in rows),
        lesion_ml=None if load is None else _rounded(load),
        lesion_ml_in_window=None if volume.pixel_ml is None else _rounded(pixels * volume.pixel_ml),
        lesion_pixels=pixels,
        lost_lesion_pixels=lost,
        warnings=volume.warnings,
    )


def _rounded(ml: float) -> float:
    """Return a volume without the noise of its last digits: to a tenth of a cubic millimetre."""
    return round(ml, 4)


def _loads(patients: Iterable[PatientDescription]) -> dict[str, LoadDescription]:
    by_split: dict[str, list[float]] = defaultdict(list)
    for patient in patients:
        if patient.lesion_ml is not None:
            by_split[patient.split].append(patient.lesion_ml)
    return {
        split: LoadDescription(len(loads), loads.count(0.0), min(loads), _rounded(median(loads)), max(loads))
        for split, loads in by_split.items()
    }


def _size_words(scan: ScanDescription) -> str:
    if scan.voxel_mm is None:
        return f"{scan.shape[1]} x {scan.shape[2]} pixels"
    return f"{' x '.join(f'{edge:.3g}' for edge in scan.voxel_mm)} mm"
