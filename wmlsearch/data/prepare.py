"""Raw data set to prepared data set: slices in two memory-mappable arrays, a manifest, and the sealed test beside them.

Two passes over the volumes: examine all (nothing is written before every fault is known), then cut one after another
into a folder beside OUT that takes its name when it is complete.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wmlsearch.config import InputError
from wmlsearch.data.certificate import certify
from wmlsearch.data.contact_sheet import draw_contact_sheet
from wmlsearch.data.cutting import CutSlices, cut
from wmlsearch.data.examine import VolumeFacts, examine
from wmlsearch.data.geometry import PLANES, VolumeGeometry, choose_plane, place_window
from wmlsearch.data.leakage import Guard, Look, look
from wmlsearch.data.manifest import (  # fmt: skip
    FORMAT,
    IMAGES,
    MANIFEST,
    MASKS,
    ORIGINALS,
    SEAL,
    SEALED,
    Manifest,
    SliceRow,
    Store,
    Task,
    fingerprint,
    split_facts,
)
from wmlsearch.data.nifti import copy_without_text, voxel_edges
from wmlsearch.data.patient_names import check_patient_names
from wmlsearch.data.pseudonyms import Pseudonyms
from wmlsearch.data.sources import Source, discover  # fmt: skip
from wmlsearch.data.split import SPLITS, assign
from wmlsearch.data.worker_pool import Each, workers
from wmlsearch.runs.files import atomic_folder, check_output_folder

__all__ = ["IMAGES", "MASKS", "Manifest", "PrepareOptions", "SliceRow", "VolumeGeometry", "prepare"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PrepareOptions:
    """The options of `wmlsearch prepare`, checked at birth: InputError with all faults. None stands for the default."""

    plane: str | None = None  # sagittal, axial, coronal, native; None: native for thick slices, sagittal for isotropic
    size: int = 256  # pixels, edge of the square slices
    keep: str | None = None  # brain (default): enough of the head, or a lesion; lesion: annotated slices only; all
    fit: str = "crop"  # crop: a window on the head; resize: the head scaled to the window
    split: str | None = None  # patient (default) or image
    train_patients: tuple[str, ...] = ()  # by name, with or without sub-
    val_patients: tuple[str, ...] = ()
    test_patients: tuple[str, ...] = ()
    allow_leakage: bool = False  # needed for image-level splits; duplicates across splits are counted, not refused
    mask_threshold: float | None = None  # mask > threshold is lesion; None: masks must be binary
    seed: int = 0
    protocol: str | None = None  # paper: sagittal, annotated slices only, image-level split
    patient_pattern: str | None = None  # regular expression for a folder with images/ and masks/
    jobs: int | None = None  # processes; None: as many as make sense
    pseudonyms: Path | None = None  # file of the table by which patients are renamed; None: they keep their ids

    def __post_init__(self) -> None:
        faults = []
        if self.protocol not in (None, "paper"):
            faults.append(f"--protocol must be paper, but got {self.protocol!r}")
        paper = {"plane": "sagittal", "keep": "lesion", "split": "image"} if self.protocol == "paper" else {}
        for name, value in paper.items():
            if getattr(self, name) not in (None, value):
                faults.append(
                    f"--protocol paper means --{name} {value}, but got --{name} {getattr(self, name)}; drop one"
                )
        for name, default in ({"keep": "brain", "split": "patient"} | paper).items():
            object.__setattr__(self, name, getattr(self, name) or default)
        object.__setattr__(self, "allow_leakage", self.allow_leakage or bool(paper))
        choices: dict[str, tuple[str | None, ...]] = {
            "plane": (None, *PLANES, "native"), "keep": ("brain", "lesion", "all"),
            "fit": ("crop", "resize"), "split": ("patient", "image"),
        }  # fmt: skip
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                words = ", ".join(word for word in allowed if word)
                faults.append(f"--{name} must be one of {words}, but got {getattr(self, name)!r}")
        for name, low, high in (("size", 16, 4096), ("seed", 0, 2**63 - 1), ("jobs", 1, 1024)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and low <= value <= high):
                faults.append(f"--{name} must be a whole number from {low} to {high}, but got {value!r}")
        if self.mask_threshold is not None and not math.isfinite(self.mask_threshold):
            faults.append(f"--mask-threshold must be a finite number, but got {self.mask_threshold}")
        if self.split == "image" and not self.allow_leakage:
            faults.append(
                "--split image puts slices of one patient into train and test, so results look better than they are "
                "(leakage); split by patient, or add --allow-leakage to do it and have it marked everywhere"
            )
        if self.split == "image" and (self.train_patients or self.val_patients or self.test_patients):
            faults.append("--train-patients, --val-patients and --test-patients need --split patient; drop them")
        if faults:
            raise InputError("the options do not fit together", faults)


def prepare(raw: Path, out: Path, options: PrepareOptions, progress: Progress | None = None) -> Manifest:
    """Turn the raw data set into a prepared one in `out`, which must not exist or be empty; its manifest is returned.

    `progress(stage, done, total)` is called after each volume, stage "reading" then "cutting". Raises InputError with
    all faults found; nothing is left behind on any failure.
    """
    tell = progress or _silent
    check_output_folder(out)
    table = _table(out, options.pseudonyms)
    sources = discover(raw, options.patient_pattern)
    names = dict(zip(sources, table.hide(sources) if table else sources, strict=True))  # as they are written
    if table:  # the order of the ids says something of them too
        sources.sort(key=lambda s: names[s].image)
    patient_split = _split_patients(sources, options) if options.split == "patient" else {}
    used = [s for s in sources if options.split == "image" or s.patient in patient_split]
    plane, axis, work = _plane(raw, used, options.plane)
    with workers(options.jobs, len(used), work) as each:
        facts = _examine_all(raw, used, axis, options, each, tell)
        kept = [_kept(f, options.keep or "brain") for f in facts]
        units = [[_unit(s, i) for i in range(len(f.head))] for s, f in zip(used, facts, strict=True)]
        shown = [[_unit(names[s], i) for i in range(len(f.head))] for s, f in zip(used, facts, strict=True)]
        if options.split == "image":
            chosen = [
                unit for row, keep in zip(units, kept, strict=True) for unit, k in zip(row, keep, strict=True) if k
            ]
            split_of = assign(chosen, options.seed, noun="images")
            owner = {unit: names[s].patient for s, row in zip(used, shown, strict=True) for unit in row}
            dealt = {
                b: split_of[a]
                for u, v in zip(units, shown, strict=True)
                for a, b in zip(u, v, strict=True)
                if a in split_of
            }
        else:
            split_of = {unit: patient_split[s.patient] for s, row in zip(used, units, strict=True) for unit in row}
            dealt = {names[s].patient: patient_split[s.patient] for s in used}
            owner = {patient: patient for patient in dealt}
        everyone = (names[s].patient for s in sources)
        certificate = certify(dealt, owner, options.split or "patient", options.seed, everyone)
        spacing = _common_spacing(raw, used, facts)
        tasks = []
        for s, f, row, keep in zip(used, facts, units, kept, strict=True):
            stored = [i for i, name in enumerate(row) if name in split_of and (keep[i] or split_of[name] != "train")]
            geometry = place_window(names[s], f, options.size, options.fit, spacing)
            splits = [split_of[row[i]] for i in stored]
            tasks.append(Task(s, geometry, stored, splits, [keep[i] for i in stored], names[s] if table else None))
        _check_tasks(raw, out, tasks, options, [sum(f.lesion) for f in facts])
        common = Manifest(
            format=FORMAT, plane=plane, axis=axis, size=options.size, fit=options.fit, keep=options.keep or "brain",
            split_level=certificate.level, optimistic=certificate.optimistic, protocol=options.protocol,
            seed=options.seed, mask_threshold=options.mask_threshold, spacing_mm=None, counts={},
            certificate=certificate, checksums={}, fingerprint="", volumes=(), slices=(),
        )  # fmt: skip
        with atomic_folder(out) as aside:
            manifest = _fill(aside, tasks, options, common, each, tell)
            if table:
                table.save()
            return manifest


# --------------------------------------------------------------------------------------------------- before writing


def _table(out: Path, path: Path | None) -> Pseudonyms | None:
    """The table of pseudonyms, if one is wanted. Raises InputError where OUT would hold it: OUT is handed on."""
    if path is None:
        return None
    if path.absolute().is_relative_to(out.absolute()):
        raise InputError(
            f"{path}: the table of pseudonyms can't be inside {out}, which is handed on; name another place"
        )
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: can't be written, since its folder is missing; make it, or name another place")
    return Pseudonyms(path)


def _split_patients(sources: Sequence[Source], options: PrepareOptions) -> dict[str, str]:
    if nameless := [s for s in sources if not s.patient]:
        raise InputError(
            "a split by patient needs each image's patient; give --patient-pattern REGEX (its group is the patient in "
            "the file name, such as '^(p[0-9]+)_'), fill the table's patient column, or split by image",
            [f"{s.name(s.image[0])}: no patient" for s in nameless[:5]],
        )
    fixed = {"train": options.train_patients, "val": options.val_patients, "test": options.test_patients}
    split_of = assign((s.patient for s in sources), options.seed, fixed)
    first_file: dict[str, str] = {}
    for source in sources:
        first_file.setdefault(source.patient, source.name(source.image[0]))
    check_patient_names(split_of, first_file)
    return split_of


def _plane(raw: Path, sources: Sequence[Source], plane: str | None) -> tuple[str, int | None, int]:
    """The plane, the axis, and the bytes to read, about; 2-D pictures are taken as they are: plane "image"."""
    if not sources[0].is_nifti:
        return "image", None, sum(len(s.image) for s in sources) * 2**17
    edges: dict[str, tuple[float, float, float]] = {}
    faults: list[str] = []
    work = 0
    for s in sources:
        try:
            edges[s.name(s.image[0])] = voxel_edges(s)
            work += s.image[0].stat().st_size
        except InputError as error:
            faults += error.faults
    if not edges:
        raise _refused(raw, faults)
    return *choose_plane(edges, plane), work


def _examine_all(
    raw: Path, sources: Sequence[Source], axis: int | None, options: PrepareOptions, each: Each, tell: Progress
) -> list[VolumeFacts]:
    faults: list[str] = []
    found: list[VolumeFacts] = []
    tell("reading", 0, len(sources))
    results = each(examine, ((s, axis, options.mask_threshold) for s in sources))
    for done, (facts, wrong) in enumerate(results, 1):
        faults += wrong
        found += [facts] if facts is not None else []
        tell("reading", done, len(sources))
    if faults:
        raise _refused(raw, faults)
    return found


def _kept(facts: VolumeFacts, keep: str) -> list[bool]:
    if keep == "all":
        return [True] * len(facts.head)
    if keep == "lesion":
        return [lesion > 0 for lesion in facts.lesion]
    enough = 0.1 * max(facts.head)
    return [head >= enough or lesion > 0 for head, lesion in zip(facts.head, facts.lesion, strict=True)]


def _common_spacing(raw: Path, sources: Sequence[Source], facts: Sequence[VolumeFacts]) -> float | None:
    """The data set's in-plane spacing in mm: the median of the volumes' finer ones; None for pictures."""
    finest = [min(f.picture_mm) for f in facts if f.picture_mm is not None]
    if not finest:
        return None
    spacing = float(np.median(finest))
    faults = [
        f"{s.name(s.image[0])}: in-plane voxel edges must be within a factor of 8 of the data set's {spacing:.4g} mm, "
        f"but are {f.picture_mm[0]:.4g} x {f.picture_mm[1]:.4g} mm; check the header's units, or leave it out"
        for s, f in zip(sources, facts, strict=True)
        if f.picture_mm is not None and not spacing / 8 <= min(f.picture_mm) <= spacing * 8
    ]
    if faults:
        raise _refused(raw, faults)
    return round(spacing, 6)


def _check_tasks(raw: Path, out: Path, tasks: Sequence[Task], options: PrepareOptions, lesions: Sequence[int]) -> None:
    if not any(lesions):
        raise InputError(f"{raw}: no mask has a lesion, so there is nothing to learn; check the masks")
    count = {split: sum(t.splits.count(split) for t in tasks) for split in SPLITS}
    for split in SPLITS:
        if not count[split]:
            raise InputError(
                f"{raw}: no slice is left for {split} with --keep {options.keep}; take --keep brain or all"
            )
    need = 2 * sum(count.values()) * options.size**2
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if need > free:
        raise InputError(f"{out}: needs {need / 1e9:.2f} GB, but the disk has {free / 1e9:.2f} GB free; make room")


def _unit(source: Source, index: int) -> str:
    return f"{source.name(source.image[0])}#{index}" if source.is_nifti else source.name(source.image[index])


def _refused(raw: Path, faults: Sequence[str]) -> InputError:
    return InputError(f"{raw}: {len(faults)} fault{'' if len(faults) == 1 else 's'}, nothing was written", faults)


# ---------------------------------------------------------------------------------------------------------- writing


def _fill(
    aside: Path, tasks: Sequence[Task], options: PrepareOptions, common: Manifest, each: Each, tell: Progress
) -> Manifest:
    """Everything into the folder `aside`. `common` is the manifest without its slices."""
    spacings = [task.geometry.spacing_mm for task in tasks if task.geometry.spacing_mm is not None]
    common = replace(common, spacing_mm=round(float(np.median(spacings)), 6) if spacings else None)
    test = sum(task.splits.count("test") for task in tasks)
    train_val = sum(len(task.stored) for task in tasks) - test
    guard = Guard()
    with Store(aside, train_val, options.size) as main, Store(aside / SEALED, test, options.size) as sealed:
        lost = _cut_all(main, sealed, guard, tasks, options, each, tell)
        certificate = guard.certify(common.certificate, options.allow_leakage)
        common = replace(common, certificate=certificate, optimistic=certificate.optimistic)
        (sealed.folder / SEAL).touch()
        rows = main.rows + sealed.rows
        common = replace(common, counts={s: split_facts(rows, s, options.size, lost[s]) for s in SPLITS})
        _manifest(common, sealed, {}).write(sealed.folder)
        sealed_sum = hashlib.sha256((sealed.folder / MANIFEST).read_bytes()).hexdigest()
        manifest = _manifest(common, main, {f"{SEALED}/{MANIFEST}": sealed_sum})
    manifest.write(aside)
    draw_contact_sheet(manifest, aside)
    return manifest


def _cut_all(
    main: Store,
    sealed: Store,
    guard: Guard,
    tasks: Sequence[Task],
    options: PrepareOptions,
    each: Each,
    tell: Progress,
) -> dict[str, int]:
    """Cut and store all slices, and copy the test patients' files; the lesion pixels that were lost, per split."""
    lost = dict.fromkeys(SPLITS, 0)
    tell("cutting", 0, len(tasks))
    results = each(_cut_and_look, ((task.source, task.geometry, task.stored, options.mask_threshold) for task in tasks))
    for done, (task, (slices, looks)) in enumerate(zip(tasks, results, strict=True), 1):
        main.add(task, slices, ("train", "val"))
        sealed.add(task, slices, ("test",))
        guard.add(task, looks)
        for split, count in zip(task.splits, slices.lost, strict=True):
            lost[split] += int(count)
        if options.split == "patient" and "test" in task.splits:
            for paths, names in (
                (task.source.image, task.geometry.images),
                (task.source.mask, task.geometry.masks),
            ):
                for path, name in zip(paths, names, strict=True):
                    _keep_original(path, sealed.folder / ORIGINALS / name, task)
        tell("cutting", done, len(tasks))
    return lost


def _keep_original(path: Path, copy: Path, task: Task) -> None:
    """A test patient's file as it came; under a pseudonym without the words in it, and no picture: they have no use."""
    if task.shown and not task.source.is_nifti:
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    if task.shown:
        copy_without_text(path, copy)
    else:
        shutil.copyfile(path, copy)


def _cut_and_look(
    source: Source, geometry: VolumeGeometry, indices: Sequence[int], mask_threshold: float | None
) -> tuple[CutSlices, list[Look]]:
    slices = cut(source, geometry, indices, mask_threshold)
    return slices, look(geometry, slices)


def _manifest(common: Manifest, store: Store, checksums: dict[str, str]) -> Manifest:
    return replace(
        common,
        checksums=store.close() | checksums,
        fingerprint=fingerprint(store.rows, common.certificate),
        volumes=tuple(store.volumes),
        slices=tuple(store.rows),
    )


def _silent(*_: object) -> None:
    pass
