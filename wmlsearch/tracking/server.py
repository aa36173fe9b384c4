"""An MLflow server as a process: start it, ask whether it answers, end it.

The command line imports this module for `--help`: nothing slow is imported at its top.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO

from wmlsearch.runs.redaction import without_password

LOOPBACK = "127.0.0.1"


def is_healthy(port: int, host: str = LOOPBACK) -> bool:
    """Return whether an MLflow server answers at `host:port` within five seconds."""
    connection = HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().read() == b"OK"
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def start_server(
    store: str,
    port: int,
    host: str = LOOPBACK,
    options: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
    log: IO[bytes] | None = None,
    new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `mlflow server` on the tracking store `store`; return its process without waiting for an answer.

    Args:
        options: More options of `mlflow server`.
        environment: Variables beside those of this process.
        log: A file for its output; None: the output of this process.
        new_session: Whether the server gets its own process group, so that it can be ended as a whole.
    """
    from wmlsearch.tracking.uri import sqlite_file

    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), *options]
    file, folder = sqlite_file(store), None
    if file is not None and set("%?") & set(store) - set(file.name):
        # Of the path in a URI, MLflow makes a folder as it stands there, quoted: it gets a URI without the folder.
        store, folder = f"sqlite:///{file.name}", file.parent
    variables = {
        # Not an option: the URI may hold a password, and all users of a machine can read command lines.
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # jobs are not used here, and need many processes
        "PYTHONSAFEPATH": "1",  # in its workers too: the user's folder may hold a types.py
    }
    return subprocess.Popen(  # noqa: S603 - our own interpreter
        command,
        cwd=folder,
        stdout=log,
        stderr=subprocess.STDOUT if log is not None else None,
        env={**os.environ, **variables, **(environment or {})},
        start_new_session=new_session,
    )


@contextlib.contextmanager
def running_server(store: str, port: int, host: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run an MLflow server for the block, from its first answer on; SIGTERM ends the block.

    The server and its workers end with the block. Raises OSError that names `log` if the server does not start.
    """
    pending: list[int] = []  # SIGTERMs that came before there was a server to end
    signal.signal(signal.SIGTERM, lambda number, _frame: pending.append(number))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        server = start_server(store, port, host, log=output, new_session=True)
        try:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            if pending:
                sys.exit(0)
            while not is_healthy(port, host):
                if server.poll() is not None:
                    raise OSError(f"the MLflow server does not start on {without_password(store)}; see {log}")
                time.sleep(0.2)
            yield server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()
