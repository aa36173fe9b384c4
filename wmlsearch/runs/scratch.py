"""Temporary folders that are removed even if their process is killed.

A small process waits for the end of the one that uses the folder, and removes it then. Where both are killed, as by a
reboot, the folder stays, and a later command removes it (`remove_abandoned`): the file `owner` in it is locked as long
as its process lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "wmlsearch-"
_OWNER = "owner"
# Other processes of the killed one may still write: the folder is removed again until it is gone.
_REMOVER = """
import shutil, sys, time
sys.stdin.read()
for _ in range(50):
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    time.sleep(0.2)
    try:
        __import__("os").lstat(sys.argv[1])
    except FileNotFoundError:
        break
"""


@contextlib.contextmanager
def scratch_folder(kind: str, parent: Path | None = None) -> Iterator[Path]:
    """Make a folder `wmlsearch-KIND-...` in `parent` or the temporary folder, which is removed after the block."""
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{kind}-", dir=parent))
    with _locked_owner(folder), _removed_after_kill(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked_owner(folder: Path) -> Iterator[None]:
    """Hold a lock of the file `owner`, which names this process. It appears locked, so nobody finds it without."""
    aside = folder / f".{_OWNER}"
    with open(aside, "w", encoding="utf-8") as file:
        with contextlib.suppress(OSError):  # a file system without locks: the process id has to do
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write(f"{os.getpid()}\n")
        file.flush()
        aside.rename(folder / _OWNER)
        yield


@contextlib.contextmanager
def _removed_after_kill(folder: Path) -> Iterator[None]:
    """Start the process that removes the folder when this one has ended."""
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
        process.kill()
        process.communicate()


def remove_abandoned() -> None:
    """Remove the temporary folders of this user whose process is gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        with contextlib.suppress(OSError, ValueError):
            if not folder.is_symlink() and folder.stat().st_uid == os.getuid() and _is_abandoned(folder / _OWNER):
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(owner: Path) -> bool:
    """Return whether nobody has locked the file, and the process that it names does not exist. OSError, ValueError."""
    with open(owner, encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # BlockingIOError where it is locked
        try:
            os.kill(int(file.read()), 0)
        except ProcessLookupError:
            return True
    return False
