"""A proxy that injects network faults between a search and its MLflow server, and the server itself."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from processes import wait_for

HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "host")


class Proxy:
    """Forwards requests to the port `target`, or injects the fault `mode`; `done` counts the requests of each mode.

    Modes: "pass"; "500" and "429" (the proxy answers with this status); "hang" (accepts and never answers); "cut"
    (forwards the request, then closes the connection before the answer: the server has it, the client cannot know).
    """

    def __init__(self, target: int, mode: str = "pass") -> None:
        self.target, self.mode, self.done = target, mode, Counter[str]()
        self._free = threading.Event()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60

            def _do(self) -> None:
                proxy.handle(self)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _do

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self._free.set()
        self.server.shutdown()
        self.server.server_close()

    def set(self, mode: str) -> None:
        self.mode = mode
        self._free.set()  # release the requests that hang; their connections are closed
        self._free = threading.Event()

    def handle(self, request: http.server.BaseHTTPRequestHandler) -> None:
        mode, free = self.mode, self._free
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.done[mode] += 1
        if mode in ("500", "429"):
            request.send_response(int(mode))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if mode == "hang":
            free.wait()
            request.close_connection = True
            return
        try:
            status, headers, content = self._ask(request, body)
        except OSError:  # the server is down, so the proxy appears to be down too
            request.close_connection = True
            with contextlib.suppress(OSError):
                request.connection.shutdown(socket.SHUT_RDWR)
            return
        if mode == "cut" and request.command != "GET":
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        with contextlib.suppress(OSError):  # the client has disconnected
            request.send_response(status)
            for name, value in headers:
                if name.lower() not in HOP:
                    request.send_header(name, value)
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content)

    def _ask(
        self, request: http.server.BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.target, timeout=60)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP}
        try:
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from None
        finally:
            connection.close()


class Server:
    """A real `mlflow server` on a SQLite store that can be killed with its worker processes and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "mlflow.db"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.store}",
                 "--artifacts-destination", str(self.folder / "artifacts"), "--workers", "1",
                 "--host", "127.0.0.1", "--port", str(self.port)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )  # fmt: skip

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        """Kill the server and its workers, that is its process group, with SIGKILL."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def up(self) -> None:
        self.start()
        wait_for(self.answers, 120)
