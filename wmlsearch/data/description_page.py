"""description.html: what a prepared data set holds, as one page beside the contact sheet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from wmlsearch.data.description import DataDescription
from wmlsearch.data.manifest import CONTACT_SHEET, DESCRIPTION

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 0.5em 0 1.5em; }
th, td { text-align: left; padding: 0.15em 0.9em 0.15em 0; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.warning { background: #fff3cd; padding: 0.3em 0.6em; margin: 0.3em 0; }
img { max-width: 100%; }
"""


def write_page(description: DataDescription, folder: Path) -> None:
    """Write the page into the folder of the data set."""
    (folder / DESCRIPTION).write_text(_page(description), encoding="utf-8", errors="replace")


def _page(data: DataDescription) -> str:
    spacing = "" if data.spacing_mm is None else f", {data.spacing_mm:.3g} mm in plane"
    parts = [
        f"<h1>{escape(data.folder)}</h1>",
        f"<p>{escape(data.plane)} slices of {data.size} x {data.size} pixels{spacing}; split by "
        f"{escape(data.split_level)}{', optimistic' if data.optimistic else ''}; fingerprint "
        f"{escape(data.fingerprint[:12])}.</p>",
        *(f'<p class="warning">warning: {escape(line)}</p>' for line in data.warnings),
        *(f"<p>note: {escape(line)}</p>" for line in data.notes),
        "<h2>Splits</h2>",
        _table(
            (
                "split",
                "patients",
                "scans",
                "slices",
                "used",
                "lesion pixels",
                "lesions (ml): smallest",
                "median",
                "largest",
            ),
            [
                (
                    split,
                    *(
                        str(n)
                        for n in (count.patients, count.timepoints, count.slices, count.kept, count.lesion_pixels)
                    ),
                    *_loads(data, split),
                )
                for split, count in data.counts.items()
            ],
        ),
        *_count_table("scanner", "patients", data.scanners),
        *_count_table("voxel size", "scans", data.voxel_sizes),
        "<h2>Patients</h2><p>Lesion loads are those of whole scans. Slices hold what lies in the window.</p>",
        _table(
            (
                "patient",
                "split",
                "fold",
                "scanner",
                "time point",
                "voxels",
                "slices",
                "used",
                "lesions (ml)",
                "in the window",
                "pixels",
                "",
            ),
            list(_patient_rows(data)),
        ),
        "<h2>Contact sheet</h2><p>Test patients are not shown.</p>",
        f'<img src="{CONTACT_SHEET}" alt="slices with outlined lesions">',
    ]
    head = f'<meta charset="utf-8"><title>{escape(data.folder)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _loads(data: DataDescription, split: str) -> tuple[str, ...]:
    loads = data.loads.get(split)
    return ("", "", "") if loads is None else tuple(f"{ml:.3g}" for ml in (loads.smallest, loads.median, loads.largest))


def _count_table(name: str, unit: str, counts: dict[str, int]) -> list[str]:
    if not counts:
        return []
    return [f"<h2>{name.capitalize()}s</h2>", _table((name, unit), [(key, str(n)) for key, n in counts.items()])]


def _patient_rows(data: DataDescription) -> Iterable[tuple[str, ...]]:
    for patient in data.patients:
        for scan in patient.scans:
            yield (
                patient.patient,
                patient.split,
                "" if patient.fold is None else str(patient.fold),
                patient.scanner,
                scan.timepoint,
                " x ".join(map(str, scan.shape)),
                str(scan.slices),
                str(scan.slices_used),
                "" if scan.lesion_ml is None else f"{scan.lesion_ml:.3g}",
                "" if scan.lesion_ml_in_window is None else f"{scan.lesion_ml_in_window:.3g}",
                str(scan.lesion_pixels),
                "; ".join(scan.warnings),
            )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{escape(name)}</th>" for name in header) + "</tr>"]
    for row in rows:
        cells = (f"<td{_kind(cell)}>{escape(cell)}</td>" for cell in row)
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "\n".join(lines) + "</table>"


def _kind(cell: str) -> str:
    return ' class="number"' if cell.replace(".", "", 1).isdecimal() else ""
