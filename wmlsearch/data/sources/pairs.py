"""A folder with `images/` and `masks/`: files of equal names, extension aside, belong together.

Where no image or mask lies right in them, their subfolders are read: `images/p1/a.png` with `masks/p1/a.png`.

`--patient-pattern` finds the patient, and the time point, in a file name; pictures of the same are one volume. Without
it, patients and time points are read from `sub-` and `ses-` where all names have them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from wmlsearch.data.patient_names import patient_name
from wmlsearch.data.sources.case_names import entities
from wmlsearch.data.sources.discovery import LayoutReport, first_names
from wmlsearch.data.sources.layout import (
    ImageAndMask,
    Layout,
    RawData,
    Scan,
    group_into_sources,
    list_files,
    walk_files,
)
from wmlsearch.data.sources.other_formats import (
    conversions,
    is_other_format,
    report_other_formats,
    report_subfolders,
)
from wmlsearch.data.sources.patient_pattern import check_pattern, match_names
from wmlsearch.data.sources.source import Source, is_nifti, is_picture, shown_name, stem
from wmlsearch.data.spelling import composed, same_names
from wmlsearch.runs.names import natural_key

_KIND = re.compile(r"(?i)(?:[-_. /](?:(?:t2[-_]?)?flair|image|img|lesions?|wmh|mask|seg|label|gt|manual|lesionmask))+$")
FilesByName = Mapping[str, Sequence[Path]]  # by path in the folder, without its extension
FOLDERS = ("images", "masks")
FOLDER_PATTERN = "'^([^/]+)/'"  # the folder is the patient


def _matches(raw: Path) -> bool:
    return all((raw / name).is_dir() for name in FOLDERS)


def _find(raw: RawData, report: LayoutReport) -> list[Source]:
    pattern, faults = raw.choices.patient_pattern, report.faults
    if pattern is not None:
        check_pattern(pattern)
    folders = [raw.path / name for name in FOLDERS]
    listed = [list_files(folder) for folder in folders]
    if any(is_nifti(path) or is_picture(path) for files in listed for path in files):
        advice = report_subfolders(raw.path, folders, report)
    else:
        advice = {}
        listed = [[path for path, _ in walk_files(folder)] for folder in folders]
    images, masks = (_files_by_name(folder, files) for folder, files in zip(folders, listed, strict=True))
    unread = [path for files in listed for path in files if is_other_format(path)]
    report_other_formats(raw.path, unread, report)
    _match_other_names(images, masks, report)
    faults += _pairing_faults(raw.path, images, masks, advice | conversions(raw.path, unread))
    pairs = {name: (images[name][0], masks[name][0]) for name in sorted(images.keys() & masks.keys(), key=natural_key)}
    scans = _scans_by_entities(pairs, report) if pattern is None else _scans(raw.path, pairs, pattern, faults)
    return group_into_sources(raw.path, scans, report)


def _files_by_name(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if is_nifti(path) or is_picture(path):
            by_name[(path.relative_to(folder).parent / stem(path)).as_posix()].append(path)
    return dict(by_name)


def _match_other_names(images: dict[str, list[Path]], masks: dict[str, list[Path]], report: LayoutReport) -> None:
    """Give masks the names of their images where those differ in case, or by words such as p1_FLAIR and p1_mask.

    Names that differ in the spelling of accented letters only look the same, so no note says so.
    """
    for mask, image in same_names(images.keys() - masks.keys(), masks.keys() - images.keys()).items():
        masks[image] = masks.pop(mask)
    plain: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for place, files in enumerate((images, masks)):
        for name in files.keys() - (masks, images)[place].keys():
            plain[_KIND.sub("", composed(name)).casefold()][place].append(name)
    matched = [(image[0], mask[0]) for image, mask in plain.values() if len(image) == len(mask) == 1]
    for image, mask in sorted(matched):
        masks[image] = masks.pop(mask)
    if matched:
        image, mask = min(matched)
        report.notes.append(
            f"images and masks of other names are taken together, such as {images[image][0].name} and "
            f"{masks[image][0].name} ({len(matched)})"
        )


def _pairing_faults(root: Path, images: FilesByName, masks: FilesByName, advice_on: Mapping[str, str]) -> list[str]:
    """Return a line for each name that does not have exactly one image and one mask.

    Args:
        root: The data set.
        images: Files in `images/`.
        masks: Files in `masks/`.
        advice_on: Advice on files that are not read, by path in the data set without extension.
    """
    faults = []
    for name in sorted(images.keys() | masks.keys()):
        for folder, files in zip(FOLDERS, (images, masks), strict=True):
            if (count := len(files.get(name, ()))) > 1:
                faults.append(f"{folder}/{name}: must be exactly one file, but there are {count}; keep one")
        missing = FOLDERS[1] if name not in masks else FOLDERS[0]
        advice = advice_on.get(f"{missing}/{name}", f"add {missing}/{name}.* (same name, extension aside)")
        if name not in masks:
            faults.append(f"{shown_name(images[name][0], root)}: missing mask; {advice}")
        elif name not in images:
            faults.append(f"{shown_name(masks[name][0], root)}: no image; {advice}")
    return faults


def _scans_by_entities(pairs: Mapping[str, ImageAndMask], report: LayoutReport) -> dict[Scan, list[ImageAndMask]]:
    """Group pairs as `sub-` and `ses-` in their names say; where a name has no `sub-`, no patient is known."""
    labels = {name: entities(name) for name in pairs}
    if not all(patient for patient, _ in labels.values()):
        if all("/" in name for name in pairs):
            report.notes.append(
                f"the files lie in subfolders ({first_names(list(pairs))}); if these are the patients', give "
                f"--patient-pattern {FOLDER_PATTERN}"
            )
        return {Scan("", "", name): [files] for name, files in pairs.items()}
    volumes = Counter(label for name, label in labels.items() if is_nifti(pairs[name][0]))
    scans: dict[Scan, list[ImageAndMask]] = defaultdict(list)
    for name, files in pairs.items():
        patient, session = labels[name]
        several = volumes[labels[name]] > 1  # a NIfTI volume is a time point of its own
        scans[Scan(patient_name(patient), name if several else session, "")].append(files)
    if pairs:
        names = first_names(list(pairs))
        report.notes.append(f"patients and time points are read from sub- and ses- in the names ({names})")
    return scans


def _scans(
    root: Path, pairs: Mapping[str, ImageAndMask], pattern: str, faults: list[str]
) -> dict[Scan, list[ImageAndMask]]:
    """Group the pairs of image and mask, in natural order of their names, by patient and time point."""
    scans: dict[Scan, list[ImageAndMask]] = defaultdict(list)
    for (name, files), groups in zip(pairs.items(), match_names(pattern, list(pairs)), strict=True):
        if not groups.get("patient"):
            faults.append(
                f"{shown_name(files[0], root)}: --patient-pattern {pattern!r} finds no patient in the name {name!r}"
            )
            continue
        patient = patient_name(groups.get("patient") or "")
        timepoint = groups.get("timepoint") or ""
        if "timepoint" not in groups and is_nifti(files[0]):
            timepoint = name  # a NIfTI volume is a time point of its own
        scans[Scan(patient, timepoint, "" if patient else name)].append(files)
    return scans


LAYOUT = Layout("a folder with images/ and masks/", _matches, _find, takes_patient_pattern=True)
