"""Where a training's checkpoints are kept: a folder, or a place in an object store that all machines reach."""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from pyarrow import fs

from wmlsearch.config import InputError
from wmlsearch.runs.files import retry_while_unavailable
from wmlsearch.runs.folders import RunDir
from wmlsearch.runs.objectives import front
from wmlsearch.runs.redaction import without_password

KEPT_BEST = 5  # trials whose weights are kept


class Checkpoints:
    """The checkpoints of one training at `place` (a path or a URI such as s3://bucket/runs/x).

    Training reads and writes `last` and `best`. In a folder those are the files themselves; of an object store they are
    local copies, which `fetch` brings and `push` takes back. A place that is away is waited for: whoever takes its
    silence for an answer trains again what is trained already. Raises StorageError where it is full or stays away.
    """

    def __init__(self, place: str) -> None:
        self._uri = place if "://" in place and not place.startswith("file://") else ""
        if self._uri:
            self._scratch = tempfile.mkdtemp(prefix="wmlsearch-checkpoints-")
        self._folder = Path(self._scratch if self._uri else place.removeprefix("file://"))
        self.last, self.best = RunDir(self._folder).last, RunDir(self._folder).best

    @cached_property
    def _store(self) -> tuple[fs.FileSystem, str]:
        """The object store and the place in it. Raises OSError where it doesn't say its region, if the URI doesn't."""
        found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(self._uri)
        return found

    def fetch(self) -> None:
        """Bring what is there. In a folder: make it, where all but its last two levels are there."""
        if self._uri:
            retry_while_unavailable(lambda: self._fetch(*self._store), without_password(self._uri))
        else:
            retry_while_unavailable(self._make, self._folder)

    def _make(self) -> None:
        for folder in (self._folder.parent, self._folder):
            folder.mkdir(exist_ok=True)

    def _fetch(self, system: fs.FileSystem, root: str) -> None:
        for path in (self.last, self.best):
            source = f"{root}/{path.name}"
            if system.get_file_info(source).type == fs.FileType.File:
                aside = f"{path}.part"
                fs.copy_files(source, aside, source_filesystem=system, destination_filesystem=fs.LocalFileSystem())
                os.replace(aside, path)

    def push(self) -> None:
        """Take back what training has written. An object appears whole or not at all."""
        if self._uri:
            retry_while_unavailable(lambda: self._push(*self._store), without_password(self._uri))

    def _push(self, system: fs.FileSystem, root: str) -> None:
        system.create_dir(root)
        for path in (self.best, self.last):
            if path.exists():
                fs.copy_files(
                    str(path),
                    f"{root}/{path.name}",
                    source_filesystem=fs.LocalFileSystem(),
                    destination_filesystem=system,
                )

    def keep(self, epoch: int) -> None:
        """Keep a snapshot: what `last` and `best` are after this epoch, beside them."""
        for path, kept in zip((self.last, self.best), RunDir(self._folder).snapshot(epoch), strict=True):
            self._copy(self, path.name, kept.name)

    def take_over(self, place: str, epoch: int) -> bool:
        """Begin with the snapshot that another training at `place` kept; False if it has none of this epoch."""
        other = Checkpoints(place)
        last, best = (path.name for path in RunDir(self._folder).snapshot(epoch))
        there = self._copy(other, best, self.best.name) and self._copy(other, last, self.last.name)
        other.close()
        return there

    def snapshots(self) -> list[int]:
        """The epochs of which a snapshot is kept."""
        if self._uri:
            system, root = self._store
            names = [info.base_name for info in system.get_file_info(fs.FileSelector(root, allow_not_found=True))]
        else:
            names = [path.name for path in self._folder.glob("epoch-*.pt")]
        return sorted({int(found[1]) for name in names if (found := re.match(r"epoch-(\d+)(-best)?\.pt$", name))})

    def delete_snapshot(self, epoch: int) -> None:
        for path in RunDir(self._folder).snapshot(epoch):
            self.delete(path)

    def _copy(self, source: Checkpoints, name: str, to: str) -> bool:
        """Copy where it is kept; False if it isn't there. What is copied is never written again, only replaced."""
        if self._uri and source._uri:
            system, root = self._store
            there: str = f"{source._store[1]}/{name}"
            if system.get_file_info(there).type != fs.FileType.File:
                return False
            system.create_dir(root)
            system.copy_file(there, f"{root}/{to}")
            return True
        path, aside = source._folder / name, self._folder / f".{to}.{os.getpid()}"
        if not path.exists():
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            try:
                os.link(path, aside)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, aside)
            os.replace(aside, self._folder / to)
        finally:
            aside.unlink(missing_ok=True)  # two names of the same file: replacing one by the other does nothing
        return True

    def delete(self, path: Path) -> None:
        """Delete `last`, `best` or a snapshot, wherever it is kept."""
        path.unlink(missing_ok=True)
        if self._uri:
            system, root = self._store
            if system.get_file_info(f"{root}/{path.name}").type == fs.FileType.File:
                system.delete_file(f"{root}/{path.name}")

    def has_last(self) -> bool:
        """Whether there is a `last` to go on from. Raises OSError where the place does not answer."""
        if self._uri:
            system, root = self._store
            return bool(system.get_file_info(f"{root}/{self.last.name}").type == fs.FileType.File)
        return self.last.exists()

    def close(self) -> None:
        """Remove local copies."""
        if self._uri:
            shutil.rmtree(self._scratch, ignore_errors=True)


