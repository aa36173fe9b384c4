"""Lists in JSON: MONAI's `datalist.json`, the Decathlon's `dataset.json`, and the explicit lists of nnU-Net.

    {"training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz", "fold": 0}], "testing": [...]}

Paths are absolute, or relative to the list. An image may be a list of files, one per modality. Labelled cases for
training and validation are used alike, as the folds are dealt anew; labelled cases for testing are the test part.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wmlsearch.data.sources.case_names import entities
from wmlsearch.data.sources.cases import Case, case_sources, choose_channel
from wmlsearch.data.sources.discovery import LayoutReport, Unused, first_names
from wmlsearch.data.sources.layout import Layout, RawData, common_root, locate
from wmlsearch.data.sources.lesion_words import is_lesion_word
from wmlsearch.data.sources.missing_values import is_missing
from wmlsearch.data.sources.source import Source, is_nifti, is_picture, stem
from wmlsearch.data.spelling import composed, decomposed
from wmlsearch.errors import InputError, short_repr
from wmlsearch.runs.wording import plural

FILES = ("datalist.json", "dataset.json")  # looked for where RAW is a folder
DEVELOPMENT, TEST = ("training", "train", "validation", "val"), ("testing", "test")
LABEL_KEYS = ("label", "mask", "seg", "segmentation")
PATIENT_KEYS = ("patient", "patient_id", "subject", "subject_id")
TIME_KEYS, SITE_KEYS = ("timepoint", "session", "visit"), ("site", "scanner")
IGNORED = ("ignore", "ignored")  # nnU-Net's name of the label that is left out
_NEUTRAL_LABEL = re.compile(  # a name that does not say what a single label shows
    r"(?i)[0-9]*|.*hyper-?intens.*|.*plaque.*|ms|(fore-?ground|fg|mask|target|roi|positive|true|yes|object|label|class"
    r"|seg|segmentation|annotation|gt|ground-?truth|pathology|abnormality|abnormal)s?[-_ ]?[0-9]*"
)
MAX_BYTES = 2**26
_ENDS_IN_NUMBER = re.compile(r"[0-9](/|$)")


@dataclass(frozen=True)
class _Entry:
    """One case of a list: paths as they are written there."""

    place: str  # such as "training[3]"
    images: tuple[str, ...]  # one per modality
    label: str  # "" where it has none
    is_test: bool
    patient: str = ""
    timepoint: str = ""
    site: str = ""


def _matches(raw: Path) -> bool:
    return _list_file(raw) is not None


def names_its_files(raw: Path) -> bool:
    """Whether a folder has a list of its files: `datalist.json`, or a `dataset.json` of the Decathlon's form.

    nnU-Net 1 lists CASE.nii.gz for CASE_0000.nii.gz; its folders say more than such a list.
    """
    path = _list_file(raw)
    if path is None or path.name == FILES[0]:
        return path is not None
    try:
        rows = read_list(path).get(DEVELOPMENT[0])
    except InputError:
        return False
    images = [row.get("image") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    files = [locate(raw, image) for image in images if isinstance(image, str)]
    return any(map(os.path.lexists, files)) or (bool(files) and not any(map(_channels_of, files)))


def _list_file(raw: Path) -> Path | None:
    if raw.is_file():
        return raw if raw.suffix.lower() == ".json" else None
    return next((raw / name for name in FILES if (raw / name).is_file()), None)


def _find(raw: RawData, report: LayoutReport) -> list[Source]:
    path = _list_file(raw.path) or raw.path
    content = read_list(path)
    read_labels(content, raw.choices.names_lesions, report)
    prefix = ""
    if raw.path.is_dir():
        report.list_file, prefix = path.name, f"{path.name}: "
    entries = [_with_test_label(path.parent, entry) for entry in _entries(path, content, prefix, report)]
    unlabelled = [entry for entry in entries if not entry.label]
    report.unused += [Unused(entry.images[0], "it has no label") for entry in unlabelled]
    if unlabelled:
        names = first_names([entry.images[0] for entry in unlabelled])
        report.notes.append(f"{plural(len(unlabelled), 'case')} without a label not used ({names})")
    cases = _cases(path.parent, [entry for entry in entries if entry.label], content, raw, report)
    root = common_root(path.parent, [file for case in cases for file in (case.image, case.mask)])
    return case_sources(root, cases, raw.choices.patient_pattern, report)


def read_list(path: Path) -> dict[str, Any]:
    """Return a JSON file's content; a bare list of cases as one for training. Raises InputError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: must be a list of cases in JSON, but has more than {MAX_BYTES:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{path}: must be JSON, but {reason}; export it again") from None
    if isinstance(content, list):
        return {"training": content}
    if not isinstance(content, dict):
        raise InputError(f'{path}: must be like {{"training": [{{"image": ..., "label": ...}}]}}')
    return content


