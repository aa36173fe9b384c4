"""The verb `describe`: what a prepared data set holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from wmlsearch.cli import json_output
from wmlsearch.runs.wording import plural

if TYPE_CHECKING:
    from wmlsearch.data.description import DataDescription, PatientDescription


@click.command(short_help="Show what a prepared data set holds.")
@click.argument("data", type=click.Path(path_type=Path))
@json_output.option
def describe(data: Path, as_json: bool) -> None:
    """Print patients, scanners, voxel sizes, lesion loads, slices and warnings of a prepared data set.

    It reads no image, so the sealed test stays closed. The same is in DATA/description.html, beside the contact sheet.

    Example: wmlsearch describe prepared
    """
    from wmlsearch.data.description import describe as describe_data

    with json_output.only_json(as_json) as print_json:
        description = describe_data(data)
        if as_json:
            print_json(description)
        else:
            _show(description)


def _show(data: DataDescription) -> None:
    from rich.table import Table

    from wmlsearch.cli.console import console
    from wmlsearch.data.manifest import DESCRIPTION

    screen = console()
    spacing = "" if data.spacing_mm is None else f", {data.spacing_mm:.3g} mm in plane"
    title = (
        f"{data.folder}: {data.plane} slices of {data.size} x {data.size} pixels{spacing}, split by {data.split_level}"
    )
    screen.print(title, highlight=False, soft_wrap=True)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("patient", "split", "fold", "scanner", "scans", "voxels (mm)", "slices", "used", "lesions"):
        table.add_column(name, justify="right" if name in ("scans", "slices", "used", "lesions") else "left")
    for patient in data.patients:
        table.add_row(*_cells(patient))
    screen.print(table)
    for split, loads in data.loads.items():
        screen.print(
            f"{split}: {plural(loads.patients, 'patient')}, {loads.without_lesions} without lesions; lesions "
            f"{loads.smallest:.3g} to {loads.largest:.3g} ml, median {loads.median:.3g}",
            highlight=False,
        )
    for name, counts in (("scanners", data.scanners), ("voxel sizes", data.voxel_sizes)):
        if counts:
            shown = ", ".join(f"{key} ({number})" for key, number in counts.items())
            screen.print(f"{name}: {shown}", highlight=False, soft_wrap=True)
    for warning in data.warnings:
        screen.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)
    for note in data.notes:
        screen.print(f"note: {note}", highlight=False, soft_wrap=True)
    times = {0: "was never opened", 1: "was opened once"}
    screen.print(
        f"the sealed test {times.get(data.test_openings, f'was opened {data.test_openings} times')}", highlight=False
    )
    if (page := Path(data.folder) / DESCRIPTION).exists():
        screen.print(f"page: {page}", highlight=False, soft_wrap=True)


def _cells(patient: PatientDescription) -> list[str]:
    scans = patient.scans
    edges = dict.fromkeys(
        "" if scan.voxel_mm is None else " x ".join(f"{edge:.3g}" for edge in scan.voxel_mm) for scan in scans
    )
    load, in_window = patient.lesion_ml, patient.lesion_ml_in_window
    size = f"{sum(scan.lesion_pixels for scan in scans)} px" if load is None else f"{load:.3g} ml"
    if in_window is not None:
        size += f" ({in_window:.3g} in the window)"
    return [
        patient.patient,
        patient.split,
        "" if patient.fold is None else str(patient.fold),
        patient.scanner,
        str(len(scans)),
        ", ".join(edges),
        str(sum(scan.slices for scan in scans)),
        str(sum(scan.slices_used for scan in scans)),
        size,
    ]
