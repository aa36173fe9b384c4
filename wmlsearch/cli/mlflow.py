"""The MLflow commands: `sync`, `ui`."""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
from pathlib import Path

import click

from wmlsearch.cli import options, remote
from wmlsearch.errors import InputError
from wmlsearch.tracking.server import LOOPBACK


@click.command(short_help="Copy missing runs to MLflow.")
@click.argument("name", required=False)
@options.out
@options.uri_of_named_run
@click.option(
    "--experiment",
    metavar="NAME",
    help="MLflow experiment for runs that this MLflow server does not have yet.  [default: the experiment with which "
    "the search or run was started]",
)
def sync(name: str | None, out: Path, mlflow_uri: str | None, experiment: str | None) -> None:
    """Copy everything of a search or run (default: all of OUT) that MLflow does not have yet. Running it twice changes
    nothing.

    A run that is damaged, or that MLflow refuses, is reported at the end; the others are copied. If a search has
    several folders, such as a backup, the one with the most progress is copied.

    Example: wmlsearch sync search-20261123-201512 --mlflow-uri http://127.0.0.1:5000
    """
    from wmlsearch.cli.console import console, progress_bar
    from wmlsearch.runs.checks import validate_folder
    from wmlsearch.runs.copied_folders import by_key, check_latest
    from wmlsearch.runs.folders import creation_time, find_run, list_runs, mark_dead_runs
    from wmlsearch.runs.redaction import without_password
    from wmlsearch.tracking.client import answers
    from wmlsearch.tracking.experiments import check_experiment_name, experiment_name
    from wmlsearch.tracking.sync import sync as sync_run
    from wmlsearch.workflows.mlflow_store import store_uri, store_uri_of

    if name:
        runs = [find_run(name, out)]
        check_latest(runs[0])
    else:
        copied = by_key(sorted(list_runs(out), key=creation_time) or [find_run(None, out)])
        runs = [each.latest for each in copied]
        for each in copied:
            for other in each.others:
                options.say(
                    f"note: {other.name} is not sent: it is a copy of {each.latest.name}, and has nothing newer"
                )
    uri = store_uri_of(runs[0], mlflow_uri) if name else store_uri(out, mlflow_uri)
    if experiment is not None:
        check_experiment_name(experiment)
    bar, advance = progress_bar(console())
    sent: dict[str, int] = {}
    elsewhere: dict[str, str] = {}  # experiments that this MLflow has searches and runs in already, by their names
    problems: dict[str, InputError | OSError] = {}
    with bar:
        for number, run in enumerate(runs, start=1):
            try:
                validate_folder(run)
                mark_dead_runs(run)
                sent[run.name] = sync_run(run, uri, experiment)
                if experiment is not None and (kept := experiment_name(uri, run)) != experiment:
                    elsewhere[run.name] = kept
            except (InputError, OSError) as error:
                if not answers(uri):  # the other runs would fail in the same way
                    raise
                problems[run.name] = error
            advance("searches and runs", number, len(runs))
    where = without_password(uri)
    if sent:
        options.say(f"{where} has all of {', '.join(sent)} ({sum(sent.values())} MLflow runs)")
    for run_name, kept in elsewhere.items():
        options.say(f"note: {run_name} stays in the experiment {kept!r}, where {where} had it already")
    if len(problems) == 1:
        raise next(iter(problems.values()))
    if problems:
        raise InputError(
            f"{where}: {len(problems)} of {len(runs)} searches and runs could not be copied completely; correct this, "
            "then run `wmlsearch sync` again",
            [f"{failed}: {error}".replace("\n", "\n    ") for failed, error in problems.items()],
        )


