"""nnU-Net: `imagesTr/CASE_0000.nii.gz` with `labelsTr/CASE.nii.gz`, and `dataset.json` of version 1 or 2.

The Medical Segmentation Decathlon has the same folders, and one file for an image: `imagesTr/CASE.nii.gz`. Cases of
`imagesTs` that have labels are the layout's test part.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from wmlsearch.data.sources.cases import Case, case_sources, choose_channel
from wmlsearch.data.sources.datalist import channel_names, names_its_files, read_labels, read_list
from wmlsearch.data.sources.discovery import LayoutReport, Unused, first_names
from wmlsearch.data.sources.layout import Layout, RawData, list_files
from wmlsearch.data.sources.other_formats import (
    FORMATS,
    conversions,
    is_other_format,
    report_other_formats,
    report_subfolders,
)
from wmlsearch.data.sources.source import Source, is_nifti, is_picture, stem
from wmlsearch.data.spelling import composed, same_names
from wmlsearch.runs.wording import plural

DESCRIPTION = "dataset.json"
PARTS = ("Tr", "Ts")  # training and test; imagesTs often has no labels
_CHANNEL = re.compile(r"(.+)_([0-9]{4})")
Images = Mapping[int | None, Path]  # by channel; None for a file without one


def _matches(raw: Path) -> bool:
    return (raw / "imagesTr").is_dir() and (raw / "labelsTr").is_dir() and not names_its_files(raw)


def _find(raw: RawData, report: LayoutReport) -> list[Source]:
    folder = raw.path
    description = read_list(folder / DESCRIPTION) if (folder / DESCRIPTION).exists() else {}
    read_labels(description, raw.choices.names_lesions, report)
    parts = {part: (_images(folder, part, report), _labels(folder, part, report)) for part in PARTS}
    folders = [folder / f"{kind}{part}" for part in PARTS for kind in ("images", "labels")]
    report_subfolders(folder, folders, report)
    unread = [path for inner in folders for path in list_files(inner) if is_other_format(path)]
    report_other_formats(folder, unread, report)
    names = channel_names(description)
    files = [file for images, _ in parts.values() for file in images.values()]
    numbers = {number for file in files for number in file if number is not None} or {0}
    channels = {number: names.get(number, "") for number in sorted(numbers)}
    channel = choose_channel(channels, raw.choices.images, report)
    if channel is None:
        return []
    convert = conversions(folder, unread)
    cases = [case for part in PARTS for case in _pairs(folder, part, *parts[part], channel, convert, report)]
    return case_sources(folder, cases, raw.choices.patient_pattern, report)


def _images(folder: Path, part: str, report: LayoutReport) -> dict[str, dict[int | None, Path]]:
    """Return the files of each case, by channel."""
    images: dict[str, dict[int | None, Path]] = defaultdict(dict)
    labels = {composed(path.name) for path in list_files(folder / f"labels{part}")}
    for path in list_files(folder / f"images{part}"):
        if not (is_nifti(path) or is_picture(path)):
            continue
        channel: int | None
        match = _CHANNEL.fullmatch(stem(path))
        if match and composed(path.name) not in labels:
            name, channel = match[1], int(match[2])
        else:  # the Decathlon's names, which may end in four digits as well
            name, channel = stem(path), None
        if other := images[name].get(channel):
            report.faults.append(_same_name(f"images{part}", other, path))
        images[name][channel] = path
    return dict(images)


def _same_name(folder: str, *files: Path) -> str:
    return f"{folder}: {' and '.join(file.name for file in files)} have the same name, extension aside; keep one"


def _labels(folder: Path, part: str, report: LayoutReport) -> dict[str, Path]:
    files = list_files(folder / f"labels{part}")
    labels: dict[str, Path] = {}
    for path in files:
        if not (is_nifti(path) or is_picture(path)):
            continue
        if other := labels.get(stem(path)):
            report.faults.append(_same_name(f"labels{part}", other, path))
        labels[stem(path)] = path
    if not labels and (unread := [path for path in files if is_other_format(path)]):
        report.faults.append(f"labels{part}/{unread[0].name}: must be {FORMATS}; convert images and labels")
    return labels


def _pairs(
    folder: Path,
    part: str,
    images: Mapping[str, Images],
    labels: Mapping[str, Path],
    channel: int,
    convert: Mapping[str, str],
    report: LayoutReport,
) -> list[Case]:
    """Return the cases of a part that have an image and a label; the others are faults, or unused in the test part.

    Args:
        folder: The data set.
        part: One of `PARTS`.
        images: Files of each case, by channel.
        labels: File of each case.
        channel: The channel that is taken.
        convert: Advice on files of other formats, see `conversions`.
        report: Gets the faults.
    """
    cases, unlabelled = [], []
    spelled = same_names(images.keys() - labels.keys(), labels.keys() - images.keys())
    labels = {spelled.get(name, name): label for name, label in labels.items()}
    for name, label in labels.items():
        image = images.get(name, {}).get(None) or images.get(name, {}).get(channel)
        if image is None:
            alike = [other for other in images if other != name and other.casefold() == name.casefold()]
            place = f"images{part}/{name}_{channel:04d}"
            add = convert.get(place) or convert.get(f"images{part}/{name}") or f"add {place}.nii.gz"
            advice = f"rename it like images{part}/{alike[0]}" if alike else add
            report.faults.append(f"labels{part}/{label.name}: no image; {advice}")
        else:
            cases.append(Case(name, image, label, is_test=part == "Ts"))
    for name in images.keys() - labels.keys():
        path = next(iter(images[name].values()))
        if part == "Ts":
            unlabelled.append(name)
            report.unused.append(Unused(path.relative_to(folder).as_posix(), "it has no label"))
        else:
            advice = convert.get(f"labels{part}/{name}", f"add labels{part}/{name}.nii.gz")
            report.faults.append(f"images{part}/{path.name}: missing mask; {advice}")
    if unlabelled:
        report.notes.append(
            f"imagesTs: {plural(len(unlabelled), 'case')} without labels not used ({first_names(sorted(unlabelled))})"
        )
    report.faults.sort()
    return cases


LAYOUT = Layout(
    "an nnU-Net folder (imagesTr/, labelsTr/)", _matches, _find, takes_patient_pattern=True, takes_select=True
)
