"""A CSV table with the columns patient, timepoint, image and mask.

Paths are absolute, or relative to the table's folder.

Pictures of one patient and time point are slices of one volume, in the order of the rows. A column site or scanner, or
both, says where a patient was scanned. A patient, time point or site that is NaN, n/a or the like is not known.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wmlsearch.config import InputError
from wmlsearch.data.patient_names import patient_name
from wmlsearch.data.sources.findings import Findings, first_names
from wmlsearch.data.sources.layout import (
    ImageAndMask,
    Layout,
    RawData,
    Scan,
    common_root,
    group_into_sources,
    locate,
)
from wmlsearch.data.sources.missing_values import is_missing, text_or_empty
from wmlsearch.data.sources.source import Source, is_nifti, is_picture
from wmlsearch.runs.wording import plural

SITE_COLUMNS = ("site", "scanner")
COLUMNS = ("patient", "timepoint", "image", "mask", *SITE_COLUMNS)


def _find(raw: RawData, findings: Findings) -> list[Source]:
    table, faults = raw.path, findings.faults
    scans: dict[Scan, list[ImageAndMask]] = defaultdict(list)
    sites: dict[Scan, list[str]] = defaultdict(list)
    lines: dict[Path, int] = {}  # line of each image
    without_patient: list[tuple[int, str]] = []  # lines whose cell says so, and the word
    for line, row in _read(table):
        if count := _lines_within_quotes(row):
            faults.append(
                f"{table.name}, line {line}: a quotation mark has no end here, so that {plural(count, 'line')} after "
                "it would be part of a cell; close the quotation mark, or remove it"
            )
            continue
        cells = {name: (row.get(name) or "").strip() for name in COLUMNS}
        image, mask = (locate(table.parent, cells[name]) for name in ("image", "mask"))
        if None in row:  # csv's name for cells beyond the header
            faults.append(f"{table.name}, line {line}: more cells than columns; quote names that hold a comma")
        row_faults = _cell_faults(cells)
        if image in lines and cells["image"]:
            row_faults.append(f"{cells['image']} is in line {lines[image]} already; remove one")
        if image == mask and cells["image"]:
            row_faults.append(f"{cells['image']} is both image and mask; name the mask's file")
        lines[image] = line
        if row_faults:
            faults += [f"{table.name}, line {line}: {fault}" for fault in row_faults]
            continue
        patient = text_or_empty(patient_name(cells["patient"]))
        if cells["patient"] and not patient:
            without_patient.append((line, cells["patient"]))
        scan = Scan(patient, text_or_empty(cells["timepoint"]), "" if patient else cells["image"])
        scans[scan].append((image, mask))
        sites[scan].append(join_sites(cells))
    if without_patient:
        lines_without = first_names([str(line) for line, _ in without_patient])
        findings.notes.append(
            f"{table.name}: the patient is {without_patient[0][1]!r} in {plural(len(without_patient), 'row')} (line "
            f"{lines_without}), which is read as not known; if it is a name, write it in another way"
        )
    files = [path for pairs in scans.values() for pair in pairs for path in pair]
    return group_into_sources(common_root(table.parent, files), scans, findings, sites)


def join_sites(cells: Mapping[str, str]) -> str:
    """Return the site and the scanner of a row, as far as they are known, by column name in lower case."""
    return " ".join(name for column in SITE_COLUMNS if (name := text_or_empty(cells.get(column, ""))))


def _read(table: Path) -> list[tuple[int, dict[str | Any, str | Any]]]:
    """Return line number and cells, by column name in lower case, of each row. Raises InputError."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            delimiter = _delimiter(file.readline())
            file.seek(0)
            reader = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True)
            header = [name.strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            if repeated := sorted({name for name in header if name and header.count(name) > 1}):
                raise InputError(
                    f"{table}: column names must differ, but {' and '.join(repeated)} is repeated; keep one"
                )
            rows = [(reader.line_num - sum(map(_line_breaks, row.values())), row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: must be a CSV table in UTF-8, but {error}; export it again") from None
    if missing := [name for name in ("patient", "image", "mask") if name not in header]:
        columns = ", ".join(header) or "an empty file"
        raise InputError(
            f"{table}: needs the columns patient,timepoint,image,mask; {', '.join(missing)} missing, got {columns}"
        )
    return rows


def _line_breaks(cell: Any) -> int:
    """Return the number of line breaks within a cell (or, beyond the header, in a list of cells)."""
    texts = cell if isinstance(cell, list) else [cell]
    return sum(text.rstrip("\r\n").count("\n") for text in texts if text)


def _lines_within_quotes(row: Mapping[Any, Any]) -> int:
    """Return how many lines a row has taken in by a quotation mark without an end: those that name two image files.

    A remark of several lines is right.
    """
    texts = [text for cell in row.values() for text in (cell if isinstance(cell, list) else [cell]) if text]
    lines = [line for text in texts for line in text.split("\n")[1:]]
    cells = [[Path(cell.strip().strip('"')) for cell in re.split("[,;\t]", line)] for line in lines]
    return sum(sum(is_nifti(path) or is_picture(path) for path in paths) > 1 for paths in cells)


def _delimiter(header: str) -> str:
    """Return what separates the columns: a spreadsheet writes semicolons where numbers have a decimal comma."""
    return max(",;\t", key=header.count)


def _cell_faults(cells: dict[str, str]) -> list[str]:
    faults = []
    for name in ("image", "mask"):
        path = Path(cells[name])
        if not cells[name]:
            faults.append(f"no {name}; name its file, or leave the line out")
        elif is_missing(cells[name]):
            faults.append(f"{name} is {cells[name]}; name its file, or leave the line out")
        elif not (is_nifti(path) or is_picture(path)):
            faults.append(f"{cells[name]}: must be NIfTI, PNG, TIFF or JPEG")
    return faults


def _matches(raw: Path) -> bool:
    return raw.is_file() and raw.suffix.lower() != ".json"


LAYOUT = Layout("a CSV table (patient,timepoint,image,mask)", _matches, _find)
