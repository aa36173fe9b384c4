"""Verbs about MLflow: `sync`, `ui`."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from wmlsearch.cli import options, remote

HERE = "127.0.0.1"


@click.command(short_help="Copy to MLflow what it lacks.")
@click.argument("name", required=False)
@options.out
@options.uri
def sync(name: str | None, out: Path, mlflow_uri: str | None) -> None:
    """Copy to MLflow what it lacks of a search or run (default: all of OUT). Twice changes nothing.

    One that is damaged, or that MLflow doesn't take, is named at the end; the others don't wait for it.

    Example: wmlsearch sync search-20261123-201512 --mlflow-uri http://127.0.0.1:5000
    """
    from wmlsearch.cli.console import console, progress_bar
    from wmlsearch.config import InputError
    from wmlsearch.runs.folders import every, find, mark_dead_runs
    from wmlsearch.runs.redaction import without_password
    from wmlsearch.runs.schema import check
    from wmlsearch.tracking.client import answers
    from wmlsearch.tracking.sync import sync as sync_run

    runs = [find(name, out)] if name else every(out) or [find(None, out)]
    uri = options.uri_of(out, mlflow_uri)
    bar, advance = progress_bar(console())
    sent: dict[str, int] = {}
    problems: dict[str, InputError | OSError] = {}
    with bar:
        for number, run in enumerate(runs, start=1):
            try:
                check(run)
                mark_dead_runs(run)
                sent[run.name] = sync_run(run, uri)
            except (InputError, OSError) as error:
                if not answers(uri):  # nor will it for the others
                    raise
                problems[run.name] = error
            advance("searches and runs", number, len(runs))
    where = without_password(uri)
    if sent:
        options.say(f"{where} has all of {', '.join(sent)} ({sum(sent.values())} MLflow runs)")
    if len(problems) == 1:
        raise next(iter(problems.values()))
    if problems:
        raise InputError(
            f"{where} lacks some of {len(problems)} of {len(runs)} searches and runs; mend that, then `wmlsearch "
            "sync` again",
            [f"{it}: {error}".replace("\n", "\n    ") for it, error in problems.items()],
        )


@click.command(short_help="Open MLflow's pages on the runs.")
@options.out
@options.uri
@click.option("--port", type=int, default=5000, show_default=True, help="The first free port from here on is taken.")
@click.option("--host", default=HERE, show_default=True, help="The address to listen on. Others are open to others.")
@remote.cluster
def ui(out: Path, mlflow_uri: str | None, port: int, host: str, cluster: Path | None) -> None:
    """Open MLflow's own pages on the runs, on 127.0.0.1; Ctrl-C ends them.

    Example: wmlsearch ui
    """
    from wmlsearch.config import InputError
    from wmlsearch.runs.redaction import without_password

    if not 1 <= port <= 65535:
        raise InputError(f"--port must be a whole number from 1 to 65535, but got {port}")
    if cluster is not None:
        if host != HERE:
            raise InputError(f"--host {host}: a tunnel to a cluster ends on {HERE} only; leave one of the two out")
        if remote.given(but=("cluster", "port", "host", "out")):
            raise InputError("--mlflow-uri: with --cluster the pages are those of its head; leave one of the two out")
        from wmlsearch.cluster.remote import ui as ui_there

        sys.exit(ui_there(cluster, _free_port(port, HERE), options.say))
    uri = options.uri_of(out, mlflow_uri)
    shown = without_password(uri)
    if uri.startswith(("http://", "https://")):
        options.say(f"the MLflow server is at {shown.rstrip('/')}{_page(uri, out)}")
        return
    store = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not store.exists():
        raise InputError(f"{store}: no MLflow store there yet; run `wmlsearch tune` first, or give --out")
    if not _is_loopback(host):
        options.say(
            f"mind: on {host}, whoever reaches this machine can read, change and delete all runs, pictures and models, "
            "with no password and no encryption; safer: leave --host out, and `ssh -L` from the other machine "
            "(docs/security.md)"
        )
    address = f"http://{host}:{_free_port(port, host)}"
    log = out / "mlflow-ui.log"
    options.say(f"starting MLflow on {shown} ...")
    with _server(uri, address, log) as server:
        options.say(f"MLflow's pages: {address}{_page(uri, out)}  (Ctrl-C ends them)")
        server.wait()
        raise OSError(f"MLflow has ended by itself; why, stands in {log}")


@contextlib.contextmanager
def _server(uri: str, address: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server, once it answers; it and all its helpers end with the block."""
    from wmlsearch.runs.redaction import without_password

    host, _, port = address.removeprefix("http://").rpartition(":")
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", port]
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,  # it may hold a password, and all users of the machine see a command's words
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # of no use here, and many processes
    }
    asked: list[int] = []  # to end, before there is a server that would be left behind
    signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        server = subprocess.Popen(  # noqa: S603 - our own interpreter
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            if asked:
                sys.exit(0)
            while not _answers(address):
                if server.poll() is not None:
                    raise OSError(f"MLflow doesn't start on {without_password(uri)}; why, stands in {log}")
                time.sleep(0.2)
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def _answers(address: str) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2):  # noqa: S310 - our own address
            return True
    except OSError:
        return False


def _page(uri: str, out: Path) -> str:
    """The page of the latest search, where this store knows it, or of all runs."""
    from wmlsearch.config import InputError
    from wmlsearch.runs.folders import SearchDir, created, every
    from wmlsearch.runs.redaction import without_password
    from wmlsearch.tracking.client import connect, why
    from wmlsearch.tracking.sync import DELETED, EXPERIMENT
    from wmlsearch.tracking.ui_views import TAG, page

    try:
        found = connect(uri).get_experiment_by_name(EXPERIMENT)
    except Exception as error:  # whatever the server raises
        where = without_password(uri)
        raise InputError(f"{where}: MLflow doesn't answer ({why(error, uri)}); is the server up?") from None
    if found is None or found.lifecycle_stage == DELETED:
        return ""
    searches = sorted((it for it in every(out) if isinstance(it, SearchDir)), key=created)
    known = [it.name for it in searches if TAG + it.name in found.tags]
    return page(found.experiment_id, known[-1]) if known else f"/#/experiments/{found.experiment_id}/runs"


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there. Raises InputError for what is no IPv4 address."""
    from wmlsearch.config import InputError

    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        raise InputError(f"--host must be an IPv4 address of this machine, such as {HERE}, but got {host!r}") from None


def _free_port(first: int, host: str) -> int:
    from wmlsearch.config import InputError

    for port in range(first, min(first + 100, 65536)):
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    raise InputError(f"--host {host}: is no address of this machine; leave it out for {HERE}") from None
                continue
            return port
    raise InputError(f"--port {first}: no port from {first} to {first + 99} is free; give another")