def channel_names(content: Mapping[str, Any]) -> dict[int, str]:
    """Return the names of the channels, from `channel_names` (nnU-Net 2) or `modality` (version 1, Decathlon)."""
    names = content.get("channel_names", content.get("modality"))
    if isinstance(names, str):
        return {0: names}
    if isinstance(names, list):
        return {i: str(name) for i, name in enumerate(names)}
    return {int(key): str(name) for key, name in names.items() if key.isdecimal()} if isinstance(names, dict) else {}


def read_labels(content: Mapping[str, Any], user_names_lesions: bool, report: LayoutReport) -> None:
    """Take over which labels of the masks are lesions and which to be ignored, where the description says just that.

    Other labels are left to the user, with a note. A single label needs no choice, but its name must not be that of
    something else, unless the user names the label of lesions.
    """
    labels = content.get("labels")
    if not isinstance(labels, dict):
        return
    pairs = [(str(value), str(key)) for key, value in labels.items() if not str(key).isdecimal()]  # nnU-Net 2
    pairs = pairs or [(str(key), str(value)) for key, value in labels.items()]
    names = {int(value): name for value, name in pairs if value.isdecimal() and int(value)}
    marked = {value: name for value, name in names.items() if name.lower() not in IGNORED}
    if len(marked) == 1 and not user_names_lesions:
        ((value, name),) = marked.items()
        if not (is_lesion_word(name) or _NEUTRAL_LABEL.fullmatch(name)):
            report.faults.append(
                f"the description names label {value} of the masks {name!r}, which is something else than lesions; "
                f"correct its labels, or give --lesion-label {value} if label {value} is lesion all the same"
            )
    if len(names) < 2:
        return
    lesions = tuple(float(value) for value, name in names.items() if is_lesion_word(name))
    ignored = tuple(float(value) for value, name in names.items() if name.lower() in IGNORED)
    listed = ", ".join(f"{value} {name}" for value, name in names.items())
    if len(lesions) == 1 and len(lesions) + len(ignored) == len(names):
        report.lesion_labels, report.ignore_labels = lesions, ignored
        report.notes.append(f"the masks hold the labels {listed}: lesions are {lesions[0]:g}, the other is ignored")
    else:
        report.notes.append(
            f"the masks hold the labels {listed}; --lesion-label says which are lesions, --ignore-label which are left "
            "out of training and every score"
        )


# -------------------------------------------------------------------------------------------------------------- entries


def _entries(path: Path, content: Mapping[str, Any], prefix: str, report: LayoutReport) -> Iterator[_Entry]:
    """Yield the entries of all parts that are known; adds faults for those that cannot be read."""
    count = 0
    for part in (*DEVELOPMENT, *TEST):
        rows = content.get(part)
        for i, row in enumerate(rows if isinstance(rows, list) else []):
            count += 1
            if entry := _entry(f"{prefix}{part}[{i}]", row, part in TEST, report):
                yield entry
    explicit = content.get("dataset")  # nnU-Net 2: {"CASE": {"images": [...], "label": ...}}
    for name, row in explicit.items() if isinstance(explicit, dict) else ():
        count += 1
        if isinstance(row, dict) and (
            entry := _entry(f"{prefix}dataset {name}", {**row, "image": row.get("images")}, False, report)
        ):
            yield entry
    if not count:
        keys = ", ".join(map(str, list(content)[:10])) or "nothing"
        raise InputError(
            f'{path}: must list cases under training, validation or testing, as {{"image": ..., "label": ...}}; it '
            f"has {keys}"
        )


def _entry(place: str, row: Any, is_test: bool, report: LayoutReport) -> _Entry | None:
    if isinstance(row, str):  # the Decathlon's test cases
        return _Entry(place, (row,), "", is_test)
    fields = row if isinstance(row, dict) else {}
    image, label = fields.get("image"), _first(fields, LABEL_KEYS)
    label = label[0] if isinstance(label, list) and len(label) == 1 else label
    named = image if isinstance(image, list) else [image]
    images = [one for one in named if isinstance(one, str) and one]
    if not images or len(images) < len(named) or not isinstance(label, str):
        report.faults.append(
            f'{place}: must be like {{"image": "a.nii.gz", "label": "b.nii.gz"}}, but is {short_repr(row)}'
        )
        return None
    patient, timepoint, site = (str(_first(fields, keys)) for keys in (PATIENT_KEYS, TIME_KEYS, SITE_KEYS))
    return _Entry(place, tuple(images), label, is_test, patient, timepoint, site)


