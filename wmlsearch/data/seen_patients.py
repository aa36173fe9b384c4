"""Refuse to test models on patients that they have seen in training or validation, however those are prepared now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wmlsearch.data.cutting import cut
from wmlsearch.data.examine import VolumeFacts, examine
from wmlsearch.data.geometry import VolumeGeometry, place_window
from wmlsearch.data.leakage import ComparedSlice, Duplicate, duplicate_lines, find_duplicates, fold_part
from wmlsearch.data.manifest import IMAGES, ORIGINALS, PREPARE_AGAIN, SEALED, Manifest
from wmlsearch.data.patient_names import first_lines
from wmlsearch.data.slice_similarity import slice_signatures
from wmlsearch.data.slices import open_array
from wmlsearch.data.sources import Source
from wmlsearch.errors import InputError
from wmlsearch.runs.schema import FolderRecord, SplitCertificate

Progress = Callable[[str, int, int], None]  # stage, volumes done, volumes in all


@dataclass(frozen=True)
class _TrainingData:
    """What is known of the data set that a model was trained on."""

    folder: Path
    certificate: SplitCertificate
    manifest: Manifest | None  # None where the data set is not in its folder any more


def check_unseen(record: FolderRecord, data: Path, progress: Progress = lambda *_: None) -> list[str]:
    """Refuse a data set whose test patients were training or validation patients of a model. Returns warnings.

    Images are compared by the checksum of their voxels. Then the test patients' volumes are cut as the training data
    were, and their slices are compared like those of two splits in `prepare`. As there, the test patients' images are
    read, but nothing is predicted or scored, so the sealed test is not opened. A patient id that both data sets have
    is a warning only, as many data sets number their patients from 1.

    Args:
        record: The record of the search or run, with its data.
        data: The prepared data set whose sealed test is to be opened.
        progress: Called as `progress("comparing", done, total)` after each test volume.

    Raises:
        InputError: With the test patients that were seen, or for data that cannot be read.
    """
    training, sealed = _training_data(record), Manifest.read(data / SEALED)
    lines = _equal_images(training, data, sealed)
    if training.manifest is not None:
        seen = _stored_slices(training.folder, training.manifest)
        test = [one for one in _test_slices(data, sealed, training.manifest, progress) if one.volume not in lines]
        duplicates: dict[int, list[Duplicate]] = defaultdict(list)
        for duplicate in find_duplicates(seen, test):
            duplicates[duplicate.second.volume].append(duplicate)
        lines |= {number: "; ".join(duplicate_lines(pairs)) for number, pairs in duplicates.items()}
    if lines:
        raise InputError(
            f"{data}: some of its test patients are training or validation patients of {training.folder}, so the test "
            "would be meaningless; prepare it without them",
            first_lines([lines[number] for number in sorted(lines)]),
        )
    return _warnings(training, sealed)


def _training_data(record: FolderRecord) -> _TrainingData:
    folder = Path(record.data_path)
    try:
        manifest = Manifest.read(folder)
        open_array(folder / IMAGES, manifest)
    except InputError:
        manifest = None
    if manifest is not None and manifest.fingerprint != record.data.fingerprint:
        manifest = None  # another data set has its name now
    return _TrainingData(folder, record.certificate or SplitCertificate(), manifest)


def _warnings(training: _TrainingData, sealed: Manifest) -> list[str]:
    warnings = []
    if training.manifest is None:
        how = "by checksums of whole images only" if training.certificate.voxels_sha256 else "by patient ids only"
        warnings.append(
            f"warning: {training.folder} does not hold the training data any more, so whether the test patients were "
            f"seen in training is checked {how}"
        )
    ids = {name for split in ("train", "val") for name in training.certificate.patients.get(split, ())}
    if same := sorted(ids & {row.patient for row in sealed.slices}):
        warnings.append(
            f"warning: test patients {', '.join(same)} have the ids of training or validation patients; make sure "
            "that they are other people"
        )
    return warnings


# ---------------------------------------------------------------------------------------------------- whole images


def _equal_images(training: _TrainingData, data: Path, sealed: Manifest) -> dict[int, str]:
    """Return a line for each test volume whose voxels are those of a training or validation volume, by its number."""
    of_training = {volume.voxels_sha256: volume for volume in (training.manifest.volumes if training.manifest else ())}
    seen = (of_training.keys() | set(training.certificate.voxels_sha256)) - {""}
    lines = {}
    for number, geometry in enumerate(sealed.volumes if seen else ()):
        checksum = geometry.voxels_sha256
        if not checksum and sealed.has_volumes:
            checksum = _examine(data, geometry, sealed.axis, sealed.padding_background)[1].voxels_sha256
        if checksum in seen:
            other = of_training.get(checksum)
            whose = f"patient {other.patient!r} ({other.source})" if other else "a training or validation patient"
            lines[number] = f"patient {geometry.patient!r} ({geometry.source}): the same image as that of {whose}"
    return lines


# ----------------------------------------------------------------------------------------------------------- slices


def _test_slices(data: Path, sealed: Manifest, training: Manifest, progress: Progress) -> list[ComparedSlice]:
    """Return the test slices: volumes cut as the training data were, or where that is impossible as they are stored."""
    if not sealed.has_volumes or training.axis is None:
        return _stored_slices(data / SEALED, sealed)
    slices = []
    for number, geometry in enumerate(sealed.volumes):
        progress("comparing", number, len(sealed.volumes))
        source, facts = _examine(data, geometry, training.axis, training.padding_background)
        placed = place_window(source, facts, training.size, training.fit, training.spacing_mm)
        for index, signature in enumerate(slice_signatures(placed, cut(source, placed).images)):
            name = f"{geometry.source} slice {index}"
            slices.append(ComparedSlice(number, geometry.patient, name, "test", signature))
    progress("comparing", len(sealed.volumes), len(sealed.volumes))
    return slices


def _stored_slices(folder: Path, manifest: Manifest) -> list[ComparedSlice]:
    """Return the slices that are stored in a folder."""
    fold_of = {name: fold_part(number) for number, fold in enumerate(manifest.folds) for name in fold}
    rows: dict[int, list[int]] = defaultdict(list)  # of each volume
    for i, row in enumerate(manifest.slices):
        rows[row.volume].append(i)
    images, slices = open_array(folder / IMAGES, manifest), []
    for number, geometry in enumerate(manifest.volumes):
        signatures = slice_signatures(geometry, images[rows[number]]) if rows[number] else []
        for i, signature in zip(rows[number], signatures, strict=True):
            row = manifest.slices[i]
            name = row.source if manifest.axis is None else f"{row.source} slice {row.index}"
            part = row.split if row.split == "test" else fold_of.get(row.patient, row.split)
            slices.append(ComparedSlice(number, row.patient, name, part, signature))
    return slices


def _examine(
    data: Path, geometry: VolumeGeometry, axis: int | None, padding_background: bool
) -> tuple[Source, VolumeFacts]:
    """Return a test patient's volume, as `prepare` has copied it, and its measures."""
    root = data / SEALED / ORIGINALS
    source = Source(geometry.patient, geometry.timepoint, root, tuple(root / name for name in geometry.images))
    facts, faults = examine(source, axis, nan_background=geometry.nan_background, padding_background=padding_background)
    if facts is None:
        raise InputError(f"{data}: a test patient's file cannot be read; {PREPARE_AGAIN}", faults)
    return source, facts