class CheckpointRetention:
    """Deletes the checkpoints of ended trials that nobody needs: what is kept is the weights of the best few.

    Only a trial that may go on needs its latest state; of a hundred trials' weights, hardly one is ever used. With
    several objectives it is those of the Pareto front, however many: a trial that was beaten once stays beaten.
    """

    def __init__(
        self,
        place: Callable[[RunDir], str],
        bytes_of_best: Callable[[RunDir], int],
        room: float,
        objectives: Sequence[str],
    ) -> None:
        """`room` is how many bytes the kept weights may take in all, by what `bytes_of_best` says of each."""
        self.place, self.bytes_of_best, self.room, self.objectives = place, bytes_of_best, room, objectives
        self.best: list[tuple[Sequence[float] | None, RunDir]] = []

    def ended(self, run: RunDir, values: Sequence[float] | None) -> None:
        """A trial has ended for good, with its value of each objective."""
        self.best.append((values, run))
        self.best.sort(key=lambda it: -math.inf if it[0] is None else it[0][0], reverse=True)
        wanted = [place < KEPT_BEST for place in range(len(self.best))]
        if len(self.objectives) > 1:
            wanted = front([values for values, _ in self.best], self.objectives)
        out = [it for it, keep in zip(self.best, wanted, strict=True) if not keep]
        self.best = [it for it, keep in zip(self.best, wanted, strict=True) if keep]
        while math.isfinite(self.room) and sum(self.bytes_of_best(it) for _, it in self.best) > self.room:
            out.append(self.best.pop())
        delete_checkpoint(self.place(run), "last")
        for _, other in out:
            delete_checkpoint(self.place(other), "best")


def delete_checkpoint(place: str, which: str) -> None:
    """Delete the "last" or "best" of a training that has ended, as its folder says already."""
    kept = Checkpoints(place)
    with suppress(OSError):  # the storage is away: what is left there takes room and does no harm
        kept.delete(getattr(kept, which))
    kept.close()


def check_unused(place: str) -> None:
    """Refuse a place with checkpoints in it: a new run would go on from them. Raises InputError."""
    shown = without_password(place)
    try:
        system, root = _system(place)
        found = system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    except (OSError, ValueError) as error:
        raise InputError(f"--storage: {shown} can't be read ({_why(error, place)}); name a place that can be") from None
    kept = sorted(info.path for info in found if info.base_name.endswith(".pt"))
    if kept:
        raise InputError(
            f"--storage: {shown} holds {len(kept)} checkpoint{'' if len(kept) == 1 else 's'} of another run of this "
            f"name already, such as {kept[0].removeprefix(root).lstrip('/')}, and nothing is overwritten; choose "
            "another --name, or delete that folder"
        )


def check_writable(place: str) -> None:
    """Write and remove a small file. Raises InputError where that fails, with the reason."""
    try:
        system, root = _system(place)
        system.create_dir(root, recursive=True)
        probe = f"{root}/.wmlsearch-probe-{os.getpid()}"
        with system.open_output_stream(probe) as stream:
            stream.write(b"wmlsearch")
        system.delete_file(probe)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--storage {without_password(place)}: can't be written ({_why(error, place)}); "
            "name a folder or URI that all machines of the cluster can write"
        ) from None


def _system(place: str) -> tuple[fs.FileSystem, str]:
    found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(place if "://" in place else str(Path(place).resolve()))
    return found


def _why(error: Exception, place: str) -> str:
    """Why `place` failed, in a line without a password."""
    if code := getattr(error, "errno", None):
        return os.strerror(code)
    return without_password(" ".join(str(error).replace(place, without_password(place)).split()))[:200]
