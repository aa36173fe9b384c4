"""Small files in a storage that all machines reach: a folder, or an object store such as s3://bucket/path."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, cast

from pyarrow import fs

from wmlsearch.runs.files import write_all, writing
from wmlsearch.runs.locations import location_below
from wmlsearch.runs.redaction import without_password

_OBJECT_STORES = ("s3", "gcs", "abfs")  # they show an object whole or not at all; a file may be seen half written
_CHUNK = 1 << 20  # bytes


class Storage:
    """The files below a location: a path, or a URI that Arrow reads. All methods raise OSError as file systems do.

    A URI may end in options, such as `s3://bucket/path?region=eu-west-1`.
    """

    def __init__(self, location: str) -> None:
        self.location = location

    def __str__(self) -> str:
        """Return the location without a password."""
        return without_password(self.location)

    def below(self, *parts: str) -> Storage:
        """Return the storage of a folder in this one."""
        return Storage(location_below(self.location, *parts))

    @cached_property
    def _place(self) -> tuple[fs.FileSystem, str]:
        """The file system and the path in it. Arrow asks an object store for its region."""
        try:
            return file_system(self.location)
        except ValueError as error:  # no URI that Arrow knows
            raise OSError(errno.EINVAL, str(error).replace(self.location, str(self)), str(self)) from None

    @property
    def is_object_store(self) -> bool:
        return self._place[0].type_name in _OBJECT_STORES

    @property
    def folder(self) -> Path | None:
        """The folder in the file system of this machine, or None elsewhere."""
        system, root = self._place
        return Path(root) if system.type_name == "local" else None

    def make(self, parents: bool = False) -> None:
        """Make the folder, if it does not exist. Without `parents`, the one above it must exist."""
        system, root = self._place
        if not self.is_object_store:
            if not parents and system.get_file_info(root.rpartition("/")[0]).type != fs.FileType.Directory:
                raise FileNotFoundError(errno.ENOENT, "the folder above it does not exist", str(self))
            system.create_dir(root, recursive=parents)

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, or None if it does not exist."""
        system, root = self._place
        path = f"{root}/{name}"
        if system.get_file_info(path).type != fs.FileType.File:
            return None
        try:
            with system.open_input_stream(path) as stream:
                return cast(bytes, stream.read())
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write a file; readers see the old one or the new one, whole. The folder exists."""
        system, root = self._place
        path = f"{root}/{name}"
        aside = path if self.is_object_store else f"{root}/.{name}.{secrets.token_hex(4)}"
        with self._removed_if_it_fails(aside), system.open_output_stream(aside) as stream:
            stream.write(data)
        if aside != path:
            system.move(aside, path)

    def upload(self, file: IO[bytes], name: str) -> None:
        """Write a file from an open one, a part at a time. `name` is not in use yet."""
        system, root = self._place
        with self._removed_if_it_fails(f"{root}/{name}"), system.open_output_stream(f"{root}/{name}") as stream:
            while chunk := file.read(_CHUNK):
                stream.write(chunk)

    @contextmanager
    def _removed_if_it_fails(self, path: str) -> Iterator[None]:
        """Remove a file that the block could not write completely: on a full disk, parts would fill it for good."""
        try:
            yield
        except OSError:
            if not self.is_object_store:
                with suppress(OSError):
                    self._place[0].delete_file(path)
            raise

    def download(self, name: str, path: Path) -> None:
        """Copy a file to `path`. Raises FileNotFoundError if it does not exist. Other errors of `path` name it."""
        system, root = self._place
        with system.open_input_stream(f"{root}/{name}") as stream, open(path, "wb", buffering=0) as file:
            while chunk := stream.read(_CHUNK):
                with writing(path, len(chunk)):  # names the path, as a full disk is not the storage's fault
                    write_all(file, chunk)

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        system, root = self._place
        if system.get_file_info(f"{root}/{name}").type == fs.FileType.File:
            system.delete_file(f"{root}/{name}")

    def delete_folder(self, name: str) -> None:
        """Delete a folder with all that is in it, if it exists."""
        system, root = self._place
        if system.get_file_info(f"{root}/{name}").type == fs.FileType.Directory:
            system.delete_dir(f"{root}/{name}")

    def names(self) -> tuple[list[str], list[str]]:
        """Return the names of the files, and of the folders, directly below the location. Both are sorted."""
        system, root = self._place
        infos = system.get_file_info(fs.FileSelector(root, allow_not_found=True))
        files = sorted(info.base_name for info in infos if info.type == fs.FileType.File)
        return files, sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)


def file_system(location: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a path or URI, and the path in it. Raises OSError, or ValueError for no such URI."""
    uri = location if "://" in location else str(Path(location).resolve())
    system: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(uri)
    return system


def reason(error: Exception, location: str) -> str:
    """Return the reason of a storage error in one line without a password."""
    if code := getattr(error, "errno", None):
        return os.strerror(code)
    return without_password(" ".join(str(error).replace(location, without_password(location)).split()))[:200]
