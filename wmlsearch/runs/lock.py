"""The lock of a run folder: one process at a time holds it, and the system releases it when that process ends.

It is a `flock` on the file `owner`, which names the process. `filelock` takes the same lock, but cannot ask who holds
it without writing, as `is_running` does in a folder that may be read-only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from wmlsearch.config import InputError
from wmlsearch.runs.files import writing

_FILE = "owner"


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process. Raises InputError that names the process that holds it."""
    with open(folder / _FILE, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise _runs_already(folder, file.read()) from None
        owner = f"process {os.getpid()} on {socket.gethostname()}\n"
        with writing(folder / _FILE, len(owner)):
            file.truncate(0)
            file.write(owner)
            file.flush()
        yield


def check_not_running(folder: Path) -> None:
    """Raise InputError that names the process that holds this folder, if there is one."""
    if is_running(folder):
        raise _runs_already(folder, (folder / _FILE).read_text(encoding="utf-8"))


def is_running(folder: Path) -> bool:
    """Return whether a process holds this folder. Nothing is written."""
    with contextlib.suppress(FileNotFoundError), open(folder / _FILE, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _runs_already(folder: Path, owner: str) -> InputError:
    return InputError(
        f"{folder}: this search is running already ({owner.strip() or 'owner unknown'}); "
        f"follow it with `wmlsearch status {folder}`, or choose another --name"
    )
