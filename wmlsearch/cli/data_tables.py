"""A prepared data set in the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from wmlsearch.data.manifest import Manifest
from wmlsearch.runs.wording import command
from wmlsearch.verdict.wording import leakage_note


def show_manifest(console: Console, out: Path, manifest: Manifest) -> None:
    """Print patients, slices and lesion share of each split of a prepared data set, and warnings about it."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("split", "patients", "scans", "slices", "used", "lesion"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, count in manifest.counts.items():
        cells = [str(number) for number in (count.patients, count.timepoints, count.slices, count.kept)]
        table.add_row("test (sealed)" if split == "test" else split, *cells, f"{100 * count.lesion_share:.2f} %")
    console.print(table)
    if manifest.folds:
        console.print(_folds_line(manifest), highlight=False)
    console.print(leakage_note(manifest.certificate), highlight=False)
    for warning in [*([manifest.certificate.note] if manifest.certificate.note else []), *manifest.warnings]:
        console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)
    for note in manifest.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    console.print(f"{manifest.plane} slices of {manifest.size} x {manifest.size} pixels are in {out}", highlight=False)
    console.print(
        f"check the slices in {out / 'contact_sheet.png'}; next: {command('tune', '--data', out)}", highlight=False
    )


def _folds_line(manifest: Manifest) -> str:
    """Return who is in the folds, as one line: numbers of patients, and lesion loads where they are known."""
    sizes = ", ".join(str(len(fold)) for fold in manifest.folds)
    line = f"train and val are {manifest.fold_count} folds of {sizes} patients, of which the first is val"
    loads = ", ".join(f"{load:.3g}" for load in manifest.fold_loads())
    return f"{line}; their mean lesion loads are {loads} ml" if loads else line
