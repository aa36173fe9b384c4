"""The guard against leakage: it compares the slices of all splits and folds and refuses those that are in two of them.

`slice_similarity` says when two slices are alike. Follow-up scans are different images, so only the patient's name
tells that they belong together: see `patient_names`.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wmlsearch.data.certificate import DUPLICATES, FOLD_PAIRS, PAIRS, Certificate
from wmlsearch.data.patient_names import first_lines
from wmlsearch.data.slice_similarity import SliceSignature, near_matches
from wmlsearch.data.slice_writer import VolumeTask
from wmlsearch.errors import InputError

ADVICE = (
    "give copies and follow-up scans of a patient the same patient id, or leave one out "
    "(--allow-leakage counts duplicates instead, and marks all results as optimistic)"
)
_KINDS = {"equal": "equal", "near": "nearly equal", "mirrored": "nearly equal when mirrored"}


@dataclass(frozen=True)
class ComparedSlice:
    """A slice that is compared with those of other parts of the data."""

    volume: int  # number of the volume, among those of its part
    patient: str
    name: str  # file and slice number, for messages
    part: str  # train, val or test, or "fold 2"
    signature: SliceSignature


@dataclass(frozen=True)
class Duplicate:
    """A slice of one part that another part has too."""

    first: ComparedSlice
    second: ComparedSlice
    kind: str  # one of DUPLICATES
    correlation: float  # of the thumbnails; 1 where the slices are equal


_Comparison = tuple[str, Sequence[ComparedSlice], Sequence[ComparedSlice]]  # pair of parts, and the slices of both


class LeakageGuard:
    """Collect the signatures of all slices as they are cut, then find the slices that two splits or folds share."""

    def __init__(self) -> None:
        self._slices: list[ComparedSlice] = []
        self._volume_numbers = itertools.count()

    def add(self, task: VolumeTask, signatures: Sequence[SliceSignature]) -> None:
        """Add the stored slices of one volume."""
        source, volume = task.source, next(self._volume_numbers)
        for signature, index, split in zip(signatures, task.stored, task.splits, strict=True):
            name = f"{source.name(*source.image)} slice {index}" if source.is_nifti else source.slice_name(index)
            part = split if task.fold is None else fold_part(task.fold)
            self._slices.append(ComparedSlice(volume, source.patient, name, part, signature))

    def certify(self, certificate: Certificate, allow_leakage: bool) -> Certificate:
        """Return the certificate with the number of slices compared and of duplicates between splits and folds.

        With `allow_leakage`, duplicates are counted and the split is marked as optimistic.

        Raises:
            InputError: With patients and files, where splits or folds share slices and that is not allowed; and always
                where a patient is in two parts of a split by patient.
        """
        if certificate.level == "patient":
            self._check_patients()
        comparisons = self._folds_to_compare(len(certificate.folds)) if certificate.folds else self._splits_to_compare()
        duplicates = [(pair, one) for pair, first, second in comparisons for one in find_duplicates(first, second)]
        if duplicates and not allow_leakage:
            parts = "folds or splits" if certificate.folds else "splits"
            raise InputError(
                f"{parts} share slices, so results would look better than they are; {ADVICE}",
                first_lines(duplicate_lines([duplicate for _, duplicate in duplicates])),
            )
        counts = {pair: dict.fromkeys(DUPLICATES, 0) for pair in (FOLD_PAIRS if certificate.folds else PAIRS)}
        for pair, duplicate in duplicates:
            counts[pair][duplicate.kind] += 1
        optimistic = certificate.optimistic or bool(duplicates)
        note = certificate.note or ("duplicates across splits: optimistic" if duplicates else None)
        return replace(certificate, optimistic=optimistic, note=note, compared=len(self._slices), duplicates=counts)

    def _check_patients(self) -> None:
        first_slice: dict[str, ComparedSlice] = {}
        for second in self._slices:
            first = first_slice.setdefault(second.patient, second)
            if first.part != second.part:
                raise InputError(
                    f"patient {second.patient!r} is in {first.part} ({first.name}) and in {second.part} "
                    f"({second.name}), but a split by patient must keep all scans together"
                )

    def _splits_to_compare(self) -> Iterator[_Comparison]:
        for pair in PAIRS:
            first, second = ([one for one in self._slices if one.part == part] for part in pair.split("/"))
            yield pair, first, second

    def _folds_to_compare(self, folds: int) -> Iterator[_Comparison]:
        """Yield each fold with those before it, and the sealed test with all of them."""
        slices: dict[str, list[ComparedSlice]] = defaultdict(list)
        for one in self._slices:
            slices[one.part].append(one)
        before: list[ComparedSlice] = []
        for fold in range(folds):
            yield "fold/fold", before, slices[fold_part(fold)]
            before = before + slices[fold_part(fold)]
        yield "fold/test", before, slices["test"]


def fold_part(fold: int) -> str:
    """Return what a fold is called in messages."""
    return f"fold {fold}"


def find_duplicates(first: Sequence[ComparedSlice], second: Sequence[ComparedSlice]) -> Iterator[Duplicate]:
    """Yield each slice of the second part that the first has too, with the most alike slice of the first."""
    by_checksum: dict[bytes, ComparedSlice] = {}
    for candidate in first:
        if candidate.signature.checksum is not None:
            by_checksum.setdefault(candidate.signature.checksum, candidate)
    different = []
    for candidate in second:
        equal = by_checksum.get(candidate.signature.checksum) if candidate.signature.checksum else None
        if equal is not None:
            yield Duplicate(equal, candidate, "equal", 1.0)
        elif candidate.signature.thumbnail is not None:
            different.append(candidate)
    first = [candidate for candidate in first if candidate.signature.thumbnail is not None]
    if first and different:
        yield from _near_duplicates(first, different)


def _near_duplicates(first: Sequence[ComparedSlice], second: Sequence[ComparedSlice]) -> Iterator[Duplicate]:
    thumbnails, others = (
        np.stack([s.signature.thumbnail for s in slices if s.signature.thumbnail is not None])
        for slices in (first, second)
    )
    matches = {"near": near_matches(thumbnails, others), "mirrored": near_matches(thumbnails, others[:, :, ::-1])}
    for row, candidate in enumerate(second):
        kinds = [kind for kind in matches if row in matches[kind]]
        if kinds:
            kind = max(kinds, key=lambda kind: matches[kind][row].correlation)
            match = matches[kind][row]
            yield Duplicate(first[match.index], candidate, kind, match.correlation)


def duplicate_lines(duplicates: Sequence[Duplicate]) -> list[str]:
    """Return a line for each two volumes that share slices."""
    groups: dict[tuple[int, int, str, str], list[Duplicate]] = defaultdict(list)
    for duplicate in duplicates:
        first, second = duplicate.first, duplicate.second
        groups[first.volume, second.volume, first.part, second.part].append(duplicate)
    lines = []
    for group in groups.values():
        best = max(group, key=lambda duplicate: (duplicate.kind == "equal", duplicate.correlation))
        first, second = best.first, best.second
        patients = f"patient {second.patient!r} ({second.part}) and patient {first.patient!r} ({first.part})"
        counts = [(sum(duplicate.kind == kind for duplicate in group), kind) for kind in DUPLICATES]
        kinds = ", ".join(f"{count} {_KINDS[kind]}" for count, kind in counts if count)
        alike = "" if len(group) == 1 else " are the most alike"
        correlation = "" if best.kind == "equal" else f", correlation {best.correlation:.4f}"
        lines.append(f"{patients}: {kinds}; {second.name} and {first.name}{alike}{correlation}")
    return lines
