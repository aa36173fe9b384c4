"""Turn a raw data set into a prepared one: slices in two memory-mappable arrays, a manifest, and the sealed test.

Volumes are read twice: first all are examined, so that every fault is known before anything is written; then they are
cut one after another into a folder beside OUT, which takes its name when it is complete.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wmlsearch.data.certificate import Certificate, certify
from wmlsearch.data.contact_sheet import draw_contact_sheet
from wmlsearch.data.cutting import CutSlices, cut
from wmlsearch.data.description import describe
from wmlsearch.data.description_page import write_page
from wmlsearch.data.equal_masks import with_equal_masks
from wmlsearch.data.examine import VolumeFacts, examine
from wmlsearch.data.findings import NamedFinding, named
from wmlsearch.data.folds import DevelopmentPatient, deal
from wmlsearch.data.geometry import MAX_SPACING_FACTOR, VolumeGeometry, choose_plane, place_window
from wmlsearch.data.kept_slices import choose_kept
from wmlsearch.data.labels import MaskRule, files_with_label, label_counts
from wmlsearch.data.leakage import LeakageGuard
from wmlsearch.data.lesions_cut_off import cut_off
from wmlsearch.data.manifest import FORMAT, LEDGER, MANIFEST, ORIGINALS, SEALED, Manifest, count_split, fingerprint
from wmlsearch.data.nifti import Extent, copy_without_text, read_extent
from wmlsearch.data.patient_names import check_patient_names
from wmlsearch.data.prepare_options import PrepareOptions
from wmlsearch.data.pseudonyms import PseudonymTable
from wmlsearch.data.slice_similarity import SliceSignature, slice_signatures
from wmlsearch.data.slice_writer import SliceWriter, VolumeTask
from wmlsearch.data.sources import Discovery, Source, survey
from wmlsearch.data.split import SPLITS, assign
from wmlsearch.data.worker_pool import CallEach, worker_pool
from wmlsearch.errors import InputError
from wmlsearch.runs.files import atomic_folder, check_output_folder
from wmlsearch.runs.progress import Progress
from wmlsearch.runs.wording import plural

__all__ = ["PrepareOptions", "prepare"]

PICTURE_BYTES = 2**17  # size of a 2-D picture, as a guess of how long it takes to read


@dataclass(frozen=True)
class _Scan:
    """One volume of the raw data, and the patient, time point and files by which it is named in the output."""

    source: Source
    shown: Source  # the source itself, or its pseudonym


@dataclass(frozen=True)
class _Plane:
    name: str  # sagittal, axial, coronal, native; image for 2-D pictures
    axis: int | None  # slicing axis in RAS+; None for 2-D pictures
    file_bytes: int  # of all volumes, about
    voxels: int  # of the largest volume; 0 for 2-D pictures


@dataclass(frozen=True)
class _SliceSplit:
    splits: list[list[str | None]]  # of each slice of each scan; None where the slice is in no split
    folds: list[int | None]  # of each scan; None for test patients, and where there is one validation set
    certificate: Certificate


def prepare(
    raw: Path,
    out: Path,
    options: PrepareOptions,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Manifest:
    """Write the prepared data set of a raw data set, and return its manifest.

    Args:
        raw: A data set in one of the layouts of `data.sources`.
        out: Folder to write; must not exist, or be empty.
        options: See `PrepareOptions`.
        progress: Called as `progress(stage, done, total)` after each volume, stage "reading" and then "cutting".
        tell: Called with each remark on how the files of the raw data set were understood.

    Raises:
        InputError: With all faults of the raw data, or where the options do not suit them. On any failure nothing is
            left of `out`.
    """
    report = progress or _no_progress
    discovery = survey(raw, options.choices).check()
    check_output_folder(out)
    table = _open_pseudonyms(out, options.pseudonyms)
    if tell:
        for note in filter(None, (*discovery.notes, discovery.unused_note)):
            tell(note)
    options = _with_layout(options, discovery)
    scans = _named_scans(discovery.sources, table)
    drawn = _draw_patients(scans, options) if options.split == "patient" else {}
    used = [scan for scan in scans if options.split == "image" or scan.source.patient in drawn]
    plane = _choose_plane(raw, used, options.plane)
    with worker_pool(options.jobs, len(used), plane.file_bytes, plane.voxels) as call_each:
        facts = _examine(raw, used, plane.axis, options, call_each, report)
        kept = [choose_kept(volume, options.keep) for volume in facts]
        patients = [scan.shown.patient for scan in scans]
        if options.split == "patient":
            split = _split_by_patient(used, facts, drawn, options, patients)
        else:
            split = _split_by_image(used, kept, options.seed, patients)
        tasks = _plan_tasks(raw, used, facts, kept, split, options)
        _check_tasks(raw, out, tasks, facts, options)
        labels = [of_file for volume in facts for of_file in volume.labels]
        with atomic_folder(out) as folder:
            empty = _empty_manifest(plane, split.certificate, options, files_with_label(labels))
            manifest = _write(folder, tasks, empty, options, call_each, report)
            write_page(replace(describe(folder), folder=out.name), folder)
            if table:
                table.save()
            return manifest


def _no_progress(_stage: str, _done: int, _total: int) -> None:
    pass


def _faults_error(raw: Path, faults: Sequence[str]) -> InputError:
    return InputError(f"{raw}: {plural(len(faults), 'fault')}, nothing was written", faults)


# --------------------------------------------------------------------------------------------------- discover and split


def _open_pseudonyms(out: Path, path: Path | None) -> PseudonymTable | None:
    """Return the table of pseudonyms, if one is wanted. It must not be inside OUT, which is passed on to others."""
    if path is None:
        return None
    if path.absolute().is_relative_to(out.absolute()):
        raise InputError(
            f"{path}: the table of pseudonyms must not be inside {out}, which is passed on; name another place"
        )
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: cannot be written, because its folder is missing; make it, or name another place")
    return PseudonymTable(path)


def _with_layout(options: PrepareOptions, discovery: Discovery) -> PrepareOptions:
    """Return the options with what the layout itself says of test patients and labels, where the user says nothing."""
    if discovery.test_patients and options.split == "patient" and not options.test_patients:
        options = replace(options, test_patients=discovery.test_patients)
    if options.mask_rule == MaskRule():
        options = replace(options, lesion_labels=discovery.lesion_labels, ignore_labels=discovery.ignore_labels)
    return options


def _named_scans(sources: Sequence[Source], table: PseudonymTable | None) -> list[_Scan]:
    if table is None:
        return [_Scan(source, source) for source in sources]
    scans = [_Scan(source, shown) for source, shown in zip(sources, table.rename(sources), strict=True)]
    # By pseudonym, because the order of the volumes would disclose the order of the patients' ids.
    return sorted(scans, key=lambda scan: scan.shown.image)


def check_patients(discovery: Discovery, options: PrepareOptions) -> None:
    """Raise InputError where the patients cannot be split as the options say, as `prepare` does. Opens no image."""
    options = _with_layout(options, discovery)
    if options.split == "patient":
        _draw_patients(_named_scans(discovery.sources, None), options)


def _draw_patients(scans: Sequence[_Scan], options: PrepareOptions) -> dict[str, str]:
    """Return the split of each patient that is in one, as it is without folds."""
    if unnamed := [scan.source for scan in scans if not scan.source.patient]:
        raise InputError(
            "a split by patient needs each image's patient; give --patient-pattern REGEX (its group is the patient in "
            "the file name, such as '^(p[0-9]+)_'), fill the table's patient column, or split by image",
            [f"{source.name(source.image[0])}: no patient" for source in unnamed[:5]],
        )
    fixed = {"train": options.train_patients, "val": options.val_patients, "test": options.test_patients}
    split_of = assign((scan.source.patient for scan in scans), options.seed, fixed)
    if options.has_folds:  # train and val may still change, so only the test patients are told apart from the others
        _check_names({name: "test" if split == "test" else "train or val" for name, split in split_of.items()}, scans)
    else:
        _check_names(split_of, scans)
    return split_of


def _check_names(part_of: dict[str, str], scans: Sequence[_Scan]) -> None:
    first_file: dict[str, str] = {}
    for scan in scans:
        first_file.setdefault(scan.source.patient, scan.source.name(scan.source.image[0]))
    check_patient_names(part_of, first_file)


def _split_by_patient(
    scans: Sequence[_Scan],
    facts: Sequence[VolumeFacts],
    drawn: dict[str, str],
    options: PrepareOptions,
    patients: Sequence[str],
) -> _SliceSplit:
    folds = _deal_folds(scans, facts, drawn, options) if options.has_folds else ()
    fold_of = {name: number for number, fold in enumerate(folds) for name in fold}
    split_of = drawn | {name: "train" if number else "val" for name, number in fold_of.items()}
    _check_names(split_of | {name: f"fold {number}" for name, number in fold_of.items()}, scans)
    splits: list[list[str | None]] = [
        [split_of[scan.source.patient]] * len(volume.head) for scan, volume in zip(scans, facts, strict=True)
    ]
    shown = {scan.source.patient: scan.shown.patient for scan in scans}
    certificate = certify(
        {shown[name]: split_of[name] for name in shown},
        {name: name for name in shown.values()},
        "patient",
        options.seed,
        patients,
        [[shown[name] for name in fold] for fold in folds],
    )
    return _SliceSplit(splits, [fold_of.get(scan.source.patient) for scan in scans], certificate)


def _deal_folds(
    scans: Sequence[_Scan], facts: Sequence[VolumeFacts], drawn: dict[str, str], options: PrepareOptions
) -> tuple[tuple[str, ...], ...]:
    """Return the patients of each fold; none where there is one validation set. Raises InputError."""
    loads: dict[str, list[float]] = {name: [] for name, split in drawn.items() if split != "test"}
    sites: dict[str, str] = {}
    for scan, volume in zip(scans, facts, strict=True):
        name = scan.source.patient
        if name in loads:
            loads[name].append(volume.lesion_load)
            sites.setdefault(name, scan.source.site)
    patients = [DevelopmentPatient(name, float(np.mean(load)), sites[name]) for name, load in loads.items()]
    chosen = [name for name, split in drawn.items() if split == "val"] if options.val_patients else []
    return deal(patients, options.folds, options.seed, chosen)


def _split_by_image(
    scans: Sequence[_Scan], kept: Sequence[Sequence[bool]], seed: int, patients: Sequence[str]
) -> _SliceSplit:
    slices = [(scan, i) for scan, flags in zip(scans, kept, strict=True) for i, flag in enumerate(flags) if flag]
    split_of = assign((scan.source.slice_name(i) for scan, i in slices), seed, noun="images")
    splits = [
        [split_of.get(scan.source.slice_name(i)) for i in range(len(flags))]
        for scan, flags in zip(scans, kept, strict=True)
    ]
    shown = {scan.shown.slice_name(i): split_of[scan.source.slice_name(i)] for scan, i in slices}
    patient_of = {scan.shown.slice_name(i): scan.shown.patient for scan, i in slices}
    return _SliceSplit(splits, [None] * len(scans), certify(shown, patient_of, "image", seed, patients))


# -------------------------------------------------------------------------------------------------- examine and plan


def _choose_plane(raw: Path, scans: Sequence[_Scan], plane: str | None) -> _Plane:
    """Return the plane of all volumes, from their headers; 2-D pictures are used as they are."""
    if not scans[0].source.is_nifti:
        return _Plane("image", None, sum(len(scan.source.image) for scan in scans) * PICTURE_BYTES, 0)
    extents: dict[str, Extent] = {}
    faults: list[str] = []
    file_bytes = 0
    for scan in scans:
        path = scan.source.image[0]
        try:
            extents[scan.source.name(path)] = read_extent(scan.source)
            file_bytes += path.stat().st_size
        except InputError as error:
            faults += error.faults
    if not extents:
        raise _faults_error(raw, faults)
    voxels = max(extent.voxels for extent in extents.values())
    return _Plane(*choose_plane(extents, plane), file_bytes, voxels)


def _examine(
    raw: Path,
    scans: Sequence[_Scan],
    axis: int | None,
    options: PrepareOptions,
    call_each: CallEach,
    report: Progress,
) -> list[VolumeFacts]:
    """Return the facts of all volumes. Raises InputError with the faults of all."""
    faults: list[str] = []
    facts: list[VolumeFacts] = []
    report("reading", 0, len(scans))
    results = call_each(examine, ((scan.source, axis, options.mask_rule, options.nan_background) for scan in scans))
    for done, (volume, volume_faults) in enumerate(results, 1):
        faults += volume_faults
        facts += [volume] if volume is not None else []
        report("reading", done, len(scans))
    if fault := options.mask_rule.label_fault([labels for volume in facts for labels in volume.labels]):
        faults.append(fault)
    if faults:
        raise _faults_error(raw, faults)
    return with_equal_masks([scan.shown for scan in scans], facts)


def _common_spacing(raw: Path, scans: Sequence[_Scan], facts: Sequence[VolumeFacts]) -> float | None:
    """Return the data set's in-plane spacing in mm, the median of the volumes' finer edges; None for pictures."""
    finest = [min(volume.picture_mm) for volume in facts if volume.picture_mm is not None]
    if not finest:
        return None
    spacing = float(np.median(finest))
    faults = []
    for scan, volume in zip(scans, facts, strict=True):
        mm = volume.picture_mm
        if mm is not None and not spacing / MAX_SPACING_FACTOR <= min(mm) <= spacing * MAX_SPACING_FACTOR:
            faults.append(
                f"{scan.source.name(scan.source.image[0])}: in-plane voxel edges must be within a factor of "
                f"{MAX_SPACING_FACTOR} of the data set's {spacing:.4g} mm, but are {mm[0]:.4g} x {mm[1]:.4g} mm; "
                "check the header's units, or leave it out"
            )
    if faults:
        raise _faults_error(raw, faults)
    return round(spacing, 6)


def _plan_tasks(
    raw: Path,
    scans: Sequence[_Scan],
    facts: Sequence[VolumeFacts],
    kept: Sequence[Sequence[bool]],
    split: _SliceSplit,
    options: PrepareOptions,
) -> list[VolumeTask]:
    """Return what to store of each volume: the kept slices, and the others where they may be validated or tested."""
    spacing = _common_spacing(raw, scans, facts)
    tasks = []
    for scan, volume, flags, splits, fold in zip(scans, facts, kept, split.splits, split.folds, strict=True):
        keep_all = fold is not None  # any patient of a fold is validated by some run
        stored = [
            (i, name) for i, name in enumerate(splits) if name is not None and (flags[i] or keep_all or name != "train")
        ]
        tasks.append(
            VolumeTask(
                source=scan.source,
                geometry=place_window(scan.shown, volume, options.size, options.fit, spacing),
                stored=[i for i, _ in stored],
                splits=[name for _, name in stored],
                kept=[flags[i] for i, _ in stored],
                fold=fold,
                pseudonym=scan.shown if options.pseudonyms else None,
            )
        )
    return tasks


def _check_tasks(
    raw: Path, out: Path, tasks: Sequence[VolumeTask], facts: Sequence[VolumeFacts], options: PrepareOptions
) -> None:
    """Refuse data without a lesion, a split without slices, and a disk that is too small."""
    if not any(sum(volume.lesion) for volume in facts):
        labels = [mask for volume in facts for mask in volume.labels if mask.voxels]
        held = f": the masks hold {label_counts(labels)}; give --lesion-label L for lesions" if labels else ""
        raise InputError(f"{raw}: no mask has a lesion, so there is nothing to learn{held or '; check the masks'}")
    counts = {split: sum(task.splits.count(split) for task in tasks) for split in SPLITS}
    for split, count in counts.items():
        if not count:
            raise InputError(f"{raw}: no slice is left for {split} with --keep {options.keep}; use --keep brain or all")
    needed = 2 * sum(counts.values()) * options.size**2
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise InputError(
            f"{out}: needs {needed / 1e9:.2f} GB, but the disk has {free / 1e9:.2f} GB free; free some space"
        )


# ------------------------------------------------------------------------------------------------------ cut and write


def _empty_manifest(
    plane: _Plane, certificate: Certificate, options: PrepareOptions, mask_labels: dict[str, int]
) -> Manifest:
    """Return the manifest as it is before any slice is cut."""
    return Manifest(
        format=FORMAT, plane=plane.name, axis=plane.axis, size=options.size, fit=options.fit, keep=options.keep,
        split_level=certificate.level, optimistic=certificate.optimistic, protocol=options.protocol,
        seed=options.seed, mask_threshold=options.mask_threshold, lesion_labels=options.lesion_labels,
        ignore_labels=options.ignore_labels, mask_labels=mask_labels, spacing_mm=None,
        padding_background=True, counts={}, certificate=certificate, checksums={}, fingerprint="", test_findings=(),
        volumes=(), slices=(),
    )  # fmt: skip


def _write(
    folder: Path,
    tasks: Sequence[VolumeTask],
    manifest: Manifest,
    options: PrepareOptions,
    call_each: CallEach,
    report: Progress,
) -> Manifest:
    """Write everything into `folder`: arrays, the sealed test, manifests and the contact sheet."""
    spacings = [task.geometry.spacing_mm for task in tasks if task.geometry.spacing_mm is not None]
    manifest = replace(manifest, spacing_mm=round(float(np.median(spacings)), 6) if spacings else None)
    test_count = sum(task.splits.count("test") for task in tasks)
    other_count = sum(len(task.stored) for task in tasks) - test_count
    guard = LeakageGuard()
    with (
        SliceWriter(folder, other_count, options.size) as main,
        SliceWriter(folder / SEALED, test_count, options.size) as sealed,
    ):
        lost, needed = _cut_all(main, sealed, guard, tasks, options, call_each, report)
        certificate = guard.certify(manifest.certificate, options.allow_leakage)
        rows = main.rows + sealed.rows
        manifest = replace(
            manifest,
            certificate=certificate,
            optimistic=certificate.optimistic,
            counts={split: count_split(rows, split, options.size, lost[split], needed[split]) for split in SPLITS},
        )
        (sealed.folder / LEDGER).touch()
        _complete(manifest, sealed).write(sealed.folder)
        manifest = replace(manifest, test_findings=_named_findings(sealed.volumes))
        sealed_checksum = hashlib.sha256((sealed.folder / MANIFEST).read_bytes()).hexdigest()
        manifest = _complete(manifest, main)
    manifest = replace(manifest, checksums=manifest.checksums | {f"{SEALED}/{MANIFEST}": sealed_checksum})
    manifest.write(folder)
    draw_contact_sheet(manifest, folder)
    return manifest


def _named_findings(volumes: Sequence[VolumeGeometry]) -> tuple[NamedFinding, ...]:
    return tuple(row for volume in volumes for row in named(volume.scan, volume.source, volume.findings))


def _complete(manifest: Manifest, writer: SliceWriter) -> Manifest:
    """Return the manifest with the slices of one folder, whose arrays are then complete."""
    return replace(
        manifest,
        checksums=writer.close(),
        fingerprint=fingerprint(writer.rows, manifest.certificate),
        volumes=tuple(writer.volumes),
        slices=tuple(writer.rows),
    )


def _cut_all(
    main: SliceWriter,
    sealed: SliceWriter,
    guard: LeakageGuard,
    tasks: Sequence[VolumeTask],
    options: PrepareOptions,
    call_each: CallEach,
    report: Progress,
) -> tuple[dict[str, int], dict[str, int]]:
    """Cut and store all slices, and copy the test patients' files.

    Returns the lesion pixels lost in each split, and the size whose windows would lose none, 0 where there is none.
    """
    lost, needed = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    report("cutting", 0, len(tasks))
    arguments = ((task.source, task.geometry, task.stored, options.mask_rule) for task in tasks)
    results = call_each(_cut_one, arguments)
    for done, (task, (slices, signatures)) in enumerate(zip(tasks, results, strict=True), 1):
        findings = task.geometry.findings + cut_off(slices, options.fit)
        task = replace(task, geometry=replace(task.geometry, findings=findings))
        main.add(task, slices, ("train", "val"))
        sealed.add(task, slices, ("test",))
        guard.add(task, signatures)
        for split, count in zip(task.splits, slices.lost, strict=True):
            lost[split] += int(count)
            if count and options.fit == "crop":
                needed[split] = max(needed[split], slices.size_needed)
        if options.split == "patient" and "test" in task.splits:
            _copy_originals(task, sealed.folder / ORIGINALS)
        report("cutting", done, len(tasks))
    return lost, needed


def _cut_one(
    source: Source, geometry: VolumeGeometry, indices: Sequence[int], rule: MaskRule
) -> tuple[CutSlices, list[SliceSignature]]:
    """Run in a worker process: cut one volume."""
    slices = cut(source, geometry, indices, rule)
    return slices, slice_signatures(geometry, slices.images)


def _copy_originals(task: VolumeTask, folder: Path) -> None:
    """Copy a test patient's files, as the sealed test predicts whole volumes.

    Under a pseudonym NIfTI files are copied without the text in them, and pictures are not copied: pictures are scored
    slice by slice, so their files are not needed.
    """
    if task.pseudonym and not task.source.is_nifti:
        return
    paths = (*task.source.image, *task.source.mask)
    names = (*task.geometry.images, *task.geometry.masks)
    for path, name in zip(paths, names, strict=True):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if task.pseudonym:
            copy_without_text(path, target)
        else:
            shutil.copyfile(path, target)
