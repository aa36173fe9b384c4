"""What a prepared data set holds, in numbers: patients, scanners, voxel sizes, lesion loads, slices, warnings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

from wmlsearch.data.geometry import VolumeGeometry
from wmlsearch.data.manifest import Manifest, SliceRow, SplitCounts
from wmlsearch.data.sealed_test import openings, sealed_manifest
from wmlsearch.data.split import SPLITS


@dataclass(frozen=True)
class ScanDescription:
    """One scan of a patient."""

    timepoint: str
    image: str  # the file, relative to the raw data's root
    shape: tuple[int, int, int]  # of the input as stored
    voxel_mm: tuple[float, ...] | None  # along the input's axes; None for 2-D pictures
    slices: int  # stored
    slices_used: int  # with enough of the head, or a lesion: as --keep says
    lesion_ml: float | None  # resampled and inside the window; None for 2-D pictures
    lesion_pixels: int
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
        """Mean lesion load of the scans; None for 2-D pictures."""
        loads = [scan.lesion_ml for scan in self.scans if scan.lesion_ml is not None]
        return fmean(loads) if loads else None


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
        counts=manifest.counts,
        loads=_loads(patients),
        scanners=dict(Counter(patient.scanner for patient in patients if patient.scanner).most_common()),
        voxel_sizes=dict(Counter(_size_words(scan) for one in patients for scan in one.scans).most_common()),
        patients=patients,
        warnings=manifest.warnings,
        notes=manifest.notes,
    )


def _patients(manifests: Iterable[Manifest]) -> tuple[PatientDescription, ...]:
    """Return the patients of train, val and test in the order of the manifests; scans that stand in both are joined."""
    scans: dict[str, dict[str, ScanDescription]] = defaultdict(dict)
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
            scan = _scan(rows[number], volume)
            before = scans[volume.patient].get(volume.source)
            scans[volume.patient][volume.source] = scan if before is None else _joined(before, scan)
            sites.setdefault(volume.patient, volume.site)
    return tuple(
        PatientDescription(
            patient=name,
            split=", ".join(split for split in SPLITS if split in splits[name]),
            fold=folds.get(name),
            scanner=sites[name],
            scans=tuple(of_patient.values()),
        )
        for name, of_patient in scans.items()
    )


def _scan(rows: Sequence[SliceRow], volume: VolumeGeometry) -> ScanDescription:
    pixels = sum(row.lesion_pixels for row in rows)
    return ScanDescription(
        timepoint=volume.timepoint,
        image=volume.source,
        shape=volume.shape,
        voxel_mm=volume.voxel_mm,
        slices=len(rows),
        slices_used=sum(row.kept for row in rows),
        lesion_ml=None if volume.pixel_ml is None else pixels * volume.pixel_ml,
        lesion_pixels=pixels,
        warnings=volume.warnings,
    )


def _joined(one: ScanDescription, other: ScanDescription) -> ScanDescription:
    return ScanDescription(
        timepoint=one.timepoint,
        image=one.image,
        shape=one.shape,
        voxel_mm=one.voxel_mm,
        slices=one.slices + other.slices,
        slices_used=one.slices_used + other.slices_used,
        lesion_ml=None if one.lesion_ml is None or other.lesion_ml is None else one.lesion_ml + other.lesion_ml,
        lesion_pixels=one.lesion_pixels + other.lesion_pixels,
        warnings=one.warnings,
    )


def _loads(patients: Iterable[PatientDescription]) -> dict[str, LoadDescription]:
    by_split: dict[str, list[float]] = defaultdict(list)
    for patient in patients:
        if patient.lesion_ml is not None:
            by_split[patient.split].append(patient.lesion_ml)
    return {
        split: LoadDescription(len(loads), loads.count(0.0), min(loads), median(loads), max(loads))
        for split, loads in by_split.items()
    }


def _size_words(scan: ScanDescription) -> str:
    if scan.voxel_mm is None:
        return f"{scan.shape[1]} x {scan.shape[2]} pixels"
    return f"{' x '.join(f'{edge:.3g}' for edge in scan.voxel_mm)} mm"
