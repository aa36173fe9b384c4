"""Verbs after a search: `evaluate`, `report`."""

from __future__ import annotations

from pathlib import Path

import click

from wmlsearch.cli import options


@click.command(short_help="Score a run on the sealed test patients.")
@click.argument("run")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="A prepared data set.  [default: the one that the run was trained on]",
)
@options.out
@options.uri
def evaluate(run: str, data: Path | None, out: Path, mlflow_uri: str | None) -> None:
    """Open the sealed test for RUN: a search (its champion against the baseline), or a single training.

    Each opening is written into the data set's ledger, and the report says how often it was opened before: a test that
    is looked at again and again is none. `wmlsearch tune` does this at its end.

    Example: wmlsearch evaluate search-20261123-201512
    """
    from wmlsearch.cli.console import console, progress_bar
    from wmlsearch.cli.verdict_tables import show_test
    from wmlsearch.report.page import write_report
    from wmlsearch.runs.folders import SearchDir
    from wmlsearch.runs.schema import open_run
    from wmlsearch.tracking.mirror import Mirror
    from wmlsearch.workflows import sealed_test

    found_run, uri = open_run(run, out), options.uri_of(out, mlflow_uri)  # what is refused, before anything is opened
    bar, advance = progress_bar(console())
    with bar:
        found, where = sealed_test.evaluate_run(found_run, data, advance)
    show_test(console(), found)
    try:
        if isinstance(found_run, SearchDir) and where == found_run.test_file():
            options.say(f"report: {write_report(found_run)}")
        options.say(f"scores of each patient and image: {where}")
    finally:  # the scores are kept already, and MLflow gets the report with them where there is one
        root = sealed_test.parent_search(found_run)
        mirror = Mirror(root, uri)
        for part in root.all_runs() if isinstance(root, SearchDir) else [root]:
            mirror.notify(part)
        if problem := mirror.close():
            options.say(f"MLflow lacks some of it ({problem}); later: wmlsearch sync {root.name}")


@click.command(short_help="Write the report of a search.")
@click.argument("name", required=False)
@options.out
def report(name: str | None, out: Path) -> None:
    """Write a search's report (default: the latest) from its folder alone: one HTML page, its figures and tables.

    It can be written at any time, also of a search that is running or that was stopped. `wmlsearch tune` does it at its
    end.

    Example: wmlsearch report search-20261123-201512
    """
    from wmlsearch.report.page import write_report
    from wmlsearch.runs.schema import open_search

    page = write_report(open_search(name, out))
    options.say(f"report: {page}\nopen it: {page.resolve().as_uri()}")
