"""Files that survive a crash: written completely or not at all, or line by line with a torn last line removed."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path
from typing import Any, TypeVar

from wmlsearch.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT)
STORAGE_PATIENCE_S = 600.0  # how long to wait for a storage that does not answer
T = TypeVar("T")
_log = logging.getLogger(__name__)


class StorageError(OSError):
    """A storage is full, or could not be reached for `STORAGE_PATIENCE_S`. It names the storage and the reason."""


def retry_while_unavailable(action: Callable[[], T], place: Path | str, patience_s: float = STORAGE_PATIENCE_S) -> T:
    """Return the result of `action`, repeated while the storage at `place` cannot be reached.

    Raises StorageError at once if the storage is full, else after `patience_s` seconds.
    """
    end, wait = time.monotonic() + patience_s, 0.2
    while True:
        try:
            return action()
        except OSError as error:
            if error.errno in FULL or time.monotonic() + wait > end:
                away = "" if error.errno in FULL else f", for {patience_s:.0f} s"
                why = f"{error.strerror or ' '.join(str(error).split())[:200]}{away}"
                raise StorageError(error.errno or errno.EIO, why, str(error.filename or place)) from None
        time.sleep(wait)
        wait = min(2 * wait, 5.0)


@contextmanager
def writing(path: Path, size: int) -> Iterator[None]:
    """Name `path` in an OSError of the block; on a full disk also the `size` in bytes and the free space."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno in FULL:
            with suppress(OSError):
                why += f" ({size:,} bytes are needed, {shutil.disk_usage(path.parent).free:,} are free)"
        raise OSError(error.errno, why, str(path)) from None


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file beside `path`, then rename it: readers see the old file or the new one, whole. Raises OSError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path, len(data)):
        try:
            aside.write_bytes(data)
            os.replace(aside, path)
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))  # names of files may be no valid text


def write_private(path: Path, text: str) -> None:
    """Write a text that only this user can read and write, from its first byte on."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object as `write_bytes` does. Raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises InputError if the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); restore it from a copy") from None
    except RecursionError:
        raise InputError(f"{path}: cannot be read (nested too deeply); restore it from a copy") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object, but holds a {type(value).__name__}")
    return value


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append a JSON object as a line, as `append` does."""
    append(path, as_line(row).encode())


def append(path: Path, lines: bytes) -> None:
    """Append lines, all or none: remove a torn last line first, and undo a failed write. Raises OSError."""
    with writing(path, len(lines)), open(path, "ab+", buffering=0) as file:
        _cut_torn_line(file.fileno(), path)
        size = os.fstat(file.fileno()).st_size
        try:
            write_all(file, lines)
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def write_all(file: RawIOBase, data: bytes) -> None:
    """Write to an unbuffered file: an almost full disk accepts a part, and raises OSError at the next write."""
    unwritten = memoryview(data)
    while unwritten:
        unwritten = unwritten[file.write(unwritten) or 0 :]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the JSON objects of all whole lines; a torn last line is left out. Raises InputError for a damaged line."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); restore it from a copy") from None
    with suppress(ValueError, RecursionError):  # all lines at once is faster; line by line only names a damaged one
        rows = json.loads(b"[" + b",".join(lines) + b"]")
        if len(rows) == len(lines) and all(isinstance(row, dict) for row in rows):
            return list(rows)
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line.decode()))
            if not isinstance(rows[-1], dict):
                raise ValueError(f"it holds a {type(rows[-1]).__name__} instead of a JSON object")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: line {number} is damaged ({error}); restore the file from a copy") from None
    return rows


def cut_torn_line(path: Path) -> None:
    """Remove what follows the last whole line of a file, and log a warning."""
    with open(path, "rb+", buffering=0) as file:
        _cut_torn_line(file.fileno(), path)


def _cut_torn_line(descriptor: int, path: Path) -> None:
    size = os.fstat(descriptor).st_size
    keep = size
    while keep and os.pread(descriptor, 1, keep - 1) != b"\n":
        keep -= 1
    if keep < size:
        os.ftruncate(descriptor, keep)
        _log.warning("%s: removed the torn last line (%d bytes), which a killed process left", path, size - keep)


def as_line(row: Mapping[str, Any]) -> str:
    """Return a JSON object as a line."""
    return json.dumps(row, allow_nan=False) + "\n"


def check_output_folder(out: Path) -> None:
    """Refuse an output folder that exists and is not empty. A link to an empty one is followed. Raises InputError."""
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise InputError(f"{out}: cannot be used as OUT ({error.strerror}); name another") from None
    if taken:
        raise InputError(f"{out}: exists already and is not an empty folder; name another OUT or remove it")


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield the path for a new folder, which becomes `out` at the end of the block. A link is followed.

    It is made beside `out`, and then renamed. An empty folder that exists is filled instead, because it may be the
    working directory, or another file system. After an error nothing is left of it. Raises InputError if it cannot be
    written, and OSError on a full disk.
    """
    target = Path(os.path.realpath(out))
    fills, moved = target.is_dir(), list[Path]()
    aside = (target if fills else target.parent) / f".{target.name}.{os.getpid()}.partial"
    made = [folder for folder in target.parents if not folder.exists()]  # innermost first
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        if fills:
            _check_unfilled(target)
            for path in sorted(aside.iterdir()):
                moved.append(target / path.name)
                path.rename(moved[-1])
            aside.rmdir()
        else:
            aside.replace(target)
    except BaseException as error:
        for path in (aside, *moved):
            _remove(path)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError) and error.errno in FULL:
            raise OSError(error.errno, f"{error.strerror}; nothing was left there", str(out)) from None
        if isinstance(error, OSError):
            raise InputError(f"{out}: cannot be written ({error.strerror or error}); nothing was left there") from None
        raise


def _check_unfilled(folder: Path) -> None:
    """Raises FileExistsError if another process has filled a folder that was empty."""
    if any(not path.name.endswith(".partial") for path in folder.iterdir()):
        raise FileExistsError(errno.EEXIST, "another process has filled this folder", str(folder))


def _remove(path: Path) -> None:
    """Remove a file or a folder, as far as that is possible."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
