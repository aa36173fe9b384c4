"""Where trials, searches and machines share compiled networks: a folder of a storage, or one beside the run folders."""

from __future__ import annotations

import errno
import os

from wmlsearch.cluster.storage import Storage


class CompiledNetworks:
    """The `ArtifactStore` of trainings (`model/compile_cache.py`) at a location. All methods raise OSError.

    Whoever writes these files can run programs as their readers. So files of other users are refused where files have
    owners: in a folder of this machine's file system, not in an object store.
    """

    def __init__(self, location: str) -> None:
        self.storage = Storage(location)

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, none if it does not exist. Unfinished files are left out."""
        return [name for name in self.storage.below(folder).names()[0] if not name.startswith(".")]

    def read(self, folder: str, name: str) -> bytes | None:
        """Return the content of a file, None if it does not exist. Raises PermissionError for that of another user."""
        place = self.storage.below(folder)
        if place.folder is None:
            return place.read(name)
        try:
            with open(place.folder / name, "rb") as file:
                if os.fstat(file.fileno()).st_uid not in (os.getuid(), 0):
                    raise PermissionError(errno.EPERM, "it belongs to another user", name)
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, folder: str, name: str, content: bytes) -> None:
        """Write a file, whole. Raises FileNotFoundError if the folder above the location is away."""
        self.storage.make()
        place = self.storage.below(folder)
        place.make()
        place.write(name, content)
