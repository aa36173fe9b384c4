"""The MLflow server of a cluster's head. The cluster file starts it by `python -m wmlsearch.cluster.head_mlflow`.

The server listens on the head's 127.0.0.1 only, at the port of MLFLOW_TRACKING_URI. It answers no other host name and
asks for a password, so that neither other users of the head nor web pages in a browser at the other end of a tunnel can
read it. The password is in ~/.mlflow/credentials, where MLflow's clients on the head look for it. The database is on
the head; the artifacts are below WMLSEARCH_STORAGE if that is set. The server ends when Ray has been gone from the head
for a while, so that `ray down` leaves nothing behind. `wmlsearch ui --cluster` opens a tunnel to it.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from wmlsearch.cluster.head_job import HOME
from wmlsearch.runs.environment import prepare_environment
from wmlsearch.tracking.server import LOOPBACK, is_healthy, start_server
from wmlsearch.tracking.uri import sqlite_uri

START_S = 180.0  # a small machine needs half a minute to import MLflow, and the first start creates the database
GONE_S = 60.0  # `ray up` on a running cluster stops Ray and starts it again within this time
DEFAULT_PORT = 5000
PORT_FILE = "~/wmlsearch-head/mlflow/port"  # names the port of the server, for `wmlsearch ui --cluster`
DEFAULT_RAY = "127.0.0.1:6379"
CREDENTIALS = "~/.mlflow/credentials"  # where MLflow's own clients look
HOSTS = "127.0.0.1,127.0.0.1:*,localhost,localhost:*"  # accepted Host headers: a defence against DNS rebinding
USER = "wmlsearch"


def server_port() -> int:
    """Return the port of the head's MLflow server, which the cluster file sets in MLFLOW_TRACKING_URI."""
    return urlsplit(os.environ.get("MLFLOW_TRACKING_URI", "")).port or DEFAULT_PORT


def start() -> None:
    """Start the server if none runs, and return when it answers. Exit with the end of its log if it does not."""
    folder, port = _server_folder(), server_port()
    (folder / "port").write_text(str(port), encoding="utf-8")
    if is_healthy(port):
        print(f"an MLflow server already runs on {LOOPBACK}:{port}")
        return
    log = folder / "server.log"
    with open(log, "ab") as output:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "wmlsearch.cluster.head_mlflow", "keep"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,  # it outlives the ssh connection that started it
        )
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and keeper.poll() is None:
        if is_healthy(port):
            print(f"the MLflow server runs on {LOOPBACK}:{port}")
            return
        time.sleep(0.5)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    sys.exit(f"the MLflow server does not answer on {LOOPBACK}:{port}; the end of {log}:\n{tail}")


def _server_folder() -> Path:
    """Return the folder of the server's database and log, which only this user can read."""
    folder = HOME / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def credentials() -> tuple[str, str]:
    """Return user and password of the server's administrator. The first call makes them, in a file of mode 0600."""
    path = Path(CREDENTIALS).expanduser()
    config = configparser.ConfigParser(interpolation=None)
    config.read(path)
    section = dict(config["mlflow"]) if config.has_section("mlflow") else {}
    if "mlflow_tracking_username" in section and "mlflow_tracking_password" in section:
        return section["mlflow_tracking_username"], section["mlflow_tracking_password"]
    password = secrets.token_urlsafe(24)
    config["mlflow"] = {**section, "mlflow_tracking_username": USER, "mlflow_tracking_password": password}
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        config.write(file)
    (HOME / "mlflow" / "users.db").unlink(missing_ok=True)  # an administrator in it has another password
    return USER, password


def keep() -> None:
    """Run the server until Ray is gone from the head."""
    server = _start_authenticated_server(_server_folder())
    host, _, ray_port = os.environ.get("RAY_ADDRESS", DEFAULT_RAY).rpartition(":")
    ray_seen = time.monotonic()
    while server.poll() is None and time.monotonic() - ray_seen < GONE_S:
        time.sleep(5)
        if _listens(host or LOOPBACK, int(ray_port)):
            ray_seen = time.monotonic()
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(20)
    server.kill()


def _start_authenticated_server(folder: Path) -> subprocess.Popen[bytes]:
    """Start MLflow with its app `basic-auth`; its two databases are in `folder`."""
    user, password = credentials()
    auth_config = folder / "auth.ini"
    users = sqlite_uri(folder / "users.db").replace("%", "%%")  # MLflow reads the file with interpolation
    auth_config.write_text(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {users}\n", encoding="utf-8")
    artifacts = os.environ.get("WMLSEARCH_STORAGE", "").rstrip("/") or str(folder)
    if "://" not in artifacts:
        Path(artifacts).mkdir(parents=True, exist_ok=True)
    options = ("--workers", "1", "--artifacts-destination", f"{artifacts}/mlflow-artifacts")
    environment = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_AUTH_CONFIG_PATH": str(auth_config),
        "MLFLOW_AUTH_ADMIN_USERNAME": user,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(),
    }
    return start_server(
        sqlite_uri(folder / "mlflow.db"),
        server_port(),
        options=(*options, "--app-name", "basic-auth", "--allowed-hosts", HOSTS),
        environment=environment,
    )


def _listens(host: str, port: int) -> bool:
    """Return whether something listens at `host:port`."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5):
        return True
    return False


def main(verb: str = "start") -> None:
    prepare_environment()
    {"start": start, "keep": keep}[verb]()


if __name__ == "__main__":
    main(*sys.argv[1:])
