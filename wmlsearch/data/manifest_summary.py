"""A prepared data set in a few lines: its splits, folds, warnings and notes."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from wmlsearch.runs.wording import plural

if TYPE_CHECKING:
    from wmlsearch.data.manifest import Manifest

HEADER = ("split", "patients", "scans", "slices", "used", "lesion")


def split_rows(manifest: Manifest) -> list[tuple[str, ...]]:
    """Return a row of cells for each split, in the columns of `HEADER`."""
    return [
        (
            "test (sealed)" if split == "test" else split,
            *(str(number) for number in (count.patients, count.timepoints, count.slices, count.kept)),
            f"{100 * count.lesion_share:.2f} %",
        )
        for split, count in manifest.counts.items()
    ]


def split_table(manifest: Manifest) -> list[str]:
    """Return the splits as lines of aligned text."""
    rows = [HEADER, *split_rows(manifest)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def folds_line(manifest: Manifest) -> str:
    """Return who is in the folds, as one line: numbers of patients, and lesion loads where they are known."""
    sizes = [len(fold) for fold in manifest.folds]
    patients = (
        f"{plural(sizes[0], 'patient')} each" if len(set(sizes)) == 1 else f"{', '.join(map(str, sizes))} patients"
    )
    line = f"train and val are {manifest.fold_count} folds of {patients}; val is the first fold"
    loads = ", ".join(f"{load:.3g}" for load in manifest.fold_loads())
    return f"{line}; their mean lesion loads are {loads} ml" if loads else line


def size_line(manifest: Manifest) -> str:
    """Return what the slices are: `axial slices of 256 x 256 pixels`."""
    return f"{manifest.plane} slices of {manifest.size} x {manifest.size} pixels"


def warning_lines(manifest: Manifest) -> list[str]:
    """Return all warnings about a data set, that about its split first."""
    note = manifest.certificate.note
    return [*([note] if note else []), *manifest.warnings]


def one_line(manifest: Manifest) -> str:
    """Return a data set as one line, for `repr`."""
    parts = [
        f"{split} {plural(count.patients, 'patient')}, {plural(count.slices, 'slice')}"
        for split, count in manifest.counts.items()
    ]
    parts += [plural(len(manifest.folds), "fold")] if manifest.folds else []
    warnings = len(warning_lines(manifest))
    parts += [plural(warnings, "warning")] if warnings else []
    return f"{size_line(manifest)}: {'; '.join(parts)}"


def as_html(manifest: Manifest) -> str:
    """Return a data set as HTML, for notebooks."""
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in split_rows(manifest))
    lines = [size_line(manifest), *([folds_line(manifest)] if manifest.folds else [])]
    lines += [f"warning: {line}" for line in warning_lines(manifest)] + [f"note: {line}" for line in manifest.notes]
    return (
        f"<table><tr>{''.join(f'<th>{name}</th>' for name in HEADER)}</tr>{rows}</table>"
        f"{''.join(f'<div>{escape(line)}</div>' for line in lines)}"
    )