def _with_test_label(folder: Path, entry: _Entry) -> _Entry:
    """Return a case of the Decathlon's test part with its label in `labelsTs`, which the list never names."""
    label = entry.images[0].replace("imagesTs", "labelsTs")
    if entry.label or label == entry.images[0] or not os.path.lexists(locate(folder, label)):
        return entry
    return replace(entry, label=label)


def _first(fields: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """Return the value of the first of these keys that has one; "" where none has. JSON's NaN is no value."""
    values = (fields.get(key) for key in keys)
    return next((value for value in values if value is not None and not is_missing(str(value))), "")


# ---------------------------------------------------------------------------------------------------- entries to cases


def _cases(
    folder: Path, entries: list[_Entry], content: Mapping[str, Any], raw: RawData, report: LayoutReport
) -> list[Case]:
    files = [_channel_files(folder, entry) for entry in entries]
    count = max((len(one) for one in files), default=1)
    names = channel_names(content)
    if count > 1 and not names and not raw.choices.select and all(_flair(one) for one in files):
        files, count = [[path for path in one if path == _flair(one)] for one in files], 1
    channel = choose_channel({i: names.get(i, "") for i in range(count)}, raw.choices.images, report)
    if channel is None:
        return []
    cases, seen = [], set()
    for entry, images, name in zip(entries, files, _case_names(entries), strict=True):
        mask = locate(folder, entry.label)
        if len(images) not in (1, count):
            report.faults.append(f"{entry.place}: must have {count} images as others have, but has {len(images)}")
            continue
        image = images[channel if len(images) > 1 else 0]
        if wrong := [path for path in (image, mask) if not (is_nifti(path) or is_picture(path))]:
            report.faults.append(f"{entry.place}: {wrong[0].name} must be NIfTI, PNG, TIFF or JPEG; convert it")
        elif image in seen or image == mask:
            what = "is listed twice" if image in seen else "is both image and label"
            report.faults.append(f"{entry.place}: {entry.images[0]} {what}; correct the list")
        else:
            cases.append(Case(name, image, mask, entry.patient, entry.timepoint, entry.site, entry.is_test))
        seen.add(image)
    return cases


def _channel_files(folder: Path, entry: _Entry) -> list[Path]:
    """Return the image's files, by channel. nnU-Net 1 lists CASE.nii.gz for CASE_0000.nii.gz, CASE_0001.nii.gz, ..."""
    paths = [locate(folder, text) for text in entry.images]
    if len(paths) == 1 and not os.path.lexists(paths[0]):
        return _channels_of(paths[0]) or paths
    return paths


def _channels_of(path: Path) -> list[Path]:
    """Return the files CASE_0000.nii.gz, CASE_0001.nii.gz, ... of a path CASE.nii.gz."""
    name, extension = stem(path), path.name.removeprefix(stem(path))
    spellings = {name, composed(name), decomposed(name)}
    patterns = [f"{glob.escape(one)}_[0-9][0-9][0-9][0-9]{glob.escape(extension)}" for one in spellings]
    return sorted(file for pattern in patterns for file in path.parent.glob(pattern))


def _flair(paths: list[Path]) -> Path | None:
    """Return the one file that is named FLAIR; None where there is not one."""
    named = [path for path in paths if "flair" in path.name.lower()]
    return named[0] if len(named) == 1 else None


def _case_names(entries: list[_Entry]) -> list[str]:
    """Return a name for each case: that of its image file, with its folders where those may name the patient.

    They may where they have numbers that the file names lack. Folders alone name images that are all called alike.
    """
    names = [stem(Path(entry.images[0])) for entry in entries]
    folders = [os.path.normpath(Path(entry.images[0]).parent) for entry in entries]
    if len({Path(folder).is_absolute() for folder in folders}) == 1:
        top = os.path.commonpath(folders) if folders else "."
        folders = [os.path.relpath(folder, top) for folder in folders]
    if len(set(names)) == len(names) and (
        all(entities(name)[0] for name in names) or not any(_ENDS_IN_NUMBER.search(folder) for folder in folders)
    ):
        return names
    if len(set(names)) == 1:
        return folders
    return [os.path.normpath(f"{folder}/{name}") for folder, name in zip(folders, names, strict=True)]


LAYOUT = Layout(
    "a MONAI or Decathlon list (datalist.json)", _matches, _find, takes_patient_pattern=True, takes_select=True
)
