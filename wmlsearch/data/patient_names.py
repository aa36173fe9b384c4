"""Patients' names: their plain form, and one patient under two names in different splits or folds."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations

from wmlsearch.errors import InputError

MOST_LINES = 20  # of a refusal
SESSION_WORDS = "ses|session|visit|months?|timepoint|tp|follow-?up|fu|baseline"


def patient_name(name: str) -> str:
    """Return a patient's name without surrounding white space and without the BIDS prefix `sub-`."""
    return name.strip().removeprefix("sub-")


def check_patient_names(part_of: Mapping[str, str], first_file: Mapping[str, str]) -> None:
    """Refuse patients of different splits or folds whose names are spellings of one name.

    Spellings may differ in case, white space, the prefix `sub-`, leading zeros of numbers, and a session at the end
    (`p1-ses2`, `p1_followup`).

    Args:
        part_of: Split of each patient, or its fold.
        first_file: A file of each patient, to name in the message.

    Raises:
        InputError: With each two patients, their parts and files.
    """
    faults = [
        f"patients {a!r} ({part_of[a]}, {first_file[a]}) and {b!r} ({part_of[b]}, {first_file[b]})"
        for names in alike_names(part_of)
        for a, b in combinations(names, 2)
        if part_of[a] != part_of[b]
    ]
    if faults:
        raise InputError(
            "patients in different splits or folds have names that are likely one patient's; give all scans of a "
            "patient the same patient id, or rename one if they are two people",
            first_lines(faults),
        )


def alike_names(names: Iterable[str]) -> list[list[str]]:
    """Return the names, each once, that are spellings of one name, as `check_patient_names` says."""
    spellings = defaultdict(list)
    for name in dict.fromkeys(names):
        spellings[_normalized(name)].append(name)
    return [alike for alike in spellings.values() if len(alike) > 1]


def first_lines(lines: list[str]) -> list[str]:
    """Return the first `MOST_LINES` lines, and a line that counts the others."""
    hidden = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], f"and {hidden} more"] if hidden > 0 else lines


def _normalized(name: str) -> str:
    """Return what all spellings of a patient's name have in common."""
    name = patient_name(unicodedata.normalize("NFKC", name).casefold())
    name = re.sub(r"^sub[-_\s]*(?=[0-9])", "", name)
    name = re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", name)
    name = re.sub(rf"(?<=.)(?:[-_.]|(?<=[0-9]))(?:{SESSION_WORDS})[-_.]?[0-9]*$", "", name)
    return re.sub("[0-9]+", lambda digits: digits[0].lstrip("0") or "0", name)
