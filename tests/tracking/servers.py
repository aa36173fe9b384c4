"""Real servers for the tests of MLflow: MLflow, PostgreSQL, and what stands in front of a server (proxies, TLS)."""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import wait_for

from wmlsearch.tracking.server import LOOPBACK, is_healthy


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def mlflow_server(
    folder: Path,
    store: str,
    *options: str,
    python: str = sys.executable,
    prefix: str = "",
    environment: dict[str, str] | None = None,
) -> Iterator[str]:
    """Run `mlflow server` on a store, in `folder`; yields its URI."""
    folder.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), folder / "server.log"
    command = [python, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store, *options]
    variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"  # older servers look for gunicorn there
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables, "PATH": path, **(environment or {})},
            start_new_session=True,
        )
        try:
            wait_for(lambda: process.poll() is not None or _answers(port, prefix), 240)
            assert process.poll() is None, log.read_text()[-3000:]
            yield f"http://{LOOPBACK}:{port}{prefix}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(port: int, prefix: str) -> bool:
    if is_healthy(port):
        return True
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=5)
    try:
        connection.request("GET", f"{prefix}/health")
        return connection.getresponse().read() == b"OK"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# ------------------------------------------------------------------------------------------------- in front of a server


@dataclass
class Front:
    """A server that forwards requests to another one, as reverse proxies do."""

    port: int
    requests: list[str] = field(default_factory=list)  # the targets of all requests
    failures: int = 0  # so many of the next requests are answered with 503

    @property
    def uri(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"


@contextlib.contextmanager
def front(
    target: str,
    prefix: str = "",
    authorization: str = "",
    status: int = 401,
    tls: tuple[Path, Path] | None = None,
    takes_files: bool = True,
) -> Iterator[Front]:
    """Forward what comes below `prefix` to the server `target`.

    Args:
        authorization: The value that the header of this name must have; other requests are answered with `status`.
        tls: The files of a certificate and its key.
        takes_files: If not, uploads are answered with 500, and their connection breaks off at its next request.
    """
    host = target.removeprefix("http://")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        is_broken = False  # an instance serves a connection

        def forward(self) -> None:
            if self.is_broken:
                self.close_connection = True
                return None
            seen.requests.append(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if authorization and self.headers.get("Authorization") != authorization:
                return self.answer(status, b"a login is needed", {})
            if seen.failures:
                seen.failures -= 1
                return self.answer(503, b"starting", {})
            if self.command == "PUT" and not takes_files:
                self.is_broken = True
                return self.answer(500, b"cannot store it", {})
            if not self.path.startswith(prefix):
                return self.answer(404, b"<html><h1>404 Not Found</h1><p>nginx</p></html>", {})
            connection = http.client.HTTPConnection(host, timeout=60)
            dropped = ("host", "connection")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
            connection.request(self.command, self.path.removeprefix(prefix) or "/", body or None, headers)
            response = connection.getresponse()
            self.answer(response.status, response.read(), dict(response.getheaders()))
            connection.close()
            return None

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = forward

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer((LOOPBACK, 0), Handler)
    seen = Front(server.server_port)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()


def basic(user: str, password: str) -> str:
    """Return the value of the header Authorization for a login."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def own_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for 127.0.0.1 that is its own CA, and its key."""
    certificate, key = folder / "ca.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=own CA",
         "-addext", f"subjectAltName=IP:{LOOPBACK}", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


# ----------------------------------------------------------------------------------------------------------- PostgreSQL


def postgres_missing() -> str:
    """Return why PostgreSQL cannot run here, or ""."""
    for program in ("postgres", "initdb"):
        if shutil.which(program) is None:
            return f"needs PostgreSQL's {program}"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "PostgreSQL does not run as root, and there is no setpriv"
    return ""


@contextlib.contextmanager
def postgres(folder: Path, password: str) -> Iterator[Callable[[str], str]]:
    """Run PostgreSQL on 127.0.0.1; yields a function that makes a database and returns its URI with the password."""
    root = os.geteuid() == 0
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if root else []
    folder.mkdir(parents=True)
    (folder / "password").write_text(password)
    if root:
        for path in (folder, folder / "password"):
            os.chown(path, 65534, 65534)
    data, port = folder / "data", free_port()
    initdb = ["initdb", "-D", data, "-U", "wml", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "--no-sync"]
    subprocess.run([*user, *map(str, initdb)], check=True, capture_output=True, cwd="/")
    command = ["postgres", "-D", data, "-h", LOOPBACK, "-p", port, "-k", "", "-c", "fsync=off"]
    log = (folder / "log").open("wb")
    process = subprocess.Popen([*user, *map(str, command)], stdout=log, stderr=subprocess.STDOUT, cwd="/")

    def answers() -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection((LOOPBACK, port), timeout=1).close()
            return True
        return False

    def database(name: str) -> str:
        import psycopg

        address = f"postgresql://wml:{password}@{LOOPBACK}:{port}"
        with psycopg.connect(f"{address}/postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"{address}/{name}"

    try:
        wait_for(lambda: process.poll() is not None or answers(), 120)
        assert process.poll() is None, (folder / "log").read_text()
        yield database
    finally:
        process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
        process.wait(60)
        log.close()
