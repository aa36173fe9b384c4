"""`wmlsearch prepare`: prepare a raw data set, and say what the user should know of the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from wmlsearch.data.manifest import CONTACT_SHEET, Manifest
from wmlsearch.data.manifest_summary import folds_line, size_line, split_table, warning_lines
from wmlsearch.data.prepare import PrepareOptions
from wmlsearch.data.prepare import prepare as write_prepared
from wmlsearch.runs.progress import Progress
from wmlsearch.runs.wording import plural
from wmlsearch.verdict.statistics import MIN_PATIENTS
from wmlsearch.verdict.wording import leakage_note

MIN_OTHERS = 3  # patients to train and validate with, at least, where more test patients are advised


def prepare(
    raw: Path,
    out: Path,
    options: PrepareOptions,
    say: Callable[[str], None],
    next_step: str,
    progress: Progress | None = None,
) -> Manifest:
    """Write the prepared data set of a raw data set, say what it holds and what is doubtful, and return its manifest.

    Args:
        raw: A data set in one of the layouts of `data.sources`.
        out: Folder to write; must not exist, or be empty.
        options: See `PrepareOptions`.
        say: Called with each line. Warnings begin with `warning: `, remarks with `note: `.
        next_step: The command that the user runs next.
        progress: Called as `progress(stage, done, total)` after each volume.

    Raises:
        InputError: As `data.prepare.prepare`. Then nothing was written.
    """
    manifest = write_prepared(raw, out, options, progress, lambda note: say(f"note: {note}"))
    for line in prepared_lines(manifest, out):
        say(line)
    say(f"check the slices in {out / CONTACT_SHEET}; next: {next_step}")
    if options.pseudonyms is not None:
        say(f"the table of pseudonyms is {options.pseudonyms}; keep it apart from {out}, and do not pass it on")
    return manifest


def prepared_lines(manifest: Manifest, out: Path) -> list[str]:
    """Return a prepared data set as lines: each split, folds, duplicates, warnings, notes, and where it is."""
    return [
        *split_table(manifest),
        *([folds_line(manifest)] if manifest.folds else []),
        leakage_note(manifest.certificate),
        *(f"warning: {line}" for line in warning_lines(manifest)),
        *(f"warning: {line}" for line in _small_test(manifest)),
        *(f"note: {line}" for line in manifest.notes),
        f"{size_line(manifest)} are in {out}",
    ]


def _small_test(manifest: Manifest) -> list[str]:
    """Return a warning where there are too few test patients for a verdict; they are counted with or without lesions.

    Images whose patients are not known count as no patient, and have no verdict for another reason.
    """
    patients = manifest.counts["test"].patients
    if not 0 < patients < MIN_PATIENTS:
        return []
    others = sum(count.patients for count in manifest.counts.values()) - patients
    name_more = "name more with --test-patients, or " if patients + others >= MIN_PATIENTS + MIN_OTHERS else ""
    return [
        f"the sealed test has {plural(patients, 'patient')}, and with fewer than {MIN_PATIENTS} that have lesions the "
        f"verdict of a search cannot show any difference; {name_more}add patients"
    ]
