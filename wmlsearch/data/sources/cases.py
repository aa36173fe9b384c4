"""Cases of machine-learning layouts (nnU-Net, MONAI): names without patients, and several channels of an image."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wmlsearch.data.patient_names import patient_name
from wmlsearch.data.sources.case_names import OWN_PATIENT, entities, find_one_patient
from wmlsearch.data.sources.choices import Selection, same_value
from wmlsearch.data.sources.discovery import LayoutReport, first_names
from wmlsearch.data.sources.layout import ImageAndMask, Scan, group_into_sources
from wmlsearch.data.sources.patient_pattern import check_pattern, match_names
from wmlsearch.data.sources.source import Source, is_nifti

CHANNEL = "channel"  # the key of --select for these layouts


@dataclass(frozen=True)
class Case:
    """An image with its mask, as a layout names them."""

    name: str  # in which --patient-pattern is searched
    image: Path
    mask: Path
    patient: str = ""  # where the layout itself names the patient
    timepoint: str = ""
    site: str = ""
    is_test: bool = False  # the layout keeps it for testing


def case_sources(root: Path, cases: Sequence[Case], pattern: str | None, report: LayoutReport) -> list[Source]:
    """Return the sources of cases. Who their patients are comes from the layout, the pattern, or else their names.

    A patient is never guessed: without a pattern each volume is a patient of its own, with a note, unless names look
    like several scans of a patient, who could then be in training and in the test. Pictures stay without a patient.
    """
    scans: dict[Scan, list[ImageAndMask]] = defaultdict(list)
    sites: dict[Scan, list[str]] = defaultdict(list)
    parts: dict[str, set[bool]] = defaultdict(set)  # of each patient: whether it is in test, in training
    identified = _with_pattern(cases, pattern, report) if pattern is not None else _by_name(cases, report)
    for case in identified:
        patient = patient_name(case.patient)
        scan = Scan(patient, case.timepoint, "" if patient else case.name)
        scans[scan].append((case.image, case.mask))
        sites[scan].append(case.site)
        parts[patient].add(case.is_test)
    for patient in sorted(patient for patient, tests in parts.items() if patient and len(tests) > 1):
        report.faults.append(
            f"patient {patient!r} is in the layout's training part and in its test part; remove one, or correct "
            "--patient-pattern"
        )
    tests = sorted(patient for patient, is_test in parts.items() if patient and is_test == {True})
    if tests:
        report.test_patients += tests
        report.notes.append(f"the layout's test part is the sealed test: {first_names(tests)}")
    return group_into_sources(root, scans, report, sites)


def _with_pattern(cases: Sequence[Case], pattern: str, report: LayoutReport) -> list[Case]:
    check_pattern(pattern)
    identified, renamed = [], []
    for case, groups in zip(cases, match_names(pattern, [case.name for case in cases]), strict=True):
        patient = groups.get("patient") or ""
        if not patient:
            report.faults.append(f"{case.name}: --patient-pattern {pattern!r} finds no patient in this name")
            continue
        timepoint = groups.get("timepoint") or case.timepoint
        if "timepoint" not in groups and not timepoint and is_nifti(case.image):
            timepoint = case.name  # a NIfTI volume is a time point of its own
        if case.patient and patient_name(case.patient) != patient_name(patient):
            renamed.append(f"{case.name}: {patient} instead of {case.patient}")
        identified.append(replace(case, patient=patient, timepoint=timepoint))
    if renamed:
        report.notes.append(f"--patient-pattern replaces patients that the layout names ({first_names(renamed)})")
    return identified


def _by_name(cases: Sequence[Case], report: LayoutReport) -> list[Case]:
    """Return the cases with their patients: as the layout names them, as `sub-` and `ses-` do, or one for each."""
    identified, read, unnamed = [], [], []
    for case in cases:
        patient, session = ("", "") if case.patient or not is_nifti(case.image) else entities(case.name)
        if patient:
            read.append(case.name)
            identified.append(replace(case, patient=patient, timepoint=case.timepoint or session))
        elif not case.patient and is_nifti(case.image):
            unnamed.append(case.name)
            identified.append(replace(case, patient=case.name))
        else:
            identified.append(case)
    if read:
        report.notes.append(f"patients and time points are read from sub- and ses- in the names ({first_names(read)})")
    if alike := find_one_patient(unnamed):
        report.faults.append(
            f"{' and '.join(alike.names)} look like scans of one patient ({alike.patient}), who could then be both in "
            f"training and in the test; give --patient-pattern {alike.pattern}, or --patient-pattern {OWN_PATIENT} if "
            "each is another patient"
        )
    elif unnamed:
        report.notes.append(
            f"each case is taken as a patient of its own ({first_names(unnamed)}); if a patient has several, give "
            "--patient-pattern, or they can be both in training and in the test"
        )
    return _with_time_points(identified)


def _with_time_points(cases: Sequence[Case]) -> list[Case]:
    """Return the cases; the time point of a NIfTI volume is its name where its patient has several without one."""
    counts = Counter((case.patient, case.timepoint) for case in cases)
    return [
        replace(case, timepoint=case.name)
        if case.patient and not case.timepoint and is_nifti(case.image) and counts[case.patient, ""] > 1
        else case
        for case in cases
    ]


# ------------------------------------------------------------------------------------------------------------ channels


def choose_channel(channels: Mapping[int, str], selection: Selection, report: LayoutReport) -> int | None:
    """Return the channel that is the FLAIR: the one asked for, the only one, or the only one with FLAIR in its name.

    Args:
        channels: Name of each channel, "" where it has none.
        selection: The user's `--select channel=...`, by number or name.
        report: Gets a fault where the channel is not clear, and a note where it has been chosen among several.
    """
    for key in selection.wanted.keys() - {CHANNEL}:
        report.faults.append(f"--select {key}=...: this layout has channels only, such as --select {CHANNEL}=0")
    listed = ", ".join(f"{number} {name}".strip() for number, name in channels.items())
    ways = " or ".join(f"--select {CHANNEL}={number}" for number in channels)
    for wanted in selection.wanted.get(CHANNEL, ()):
        fitting = [
            number for number, name in channels.items() if same_value(wanted, str(number)) or same_value(wanted, name)
        ]
        if len(fitting) == 1:
            return fitting[0]
    if CHANNEL in selection.wanted:
        report.faults.append(f"{selection.arguments()}: the images have the channels {listed}; choose {ways}")
        return None
    flair = [number for number, name in channels.items() if "flair" in name.lower()]
    if len(channels) == 1:
        return next(iter(channels))
    if len(flair) == 1:
        report.notes.append(f"channel {flair[0]} ({channels[flair[0]]}) is the image, of {listed}")
        return flair[0]
    report.faults.append(
        f"the images have the channels {listed}, and {'none' if not flair else 'more than one'} is named FLAIR; choose "
        f"with {ways}"
    )
    return None
