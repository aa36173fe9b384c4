"""The verb `stop`: end a running search from another terminal."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from wmlsearch.cli import options, remote
from wmlsearch.errors import InputError

STATE_POLL_S = 0.2


@click.command(short_help="Stop a running search cleanly.")
@click.argument("name", required=False)
@options.out
@remote.cluster
def stop(name: str | None, out: Path, cluster: str | None) -> None:
    """Stop a running search (default: the latest) cleanly, from another terminal.

    Final runs and verdict are skipped. `wmlsearch tune --resume` continues the search.

    Example: wmlsearch stop search-20261123-201512
    """
    if cluster is not None:
        from wmlsearch.cluster.remote import stop as stop_on_cluster

        sys.exit(stop_on_cluster(cluster, name, options.say))
    from wmlsearch.cli.search_summary import state_in_words
    from wmlsearch.runs.folders import find_search
    from wmlsearch.runs.schema import RUNNING
    from wmlsearch.workflows.resume_command import resume_command, resume_note

    search = find_search(name, out)
    if not search.is_running():
        state = search.status().state
        if state == RUNNING:
            raise InputError(
                f"{search.name}: {state_in_words(search)}, so there is nothing to stop; resume it with "
                f"`{resume_command(search)}`"
            )
        raise InputError(f"{search.name}: the search is not running (state: {state}), so there is nothing to stop")
    search.request_stop()
    options.say(f"stopping {search.name}: its trials end within seconds ...")
    while search.is_running():
        time.sleep(STATE_POLL_S)
    status = search.status()
    options.say(f"{search.name}: {status.state} ({status.reason or 'it ended before the stop'})")
    options.say(f"to resume: {resume_command(search)}")
    if note := resume_note(search):
        options.say(note)
