"""Check all files of a search or run that is named on the command line."""

from __future__ import annotations

from pathlib import Path

from wmlsearch.errors import InputError
from wmlsearch.runs.files import read_lines
from wmlsearch.runs.folders import AnyDir, RunDir, SearchDir, find_run, find_search
from wmlsearch.runs.names import ROLES
from wmlsearch.runs.schema import EpochLine, check_lines
from wmlsearch.space import SearchSpace


def open_run(name: str | None, out: Path) -> AnyDir:
    """Return a search or run as `folders.find_run` does, and check its files. Raises InputError."""
    run = find_run(name, out)
    validate_folder(run)
    return run


def open_search(name: str | None, out: Path) -> SearchDir:
    """Return a search as `folders.find_search` does, and check its files. Raises InputError."""
    search = find_search(name, out)
    validate_folder(search)
    return search


def validate_folder(run: AnyDir) -> None:
    """Read every file of a search or run, and of all runs below a search. Raises InputError that names the file."""
    record = run.record()
    run.status()
    if record.kind in ROLES:  # a model of a search has only the metrics of the search's evaluation
        run.evaluation_metrics()
    else:
        run.evaluation()
    run.ledger()
    if isinstance(run, RunDir):
        check_lines(EpochLine, read_lines(run.file("metrics")), run.file("metrics"))
        return
    SearchSpace.from_record(run.record().space.values, f"{run.file('record')}: space")
    run.usage()
    run.forecast()
    run.earlier()
    run.selection()
    for trial in run.trials():
        if not trial.name.isdecimal() or run.trial(int(trial.name)) != trial:
            raise InputError(f"{trial.path}: a trial's folder is named by its number (0000, 0001, ...); move it away")
    for part in run.all_runs():
        validate_folder(part)
