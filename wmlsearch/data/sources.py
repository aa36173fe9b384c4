"""Finding the FLAIR images and lesion masks of a raw data set: a BIDS folder, a CSV table, or images/ and masks/."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wmlsearch.config import InputError, shown
from wmlsearch.data.split import patient_name

PATTERN_TIMEOUT_S = 10.0  # for the names of all files: some patterns take for ever on some names
_MATCH = """
import json, re, sys
pattern, names = json.load(sys.stdin)
found = map(re.compile(pattern).search, names)
json.dump([it and [it.groupdict(), it.groups()] for it in found], sys.stdout)
"""
PICTURE_TYPES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Source:
    """One volume as it came: a NIfTI file, or 2-D pictures in order; `mask` may be empty (for prediction)."""

    patient: str
    timepoint: str
    root: Path
    image: tuple[Path, ...]
    mask: tuple[Path, ...] = ()

    @property
    def is_nifti(self) -> bool:
        return _is_nifti(self.image[0])

    def name(self, path: Path) -> str:
        """The path relative to the data set's root, with forward slashes."""
        return Path(os.path.relpath(path, self.root)).as_posix()


def discover(raw: Path, patient_pattern: str | None = None) -> list[Source]:
    """The volumes of a BIDS folder, a CSV table, or a folder with images/ and masks/, in natural order.

    A patient that isn't known is "". Raises InputError with all that is missing, ambiguous or outside the folder.
    """
    faults: list[str] = []
    try:
        if raw.is_file():
            sources = _from_table(raw, faults)
        elif (raw / "images").is_dir() and (raw / "masks").is_dir():
            sources = _from_pairs(raw, patient_pattern, faults)
            patient_pattern = None
        elif raw.is_dir() and any(entry.name.startswith("sub-") for entry in _folders(raw)):
            sources = _from_bids(raw, faults)
        else:
            rule = (
                "RAW must be a BIDS folder (sub-*/), a CSV table (patient,timepoint,image,mask) "
                "or a folder with images/ and masks/"
            )
            raise InputError(f"{raw}: {rule if raw.exists() else f'no such file or folder; {rule}'}")
    except OSError as error:
        raise InputError(
            f"{raw}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None
    if patient_pattern is not None:
        faults.append("--patient-pattern is for a folder with images/ and masks/ only; leave it out")
    for source in sources:
        for path in (*source.image, *source.mask):
            if not _is_file(path):
                faults.append(f"{source.name(path)}: no such file; mend the path or the link")
            elif source.name(path).startswith("../") or not _inside(source.root, path):
                faults.append(
                    f"{source.name(path)}: must lie inside the data folder, but a link or '..' leads out; copy it in"
                )
    if len({source.is_nifti for source in sources}) > 1:
        faults.append("NIfTI volumes and 2-D pictures must not be mixed, but both were found; prepare them apart")
    if faults:
        raise InputError(f"{raw}: {many(len(faults), 'fault')}, nothing was written", faults)
    if not sources:
        raise InputError(
            f"{raw}: no FLAIR image found; expected sub-*/[ses-*/]anat/*_FLAIR.nii.gz or rows in the table"
        )
    return sorted(sources, key=lambda s: (natural(s.patient), natural(s.timepoint), natural(s.name(s.image[0]))))


def natural(text: str) -> list[tuple[int, int, str]]:
    """A sort key by which slice 10 comes after slice 9."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def _from_bids(raw: Path, faults: list[str]) -> list[Source]:
    sources = []
    for link in [entry for entry in sorted(raw.glob("sub-*")) if entry.is_symlink() and not entry.exists()]:
        faults.append(f"{link.name}: the link leads nowhere; mend or delete it")
    for subject in [entry for entry in _folders(raw) if entry.name.startswith("sub-")]:
        sessions = [entry for entry in _folders(subject) if entry.name.startswith("ses-")]
        for folder in [subject, *sessions]:
            flairs = [p for p in _files(folder / "anat") if p.name.endswith(("_FLAIR.nii", "_FLAIR.nii.gz"))]
            where = folder.relative_to(raw)
            masks = _bids_masks(raw, where)
            found = ", ".join(str(p.relative_to(raw)) for p in (flairs if len(flairs) > 1 else masks))
            if not flairs and not masks:
                continue
            if not flairs:
                faults.append(
                    f"{where}: no FLAIR image for the mask {found}; add {where}/anat/{subject.name}_FLAIR.nii.gz"
                )
            elif len(flairs) > 1:
                faults.append(
                    f"{where}: exactly one FLAIR image is needed, but found {len(flairs)} ({found}); leave one"
                )
            elif not masks:
                faults.append(
                    f"{flairs[0].relative_to(raw)}: missing mask; add one file derivatives/*/{where}/**/*_mask.nii.gz"
                )
            elif len(masks) > 1:
                name = flairs[0].relative_to(raw)
                faults.append(f"{name}: exactly one mask is needed, but found {len(masks)} ({found}); leave one")
            else:
                timepoint = "" if folder == subject else folder.name.removeprefix("ses-")
                sources.append(Source(patient_name(subject.name), timepoint, raw, (flairs[0],), (masks[0],)))
    return sources


def _bids_masks(raw: Path, where: Path) -> list[Path]:
    found = []
    for derivative in _folders(raw / "derivatives"):
        for folder, below, files in os.walk(derivative / where):
            if len(where.parts) == 1:  # a subject's own masks, not those of its sessions
                below[:] = [name for name in below if not name.startswith("ses-")]
            found += [Path(folder, name) for name in files if name.endswith(("_mask.nii", "_mask.nii.gz"))]
    return sorted(found)


def _from_table(table: Path, faults: list[str]) -> list[Source]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            header = [name.strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            if twice := sorted({name for name in header if name and header.count(name) > 1}):
                raise InputError(f"{table}: the column {' and '.join(twice)} stands there twice; keep one")
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: must be a CSV table in UTF-8, but {error}; export it again") from None
    if lacking := [name for name in ("patient", "image", "mask") if name not in header]:
        got = ", ".join(header) or "an empty file"
        raise InputError(
            f"{table}: needs the columns patient,timepoint,image,mask; {', '.join(lacking)} missing, got {got}"
        )
    groups: dict[tuple[str, ...], list[tuple[Path, Path]]] = defaultdict(list)
    seen: dict[Path, int] = {}
    for line, row in rows:
        cells = {name: (row.get(name) or "").strip() for name in ("patient", "timepoint", "image", "mask")}
        if None in row:
            faults.append(f"{table.name}, line {line}: more cells than columns; quote names that hold a comma")
        wrong = []
        for name in ("image", "mask"):
            if not cells[name]:
                wrong.append(f"no {name}; name its file")
            elif not (_is_nifti(Path(cells[name])) or cells[name].lower().endswith(PICTURE_TYPES)):
                wrong.append(f"{cells[name]}: must be NIfTI, PNG, TIFF or JPEG")
        image, mask = (Path(os.path.normpath(table.parent / cells[name])) for name in ("image", "mask"))
        if image in seen and cells["image"]:
            wrong.append(f"{cells['image']} stands in line {seen[image]} already; remove one")
        if image == mask and cells["image"]:
            wrong.append(f"{cells['image']} is image and mask at once; name the mask's file")
        seen[image] = line
        if wrong:
            faults += [f"{table.name}, line {line}: {text}" for text in wrong]
            continue
        key = (patient_name(cells["patient"]), cells["timepoint"])
        groups[key if key[0] else (*key, cells["image"])].append((image, mask))
    return _group(table.parent, groups, faults)


def _from_pairs(raw: Path, pattern: str | None, faults: list[str]) -> list[Source]:
    try:
        regex = re.compile(pattern) if pattern is not None else None
    except (re.error, OverflowError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"--patient-pattern: not a regular expression ({why}), got {shown(pattern)}") from None
    if regex is not None and "patient" not in regex.groupindex and regex.groups != 1:
        raise InputError(
            f"--patient-pattern: needs one group, the patient, or groups named patient and timepoint, "
            f"but got {regex.groups} groups in {pattern!r}; write for example '^(p[0-9]+)_'"
        )
    found: dict[str, dict[str, list[Path]]] = {"images": defaultdict(list), "masks": defaultdict(list)}
    for folder, stems in found.items():
        for path in _files(raw / folder):
            if _is_nifti(path) or path.name.lower().endswith(PICTURE_TYPES):
                stems[_stem(path)].append(path)
    images, masks = found["images"], found["masks"]
    for stem in sorted(images.keys() | masks.keys()):
        for folder, stems in found.items():
            if len(stems.get(stem, ())) > 1:
                faults.append(f"{folder}/{stem}: exactly one file is needed, but found {len(stems[stem])}; leave one")
        if stem not in masks:
            faults.append(
                f"images/{images[stem][0].name}: missing mask; add masks/{stem}.* (same name, extension aside)"
            )
        elif stem not in images:
            faults.append(f"masks/{masks[stem][0].name}: no image; add images/{stem}.* (same name, extension aside)")
    groups: dict[tuple[str, ...], list[tuple[Path, Path]]] = defaultdict(list)
    both = sorted(images.keys() & masks.keys(), key=natural)
    matches = [{}] * len(both) if pattern is None else _matches(pattern, both)
    for stem, match in zip(both, matches, strict=True):
        if pattern is not None and not match.get("patient"):
            faults.append(
                f"images/{images[stem][0].name}: --patient-pattern {pattern!r} finds no patient in the name {stem!r}"
            )
            continue
        patient = patient_name(match.get("patient") or "")
        key = (patient, match.get("timepoint") or "")
        if match and "timepoint" not in match and _is_nifti(images[stem][0]):
            key = (patient, stem)  # each volume is a time point of its own
        groups[key if patient else (*key, stem)].append((images[stem][0], masks[stem][0]))
    return _group(raw, groups, faults)


def _matches(pattern: str, names: list[str]) -> list[dict[str, str | None]]:
    """What the pattern finds in each name: patient, and timepoint where it has that group; {} for nothing.

    In a process of its own, since nothing else ends a pattern such as (a+)+$ before its time.
    """
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-I", "-c", _MATCH],
            input=json.dumps([pattern, names]),
            capture_output=True,
            text=True,
            check=True,
            timeout=PATTERN_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"--patient-pattern {pattern!r}: takes more than {PATTERN_TIMEOUT_S:g} s on {many(len(names), 'name')}; "
            "write it without a repetition within a repetition, such as '^(p[0-9]+)_'"
        ) from None
    found = [it or [{}, [None]] for it in json.loads(done.stdout)]
    return [
        named if "patient" in named or not groups[0] else {**named, "patient": groups[0]} for named, groups in found
    ]


def _group(root: Path, groups: Mapping[tuple[str, ...], list[tuple[Path, Path]]], faults: list[str]) -> list[Source]:
    sources = []
    for key, pairs in groups.items():
        source = Source(key[0], key[1], root, tuple(i for i, _ in pairs), tuple(m for _, m in pairs))
        names = ", ".join(source.name(path) for path in source.image)
        if len(pairs) > 1 and any(_is_nifti(path) for path in source.image):
            faults.append(
                f"patient {key[0]!r}, time point {key[1]!r}: one NIfTI volume is needed, but got {names}; "
                "give each its own time point"
            )
        elif any(_is_nifti(image) != _is_nifti(mask) for image, mask in pairs):
            faults.append(f"{names}: image and mask must both be NIfTI or both be pictures; convert one")
        else:
            sources.append(source)
    return sources


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _stem(path: Path) -> str:
    return re.sub(r"(?i)(\.nii(\.gz)?|\.[a-z]+)$", "", path.name)


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def _files(folder: Path) -> list[Path]:
    """The files in a folder, broken links included (they are named as faults later), hidden ones not."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in entries if not path.name.startswith(".") and not path.is_dir()]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for one
        return False


def _inside(root: Path, path: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a loop of links
        return False


def many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
