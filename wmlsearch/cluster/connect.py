"""Where Ray is, what fits on it, and what waits: an embedded Ray of our own, or a cluster that is there already."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import ray

from wmlsearch.cluster.ray_patches import _quiet
from wmlsearch.cluster.resources import available_cpus
from wmlsearch.config import InputError

CONNECT_TIMEOUT_S = 30
EMBEDDED = "WMLSEARCH_EMBEDDED_RAY"  # in the environment of all processes of an embedded Ray


@contextlib.contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Connected to the cluster at `address`, or to an embedded Ray of our own that ends with the block.

    Others on this machine are neither joined nor disturbed. Raises InputError where the cluster doesn't answer, and
    ConnectionError where Ray's own servers don't come up, twice.
    """
    with _connected(address) if address else _embedded(), _quiet():
        for name in ("ray.tune", "ray.train"):  # what fails there is told by the run folder, with its reason
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield


@contextlib.contextmanager
def _embedded() -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="wmlsearch-ray-")  # short: it holds sockets, whose paths may have 107 characters
    before = dict(os.environ)
    os.environ |= _on_this_machine_only()
    try:
        try:
            _start(folder)
        except ConnectionError:  # Ray gives them 30 s, which a machine may exceed that is very busy just then
            ray.shutdown()
            _start(folder)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        for name in _on_this_machine_only():
            os.environ.pop(name)
            os.environ |= {name: before[name]} if name in before else {}


def _start(folder: str) -> None:
    """Raises ConnectionError where Ray's servers don't come up."""
    try:
        ray.init(
            address="local",
            num_cpus=available_cpus(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
            # Ray may hold objects for us, but nothing that we send is big: a small store spares /dev/shm
            object_store_memory=200 * 2**20,
        )
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # of a file: it is full, or may not be written
        why = " ".join(str(error).split())[:200]
        raise ConnectionError(
            f"Ray's servers have not come up on this machine ({why}); is it very busy or short of memory "
            "(`uptime`, `free`)? Then say the command again when it is not"
        ) from error


def _on_this_machine_only() -> dict[str, str]:
    """The environment of an embedded Ray: its ranks talk over the loopback interface ("lo", on a Mac "lo0")."""
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")
    return {EMBEDDED: "1", "GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    check_reachable(address)
    failure: list[BaseException] = []

    def connect() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
        except BaseException as error:
            failure.append(error)

    # Ray retries for long and says why on the error stream only: a thread of its own, and an eye on that stream, so
    # that a wrong address or token is told at once, in one message.
    thread = threading.Thread(target=connect, name="ray-connect", daemon=True)
    end = time.monotonic() + CONNECT_TIMEOUT_S
    with _error_stream() as said:
        thread.start()
        while thread.is_alive() and "InvalidAuthToken" not in said() and time.monotonic() < end:
            thread.join(0.1)
        refused = "InvalidAuthToken" in said()
    if refused:
        raise InputError(
            f"{address}: the cluster wants its token, and this machine has none or another; copy ~/.ray/auth_token "
            "from the head, or set RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token"
        )
    if thread.is_alive():
        raise _nobody(address, f"no answer within {CONNECT_TIMEOUT_S} s")
    if failure:
        raise _nobody(address, " ".join(str(failure[0]).split())[:200]) from None
    try:
        yield
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """Whether anybody listens there, before Ray tries for long. Raises InputError."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        except (OSError, OverflowError) as error:
            raise _nobody(address, getattr(error, "strerror", None) or str(error)) from None


def _nobody(address: str, reason: str) -> InputError:
    return InputError(
        f"{address}: no Ray cluster answers there ({reason}); is it up (`ray up cluster.yaml`), "
        "and is the address right? (--ray-address, RAY_ADDRESS)"
    )


@contextlib.contextmanager
def _error_stream() -> Iterator[Callable[[], str]]:
    """Keep what this process writes on its error stream, Ray's own core included, to be read instead of shown."""
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: os.pread(file.fileno(), 2**20, 0).decode(errors="replace")
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
