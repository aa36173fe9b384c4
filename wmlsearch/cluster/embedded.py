"""What an embedded Ray gets of this machine: a folder for its sockets, memory for its objects, its environment."""

from __future__ import annotations

import functools
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wmlsearch.errors import InputError
from wmlsearch.runs.environment import home_is_writable, loopback_exceptions
from wmlsearch.runs.machine import Machine
from wmlsearch.runs.scratch import SHARED_MEMORY, temporary_folders

EMBEDDED = "WMLSEARCH_EMBEDDED_RAY"  # set in the environment of all processes of an embedded Ray
OBJECT_STORE_BYTES = 200 * 2**20  # nothing that we send is large, and a small store spares /dev/shm
SMALLEST_STORE_BYTES = 80 * 2**20  # Ray refuses less than 75 MiB
LOG_BYTES = 20 * 2**20  # what Ray's servers write for a long search
# The longest path of a socket below the session folder, as Ray names it, and the bytes that the system allows.
LONGEST_SOCKET = "/session_2026-11-28_21-31-40_123456_4194304/sockets/plasma_store"
SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
_PREFIX = "wmlsearch-ray-"  # of the session folder, see runs/scratch.py
_RANDOM_BYTES = 8  # of a name that tempfile makes


@dataclass(frozen=True)
class ObjectStore:
    """The memory of Ray's object store, and where it is."""

    size: int  # bytes
    in_shared_memory: bool  # else in the session folder


def object_store() -> ObjectStore:
    """Return the largest object store, up to what is needed, that fits into shared memory; else a small one on disk."""
    try:
        free = _free_bytes(SHARED_MEMORY)
    except OSError:  # macOS has none
        return ObjectStore(OBJECT_STORE_BYTES, False)
    size = min(OBJECT_STORE_BYTES, int(0.9 * free))
    return ObjectStore(size, True) if size >= SMALLEST_STORE_BYTES else ObjectStore(SMALLEST_STORE_BYTES, False)


def session_parent(store: ObjectStore) -> Path:
    """Return the folder for the session folder: its path must be short, since that holds sockets, and its disk free.

    The usual temporary folder comes first. Raises InputError that says why none of the folders can be used.
    """
    needed = _needed(store)
    faults = {folder: _fault_of(folder, needed) for folder in temporary_folders()}
    for folder, fault in faults.items():
        if not fault:
            return folder
    longest = SOCKET_BYTES - len(LONGEST_SOCKET) - len(_PREFIX) - _RANDOM_BYTES - 1
    reasons = "; ".join(f"{folder} {fault}" for folder, fault in faults.items())
    raise InputError(
        f"Ray needs a temporary folder with a path of at most {longest} bytes and {_mb(needed)} MB: {reasons}; "
        "set TMPDIR to such a folder, or mount one at /tmp"
    )


def explain(store: ObjectStore, folder: Path, say: Callable[[str], None]) -> None:
    """Tell the user what is not as usual: another temporary folder, or an object store outside of shared memory."""
    usual = Path(tempfile.gettempdir())
    if folder != usual:
        say(f"note: Ray's sockets and logs are in {folder}, since {usual} {_fault_of(usual, _needed(store))}")
    if not store.in_shared_memory and SHARED_MEMORY.is_dir():
        free = _mb(_free_bytes(SHARED_MEMORY))
        say(
            f"note: {SHARED_MEMORY} has {free} MB free, so Ray's object store ({_mb(store.size)} MB) is in {folder}; "
            "this costs little time (`docker run --shm-size=1g` gives a container more)"
        )


def embedded_variables() -> dict[str, str]:
    """Return the environment of an embedded Ray: its ranks use the loopback interface ("lo", on macOS "lo0").

    Ray's memory monitor reads the limits of the whole machine or of a container, but not those of the groups between.
    Where a group limits memory, the system itself ends a process that takes too much: first a worker, whose turn Ray
    has set, and the recorder says so.
    """
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")
    variables = {EMBEDDED: "1", "GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    variables |= loopback_exceptions(os.environ)
    if Machine().memory_is_limited():
        variables["RAY_memory_monitor_refresh_ms"] = "0"
    if not _token_can_be_stored() and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        variables["RAY_AUTH_TOKEN"] = os.environ.get("RAY_AUTH_TOKEN") or _token()
    return variables


def _needed(store: ObjectStore) -> int:
    """Return the bytes that the session folder needs."""
    return LOG_BYTES + (0 if store.in_shared_memory else store.size)


def _token_can_be_stored() -> bool:
    """Return whether Ray finds its token in ~/.ray/auth_token, or can write one there."""
    if not home_is_writable():
        return False
    file = Path("~/.ray/auth_token").expanduser()
    return os.access(file, os.R_OK) or not file.parent.exists() or os.access(file.parent, os.W_OK | os.X_OK)


@functools.cache
def _token() -> str:
    """Return the token of the embedded Rays of this process, which Ray keeps once it has read it."""
    return secrets.token_hex(32)


def _fault_of(folder: Path, needed: int) -> str:
    """Return why Ray's session folder cannot be in `folder`, or "" if it can."""
    length = len(os.fsencode(folder / _PREFIX)) + _RANDOM_BYTES + len(LONGEST_SOCKET)
    if length > SOCKET_BYTES:
        return f"is too long a path for sockets ({length} of {SOCKET_BYTES} bytes)"
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return "cannot be written"
    if (free := _free_bytes(folder)) < needed:
        return f"has {_mb(free)} MB free"
    return ""


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _mb(size: int) -> int:
    return round(size / 1e6)