@click.command(short_help="Show the runs in MLflow's UI.")
@options.out
@options.uri
@click.option(
    "--port",
    type=int,
    default=5000,
    show_default=True,
    help="Port of the UI. If it is taken, the next free one is used.",
)
@click.option("--host", default=LOOPBACK, show_default=True, help="IPv4 address to listen on.")
@remote.cluster
def ui(out: Path, mlflow_uri: str | None, port: int, host: str, cluster: str | None) -> None:
    """Show the runs in MLflow's UI, at 127.0.0.1, until Ctrl-C.

    Example: wmlsearch ui
    """
    from wmlsearch.runs.redaction import without_password
    from wmlsearch.tracking.server import running_server
    from wmlsearch.tracking.uri import sqlite_file
    from wmlsearch.workflows.mlflow_store import store_uri

    if not 1 <= port <= 65535:
        raise InputError(f"--port must be a whole number from 1 to 65535, but got {port}")
    if cluster is not None:
        if host != LOOPBACK:
            raise InputError(
                f"--host {host}: a tunnel to a cluster listens on {LOOPBACK} only; leave out --host or --cluster"
            )
        if remote.given(but=("cluster", "port", "host", "out")):
            raise InputError("--mlflow-uri: with --cluster, the UI is that of the head's MLflow; leave out one of them")
        from wmlsearch.cluster.remote import ui as cluster_ui

        sys.exit(cluster_ui(cluster, _free_port(port, LOOPBACK), options.say))
    uri = store_uri(out, mlflow_uri)
    shown = without_password(uri)
    if uri.startswith(("http://", "https://")):
        options.say(f"the MLflow server is at {shown}{_page(uri, out)}")
        return
    store = sqlite_file(uri)
    if store is not None and not store.exists():
        raise InputError(f"{store}: no MLflow store there yet; run `wmlsearch tune` first, or give --out")
    if not _is_loopback(host):
        options.say(
            f"warning: on {host}, anyone who can reach this machine can read, change and delete all runs, images and "
            "models, without a password or encryption; safer: leave out --host and use `ssh -L` from the other machine "
            "(docs/security.md)"
        )
    port = _free_port(port, host)
    log = out / "mlflow-ui.log"
    options.say(f"starting MLflow on {shown} ...")
    with running_server(uri, port, host, log) as server:
        options.say(f"MLflow's UI: http://{host}:{port}{_page(uri, out)}  (Ctrl-C ends it)")
        server.wait()
        raise OSError(f"the MLflow server has ended; see {log}")


def _page(uri: str, out: Path) -> str:
    """Return the path of the UI's page of the latest search that this store has, else of all runs, else ""."""
    from wmlsearch.runs.folders import SearchDir, creation_time, list_runs
    from wmlsearch.runs.redaction import without_password
    from wmlsearch.tracking.experiments import active_experiments
    from wmlsearch.tracking.mlflow_patches import SHARED_VIEW_TAG, view_path
    from wmlsearch.tracking.problems import why

    runs = sorted(list_runs(out), key=creation_time, reverse=True)
    try:
        experiments = active_experiments(uri, runs)
    except Exception as error:  # whatever the server raises
        where = without_password(uri)
        raise InputError(f"{where}: MLflow does not answer ({why(error, uri)})") from None
    for search in runs:
        for experiment in experiments:
            if isinstance(search, SearchDir) and SHARED_VIEW_TAG + search.name in experiment.tags:
                return view_path(experiment.experiment_id, search.name)
    return f"/#/experiments/{experiments[0].experiment_id}/runs" if experiments else ""


def _is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to `host`. Raises InputError if it is not an IPv4 address."""
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        raise InputError(
            f"--host must be an IPv4 address of this machine, such as {LOOPBACK}, but got {host!r}"
        ) from None


def _free_port(first: int, host: str) -> int:
    """Return the first free port of 100. Raises InputError if there is none, or if `host` is not of this machine."""
    for port in range(first, min(first + 100, 65536)):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    raise InputError(
                        f"--host {host}: not an address of this machine; leave it out to use {LOOPBACK}"
                    ) from None
                continue
            return port
    raise InputError(f"--port {first}: ports {first} to {first + 99} are all in use; give another")
