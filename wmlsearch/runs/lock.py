"""The lock of a run folder: one process at a time holds it, and the system releases it when that process ends.

The file `owner` is locked and names the process. The process that holds a folder has opened the file for writing and
has an exclusive lock of it, as filelock takes it. `is_running` opens it for reading and tries a shared lock: NFS grants
an exclusive one only to a file that is open for writing, and a folder that is read-only can be asked as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import lock_descriptor

from wmlsearch.config import InputError
from wmlsearch.runs.files import writing

_FILE = "owner"
_ATTEMPTS, _ATTEMPT_S = 5, 0.02  # `is_running` of another process holds the lock for a moment


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process. Raises InputError that names the process that holds it.

    Raises InputError also where the folder's file system cannot lock files.
    """
    with open(folder / _FILE, "a+", encoding="utf-8") as file:
        try:
            locked = _try_lock(file.fileno())
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be locked ({error.strerror or error}); mount its file system with locks, "
                "or give --out on another one"
            ) from None
        if not locked:
            file.seek(0)
            raise _running_already(folder, file.read())
        owner = f"process {os.getpid()} on {socket.gethostname()}\n"
        with writing(folder / _FILE, len(owner)):
            file.truncate(0)
            file.write(owner)
            file.flush()
        yield


def check_not_running(folder: Path) -> None:
    """Raise InputError that names the process that holds this folder, if there is one."""
    if is_running(folder):
        raise _running_already(folder, (folder / _FILE).read_text(encoding="utf-8"))


def is_running(folder: Path) -> bool:
    """Return whether a process holds this folder, or whether that cannot be found out. Nothing is written."""
    with contextlib.suppress(FileNotFoundError), open(folder / _FILE, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # the lock that filelock takes, but shared
        except OSError:
            return True
    return False


def _try_lock(descriptor: int) -> bool:
    """Lock an open file until it is closed. Return False where another process holds the lock."""
    for _ in range(_ATTEMPTS):
        if lock_descriptor(descriptor, blocking=False):
            return True
        time.sleep(_ATTEMPT_S)
    return False


def _running_already(folder: Path, owner: str) -> InputError:
    return InputError(
        f"{folder}: this search is running already ({owner.strip() or 'owner unknown'}); "
        f"follow it with `wmlsearch status {folder}`, or choose another --name"
    )
