"""A CSV table with the columns patient, timepoint, image and mask.

Paths are absolute, or relative to the table's folder.

Pictures of one patient and time point are slices of one volume, in the order of the rows. A column site or scanner, or
both, says where a patient was scanned. A patient, time point or site that is NaN, n/a or the like is not known.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmlsearch.data.patient_names import patient_name
from wmlsearch.data.sources.discovery import LayoutReport, first_names
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
from wmlsearch.errors import InputError
from wmlsearch.runs.wording import plural

SITE_COLUMNS = ("site", "scanner")
COLUMNS = ("patient", "timepoint", "image", "mask", *SITE_COLUMNS)


def _find(raw: RawData, report: LayoutReport) -> list[Source]:
    table, faults = raw.path, report.faults
    scans: dict[Scan, list[ImageAndMask]] = defaultdict(list)
    sites: dict[Scan, list[str]] = defaultdict(list)
    lines: dict[Path, int] = {}  # line of each image
    without_patient: list[tuple[int, str]] = []  # lines whose cell says so, and the word
    for table_row in _read(table):
        line, row = table_row.line, table_row.cells
        if count := table_row.rows_within:
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
        report.notes.append(
            f"{table.name}: the patient is {without_patient[0][1]!r} in {plural(len(without_patient), 'row')} (line "
            f"{lines_without}), which is read as not known; if it is a name, write it in another way"
        )
    files = [path for pairs in scans.values() for pair in pairs for path in pair]
    return group_into_sources(common_root(table.parent, files), scans, report, sites)


def join_sites(cells: Mapping[str, str]) -> str:
    """Return the site and the scanner of a row, as far as they are known, by column name in lower case."""
    return " ".join(name for column in SITE_COLUMNS if (name := text_or_empty(cells.get(column, ""))))


@dataclass(frozen=True)
class _Row:
    """A row of the table."""

    line: int  # where it begins
    cells: dict[str | Any, str | Any]  # by column name in lower case; under None, a list of those beyond the header
    rows_within: int  # how many other rows are part of a cell, because a quotation mark has no end


def _read(table: Path) -> list[_Row]:
    """Return the rows. Raises InputError."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            text = file.read()
        delimiter = _delimiter(io.StringIO(text, newline="").readline())
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        header = [name.strip().lower() for name in reader.fieldnames or ()]
        reader.fieldnames = header
        if repeated := sorted({name for name in header if name and header.count(name) > 1}):
            raise InputError(f"{table}: column names must differ, but {' and '.join(repeated)} is repeated; keep one")
        rows = [(reader.line_num - sum(map(_line_breaks, row.values())), row) for row in reader]
        is_open = _ends_within_quotes(text, delimiter)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: must be a CSV table in UTF-8, but {error}; export it again") from None
    if missing := [name for name in ("patient", "image", "mask") if name not in header]:
        columns = ", ".join(header) or "an empty file"
        raise InputError(
            f"{table}: needs the columns patient,timepoint,image,mask; {', '.join(missing)} missing, got {columns}"
        )
    last = len(rows) - 1
    return [
        _Row(line, row, _rows_within(row, header, delimiter, is_open and place == last))
        for place, (line, row) in enumerate(rows)
    ]


def _line_breaks(cell: Any) -> int:
    """Return the number of line breaks within a cell (or, beyond the header, in a list of cells)."""
    texts = cell if isinstance(cell, list) else [cell]
    return sum(text.rstrip("\r\n").count("\n") for text in texts if text)


def _ends_within_quotes(text: str, delimiter: str) -> bool:
    """Whether the last quotation mark of a table has no end: a line that is added would be part of a cell."""
    *_, last = csv.reader(io.StringIO(f"{text}\nend", newline=""), delimiter=delimiter, skipinitialspace=True)
    return last != ["end"]


def _rows_within(row: Mapping[Any, Any], header: Sequence[str], delimiter: str, is_open: bool) -> int:
    """Return how many rows a quotation mark without an end has made part of a row's cells.

    A remark of several lines is right, and may name files. Where the next quotation mark has ended the cell, only a
    line counts that is a whole row: as many cells as the header has, with files in the columns image and mask.

    Args:
        row: The cells.
        header: The names of the columns.
        delimiter: What separates the columns.
        is_open: Whether the last cell goes on to the end of the table. Then each line with two files counts.
    """
    texts = [text for cell in row.values() for text in (cell if isinstance(cell, list) else [cell]) if text]
    lines = [line for text in texts for line in text.split("\n")[1:]]
    count = 0
    for line in lines:
        paths = [Path(cell.strip().strip('"')) for cell in line.split(delimiter)]
        files = [is_nifti(path) or is_picture(path) for path in paths]
        is_row = len(files) == len(header) and files[header.index("image")] and files[header.index("mask")]
        count += is_row or (is_open and sum(files) > 1)
    return count


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
