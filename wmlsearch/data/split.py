"""Which patient, or which image, goes to train, validation and test; and the certificate that says so.

The rule is the paper's: 30 % test (rounded up), a tenth of the rest for validation (rounded down, at least 1).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from wmlsearch.config import InputError

SPLITS = ("train", "val", "test")
PAIRS = ("train/val", "train/test", "val/test")
DUPLICATES = ("equal", "near", "mirrored")  # slices of the second split that are in the first as well
OPTIMISTIC = "image-level split: optimistic"
_WORDS = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Certificate:
    """What was put where, to be kept with every run.

    `patients` lists the patients of each split (in an image-level split one patient can stand in several), `units`
    counts what was dealt out (patients or images), `left_out` names the patients in no split, `assignment_sha256` is
    the hash of the whole assignment, and `note` is `OPTIMISTIC` for image-level splits. `compared` slices were looked
    through for duplicates across splits, and `duplicates` counts them: {of PAIRS: {of DUPLICATES: slices}}. Where there
    are some the split is `optimistic` too.
    """

    level: str
    optimistic: bool
    note: str | None
    seed: int
    patients: dict[str, tuple[str, ...]]
    units: dict[str, int]
    left_out: tuple[str, ...]
    assignment_sha256: str
    compared: int = 0
    duplicates: dict[str, dict[str, int]] = field(default_factory=dict)


def patient_name(name: str) -> str:
    """The patient's name without white space around it and without the BIDS prefix `sub-`."""
    return name.strip().removeprefix("sub-")


def split_counts(n: int, test: int = 0) -> tuple[int, int, int]:
    """How many of n units go to train, validation and test: 4918 -> (3098, 344, 1476). With `test`, so many to test."""
    test = test or -(-3 * n // 10)
    val = max(1, (n - test) // 10)
    return n - test - val, val, test


def assign(units: Iterable[str], seed: int, what: str = "patients") -> dict[str, str]:
    """Deal the units to "train", "val" and "test" by chance, whatever their order.

    Raises InputError when there are fewer than three.
    """
    return assign_fixed(units, seed, {}, what)


def assign_fixed(
    units: Iterable[str], seed: int, fixed: Mapping[str, Sequence[str]], what: str = "patients"
) -> dict[str, str]:
    """Like `assign`, with the units of some splits given by name (with or without `sub-`): {split: names}.

    The splits without a list share the units that are left, by the rule; when all three have one, units in none of them
    are left out of the result. Raises InputError for unknown names, names in two lists, and too few units.
    """
    names = sorted(set(units))
    lists = {split: sorted({patient_name(name) for name in fixed.get(split, ())}) for split in SPLITS}
    if faults := _list_faults(names, lists):
        raise InputError("the lists of patients do not fit the data", faults)
    chosen = {name: split for split, members in lists.items() for name in members}
    free = [name for name in names if name not in chosen]
    missing = [split for split in SPLITS if not lists[split]]
    if len(free) < len(missing):
        raise InputError(_too_few(names, free, missing, chosen, what))
    shuffled = [free[i] for i in np.random.default_rng(seed).permutation(len(free))]
    for split, count in _shares(len(names), len(free), lists, missing).items():
        chosen.update((name, split) for name in shuffled[:count])
        shuffled = shuffled[count:]
    return {name: chosen[name] for name in names if name in chosen}


def certify(
    assignment: Mapping[str, str], patient_of: Mapping[str, str], level: str, seed: int, patients: Iterable[str] = ()
) -> Certificate:
    """The certificate of an assignment. `patient_of` names each unit's patient or "", `patients` all there are."""
    members: dict[str, set[str]] = {split: set() for split in SPLITS}
    for unit, split in assignment.items():
        members[split].add(patient_of[unit])
    used = set().union(*members.values())
    return Certificate(
        level=level,
        optimistic=level == "image",
        note=OPTIMISTIC if level == "image" else None,
        seed=seed,
        patients={split: tuple(sorted(members[split] - {""})) for split in SPLITS},
        units={split: sum(value == split for value in assignment.values()) for split in SPLITS},
        left_out=tuple(sorted(set(patients) - used - {""})),
        assignment_sha256=hashlib.sha256(json.dumps(sorted(assignment.items())).encode()).hexdigest(),
    )


def _list_faults(names: Sequence[str], lists: Mapping[str, Sequence[str]]) -> list[str]:
    faults = []
    for split, members in lists.items():
        for name in members:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}? " if near else ""
                faults.append(f"--{split}-patients: no patient {name!r} in the data; {hint}there are {_some(names)}")
    for name in sorted({name for members in lists.values() for name in members}):
        flags = [f"--{split}-patients" for split in SPLITS if name in lists[split]]
        if len(flags) > 1:
            faults.append(f"patient {name!r}: must be in one split, but is in {' and '.join(flags)}; keep it in one")
    return faults


def _shares(n: int, free: int, lists: Mapping[str, Sequence[str]], missing: Sequence[str]) -> dict[str, int]:
    """How many of the `free` units each missing split gets: the rule on all n, at least 1 each, nothing left over."""
    if not missing:
        return {}
    rule = split_counts(n, len(lists["test"]))
    test, val = rule[2], len(lists["val"]) or rule[1]
    if len(missing) == 1:
        return {missing[0]: free}
    if "train" not in missing:
        val = min(free - 1, max(1, round(free * val / (val + test))))
        return {"test": free - val, "val": val}
    shares: dict[str, int] = {}
    if "test" in missing:
        shares["test"] = min(test, free - (len(missing) - 1))
    if "val" in missing:
        shares["val"] = min(val, free - shares.get("test", 0) - 1)
    return shares | {"train": free - sum(shares.values())}


def _too_few(
    names: Sequence[str], free: Sequence[str], missing: Sequence[str], chosen: Mapping[str, str], what: str
) -> str:
    wanted = _listed([_WORDS[split] for split in missing])
    got = f"got {len(names)} ({_some(names)})"
    if chosen:
        got += f", of which {len(free)} in none of the lists given"
    return (
        f"too few {what} for a split: {wanted} need{'s' if len(missing) == 1 else ''} at least 1 each, "
        f"{len(missing)} together, but {got}; add {what}"
    )


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _some(names: Sequence[str], most: int = 12) -> str:
    return (
        ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") if names else "none"
    )
