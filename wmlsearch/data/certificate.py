"""The certificate of a split: who is in which part, and how many slices the parts share. Every run keeps a copy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from wmlsearch.data.split import SPLITS

PAIRS = ("train/val", "train/test", "val/test")  # of parts that are compared
FOLD_PAIRS = ("fold/fold", "fold/test")  # the same, where train and val are dealt into folds
DUPLICATES = ("equal", "near", "mirrored")  # kinds of slices that two splits share
OPTIMISTIC = "image-level split: optimistic"


@dataclass(frozen=True)
class Certificate:
    """How a data set was split. Units are patients, or images in an image-level split."""

    level: str  # patient or image
    optimistic: bool  # results look better than they are: image-level split, or duplicates across splits
    note: str | None  # why the split is optimistic
    seed: int
    patients: dict[str, tuple[str, ...]]  # by split; with an image-level split one patient can be in several
    units: dict[str, int]  # number of units by split
    left_out: tuple[str, ...]  # patients in no split
    assignment_sha256: str  # hash of every unit's split
    compared: int = 0  # slices that were searched for duplicates across splits and folds
    # The patients of train and val in groups, each of which is the validation set of some runs; the first is val. Empty
    # where val is the only validation set.
    folds: tuple[tuple[str, ...], ...] = ()
    duplicates: dict[str, dict[str, int]] = field(default_factory=dict)  # slices of the second split: {pair: {kind: n}}


def certify(
    split_of: Mapping[str, str],
    patient_of: Mapping[str, str],
    level: str,
    seed: int,
    patients: Iterable[str] = (),
    folds: Sequence[Sequence[str]] = (),
) -> Certificate:
    """Return the certificate of an assignment, before slices are compared.

    Args:
        split_of: Split of each unit.
        patient_of: Patient of each unit, "" where it is not known.
        level: "patient" or "image".
        seed: Seed by which the units were assigned.
        patients: All patients of the raw data, whether used or not.
        folds: Patients of each fold; the first is val.
    """
    members: dict[str, set[str]] = {split: set() for split in SPLITS}
    for unit, split in split_of.items():
        members[split].add(patient_of[unit])
    used = set().union(*members.values())
    return Certificate(
        level=level,
        optimistic=level == "image",
        note=OPTIMISTIC if level == "image" else None,
        seed=seed,
        patients={split: tuple(sorted(members[split] - {""})) for split in SPLITS},
        units={split: sum(value == split for value in split_of.values()) for split in SPLITS},
        left_out=tuple(sorted(set(patients) - used - {""})),
        folds=tuple(tuple(sorted(fold)) for fold in folds),
        assignment_sha256=hashlib.sha256(json.dumps(sorted(split_of.items())).encode()).hexdigest(),
    )
