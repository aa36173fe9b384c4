"""A search that has a storage: its lease there, the copy of its run folder, and its return on a machine without it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from wmlsearch.data.manifest import Manifest
from wmlsearch.errors import InputError
from wmlsearch.runs.copied_folders import path_to_set_aside
from wmlsearch.runs.files import atomic_folder
from wmlsearch.runs.folders import AnyDir, SearchDir, check_name, find_search
from wmlsearch.runs.locations import with_name
from wmlsearch.runs.lock import check_not_running, note_taken_over
from wmlsearch.runs.redaction import without_password
from wmlsearch.runs.schema import SearchRecord
from wmlsearch.runs.wording import command, run_words

if TYPE_CHECKING:
    from wmlsearch.cluster.copier import RunFolderCopier
    from wmlsearch.cluster.lease import Lease
    from wmlsearch.cluster.run_copies import CopyIndex


class StoredSearch:
    """The lease of a search and the copy of its run folder, while this process runs it. `release` ends both.

    Without a storage it does nothing, nor where the run folder itself is in the storage.

    Args:
        storage: A path or URI; None: the search has no storage.
        search: The search, which need not exist yet.
        say: Called with a line for the user.

    Raises:
        InputError: Another process runs the search, or the storage cannot be used.
    """

    def __init__(self, storage: str | None, search: SearchDir, say: Callable[[str], None]) -> None:
        self.storage = None if storage is not None and _is_in(storage, search) else storage
        self.search = search
        self.say = say
        self._lease: Lease | None = None
        self._copier: RunFolderCopier | None = None
        if self.storage is not None:
            from wmlsearch.cluster.lease import Lease

            self._lease = Lease.take(self.storage, search.name, say)

    def begin(self, search: SearchDir) -> None:
        """Begin to copy the run folder, which this process holds."""
        if self._lease is None or self._copier is not None:
            return
        from wmlsearch.cluster.copier import RunFolderCopier

        where = without_password(self._lease.location)
        self._lease.on_loss(lambda other: note_taken_over(search.path, other, where))
        self._copier = RunFolderCopier(search, self._lease, self.say)

    def notify(self, run: AnyDir) -> None:
        """Copy `run` soon, because it has changed."""
        if self._copier is not None:
            self._copier.notify(run)

    def when_copied(self, action: Callable[[], None]) -> None:
        """Call `action` when the storage has the run folder as it is now; without a storage, at once."""
        if self._copier is not None:
            self._copier.when_copied(action)
        else:
            action()

    def finish(self, search: SearchDir, timeout_s: float = 60) -> None:
        """Copy the rest of the run folder, and say what could not be copied. Nothing changes in it any more."""
        if self._copier is None or self._lease is None:
            return
        problem = self._copier.close(timeout_s)
        if problem and not self._lease.lost_to:  # else the search itself has ended for that reason
            self.say(
                f"warning: {without_password(str(self.storage))} does not have all of the run folder ({problem}); keep "
                f"it, or send the rest: {command('tune', '--resume', *run_words(search.path))}"
            )

    def complete(self, search: SearchDir) -> None:
        """Copy a search that has ended completely, if the storage lacks a part of it."""
        from wmlsearch.cluster.run_copies import copy_is_complete

        if self.storage is not None and not copy_is_complete(self.storage, search):
            self.begin(search)
            self.finish(search)

    def fetch_data(self, record: SearchRecord, out: Path) -> Path:
        """Return the prepared data set of a search, which is not where it was, from the storage.

        It has the data sets of searches that were started with `--cluster` by the address of a dashboard.

        Args:
            record: The content of `search.json`.
            out: Folder of all runs. The data set is copied to it, unless it is already there.

        Raises:
            InputError: The storage does not have it, or cannot be read, and the user has to say where it is.
            OSError: The disk is full.
        """
        from wmlsearch.cluster.transfer import fetch_data, has_data

        fingerprint = record.data.fingerprint
        target = out / f"data-{fingerprint[:12]}"
        if target.is_dir():
            return target
        missing = f"{record.data_path}: the prepared data of {record.name} are not there (any more, or on this machine)"
        if self.storage is None:
            raise InputError(f"{missing}; name their folder with --data")
        shown = without_password(self.storage)
        if not has_data(self.storage, fingerprint):
            raise InputError(
                f"{missing}, and {shown} has no copy of them; bring the folder here and name it with --data, or "
                "prepare them again from the same images with the same options"
            )
        self.say(f"fetching the prepared data of {record.name} from {shown} into {target} ...")
        with atomic_folder(target) as partial:
            fetch_data(self.storage, fingerprint, partial)
            Manifest.read(partial).verify(partial)
        return target

    def release(self) -> None:
        """Let another process run the search. What is not copied by now stays as it is."""
        if self._copier is not None:
            self._copier.close(0)
        if self._lease is not None:
            self._lease.release()
            self._lease = None


NO_STORAGE = StoredSearch(None, SearchDir(Path()), print)


def _is_in(storage: str, search: SearchDir) -> bool:
    """Return whether a storage is the folder that the run folder is in: one that all machines share."""
    return "://" not in storage and Path(storage).resolve() == search.path.parent.resolve()


@contextmanager
def stored_search(storage: str | None, search: SearchDir, say: Callable[[str], None]) -> Iterator[StoredSearch]:
    """Hold the lease of a search in its storage for the block. Raises InputError as `StoredSearch` does."""
    stored = StoredSearch(storage, search, say)
    try:
        yield stored
    finally:
        stored.release()


@contextmanager
def search_to_resume(name: str, out: Path, storage: str | None, say: Callable[[str], None]) -> Iterator[StoredSearch]:
    """Hold the lease of a search that is to be resumed, and bring its run folder here if the storage has a newer one.

    The run folder is restored where there is none, as on a new machine, and where the search went on elsewhere since:
    the old folder is then moved aside. A search without a storage is left as it is. Go on with the `search` of what is
    yielded, not with `name`: where the old folder is the working directory, "." is the one that was moved aside.

    Args:
        name: The search's name in `out`, or the path of its folder.
        out: The folder of all runs.
        storage: Storage given on the command line. None: the storage recorded in `search.json`.
        say: Called with a line for the user.

    Raises:
        InputError: There is no such search, another process runs it, or the storage cannot be used, or has a different
            search of this name.
    """
    search = local_search(name, out)
    if search is None and storage is None:
        search = find_search(name, out)  # says what there is
    if search is not None:
        check_not_running(search.path)
        recorded = search.record().storage
        storage = storage or (None if recorded and "***" in recorded else recorded)
    else:
        search = SearchDir(with_name(Path(name) if "/" in name or name in (".", "..") else out / name))
        if storage is not None and not is_in_storage(search.name, storage):
            raise InputError(
                f"{name}: no search of this name in {search.path.parent}, and no copy of one in "
                f"{without_password(storage)}"
            )
    with stored_search(storage, search, say) as stored:
        if stored.storage is not None:
            _bring_up_to_date(search, stored.storage, say)
        yield stored


def local_search(name: str, out: Path) -> SearchDir | None:
    """Return the search of this name in `out`, or that of this path; None if there is none."""
    searches = [SearchDir(with_name(path)) for path in (out / name, Path(name))]
    return next((search for search in searches if search.exists()), None)


def is_in_storage(name: str, storage: str) -> bool:
    """Return whether a storage has a copy of a search. Raises InputError if that cannot be found out."""
    from wmlsearch.cluster.run_copies import read_index

    return read_index(storage, check_name(name)) is not None


def _bring_up_to_date(search: SearchDir, storage: str, say: Callable[[str], None]) -> None:
    """Restore a run folder from its copy, if the copy has more."""
    from wmlsearch.cluster.run_copies import copy_is_newer, fetch_search, read_index

    index = read_index(storage, search.name)
    if index is None:
        return
    shown = without_password(storage)
    if not search.exists():
        fetch_search(storage, search.name, search.path)
    else:
        _check_same_search(search.record(), index, search.path, shown)
        if not copy_is_newer(index, search):
            return
        aside = _fetch_in_place_of(search, storage)
        say(f"{search.name} went on elsewhere since its folder was written here, which is now {aside}")
    say(
        f"{search.name} is restored from {shown}: {index.writer} wrote it last, "
        f"at {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(index.written))}"
    )


def _fetch_in_place_of(search: SearchDir, storage: str) -> Path:
    """Restore a run folder from its copy, and return where the older one is now.

    That stays in its place while the copy is read: whatever ends this process, there is a search of this name.
    """
    from wmlsearch.cluster.run_copies import fetch_search

    beside = search.path.with_name(f".{search.name}.newer")
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
    try:
        newer = fetch_search(storage, search.name, beside / search.name)
        aside = path_to_set_aside(search.path)
        search.path.rename(aside)
        try:
            newer.path.rename(search.path)
        except BaseException:
            aside.rename(search.path)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return aside


def _check_same_search(record: SearchRecord, index: CopyIndex, path: Path, storage: str) -> None:
    if record.key != index.key:
        raise InputError(
            f"{path}: is a different search than {index.name} in {storage}; give another --storage, or move one of the "
            "two away"
        )
