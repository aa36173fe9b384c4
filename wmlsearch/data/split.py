"""Which patient, or which image, goes to training, validation and test.

The counts are the paper's: 30 % test (rounded up), a tenth of the rest validation (rounded down, at least 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from wmlsearch.data.patient_names import patient_name
from wmlsearch.data.spelling import same_names
from wmlsearch.errors import InputError

SPLITS = ("train", "val", "test")
MAX_NAMES = 12  # more are cut in messages
_WORDS = {"train": "train", "val": "validation", "test": "test"}


def split_counts(n: int, test: int = 0) -> tuple[int, int, int]:
    """Return how many of n units go to train, val and test: 4918 -> (3098, 344, 1476).

    Args:
        n: Number of units (patients or images).
        test: Size of the test split where it is fixed; 0 means 30 %.
    """
    test = test or -(-3 * n // 10)
    val = max(1, (n - test) // 10)
    return n - test - val, val, test


def assign(
    units: Iterable[str], seed: int, fixed: Mapping[str, Sequence[str]] | None = None, noun: str = "patients"
) -> dict[str, str]:
    """Return the split ("train", "val" or "test") of each unit, drawn at random, whatever the order of the units.

    Args:
        units: Names of patients or images.
        seed: Seed of the draw.
        fixed: The units of some splits by name, with or without `sub-`. The other splits share the remaining units by
            the rule. Where all three are fixed, the remaining units are in no split and not in the result.
        noun: What the units are called in messages.

    Raises:
        InputError: For unknown names, names in two lists, and fewer units than splits.
    """
    names = sorted(set(units))
    lists = {split: _members((fixed or {}).get(split, ()), names) for split in SPLITS}
    if faults := _list_faults(names, lists):
        raise InputError("the lists of patients do not fit the data", faults)
    split_of = {name: split for split, members in lists.items() for name in members}
    free = [name for name in names if name not in split_of]
    open_splits = [split for split in SPLITS if not lists[split]]
    if len(free) < len(open_splits):
        raise InputError(_too_few(names, free, open_splits, noun))
    shuffled = [free[i] for i in np.random.default_rng(seed).permutation(len(free))]
    for split, count in _shares(len(names), len(free), lists, open_splits).items():
        split_of.update((name, split) for name in shuffled[:count])
        shuffled = shuffled[count:]
    return {name: split_of[name] for name in names if name in split_of}


def _members(listed: Iterable[str], names: Sequence[str]) -> list[str]:
    """Return patients of an option as the data name them: without `sub-`, accented letters spelled as there."""
    members = {patient_name(name) for name in listed}
    spelled = same_names(names, members - set(names))
    return sorted({spelled.get(name, name) for name in members})


def _list_faults(names: Sequence[str], lists: Mapping[str, Sequence[str]]) -> list[str]:
    faults = []
    for split, members in lists.items():
        for name in members:
            if name not in names:
                similar = difflib.get_close_matches(name, names, cutoff=0.5)
                hint = f"did you mean {similar[0]!r}? " if similar else ""
                faults.append(
                    f"--{split}-patients: no patient {name!r} in the data; {hint}the data have {_abridged(names)}"
                )
    for name in sorted({name for members in lists.values() for name in members}):
        options = [f"--{split}-patients" for split in SPLITS if name in lists[split]]
        if len(options) > 1:
            faults.append(f"patient {name!r}: must be in one split, but is in {' and '.join(options)}; keep it in one")
    return faults


def _shares(n: int, free: int, lists: Mapping[str, Sequence[str]], open_splits: Sequence[str]) -> dict[str, int]:
    """Return how many of the `free` units each open split gets: the rule on all n, at least 1 each, all of them."""
    if not open_splits:
        return {}
    if len(open_splits) == 1:
        return dict.fromkeys(open_splits, free)
    _, val, test = split_counts(n, len(lists["test"]))
    if "train" not in open_splits:
        val = max(1, round(free * val / (val + test)))  # at most half, since test is at least as large by the rule
        return {"test": free - val, "val": val}
    shares: dict[str, int] = {}
    if "test" in open_splits:
        shares["test"] = min(test, free - 1)
    if "val" in open_splits:
        shares["val"] = val
    return shares | {"train": free - sum(shares.values())}


def _too_few(names: Sequence[str], free: Sequence[str], open_splits: Sequence[str], noun: str) -> str:
    *others, last = [_WORDS[split] for split in open_splits]
    splits = f"{', '.join(others)} and {last}" if others else last
    count = f"got {len(names)} ({_abridged(names)})"
    if len(free) < len(names):
        count += f", {len(free)} of them in none of the lists"
    return (
        f"too few {noun} for a split: {splits} need{'' if others else 's'} at least 1 each, "
        f"{len(open_splits)} together, but {count}; add {noun}"
    )


def _abridged(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more or "none"
