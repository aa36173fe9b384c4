"""Where patients of a BIDS data set were scanned: the columns site and scanner of `participants.tsv`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from wmlsearch.data.patient_names import patient_name
from wmlsearch.data.sources.discovery import LayoutReport
from wmlsearch.data.sources.table import join_sites
from wmlsearch.data.spelling import composed


def read_sites(folder: Path, report: LayoutReport) -> dict[str, str]:
    """Return the site of each patient, by name with composed letters.

    Empty where the file or its columns are missing. Faults of it are notes.
    """
    path = folder / "participants.tsv"
    if not path.exists():
        return {}
    try:
        rows = _read(path, report)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        report.notes.append(f"{path.name} cannot be read ({error}), so the folds are not balanced by site")
        return {}
    sites = {}
    for row in rows:
        cells = {(name or "").strip().lower(): value.strip() for name, value in row.items() if isinstance(value, str)}
        if site := join_sites(cells):
            sites[composed(patient_name(cells.get("participant_id", "")))] = site
    return sites


def _read(path: Path, report: LayoutReport) -> list[dict[str, str]]:
    """Return the rows by the names of the columns.

    A quotation mark without an end takes in the lines after it. Then all quotation marks are left out, with a note.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        text = file.read()
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"))
        is_whole = not any(_has_rows_within(cell) for row in rows for cell in row.values())
    except csv.Error:  # the cell is longer than csv allows
        is_whole = False
    if not is_whole:
        report.notes.append(f"{path.name}: a quotation mark has no end, so quotation marks are left out")
        plain = io.StringIO(text.replace('"', ""), newline="")
        rows = list(csv.DictReader(plain, delimiter="\t", quoting=csv.QUOTE_NONE))
    return rows


def _has_rows_within(cell: Any) -> bool:
    """Whether a cell (or, beyond the header, a list of cells) holds other rows; a remark of several lines is right."""
    texts = cell if isinstance(cell, list) else [cell]
    return any("\t" in line for text in texts if text for line in text.split("\n")[1:])
