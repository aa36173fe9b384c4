"""The dashboard of a Ray cluster, where Ray's Jobs API answers: its address, its token, and a tunnel to it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from wmlsearch.cluster.ray_up import LOOPBACK, ClusterFile, RayCommand, UnreachableError
from wmlsearch.errors import InputError
from wmlsearch.runs.environment import variables_set
from wmlsearch.runs.redaction import without_password

ANSWER_S = 60.0  # of one request; a busy head needs seconds
DASHBOARD_PORT = 8265  # Ray's own
AUTHENTICATION_FILE = "~/.ray/auth_token"  # with the token; Ray's own
HOST_AND_PORT = re.compile(r"(?:[^/\s]*@)?(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}")

Answer = TypeVar("Answer")


class Dashboard:
    """The dashboard of a cluster that is given as `--cluster` takes it. Raises InputError for what is neither.

    Args:
        given: The path of a cluster file, or an address: `http://HOST:8265`, `https://...` or `HOST:8265`.

    Attributes:
        given: The same, to be shown: without the password of an address.
    """

    def __init__(self, given: str) -> None:
        self.address = _as_address(given)
        self.given = given if self.address is None else _shown(given)
        self.file = ClusterFile(Path(given)) if self.address is None else None
        self._tunnel: RayCommand | None = None
        self._client: Any = None
        self._token = _own_token()

    def __enter__(self) -> Dashboard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the tunnel."""
        self._client = None
        if self._tunnel is not None:
            self._tunnel.end()
            self._tunnel = None

    def call(self, request: Callable[[Any], Answer]) -> Answer:
        """Return what `request` returns for Ray's JobSubmissionClient.

        Raises UnreachableError if the cluster does not answer, InputError if it refuses the token, and RuntimeError as
        the client does.
        """
        client = self.client()
        return self._answer(lambda: request(client))

    def client(self) -> Any:
        """Return a client of the Jobs API (ray.job_submission.JobSubmissionClient), connected anew where it must be.

        Raises as `call` does.
        """
        if self._client is None or (self._tunnel is not None and not self._tunnel.alive):
            self.close()
            address = self._reachable_address()
            try:
                self._client = self._answer(lambda: self._connect(address))
            except _RefusedError:
                if self.file is None or (token := self._token_of_head(self.file)) in ("", self._token):
                    raise
                self._token = token
                self._client = self._answer(lambda: self._connect(address))
        return self._client

    def _reachable_address(self) -> str:
        if self.file is None:
            return str(self.address)
        port = free_port()
        self._tunnel = self.file.tunnel(port, DASHBOARD_PORT)
        return f"http://{LOOPBACK}:{port}"

    def _connect(self, address: str) -> Any:
        from ray.job_submission import JobSubmissionClient

        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)  # it tells of each upload
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        # Ray takes RAY_ADDRESS of this machine for the address that is given, but for this variable.
        with variables_set({"RAY_API_SERVER_ADDRESS": address}):
            try:
                return JobSubmissionClient(address, headers=headers)
            except RuntimeError as error:  # another server, or a Ray that is too old
                raise InputError(f"{self.given}: {_in_one_line(error)}") from None

    def _token_of_head(self, file: ClusterFile) -> str:
        """Return the token of the cluster, which its own user can read by ssh; "" if there is none."""
        with tempfile.TemporaryDirectory() as folder:  # mode 0700
            path = Path(folder) / "token"
            return path.read_text(encoding="utf-8").strip() if file.fetch_file(AUTHENTICATION_FILE, path) else ""

    def _answer(self, request: Callable[[], Answer]) -> Answer:
        """Return what a request returns, with the errors of this module in place of Ray's.

        Ray's client waits for ever for a machine that is silent, so that it does so in a thread of its own.
        """
        results: list[Answer] = []
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                results.append(request())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=ask, name="ray-jobs", daemon=True)
        thread.start()
        thread.join(ANSWER_S)
        if results:
            return results[0]
        if not errors:
            raise self._unreachable(f"no answer within {ANSWER_S:g} s")
        error = errors[0]
        import requests
        from ray.exceptions import AuthenticationError

        if isinstance(error, AuthenticationError):
            raise _RefusedError(
                f"{self.given}: the cluster {'refuses the token of this machine' if self._token else 'wants a token'}; "
                f"copy {AUTHENTICATION_FILE} of the cluster's head here (on Kubernetes: the Secret of the cluster), or "
                "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            ) from None
        if isinstance(error, requests.JSONDecodeError):
            raise InputError(
                f"{self.given}: something else than a Ray dashboard answers there; give the address of the dashboard "
                f"(port {DASHBOARD_PORT} unless it was changed)"
            ) from None
        if isinstance(error, OSError):  # those of sockets, and of the library `requests`
            raise self._unreachable(_in_one_line(error)) from None
        raise error

    def _unreachable(self, why: str) -> UnreachableError:
        if self.file is not None:
            return UnreachableError(
                f"{self.given}: the dashboard on the head does not answer ({why}); start or update the cluster with "
                f"`ray up {self.given}`"
            )
        return UnreachableError(
            f"{self.given}: no dashboard answers there ({why}); check the address, and whether `kubectl port-forward` "
            "or the tunnel to it still runs"
        )


class _RefusedError(InputError):
    """The cluster refuses the token."""


def _in_one_line(error: Exception) -> str:
    """Return the text of an error, which may quote the address, without a password."""
    return without_password(" ".join(str(error).split()))[:300]


def free_port() -> int:
    """Return a port of this machine's 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def _as_address(given: str) -> str | None:
    """Return the URL of a dashboard, or None if a file is meant. Raises InputError for addresses of other servers."""
    if given.startswith(("http://", "https://")):
        return given.rstrip("/")
    if "://" in given:
        scheme = given.partition("://")[0]
        raise InputError(
            f"--cluster {_shown(given)}: {scheme}:// is not a dashboard address; give a cluster file of `ray up`, or "
            f"the dashboard's address, such as http://HOST:{DASHBOARD_PORT}"
        )
    if HOST_AND_PORT.fullmatch(given) and not Path(given).exists():
        return f"http://{given}"
    return None


def _shown(address: str) -> str:
    """Return an address of a dashboard without its password."""
    if "://" in address:
        return without_password(address)
    return without_password(f"http://{address}").removeprefix("http://")


def _own_token() -> str:
    """Return the token that this machine has, looked for where Ray looks; "" if there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or AUTHENTICATION_FILE
    with contextlib.suppress(OSError, RuntimeError, UnicodeDecodeError):
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    return ""


@contextlib.contextmanager
def tunnel_to(file: ClusterFile, port: int, remote_port: int) -> Iterator[RayCommand]:
    """Join a port of this machine with one of a cluster's head for the block. Raises UnreachableError."""
    command = file.tunnel(port, remote_port)
    try:
        yield command
    finally:
        command.end()
