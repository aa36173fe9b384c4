"""Verbs about MLflow: `sync`, `ui`."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import click

from wmlsearch.cli import options


@click.command()
@click.argument("name", required=False)
@options.out
@options.uri
def sync(name: str | None, out: Path, mlflow_uri: str | None) -> None:
    """Copy to MLflow what it lacks of a search or run (default: all of OUT). Twice changes nothing.

    Example: wmlsearch sync search-20261123-201512 --mlflow-uri http://127.0.0.1:5000
    """
    from wmlsearch.display import console, progress_bar
    from wmlsearch.runs import every, find
    from wmlsearch.tracking import sync as sync_run

    runs = [find(name, out)] if name else every(out) or [find(None, out)]
    uri = options.uri_of(out, mlflow_uri)
    bar, advance = progress_bar(console())
    total = 0
    with bar:
        for number, run in enumerate(runs, start=1):
            total += sync_run(run, uri)
            advance("searches and runs", number, len(runs))
    options.say(f"{uri} has all of {', '.join(run.name for run in runs)} ({total} MLflow runs)")


@click.command()
@options.out
@options.uri
@click.option("--port", type=int, default=5000, show_default=True, help="The first free port from here on is taken.")
def ui(out: Path, mlflow_uri: str | None, port: int) -> None:
    """Open MLflow's own pages on the runs, on 127.0.0.1; Ctrl-C ends them.

    Example: wmlsearch ui
    """
    from wmlsearch.config import InputError

    uri = options.uri_of(out, mlflow_uri)
    if uri.startswith(("http://", "https://")):
        options.say(f"the MLflow server is at {uri}")
        return
    store = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not store.exists():
        raise InputError(f"{store}: no MLflow store there yet; run `wmlsearch tune` first, or give --out")
    free = _free_port(port)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        uri,
        "--host",
        "127.0.0.1",
        "--port",
        str(free),
    ]
    options.say(f"MLflow's pages: http://127.0.0.1:{free}  (Ctrl-C ends them)")
    try:
        sys.exit(subprocess.run(command, check=False).returncode)  # noqa: S603 - our own interpreter
    except KeyboardInterrupt:
        sys.exit(0)


def _free_port(first: int) -> int:
    from wmlsearch.config import InputError

    for port in range(first, min(first + 100, 65536)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
            return port
    raise InputError(f"--port {first}: no port from {first} to {first + 99} is free; give another")
