"""Temporary folders that are removed even if their process is killed.

A small process waits for the end of the one that uses the folder, and removes it then. Where both are killed, as by a
reboot, the folder stays, and a later command removes it (`remove_abandoned`), if it is sure that the process is dead:
the file `owner` names it, and is locked as long as it lives. A lock alone would not do, since machines may share a
temporary folder whose file system has no locks, or grants all of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from wmlsearch.runs.file_systems import NO_LOCKS
from wmlsearch.runs.process import Process

# Ray's choice, and where its session may be if the usual folder will not do, in a folder of its own.
SHARED_MEMORY, OTHER_FOLDERS = Path("/dev/shm"), ("/tmp", "/var/tmp")  # noqa: S108
_PREFIX = "wmlsearch-"
_OWNER = "owner"
# Other processes of the killed one may still write: the folder is removed again until it is gone. A batch system sends
# SIGTERM to all processes of a job at once, this one too.
_REMOVER = """
import shutil, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.stdin.read()
for _ in range(50):
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    time.sleep(0.2)
    try:
        __import__("os").lstat(sys.argv[1])
    except FileNotFoundError:
        break
"""


def temporary_folders() -> list[Path]:
    """Return the folders that may hold temporary files, the usual one first."""
    usual = [tempfile.gettempdir(), *OTHER_FOLDERS, os.environ.get("XDG_RUNTIME_DIR", ""), str(SHARED_MEMORY)]
    return [Path(folder) for folder in dict.fromkeys(usual) if folder]


@contextlib.contextmanager
def scratch_folder(kind: str, parent: Path | None = None) -> Iterator[Path]:
    """Make a folder `wmlsearch-KIND-...` in `parent` or the temporary folder, and remove it after the block.

    Only the process that created the folder removes it, not a fork.
    """
    process = os.getpid()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{kind}-", dir=parent))
    with _removed_after_kill(folder):
        try:
            with _locked_owner(folder):
                yield folder
        finally:
            if os.getpid() == process:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked_owner(folder: Path) -> Iterator[None]:
    """Hold a lock of the file `owner`, which names this process. It appears locked, so nobody finds it without."""
    aside = folder / f".{_OWNER}"
    with open(aside, "w", encoding="utf-8") as file:
        with contextlib.suppress(OSError):  # a file system without locks: the process has to do
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write(json.dumps(Process.of_this_one().as_plain()))
        file.flush()
        aside.rename(folder / _OWNER)
        yield


@contextlib.contextmanager
def _removed_after_kill(folder: Path) -> Iterator[None]:
    """Start the process that removes the folder when this one has ended."""
    maker = os.getpid()
    process = subprocess.Popen(  # noqa: S603 - this interpreter, with the text above
        [sys.executable, "-I", "-S", "-c", _REMOVER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # Ctrl-C and a closed terminal are for the search
    )
    try:
        yield
    finally:
        if os.getpid() == maker:
            process.kill()
            process.communicate()


def remove_abandoned() -> None:
    """Remove the temporary folders of this user whose process is dead, from wherever one may be."""
    for parent in temporary_folders():
        with contextlib.suppress(OSError):
            for folder in parent.glob(f"{_PREFIX}*-*"):
                _remove_if_abandoned(folder)


def _remove_if_abandoned(folder: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        if not folder.is_symlink() and folder.stat().st_uid == os.getuid() and _is_abandoned(folder / _OWNER):
            shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(owner: Path) -> bool:
    """Return whether nobody has locked the file, and its process is dead for sure. Raises OSError, ValueError."""
    with open(owner, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # BlockingIOError where it is locked
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        process = Process.from_text(file.read())
    return process is not None and process.is_alive() is False
