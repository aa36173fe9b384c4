"""Plain files that survive a crash: whole or not there, line by line, a torn last line cut before the next."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from wmlsearch.config import InputError


def write_text(path: Path, text: str) -> None:
    """Written aside, then renamed: whoever looks finds the old file or the new one, whole."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files need not be text
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """As `write_text`, but readable and writable by this user alone, from its first byte on."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def without_home(text: str) -> str:
    """A text in which home directories are `~`: they have people's names, and others read what is sent to MLflow."""
    home = os.environ.get("HOME", "")
    text = text.replace(home, "~") if len(home) > 1 else text
    return re.sub(r"(?:/(?:home|Users)/[^/\s:'\"]+|(?<![\w/])/root)(?=[/\s:'\",;)]|$)", "~", text)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Raises InputError where the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read ({error}); restore it from a copy") from None
    except RecursionError:
        raise InputError(f"{path}: can't be read (nested too deeply); restore it from a copy") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object, but holds a {type(value).__name__}")
    return value


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line, whole or not at all: a torn last line is cut first, a failed write is taken back."""
    line = as_line(row).encode()
    with open(path, "ab+", buffering=0) as file:
        _cut_torn_line(file.fileno())
        size = os.fstat(file.fileno()).st_size
        try:
            if file.write(line) != len(line):
                raise OSError(f"{path}: only part of a line could be written")
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a torn last one is left out. Raises InputError for a damaged one."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); restore it from a copy") from None
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
    """Take away what stands behind the last whole line of a file."""
    with open(path, "rb+", buffering=0) as file:
        _cut_torn_line(file.fileno())


def _cut_torn_line(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    keep = size
    while keep and os.pread(descriptor, 1, keep - 1) != b"\n":
        keep -= 1
    if keep < size:
        os.ftruncate(descriptor, keep)


def as_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def check_free(out: Path) -> None:
    """Refuse a folder to be made that is there and not empty, or is a link. Raises InputError."""
    try:
        taken = out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir())))
    except OSError as error:
        raise InputError(f"{out}: cannot be used as OUT ({error.strerror}); name another") from None
    if taken:
        raise InputError(f"{out}: exists already and is not an empty folder; name another OUT or remove it")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """The path of a folder to be made beside `out`, which takes that name at the end of the block.

    Nothing is left of it when something goes wrong. Raises InputError where it can't be written.
    """
    target = out.absolute()
    aside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    made = [folder for folder in target.parents if not folder.exists()]  # innermost first
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.replace(target)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise InputError(f"{out}: cannot be written ({error.strerror or error}); nothing was left there") from None
        raise
