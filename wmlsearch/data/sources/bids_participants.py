"""Where patients of a BIDS data set were scanned: the columns site and scanner of `participants.tsv`."""

from __future__ import annotations

import csv
from pathlib import Path

from wmlsearch.data.patient_names import patient_name
from wmlsearch.data.sources.findings import Findings
from wmlsearch.data.sources.table import SITE_COLUMNS

_UNKNOWN = ("", "n/a")


def read_sites(folder: Path, findings: Findings) -> dict[str, str]:
    """Return the site of each patient; empty where the file or its columns are missing. Faults of it are notes."""
    path = folder / "participants.tsv"
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        findings.notes.append(f"{path.name} cannot be read ({error}), so the folds are not balanced by site")
        return {}
    sites = {}
    for row in rows:
        cells = {(name or "").strip().lower(): value.strip() for name, value in row.items() if isinstance(value, str)}
        site = " ".join(cells[name] for name in SITE_COLUMNS if cells.get(name, "") not in _UNKNOWN)
        if site:
            sites[patient_name(cells.get("participant_id", ""))] = site
    return sites
