"""The verb `report`: write the report of a search."""

from __future__ import annotations

from pathlib import Path

import click

from wmlsearch.cli import json_output, options


@click.command(short_help="Write the report of a search.")
@click.argument("name", required=False)
@options.out
@json_output.option
def report(name: str | None, out: Path, as_json: bool) -> None:
    """Write the report of a search (default: the latest): one HTML page with its figures and tables.

    This needs only the search's folder and works at any time, also while the search is running or after it was stopped.
    `wmlsearch tune` writes the report at its end.

    Example: wmlsearch report search-20261123-201512
    """
    from wmlsearch.report.page import write_report
    from wmlsearch.runs.checks import open_search

    with json_output.only_json(as_json) as show:
        search = open_search(name, out)
        page = write_report(search)
        if as_json:
            from wmlsearch.workflows.json_results import ReportSummary

            show(ReportSummary.of(search.path.resolve().name, page))
        else:
            options.say(f"report: {page}\nopen it: {page.resolve().as_uri()}")
