"""What the names of cases say of patients: BIDS entities, and names that look like several scans of one patient."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from wmlsearch.data.patient_names import SESSION_WORDS
from wmlsearch.data.sources.patient_pattern import EXAMPLE

OWN_PATIENT = "'^(.+)$'"  # a pattern by which each name is a patient
_ENTITY = re.compile(r"(?i)(?:^|[-_./])(sub|ses)-([a-z0-9]+)(?=$|[_./]|-ses-)")
_SEPARATOR = "[-_./ ]"
# Where the name of a patient can end: after a number, or before a word for a session.
_PATIENT_END = re.compile(
    rf"(?i)(?<=[0-9])(?={_SEPARATOR})|(?<=[0-9])(?=[a-z]{{1,2}}[0-9]{{0,2}}$)|(?<=.)(?={_SEPARATOR}?(?:{SESSION_WORDS})[-_]?[0-9]*$)"
)
_NAMES_PERSON = re.compile(
    r"(?i)(p|pt|pat|patient|person|s|sub|subj|subject|case|id|train|training|val|test|participant|control|volunteer)"
)
_DATA_SET = re.compile(r"(?P<word>[A-Za-z]{3,})-?(?P<number>[1-9][0-9]{0,3})")  # such as BraTS2021 or Task1
_YEAR, _CASE_NUMBER = re.compile(r"(?:19|20)[0-9]{2}"), re.compile(r".*[0-9]{3}")


@dataclass(frozen=True)
class OnePatient:
    """Names that look like scans of one patient."""

    names: tuple[str, str]  # two of them
    patient: str  # what they share
    pattern: str  # for --patient-pattern, quoted: finds the patients that the names seem to have


def entities(name: str) -> tuple[str, str]:
    """Return the labels of `sub-` and `ses-` in a name such as sub-01_ses-1_FLAIR; "" where it has none."""
    labels = {key.lower(): label for key, label in _ENTITY.findall(name)}
    return labels.get("sub", ""), labels.get("ses", "")


def find_one_patient(names: Sequence[str]) -> OnePatient | None:
    """Return names that look like several scans of one patient; None where each can be a patient of its own.

    Names such as P01_1 and P01_2 share a number, so it is likely the patient's. A beginning that all names share can be
    the data set's as well: it is if it looks so (BraTS2021) and numbers of cases follow, but not in P01_1, P01_2.
    """
    suffix = _shared_suffix(names)
    beginnings: dict[str, list[str]] = defaultdict(list)
    for name in names:
        short = name.removesuffix(suffix)
        for match in _PATIENT_END.finditer(short):
            beginnings[short[: match.start()]].append(name)
    several = {patient: alike for patient, alike in beginnings.items() if len(alike) > 1}
    some = [patient for patient, alike in several.items() if len(alike) < len(names)]
    if some:  # the shortest: P01 rather than P01_2019, which would make two patients of one
        patient = min(some, key=len)
    elif several and not _is_data_set(patient := max(several, key=len), names, suffix):
        pass
    else:
        return None
    first, second, *_ = several[patient]
    return OnePatient((first, second), patient, _pattern(patient, suffix, names))


def _shared_suffix(names: Sequence[str]) -> str:
    """Return the end that all names share, from a separator on: `_flair_pp` of training01_01_flair_pp and others."""
    parts = [re.split(f"({_SEPARATOR})", name) for name in names]
    shared = 0
    while all(len(one) > shared + 2 for one in parts) and len({tuple(one[-shared - 2 :]) for one in parts}) == 1:
        shared += 2
    return "".join(parts[0][-shared:]) if shared and len(names) > 1 else ""


def _is_data_set(beginning: str, names: Sequence[str], suffix: str) -> bool:
    """Whether a beginning that all names share is likely the data set's name rather than a patient's."""
    match = _DATA_SET.fullmatch(re.split(r"[_./ ]", beginning)[-1])
    if match is None or _NAMES_PERSON.fullmatch(match["word"]):
        return False
    return bool(_YEAR.fullmatch(match["number"])) or all(
        _CASE_NUMBER.fullmatch(one.removesuffix(suffix)) for one in names
    )


def _pattern(patient: str, suffix: str, names: Sequence[str]) -> str:
    """Return a quoted pattern that finds the patients of all names: of the form of the one found, if they have it."""
    form = re.sub(r"[0-9]+|[A-Za-z]+|.", _form, patient)
    for pattern in (rf"^(?P<patient>{form})[-_./ ]?(?P<timepoint>.+){_plain(suffix)}$", r"^(.*?[0-9]+)"):
        if all(re.search(pattern, name) for name in names):
            return f"'{pattern}'"
    return EXAMPLE


def _form(match: re.Match[str]) -> str:
    text = match[0]
    return "[0-9]+(?![0-9])" if text.isdigit() else "[A-Za-z]+" if text.isascii() and text.isalpha() else _plain(text)


def _plain(text: str) -> str:
    """Return a pattern for just this text, without the escapes that no pattern needs."""
    return re.sub(r"\\([-_ ])", r"\1", re.escape(text))
