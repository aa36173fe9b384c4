"""Connect to Ray: to an embedded Ray that this process starts and ends, or to a running cluster."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import ray

from wmlsearch.cluster.embedded import ObjectStore, embedded_variables, explain, object_store, session_parent
from wmlsearch.cluster.ray_patches import AUTHENTICATION_REFUSED, quiet_raylets
from wmlsearch.errors import InputError
from wmlsearch.runs.environment import prepared_environment, variables_set
from wmlsearch.runs.interrupts import handlers_kept
from wmlsearch.runs.machine import available_cpus
from wmlsearch.runs.scratch import remove_abandoned, scratch_folder

CONNECT_TIMEOUT_S = 30


@contextlib.contextmanager
def ray_session(address: str | None, say: Callable[[str], None] = print) -> Iterator[None]:
    """Connect to the cluster at `address`, or without one start an embedded Ray; both end with the block.

    An embedded Ray neither joins nor disturbs other Rays of this machine. Where this process is connected to the
    cluster already, as a notebook can be, it stays so. Raises InputError if the cluster does not answer, and
    ConnectionError if the servers of an embedded Ray do not start in two attempts.

    Args:
        address: "HOST:PORT" or "auto"; None: an embedded Ray.
        say: Shows the user what is unusual about an embedded Ray, such as another temporary folder.
    """
    remove_abandoned()  # of searches that a reboot ended
    with contextlib.ExitStack() as stack:
        stack.enter_context(prepared_environment())
        if address:
            stack.enter_context(_temporary_files_in(stack.enter_context(scratch_folder("ray"))))
            stack.enter_context(_session(address))
        else:
            stack.enter_context(_embedded(say))
        stack.enter_context(quiet_raylets())
        for name in ("ray.tune", "ray.train"):  # the run folder says what failed there, and why
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield


def own_address() -> str | None:
    """Return the address of the Ray that this process is connected to, or None."""
    return str(ray.get_runtime_context().gcs_address) if ray.is_initialized() else None


def _session(address: str) -> contextlib.AbstractContextManager[None]:
    connected_to = own_address()
    if connected_to is None:
        return _connected(address)
    if address != "auto" and not same_server(address, connected_to):
        raise InputError(
            f"{address}: this process is connected to another Ray, at {connected_to}; call ray.shutdown() first, or "
            "leave the address out"
        )
    return contextlib.nullcontext()


def same_server(address: str, other: str) -> bool:
    """Return whether two addresses ("HOST:PORT") are of one server: Ray itself writes the node's IP for 127.0.0.1."""
    (host, _, port), (other_host, _, other_port) = address.rpartition(":"), other.rpartition(":")
    return port == other_port and bool(_ips(host) & _ips(other_host))


def _ips(host: str) -> set[str]:
    """Return the IPs of a host; of this machine's loopback also the one at which other machines reach it."""
    host = host.strip("[]")
    try:
        ips = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    except OSError:  # no such name
        return {host}
    if any(ipaddress.ip_address(ip.partition("%")[0]).is_loopback for ip in ips):
        ips |= {"127.0.0.1", ray.util.get_node_ip_address()}
    return ips


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Let all temporary files of this process, and of those that it starts, be made in a folder that is removed."""
    inside = folder / "tmp"
    inside.mkdir()
    default, tempfile.tempdir = tempfile.tempdir, str(inside)
    try:
        with variables_set({"TMPDIR": str(inside)}):
            yield
    finally:
        tempfile.tempdir = default


@contextlib.contextmanager
def _embedded(say: Callable[[str], None]) -> Iterator[None]:
    store = object_store()
    usual, parent = Path(tempfile.gettempdir()), session_parent(store)
    explain(store, parent, say)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch_folder("ray", parent))
        files = folder if parent == usual else stack.enter_context(scratch_folder("files"))
        stack.enter_context(_temporary_files_in(files))
        stack.enter_context(variables_set(embedded_variables()))
        try:
            try:
                _start(folder, store)
            except ConnectionError:  # Ray waits 30 s for its servers, which may not be enough on a very busy machine
                ray.shutdown()
                _start(folder, store)
            yield
        finally:
            ray.shutdown()


def _start(folder: Path, store: ObjectStore) -> None:
    """Start an embedded Ray. Raises ConnectionError if its servers do not start, OSError for a file."""
    try:
        with handlers_kept():
            ray.init(
                address="local",
                num_cpus=available_cpus(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),  # short: it holds sockets, whose paths may have 107 characters
                object_store_memory=store.size,
                _plasma_directory=None if store.in_shared_memory else str(folder),
            )
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # about a file: the disk is full, or the folder cannot be written
        why = " ".join(str(error).split())[:200]
        raise ConnectionError(
            f"Ray's servers did not start on this machine ({why}); check with `uptime` and `free` whether it is very "
            "busy or short of memory, then run the command again"
        ) from error


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    check_reachable(address)
    _connect(address)
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    """Connect to a cluster. Raises InputError within CONNECT_TIMEOUT_S.

    Ray itself retries for long, and says why on the error stream only. So it connects in a thread, and this one reads
    the error stream: a wrong address or token then gives one message at once.
    """
    failure: list[BaseException] = []

    def connect() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=connect, name="ray-connect", daemon=True)
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    with _captured_error_stream() as written:
        thread.start()
        while thread.is_alive() and AUTHENTICATION_REFUSED not in written() and time.monotonic() < deadline:
            thread.join(0.1)
        refused = AUTHENTICATION_REFUSED in written()
    if refused:
        raise InputError(
            f"{address}: the cluster requires a token, and this machine has none or a different one; copy "
            "~/.ray/auth_token from the head, or set RAY_AUTH_TOKEN, and set RAY_AUTH_MODE=token"
        )
    if thread.is_alive():
        raise _unreachable(address, f"no answer within {CONNECT_TIMEOUT_S} s")
    if failure:
        raise _unreachable(address, " ".join(str(failure[0]).split())[:200]) from None


def check_reachable(address: str) -> None:
    """Raises InputError if nothing listens at `address` ("HOST:PORT"; other forms are not checked)."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        except (OSError, OverflowError) as error:
            raise _unreachable(address, getattr(error, "strerror", None) or str(error)) from None


def _unreachable(address: str, reason: str) -> InputError:
    return InputError(
        f"{address}: no Ray cluster answers there ({reason}); start it with `ray up cluster.yaml` (`wmlsearch "
        "cluster-file` writes one), or correct the address (--ray-address or RAY_ADDRESS)"
    )


@contextlib.contextmanager
def _captured_error_stream() -> Iterator[Callable[[], str]]:
    """Capture what this process, Ray's C++ core included, writes to stderr; yields a function that returns it."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: os.pread(file.fileno(), 2**20, 0).decode(errors="replace")
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
