"""The checkpoints of all runs of a search in an object store, as its driver sees them.

A request takes milliseconds to seconds, and creating a client as long. So one client serves the whole search, one
listing tells which checkpoints exist, and checkpoints are deleted by background threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from queue import SimpleQueue

from pyarrow import fs

from wmlsearch.cluster.storage import reason
from wmlsearch.runs.locations import split_options
from wmlsearch.runs.redaction import without_password

DELETING_THREADS = 4  # a deletion is a few requests, and 500 GPUs can end dozens of trials a second
DELETE_PATIENCE_S = 60.0  # how long the end of the trials waits for the deletions
_log = logging.getLogger(__name__)


def is_object_store(location: str) -> bool:
    """Return whether a location of checkpoints is a URI of an object store, not a folder."""
    return "://" in location and not location.startswith("file://")


def split_location(location: str) -> tuple[str, str]:
    """Return the location of the search and the path of the run in it, such as "trials/0003", of a run's location."""
    base, options = split_options(location)
    of_search, kind, name = base.rsplit("/", 2)
    return of_search + options, f"{kind}/{name}"


class ObjectStore:
    """The part of an object store that holds the checkpoints of one search.

    All methods raise OSError, and other exceptions of Arrow (`pyarrow.lib.ArrowException`) for answers that it does not
    expect.

    Args:
        location: The URI of the search's checkpoints.
    """

    def __init__(self, location: str) -> None:
        self.location = location

    @cached_property
    def _store(self) -> tuple[fs.FileSystem, str]:
        store: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(self.location)
        return store

    def files(self) -> dict[str, set[str]]:
        """List the store once: the names of the files of each run, by its path, such as "trials/0003"."""
        system, root = self._store
        names_by_run: dict[str, set[str]] = {}
        for info in system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True)):
            if info.type == fs.FileType.File:
                run, _, name = info.path.removeprefix(root).strip("/").rpartition("/")
                names_by_run.setdefault(run, set()).add(name)
        return names_by_run

    def delete(self, run: str, name: str) -> None:
        """Delete a file of a run, if it exists."""
        system, root = self._store
        with suppress(FileNotFoundError):
            system.delete_file(f"{root}/{run}/{name}")


class BackgroundDeletions:
    """Deletes checkpoints in object stores in background threads, which are started with the first deletion.

    A file that cannot be deleted stays and does no harm: a resumed search deletes it. The first failure is a warning.
    """

    def __init__(self) -> None:
        self._stores: dict[str, ObjectStore] = {}
        self._jobs: SimpleQueue[tuple[str, Callable[[], None]]] = SimpleQueue()  # with the location of the search
        self._threads: list[threading.Thread] = []
        self._unfinished, self._changed = 0, threading.Condition()
        self._told = False  # of a failure

    def delete(self, location: str, name: str) -> None:
        """Delete the file `name` of the run at `location`, soon."""
        of_search, run = split_location(location)
        store = self._stores.setdefault(of_search, ObjectStore(of_search))
        self._add(of_search, lambda: store.delete(run, name))

    def delete_unneeded(self, location: str, needed: Callable[[str, str], bool]) -> None:
        """List the checkpoints of the search at `location` once, and delete those that are not needed, soon.

        Args:
            location: Where the search's checkpoints are stored.
            needed: Returns whether a file is needed, by the path of its run and its name. Called in a thread.
        """
        store = self._stores.setdefault(location, ObjectStore(location))

        def clean() -> None:
            for run, names in store.files().items():
                for name in sorted(names):
                    if not needed(run, name):
                        self._add(location, lambda run=run, name=name: store.delete(run, name))  # type: ignore[misc]

        self._add(location, clean)

    def _add(self, location: str, job: Callable[[], None]) -> None:
        with self._changed:
            self._unfinished += 1
        self._jobs.put((location, job))
        if not self._threads:
            for number in range(DELETING_THREADS):
                # A daemon: a store that never answers must not keep the process.
                thread = threading.Thread(target=self._work, name=f"delete-checkpoints-{number}", daemon=True)
                self._threads.append(thread)
                thread.start()

    def _work(self) -> None:
        while True:
            location, job = self._jobs.get()
            try:
                job()
            except Exception as error:  # whatever the storage answers, the thread goes on with the next file
                self._tell(error, location)
            finally:
                with self._changed:
                    self._unfinished -= 1
                    self._changed.notify_all()

    def _tell(self, error: Exception, location: str) -> None:
        """Log a failure: the first one as a warning, since a storage that is away fails for each file."""
        with self._changed:
            level, self._told = logging.INFO if self._told else logging.WARNING, True
        _log.log(
            level,
            "warning: %s: a checkpoint that nobody needs was not deleted (%s); it stays until the search is resumed "
            "or you delete it",
            without_password(location),
            reason(error, location) or type(error).__name__,
        )

    def wait(self, patience_s: float = DELETE_PATIENCE_S) -> bool:
        """Wait until all is deleted, at most `patience_s` seconds. Returns whether it is."""
        end = time.monotonic() + patience_s
        with self._changed:
            return self._changed.wait_for(lambda: not self._unfinished, max(0.0, end - time.monotonic()))
