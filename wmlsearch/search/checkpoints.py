"""Where the checkpoints of a run are stored: a folder, or an object store that all machines reach."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pyarrow import fs

from wmlsearch.cluster.storage import Storage, file_system, reason
from wmlsearch.errors import InputError
from wmlsearch.runs.files import retry_while_unavailable
from wmlsearch.runs.folders import FINAL_RUNS, TRIALS, AnyDir, RunDir, SearchDir
from wmlsearch.runs.objectives import front
from wmlsearch.runs.redaction import without_password
from wmlsearch.runs.wording import plural
from wmlsearch.search.object_store import BackgroundDeletions, ObjectStore, is_object_store

WhenCopied = Callable[[Callable[[], None]], None]  # calls what it gets when the storage has the run folder as it is now
LATE_S = 60.0  # how long to wait for a checkpoint that must be there
KEPT_BEST = 5  # number of best trials that keep their weights


class Checkpoints:
    """The checkpoints of one run at a location: a path, or a URI such as s3://bucket/runs/x.

    Training reads and writes the files `last` and `best`. In a folder they are the files themselves. Of an object store
    they are local copies: `fetch` downloads them, `push` uploads them. Both wait for a storage that does not answer: an
    unanswered request must not be taken for a missing checkpoint, or training would begin anew. Both raise StorageError
    if the storage is full or does not answer for long.
    """

    def __init__(self, location: str) -> None:
        self._uri = location if is_object_store(location) else ""
        self._uploaded: dict[str, tuple[int, int, int]] = {}  # by name: the local copy that equals the stored file
        if self._uri:
            self._scratch = tempfile.mkdtemp(prefix="wmlsearch-checkpoints-")
        self._folder = Path(self._scratch if self._uri else location.removeprefix("file://"))
        self.last, self.best = RunDir(self._folder).last, RunDir(self._folder).best

    @cached_property
    def _store(self) -> tuple[fs.FileSystem, str]:
        """The object store and the path in it. Raises OSError: a URI without a region makes Arrow ask the store."""
        store: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(self._uri)
        return store

    def fetch(self, reported_epochs: int = 0) -> None:
        """Download the checkpoints that exist, or create the folder (at most its last two levels).

        Args:
            reported_epochs: How many epochs of the run the driver has. If there are any, `last` was stored, and a
                storage that lacks it is waited for as one that does not answer, for LATE_S: a network file system may
                show another machine's file late. Else training would begin anew, and these epochs would be lost.
        """
        if self._uri:
            retry_while_unavailable(lambda: self._download(*self._store), without_password(self._uri))
        else:
            retry_while_unavailable(self._make_folder, self._folder)
        if reported_epochs and not self.last.exists():
            self.wait_until(self.last.exists, f"the checkpoint of {plural(reported_epochs, 'reported epoch')}")

    def wait_until(self, is_there: Callable[[], bool], name: str) -> None:
        """Wait for what another machine has stored, for LATE_S. Raises StorageError.

        Args:
            is_there: Whether the files, which are fetched again before each look, show it.
            name: What is waited for, for the error message.
        """

        def look() -> None:
            if self._uri:
                self._download(*self._store)
            if not is_there():
                place = without_password(self._uri) or str(self.last)
                raise FileNotFoundError(errno.ENOENT, f"{name} is missing on {socket.gethostname()}", place)

        retry_while_unavailable(look, self._folder, LATE_S)

    def _make_folder(self) -> None:
        for folder in (self._folder.parent, self._folder):
            folder.mkdir(exist_ok=True)

    def _download(self, system: fs.FileSystem, root: str) -> None:
        for path in (self.last, self.best):
            source = f"{root}/{path.name}"
            if system.get_file_info(source).type == fs.FileType.File:
                partial = f"{path}.part"
                fs.copy_files(source, partial, source_filesystem=system, destination_filesystem=fs.LocalFileSystem())
                os.replace(partial, path)
                self._uploaded[path.name] = _version(path)

    def push(self) -> None:
        """Upload what training has written since the last call. An object store shows an object whole or not at all."""
        if self._uri:
            retry_while_unavailable(lambda: self._upload(*self._store), without_password(self._uri))

    def _upload(self, system: fs.FileSystem, root: str) -> None:
        if not self._uploaded:
            system.create_dir(root)
        for path in (self.best, self.last):
            if path.exists() and self._uploaded.get(path.name) != (version := _version(path)):
                fs.copy_files(
                    str(path),
                    f"{root}/{path.name}",
                    source_filesystem=fs.LocalFileSystem(),
                    destination_filesystem=system,
                )
                self._uploaded[path.name] = version

    def save_snapshot(self, epoch: int) -> None:
        """Copy `last` and `best` as they are after this epoch, beside them."""
        for path, snapshot in zip((self.last, self.best), RunDir(self._folder).snapshot(epoch), strict=True):
            self._copy(self, path.name, snapshot.name)

    def copy_snapshot(self, location: str, epoch: int) -> bool:
        """Make the snapshot of another run at `location` the checkpoint of this run; False if it does not exist."""
        other = Checkpoints(location)
        last, best = (path.name for path in RunDir(self._folder).snapshot(epoch))
        copied = self._copy(other, best, self.best.name) and self._copy(other, last, self.last.name)
        other.close()
        return copied

    def _copy(self, source: Checkpoints, name: str, target: str) -> bool:
        """Copy a file within the storage; False if it does not exist. A hard link is enough: checkpoints are replaced,
        never written again."""
        if self._uri and source._uri:
            system, root = self._store
            origin = f"{source._store[1]}/{name}"
            if system.get_file_info(origin).type != fs.FileType.File:
                return False
            system.create_dir(root)
            system.copy_file(origin, f"{root}/{target}")
            return True
        path, partial = source._folder / name, self._folder / f".{target}.{os.getpid()}"
        if not path.exists():
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            try:
                os.link(path, partial)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, partial)
            os.replace(partial, self._folder / target)
        finally:
            partial.unlink(missing_ok=True)  # os.replace does nothing if both names are links to one file
        return True

    def delete(self, path: Path) -> None:
        """Delete `last`, `best` or a snapshot, here and in the object store."""
        path.unlink(missing_ok=True)
        if self._uri:
            system, root = self._store
            self._uploaded.pop(path.name, None)
            with suppress(FileNotFoundError):
                system.delete_file(f"{root}/{path.name}")

    def close(self) -> None:
        """Remove the local copies of an object store."""
        if self._uri:
            shutil.rmtree(self._scratch, ignore_errors=True)


def at_once(action: Callable[[], None]) -> None:
    """Call `action`: what a search does that has no copy of its run folder to wait for."""
    action()


class CheckpointRetention:
    """Deletes the checkpoints that ended trials no longer need, and keeps the weights of the best trials.

    Only an unfinished trial needs `last`. `best` is kept of the KEPT_BEST best trials, or with several objectives of
    those on the Pareto front, however many: a trial that another one dominates never returns to it.

    Files in folders are deleted at once, those in an object store by background threads: use `wait` at the end.

    Args:
        location: Returns where the checkpoints of a run are stored.
        bytes_of_best: Returns the size of a run's `best`.
        limit_bytes: The largest total size of the weights that are kept.
        objectives: The metrics that trials are ranked by.
        when_copied: Calls what deletes a file, when the storage has a copy of the run folder as it is now: a search
            that returns from an older copy needs the checkpoints of trials that had not ended then.
    """

    def __init__(
        self,
        location: Callable[[AnyDir], str],
        bytes_of_best: Callable[[RunDir], int],
        limit_bytes: float,
        objectives: Sequence[str],
        when_copied: WhenCopied = at_once,
    ) -> None:
        self.when_copied = when_copied
        self.location, self.bytes_of_best, self.limit_bytes = location, bytes_of_best, limit_bytes
        self.objectives = objectives
        self.best: list[_EndedTrial] = []  # the best first
        self._deletions = BackgroundDeletions()

    def trial_ended(self, run: RunDir, values: Sequence[float] | None) -> None:
        """Delete what is not needed after a trial has ended for good, with its value of each objective."""
        dropped = self._rank(run, values)
        self.delete(run, run.last.name)
        for other in dropped:
            self.delete(other, other.best.name)

    def search_resumed(self, search: SearchDir, ended: Sequence[tuple[RunDir, Sequence[float] | None]]) -> None:
        """Delete what is not needed of the trials that ended before, with their values. A store is listed once."""
        if not ended:
            return
        dropped = [other for run, values in ended for other in self._rank(run, values)]
        location = self.location(search)
        if not is_object_store(location):
            for run, _ in ended:
                self.delete(run, run.last.name)
            for run in dropped:
                self.delete(run, run.best.name)
            return
        unneeded = {(_path_in_store(run), run.last.name) for run, _ in ended}
        unneeded |= {(_path_in_store(run), run.best.name) for run in dropped}
        self.when_copied(
            lambda: self._deletions.delete_unneeded(location, lambda run, name: (run, name) not in unneeded)
        )

    def delete(self, run: RunDir, name: str) -> None:
        """Delete a checkpoint file of a trial, when it is copied: in a folder at once, in an object store soon."""
        self.when_copied(lambda: self._delete(run, name))

    def _delete(self, run: RunDir, name: str) -> None:
        location = self.location(run)
        if is_object_store(location):
            self._deletions.delete(location, name)
        else:
            with suppress(OSError):  # the storage does not answer: the file stays and does no harm
                Path(location.removeprefix("file://"), name).unlink(missing_ok=True)

    def wait(self) -> None:
        """Wait for the deletions in an object store, for as long as that may reasonably take."""
        self._deletions.wait()

    def _rank(self, run: RunDir, values: Sequence[float] | None) -> list[RunDir]:
        """Add a trial that has ended, and return those whose weights are not kept any more."""
        self.best.append(_EndedTrial(run, values, self.bytes_of_best(run) if math.isfinite(self.limit_bytes) else 0))
        self.best.sort(key=lambda trial: -math.inf if trial.values is None else trial.values[0], reverse=True)
        keep = [rank < KEPT_BEST for rank in range(len(self.best))]
        if len(self.objectives) > 1:
            keep = front([trial.values for trial in self.best], self.objectives)
        dropped = [trial.run for trial, kept in zip(self.best, keep, strict=True) if not kept]
        self.best = [trial for trial, kept in zip(self.best, keep, strict=True) if kept]
        while sum(trial.bytes_of_best for trial in self.best) > self.limit_bytes:
            dropped.append(self.best.pop().run)
        return dropped


@dataclass(frozen=True)
class _EndedTrial:
    """A trial whose weights are kept."""

    run: RunDir
    values: Sequence[float] | None  # of each objective
    bytes_of_best: int  # 0 where their total has no limit


def stored_snapshots(search: SearchDir, location: Callable[[AnyDir], str]) -> dict[int, set[int]]:
    """Return the trials that have a stored snapshot, by its epoch. An object store is listed once."""
    trials_by_epoch: dict[int, set[int]] = {}
    for run, names in stored_files(search, search.trials(), location).items():
        for name in names:
            if match := re.fullmatch(r"epoch-(\d+)(-best)?\.pt", name):
                trials_by_epoch.setdefault(int(match[1]), set()).add(int(run.name))
    return trials_by_epoch


def stored_files(
    search: SearchDir, runs: Sequence[RunDir], location: Callable[[AnyDir], str]
) -> dict[RunDir, set[str]]:
    """Return the names of the files that are stored of each run. An object store is listed once. Raises OSError."""
    of_search = location(search)
    if is_object_store(of_search):
        files = ObjectStore(of_search).files() if runs else {}
        return {run: files.get(_path_in_store(run), set()) for run in runs}
    names: dict[RunDir, set[str]] = {}
    for run in runs:
        folder = Path(location(run).removeprefix("file://"))
        names[run] = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return names


def _path_in_store(run: RunDir) -> str:
    """Return the path of a trial in its search, such as "trials/0003"."""
    return "/".join(run.path.parts[-2:])


def delete_checkpoint(location: str, name: str) -> None:
    """Delete "last" or "best" of a run whose folder says already that it has ended."""
    checkpoints = Checkpoints(location)
    with suppress(OSError):  # the storage does not answer: the file stays and does no harm
        checkpoints.delete(getattr(checkpoints, name))
    checkpoints.close()


def _version(path: Path) -> tuple[int, int, int]:
    """Return what changes when a file is replaced: checkpoints are replaced, never written again."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def delete_unknown_runs(location: str, search: SearchDir) -> None:
    """Delete the checkpoints of runs that a search does not have. Raises StorageError.

    A search that was restored from a copy may have begun others later. Their numbers are given to new runs, which would
    go on from these checkpoints.

    Args:
        location: Where the search's checkpoints are stored.
        search: The search.
    """
    retry_while_unavailable(lambda: _delete_unknown_runs(Storage(location), search), without_password(location))


