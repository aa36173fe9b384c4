"""`wmlsearch prepare --dry-run`: what was found in a raw data set, what would be taken, and why the rest not."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from wmlsearch.cli.options import say
from wmlsearch.data.prepare import PrepareOptions, check_patients
from wmlsearch.data.sources import Discovery, survey
from wmlsearch.data.sources.source import shown_name
from wmlsearch.errors import InputError
from wmlsearch.runs.wording import plural


def show_discovery(console: Console, raw: Path, options: PrepareOptions) -> None:
    """Print the volumes of a raw data set, the files that are not used, and remarks.

    Raises:
        InputError: With the faults that `prepare` would refuse before it opens an image, after everything else is
            printed.
    """
    discovery = survey(raw, options.choices)
    say(f"{raw} is read as {discovery.layout}")
    if discovery.sources:
        console.print(_table(discovery), highlight=False)
    patients = len({source.patient for source in discovery.sources} - {""})
    counts = [plural(len(discovery.sources), "scan"), *([plural(patients, "patient")] if patients else [])]
    refusal = _refusal(discovery, options)
    if refusal:
        say(f"found so far: {' of '.join(counts)}; nothing is taken before the faults at the end are corrected")
    else:
        say(f"taken: {' of '.join(counts)}")
    for unused in discovery.unused:
        say(f"not used: {unused.name} ({unused.reason})")
    for note in discovery.notes:
        say(f"note: {note}")
    if refusal:
        raise refusal
    say("nothing was written; without --dry-run the images and masks themselves are checked, and prepared")


def _refusal(discovery: Discovery, options: PrepareOptions) -> InputError | None:
    """Return the error with which `prepare` would refuse the data set before it opens an image."""
    if faults := discovery.faults:
        return InputError(f"{discovery.raw}: {plural(len(faults), 'fault')}, so it cannot be prepared yet", faults)
    try:
        check_patients(discovery.check(), options)
    except InputError as error:
        return error
    return None


def _table(discovery: Discovery) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    has_sites = any(source.site for source in discovery.sources)
    for name in ("patient", "time point", "image", "mask", *(["site"] if has_sites else [])):
        table.add_column(name, overflow="fold")
    for source in discovery.sources:
        patient = f"{source.patient or 'not known'}{' (test)' if source.patient in discovery.test_patients else ''}"
        cells = [patient, source.timepoint, *(_files(discovery, paths) for paths in (source.image, source.mask))]
        table.add_row(*cells, *([source.site] if has_sites else []))
    return table


def _files(discovery: Discovery, paths: tuple[Path, ...]) -> str:
    """Return the files of a scan: below the data set, or below a list's folder, by their names there."""
    folder = discovery.raw if discovery.raw.is_dir() else discovery.raw.parent
    name = shown_name(paths[0], folder)
    text = name if len(paths) == 1 else f"{name} to {paths[-1].name} ({len(paths)} pictures)"
    return text.encode(errors="backslashreplace").decode()  # file names may not be valid text
