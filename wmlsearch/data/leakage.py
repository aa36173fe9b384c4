"""The guard against leakage: it compares the slices of all splits and refuses those that are in more than one.

`slice_similarity` says when two slices are alike. Follow-up scans are different images, so only the patient's name
tells that they belong together: see `patient_names`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wmlsearch.config import InputError
from wmlsearch.data.certificate import DUPLICATES, PAIRS, Certificate
from wmlsearch.data.patient_names import first_lines
from wmlsearch.data.slice_similarity import SliceSignature, near_matches
from wmlsearch.data.slice_writer import VolumeTask

ADVICE = (
    "give copies and follow-up scans of a patient the same patient id, or leave one out "
    "(--allow-leakage counts duplicates instead, and marks all results as optimistic)"
)
_KINDS = {"equal": "equal", "near": "nearly equal", "mirrored": "nearly equal when mirrored"}


@dataclass(frozen=True)
class _Slice:
    volume: int  # number of the volume, in the order in which volumes are added
    patient: str
    name: str  # file and slice number, for messages
    split: str
    signature: SliceSignature


@dataclass(frozen=True)
class _Duplicate:
    first: _Slice
    second: _Slice
    kind: str  # one of DUPLICATES
    correlation: float  # of the thumbnails; 1 where the slices are equal


class LeakageGuard:
    """Collect the signatures of all slices as they are cut, then find the slices that two splits share."""

    def __init__(self) -> None:
        self._slices: list[_Slice] = []
        self._volumes = 0

    def add(self, task: VolumeTask, signatures: Sequence[SliceSignature]) -> None:
        """Add the stored slices of one volume."""
        source = task.source
        for signature, index, split in zip(signatures, task.stored, task.splits, strict=True):
            name = f"{source.name(source.image[0])} slice {index}" if source.is_nifti else source.slice_name(index)
            self._slices.append(_Slice(self._volumes, source.patient, name, split, signature))
        self._volumes += 1

    def certify(self, certificate: Certificate, allow_leakage: bool) -> Certificate:
        """Return the certificate with the number of slices compared and of duplicates between splits.

        With `allow_leakage`, duplicates are counted and the split is marked as optimistic.

        Raises:
            InputError: With patients and files, where splits share slices and that is not allowed; and always where a
                patient is in two parts of a split by patient.
        """
        if certificate.level == "patient":
            self._check_patients()
        duplicates = [duplicate for pair in PAIRS for duplicate in self._between(*pair.split("/"))]
        if duplicates and not allow_leakage:
            raise InputError(
                f"splits share slices, so results would look better than they are; {ADVICE}",
                first_lines(_lines(duplicates)),
            )
        counts = {pair: dict.fromkeys(DUPLICATES, 0) for pair in PAIRS}
        for duplicate in duplicates:
            counts[f"{duplicate.first.split}/{duplicate.second.split}"][duplicate.kind] += 1
        optimistic = certificate.optimistic or bool(duplicates)
        note = certificate.note or ("duplicates across splits: optimistic" if duplicates else None)
        return replace(certificate, optimistic=optimistic, note=note, compared=len(self._slices), duplicates=counts)

    def _check_patients(self) -> None:
        first_slice: dict[str, _Slice] = {}
        for second in self._slices:
            first = first_slice.setdefault(second.patient, second)
            if first.split != second.split:
                raise InputError(
                    f"patient {second.patient!r} is in {first.split} ({first.name}) and in {second.split} "
                    f"({second.name}), but a split by patient must keep all scans together"
                )

    def _between(self, first_split: str, second_split: str) -> Iterator[_Duplicate]:
        """Yield each slice of the second split that the first has too, with the most alike slice of the first."""
        first, second = ([s for s in self._slices if s.split == split] for split in (first_split, second_split))
        by_checksum: dict[bytes, _Slice] = {}
        for candidate in first:
            if candidate.signature.checksum is not None:
                by_checksum.setdefault(candidate.signature.checksum, candidate)
        different = []
        for candidate in second:
            equal = by_checksum.get(candidate.signature.checksum) if candidate.signature.checksum else None
            if equal is not None:
                yield _Duplicate(equal, candidate, "equal", 1.0)
            elif candidate.signature.thumbnail is not None:
                different.append(candidate)
        first = [candidate for candidate in first if candidate.signature.thumbnail is not None]
        if first and different:
            yield from _near_duplicates(first, different)


def _near_duplicates(first: Sequence[_Slice], second: Sequence[_Slice]) -> Iterator[_Duplicate]:
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
            yield _Duplicate(first[match.index], candidate, kind, match.correlation)


def _lines(duplicates: Sequence[_Duplicate]) -> list[str]:
    """Return a line for each two volumes that share slices."""
    groups: dict[tuple[int, int, str, str], list[_Duplicate]] = defaultdict(list)
    for duplicate in duplicates:
        first, second = duplicate.first, duplicate.second
        groups[first.volume, second.volume, first.split, second.split].append(duplicate)
    lines = []
    for group in groups.values():
        best = max(group, key=lambda duplicate: (duplicate.kind == "equal", duplicate.correlation))
        first, second = best.first, best.second
        patients = f"patient {second.patient!r} ({second.split}) and patient {first.patient!r} ({first.split})"
        counts = [(sum(duplicate.kind == kind for duplicate in group), kind) for kind in DUPLICATES]
        kinds = ", ".join(f"{count} {_KINDS[kind]}" for count, kind in counts if count)
        alike = "" if len(group) == 1 else " are the most alike"
        correlation = "" if best.kind == "equal" else f", correlation {best.correlation:.4f}"
        lines.append(f"{patients}: {kinds}; {second.name} and {first.name}{alike}{correlation}")
    return lines