def _delete_unknown_runs(storage: Storage, search: SearchDir) -> None:
    for kind, runs in ((TRIALS, search.trials()), (FINAL_RUNS, search.finals())):
        names = {run.name for run in runs}
        for name in storage.below(kind).names()[1]:
            if name not in names:
                storage.below(kind).delete_folder(name)


def check_unused(location: str) -> None:
    """Refuse a location with checkpoints in it: a new run would go on from them. Raises InputError."""
    shown = without_password(location)
    try:
        system, root = file_system(location)
        files = system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    except (OSError, ValueError) as error:
        raise InputError(f"--storage: cannot read {shown} ({reason(error, location)}); name another location") from None
    checkpoints = sorted(info.path for info in files if info.base_name.endswith(".pt"))
    if checkpoints:
        raise InputError(
            f"--storage: {shown} holds {plural(len(checkpoints), 'checkpoint')} of another run of this name (such as "
            f"{checkpoints[0].removeprefix(root).lstrip('/')}), and nothing is overwritten; choose another --name, or "
            "delete that folder"
        )


def check_writable(location: str) -> None:
    """Write and remove a small file. Raises InputError with the reason if that fails."""
    try:
        system, root = file_system(location)
        system.create_dir(root, recursive=True)
        probe = f"{root}/.wmlsearch-probe-{os.getpid()}"
        with system.open_output_stream(probe) as stream:
            stream.write(b"wmlsearch")
        system.delete_file(probe)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--storage {without_password(location)}: cannot be written ({reason(error, location)}); "
            "name a folder or URI that all machines of the cluster can write"
        ) from None
