"""The verb `status`: the leaderboard of a search, or the epochs of a run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from wmlsearch.cli import options, remote


@click.command(short_help="Show the state of a search or run.")
@click.argument("name", required=False)
@options.out
@remote.cluster
def status(name: str | None, out: Path, cluster: Path | None) -> None:
    """Print the leaderboard of a running or finished search (default: the latest), or the epochs of a run.

    Example: wmlsearch status search-20261123-201512
    """
    if cluster is not None:
        from wmlsearch.cluster.remote import status as status_on_cluster

        sys.exit(status_on_cluster(cluster, name, out, options.say))
    from wmlsearch.cli.console import console
    from wmlsearch.cli.live_display import TrainingDisplay
    from wmlsearch.cli.search_summary import show_search
    from wmlsearch.runs.checks import open_run
    from wmlsearch.runs.folders import SearchDir

    run = open_run(name, out)
    if isinstance(run, SearchDir):
        show_search(console(), run)
        options.show_report_path(run)
    else:
        TrainingDisplay(console(), run.record().settings).update(run)
        options.say(f"{run.name}: {run.status().state} {run.status().reason}".rstrip())
