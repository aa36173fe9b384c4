"""The MLflow server of a cluster's head. The cluster file starts it by `python -m wmlsearch.cluster.head_mlflow`.

It listens on 127.0.0.1 of the head only, at the port of MLFLOW_TRACKING_URI, answers no other host name, and asks for
a password: other users of the head, and pages in a browser at the far end of a tunnel, are no readers. The password
lies in ~/.mlflow/credentials, where MLflow's clients on the head find it by themselves. Its database is on the head,
its artifacts below WMLSEARCH_STORAGE where that is given. It ends by itself when Ray has been gone from the head for a
while, so that `ray down` leaves nothing behind. `tunnel` is the head's end of `wmlsearch ui --cluster`.
"""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from wmlsearch.cluster.head_agent import HOME, tell

START_S = 180.0  # a small machine imports MLflow in half a minute, and the first start makes the database
GONE_S = 60.0  # `ray up` on a running cluster stops Ray and starts it again within this time
DEFAULT_URI = "http://127.0.0.1:5000"
DEFAULT_RAY = "127.0.0.1:6379"
CREDENTIALS = "~/.mlflow/credentials"  # where MLflow's own clients look
HOSTS = "127.0.0.1,127.0.0.1:*,localhost,localhost:*"  # by which the server may be called: no others through DNS
USER = "wmlsearch"


def port() -> int:
    """The port of the head's MLflow server, as the cluster file sets it."""
    return urlsplit(os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_URI)).port or 5000


def healthy(port: int) -> bool:
    """Whether an MLflow server answers there."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().read() == b"OK"
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def start() -> None:
    """Start the server unless it runs; returns when it answers. Exits with its log's last lines when it does not."""
    folder, where = _folder(), port()
    if healthy(where):
        print(f"the MLflow server runs already, on 127.0.0.1:{where}")
        return
    log = folder / "server.log"
    with open(log, "ab") as file:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "wmlsearch.cluster.head_mlflow", "keep"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,  # it outlives the connection that started it
        )
    until = time.monotonic() + START_S
    while time.monotonic() < until and keeper.poll() is None:
        if healthy(where):
            print(f"the MLflow server runs on 127.0.0.1:{where}")
            return
        time.sleep(0.5)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    sys.exit(f"the MLflow server has not answered on 127.0.0.1:{where}; the end of {log}:\n{tail}")


def _folder() -> Path:
    """Where the server keeps its database and log; nobody else may look into it."""
    folder = HOME / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def credentials() -> tuple[str, str]:
    """User and password of the server's administrator, made at the first call; only this user can read the file."""
    path = Path(CREDENTIALS).expanduser()
    known = configparser.ConfigParser(interpolation=None)
    known.read(path)
    found = dict(known["mlflow"]) if known.has_section("mlflow") else {}
    if "mlflow_tracking_username" in found and "mlflow_tracking_password" in found:
        return found["mlflow_tracking_username"], found["mlflow_tracking_password"]
    password = secrets.token_urlsafe(24)
    known["mlflow"] = {**found, "mlflow_tracking_username": USER, "mlflow_tracking_password": password}
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        known.write(file)
    (HOME / "mlflow" / "users.db").unlink(missing_ok=True)  # its administrator has another password
    return USER, password


def keep() -> None:
    """Run the server until Ray is gone from the head."""
    folder = _folder()
    user, password = credentials()
    users = folder / "auth.ini"
    users.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/users.db\n", encoding="utf-8"
    )
    artifacts = os.environ.get("WMLSEARCH_STORAGE", "").rstrip("/") or str(folder)
    if "://" not in artifacts:
        Path(artifacts).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port()), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", f"{artifacts}/mlflow-artifacts"]
    command += ["--app-name", "basic-auth", "--allowed-hosts", HOSTS]
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_AUTH_CONFIG_PATH": str(users),
        "MLFLOW_AUTH_ADMIN_USERNAME": user,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(),
    }
    server = subprocess.Popen(command, env=environment)  # noqa: S603 - our own interpreter
    host, _, ray_port = os.environ.get("RAY_ADDRESS", DEFAULT_RAY).rpartition(":")
    seen = time.monotonic()
    while server.poll() is None and time.monotonic() - seen < GONE_S:
        time.sleep(5)
        if _listens(host or "127.0.0.1", int(ray_port)):
            seen = time.monotonic()
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(20)
    server.kill()


def tunnel(port_there: int) -> None:
    """Until the connection to the laptop ends: let the server be reached at this port of the head's 127.0.0.1 too.

    `ray exec --port-forward` joins equal ports only, and the server's may be taken on the laptop.
    """
    target = port()
    if not healthy(target):
        return tell(error=f"no MLflow server answers on the head's 127.0.0.1:{target}")
    if port_there != target and _listens("127.0.0.1", port_there):
        return tell(error=f"port {port_there} is taken on the head")
    tell(open=port_there)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_relay(port_there, target) if port_there != target else asyncio.sleep(1e9))


async def _relay(port_there: int, target: int) -> None:
    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(joined, "127.0.0.1", port_there)
    async with server:
        await server.serve_forever()


def _listens(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5):
        return True
    return False


def main(verb: str = "start", *words: str) -> None:
    if verb == "tunnel":
        tunnel(int(words[0]))
    else:
        {"start": start, "keep": keep}[verb]()


if __name__ == "__main__":
    main(*sys.argv[1:])
