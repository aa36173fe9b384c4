"""The verb `status`: the leaderboard of a search, or the epochs of a run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from wmlsearch.cli import json_output, options, remote
from wmlsearch.errors import InputError
from wmlsearch.runs.wording import plural


@click.command(short_help="Show the state of a search or run.")
@click.argument("name", required=False)
@options.out
@remote.cluster
@remote.storage
@json_output.option
def status(name: str | None, out: Path, cluster: str | None, storage: str | None, as_json: bool) -> None:
    """Print the leaderboard of a running or finished search (default: the latest), or the epochs of a run.

    Example: wmlsearch status search-20261123-201512
    """
    if cluster is not None:
        from wmlsearch.cluster.remote import status as status_on_cluster

        if as_json:
            raise InputError(
                "--json: cannot be given with --cluster; run `wmlsearch status --json` on the head, or fetch the "
                "results first: without --json, this command does so when the search has ended"
            )
        given, of_environment = remote.storages(storage)
        sys.exit(status_on_cluster(cluster, name, out, given, options.say, of_environment))
    from wmlsearch.cli.console import console
    from wmlsearch.cli.live_display import TrainingDisplay
    from wmlsearch.cli.search_summary import show_search, state_in_words
    from wmlsearch.runs.checks import open_run
    from wmlsearch.runs.folders import SearchDir
    from wmlsearch.runs.scratch import remove_abandoned

    with json_output.only_json(as_json) as show:
        remove_abandoned()
        run = open_run(name, out)
        if as_json:
            from wmlsearch.workflows.summaries import summary_of

            show(summary_of(run))
        elif isinstance(run, SearchDir):
            show_search(console(), run)
            options.show_report_path(run)
        else:
            settings = run.record().settings
            TrainingDisplay(console(), settings).update(run)
            words = state_in_words(run)
            if words != run.state:  # no process holds it
                words += (
                    f", {len(run.rows())} of at most {plural(settings.epochs, 'epoch')}; a single training cannot be "
                    "resumed, so train it again under another --name"
                )
            options.say(f"{run.name}: {words} {run.status().reason}".rstrip())
