"""The copy of a search's run folder in the storage: its form, what writes it, and what restores a folder from it.

`STORAGE/NAME/run-folder/` holds the copy, beside the checkpoints of the search:

- `index.json` says which of the other files are the copy. It is written last, so that a copy that breaks off at any
  moment leaves the one before.
- `*.pack`: many small files, or what was appended to them. Packs are applied one after another. The last one grows with
  each pass until it is full; then another one begins. When most of the packs is out of date, all is packed anew.
- `*.file`: a large file, such as a network.

The names begin with the session that wrote them, so two sessions never write one file.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Annotated, ClassVar, TypeVar, cast

from pydantic import Field

from wmlsearch.cluster.storage import Storage, reason
from wmlsearch.errors import InputError
from wmlsearch.runs.files import FULL, StorageError, retry_while_unavailable, write_text
from wmlsearch.runs.folders import PROCESS_FILES, STATUS_FILE, AnyDir, SearchDir
from wmlsearch.runs.redaction import without_password
from wmlsearch.runs.schema import RUNNING, Record, RunStatus
from wmlsearch.runs.wording import command, run_words

FOLDER = "run-folder"  # of the copy, in the folder of the search
_INDEX = "index.json"
_MARK = ".copy.json"  # in the run folder: which copy it was last made into, or restored from
FORMAT = 1
PACK_BYTES = 4 << 20  # of the files in a pack, before another one begins
LARGE_BYTES = 1 << 20  # a file of this size or more is stored by itself
# Packs may hold this many times as many bytes as the files that they are of, and so many bytes more.
_MOST_WASTE, _WASTE_BYTES = 2, 8 << 20
GROWING = (".jsonl", ".journal")  # suffixes of files to which lines are appended
_TAIL = 256  # bytes before the end of what was copied of such a file, to recognise it
_ATTEMPTS = 5  # to read a copy that is written at the same time
COPY_PATIENCE_S = 60.0  # give up reading a copy when the storage has not answered for this long
T = TypeVar("T")


class StoredFile(Record):
    """A large file of the copy."""

    object: str  # its name in the storage
    size: int  # bytes
    mtime_ns: int  # when the file in the run folder was changed


class CopyIndex(Record):
    """`index.json`: which files are the copy of a run folder."""

    FAULT: ClassVar[str] = "is damaged"

    format: Annotated[int, Field(ge=1)] = FORMAT
    name: str  # of the search
    key: str  # of the search, as in its `search.json`
    session: str  # that wrote it
    sequence: Annotated[int, Field(ge=0)]  # of the pass that wrote it, in this session
    written: float  # Unix seconds, by the clock of the writer
    writer: str  # the process, as "process 1234 on node3"
    state: str  # of the search
    reason: str = ""  # why the search has ended, one line
    complete: bool = False  # whether the writer had ended, and had nothing more to copy
    packs: list[str]  # to be applied in this order
    files: dict[str, StoredFile]  # by path in the run folder


class CopyMark(Record):
    """`.copy.json` in a run folder: the copy that has the same content, or is about to."""

    session: str
    sequence: int
    after_session: str = ""  # of the copy that this one replaces, where another session wrote that
    after_sequence: int = 0


@dataclass(frozen=True)
class Piece:
    """A file of a pack, or what was appended to it."""

    path: str  # in the run folder
    offset: int  # bytes of the file that come before; the rest is replaced
    data: bytes | None  # None: the file was deleted


def pack(pieces: Iterable[Piece]) -> bytes:
    """Return the content of a pack."""
    listed = list(pieces)
    lengths = [[piece.path, piece.offset, -1 if piece.data is None else len(piece.data)] for piece in listed]
    head = json.dumps({"format": FORMAT, "pieces": lengths}).encode() + b"\n"
    return zlib.compress(head + b"".join(piece.data or b"" for piece in listed), 1)


def unpack(data: bytes) -> Iterator[Piece]:
    """Yield the pieces of a pack. Raises ValueError if it is damaged."""
    try:
        head, _, body = zlib.decompress(data).partition(b"\n")
        place = 0
        for path, offset, length in json.loads(head)["pieces"]:
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise ValueError(f"it names the path {path}")
            end = place + max(length, 0)
            yield Piece(path, offset, None if length < 0 else body[place:end])
            place = end
    except (zlib.error, LookupError, TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if place != len(body):
        raise ValueError(f"it holds {len(body)} bytes, not {place}")


# ------------------------------------------------------------------------------------------------------------ reading


def copy_of(storage: str, name: str) -> Storage:
    """Return where the copy of a search is, or will be."""
    return Storage(storage).below(name, FOLDER)


def read_index(storage: str, name: str) -> CopyIndex | None:
    """Read which files are the copy of a search; None if the storage has none.

    Raises InputError if that cannot be read, or was written by a newer version.
    """
    place = copy_of(storage, name)
    try:
        data = place.read(_INDEX)
    except OSError as error:
        raise InputError(f"--storage: cannot read {place} ({reason(error, place.location)})") from None
    return None if data is None else _parse_index(data, place)


def _parse_index(data: bytes, place: Storage) -> CopyIndex:
    try:
        index = CopyIndex.model_validate_json(data)
    except ValueError as error:
        raise InputError(f"{place}/{_INDEX}: is damaged ({error}); restore it from a copy") from None
    if index.format > FORMAT:
        raise InputError(f"{place}: was written by a newer version of wmlsearch; install that one")
    return index


def check_no_copy(storage: str, run: AnyDir) -> None:
    """Refuse a new run if the storage has the copy of a search of this name. Raises InputError that says how to go on.

    The storage is not named as in a command if it has a password.
    """
    index = read_index(storage, run.name)
    if index is not None:
        shown = str(Storage(storage))
        resume = command("tune", "--resume", *run_words(run.path), *(() if "***" in shown else ("--storage", shown)))
        raise InputError(
            f"--storage: {shown} has a search {run.name} already (state: {index.state}), and nothing is overwritten; "
            f"continue it (`{resume}`), choose another --name, or delete {copy_of(storage, run.name)}"
        )


@dataclass(frozen=True)
class CopiedSearch:
    """A search whose run folder is copied in a storage."""

    name: str
    state: str  # as of the copy; a search that died says "running"
    reason: str  # why it has ended, one line
    complete: bool  # whether the copy has everything: report and models too
    written: float  # when the copy was written last, Unix seconds by the clock of the writer
    writer: str  # the process that wrote it, as "process 1234 on node3"


def searches(storage: str) -> list[CopiedSearch]:
    """Return the searches that have a copy in a storage, sorted by name. Raises InputError if it cannot be read."""
    place = Storage(storage)
    try:
        names = place.names()[1]
    except OSError as error:
        raise InputError(f"--storage: cannot read {place} ({reason(error, storage)})") from None
    indexes = [index for name in names if (index := read_index(storage, name)) is not None]
    return [
        CopiedSearch(index.name, index.state, index.reason, index.complete, index.written, index.writer)
        for index in indexes
    ]


def fetch_search(storage: str, name: str, target: Path) -> SearchDir:
    """Copy a search from a storage to the new folder `target`, while it runs or later.

    The folder appears when it is complete. A storage that does not answer any more is asked again for COPY_PATIENCE_S.
    Raises InputError if the storage has no copy or cannot be read, or if `target` exists, and OSError if `target`
    cannot be written.
    """
    index = read_index(storage, name)
    if index is None:
        raise InputError(
            f"--storage: {Storage(storage)} has no copy of a search {name}; check the name and the storage"
        )
    if target.exists():
        raise InputError(f"{target}: exists already; name another folder, or move it away")
    place = copy_of(storage, name)
    aside = target.absolute().with_name(f".{target.name}.{os.getpid()}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        index = _fetch(place, index, aside)
        write_text(aside / _MARK, CopyMark(session=index.session, sequence=index.sequence).model_dump_json())
        _forget_that_runs_were_made(SearchDir(aside))
        aside.replace(target)
    except StorageError as error:
        if error.errno in FULL:  # this disk
            raise
        why = without_password(str(error.strerror))
        raise InputError(
            f"--storage: {place} could not be read to its end ({why}), and nothing was written to {target}; run this "
            "again when the storage answers"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return SearchDir(target)


def _forget_that_runs_were_made(search: SearchDir) -> None:
    """Let the MLflow run of the search count as found, not as created from this folder.

    MLflow may have runs of it that the copy does not know of: these are looked for before others are created.
    """
    ledger = search.ledger()
    if ledger.made:
        search.set_ledger(ledger.model_copy(update={"made": False}))


def _fetch(place: Storage, index: CopyIndex, folder: Path) -> CopyIndex:
    """Write the files of a copy into a new folder. Begin anew if the copy changes meanwhile; return the index used."""
    for _ in range(_ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            _write_files(folder, _apply_packs(place, index))
            for path, file in index.files.items():
                _download(place, file, folder / path)
        except FileNotFoundError as error:
            data = _reading(lambda: place.read(_INDEX), place)
            newer = index if data is None else _parse_index(data, place)
            if newer == index:
                raise InputError(f"{place}: lacks a part of the copy ({error}); restore it from a copy") from None
            index = newer
        except ValueError as error:
            raise InputError(f"{place}: is damaged ({error}); restore it from a copy") from None
        else:
            return index
    raise InputError(f"{place}: changed {_ATTEMPTS} times while it was read; try again")


def _apply_packs(place: Storage, index: CopyIndex) -> dict[str, bytearray]:
    """Return the content of each small file. Raises FileNotFoundError for a missing pack, ValueError for damage."""
    files: dict[str, bytearray] = {}
    for name in index.packs:
        data = _reading(lambda name=name: place.read(name), place)  # type: ignore[misc]
        if data is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        for piece in unpack(data):
            if piece.data is None:
                files.pop(piece.path, None)
                continue
            content = files.setdefault(piece.path, bytearray())
            if len(content) < piece.offset:
                raise ValueError(f"{name}: {piece.path} lacks the bytes before {piece.offset}")
            content[piece.offset :] = piece.data
    return files


def _write_files(folder: Path, files: Mapping[str, bytearray]) -> None:
    made: set[Path] = set()
    for path, content in files.items():
        target = folder / path
        if target.parent not in made:
            target.parent.mkdir(parents=True, exist_ok=True)
            made.add(target.parent)
        target.write_bytes(content)


def _download(place: Storage, file: StoredFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _reading(lambda: place.download(file.object, path), place)
    os.utime(path, ns=(file.mtime_ns, file.mtime_ns))


def _reading(read: Callable[[], T], place: Storage) -> T:
    """Return what `read` returns, which is repeated while the storage does not answer.

    Raises FileNotFoundError at once, since the copy may be another one by now, and StorageError.
    """
    missing: list[FileNotFoundError] = []

    def read_unless_missing() -> T | None:
        try:
            return read()
        except FileNotFoundError as error:
            missing.append(error)
            return None

    result = retry_while_unavailable(read_unless_missing, str(place), COPY_PATIENCE_S)
    if missing:
        raise missing[0]
    return cast(T, result)


def read_mark(search: SearchDir) -> CopyMark | None:
    """Return which copy a run folder was made into or restored from; None where nothing tells."""
    with suppress(OSError, ValueError):
        return CopyMark.model_validate_json((search.path / _MARK).read_bytes())
    return None


def copy_is_newer(index: CopyIndex, search: SearchDir) -> bool:
    """Return whether the copy in the storage has more than the run folder of the same search.

    A session writes the mark into its run folder before the index into the storage. So the folder is not the older one
    if its mark names the pass that wrote the index, or one that was to replace it and died. Else another session has
    gone on from the copy, or the same one after the folder was fetched. A folder without a mark was never copied, so
    the copy is that of the folder where the search went on.
    """
    mark = read_mark(search)
    if mark is None:
        return True
    if mark.session == index.session:
        return mark.sequence < index.sequence
    return (mark.after_session, mark.after_sequence) != (index.session, index.sequence)


def copy_is_complete(storage: str, search: SearchDir) -> bool:
    """Return whether a storage has all of a search that has ended. Raises InputError if that cannot be found out."""
    index, mark = read_index(storage, search.name), read_mark(search)
    return (
        index is not None
        and mark is not None
        and index.complete
        and (index.session, index.sequence) == (mark.session, mark.sequence)
    )


# ------------------------------------------------------------------------------------------------------------ writing


class LeaseLost(Exception):
    """Another process holds the search; the error names it."""


@dataclass(frozen=True)
class _Copied:
    """What the copy has of a file of the run folder."""

    inode: int
    mtime_ns: int
    size: int  # bytes that were looked at
    end: int  # bytes that are in the copy: of a file that grows, up to its last whole line
    tail: bytes = b""  # the last of them, of a file that grows


class CopyWriter:
    """Brings the copy of a run folder up to date, pass by pass. What a pass could not send, the next one sends.

    A copy is a consistent search at each moment: files are read in the reverse of the order in which a search writes
    them. Of a run the status is read before the metrics; the files of the search itself are read before its runs.

    Args:
        search: The search.
        storage: A path or URI.
        session: A name that no other session has.
        writer: This process, in words.
        check_lease: Raises LeaseLost if another process holds the search by now.
    """

    def __init__(
        self, search: SearchDir, storage: str, session: str, writer: str, check_lease: Callable[[], None]
    ) -> None:
        self.search, self.session, self.writer, self.check_lease = search, session, writer, check_lease
        self.place = copy_of(storage, search.name)
        self.key = search.record().key
        self.sequence = 0
        self._status = RunStatus(state=RUNNING)  # of the search, as in the copy
        self._names = 0  # that were used in the storage
        self._copied: dict[str, _Copied] = {}  # by path in the run folder
        self._of_run: dict[str, set[str]] = {}  # by path of a run: the paths of files that were seen in it
        self._files: dict[str, StoredFile] = {}  # large files, by the same
        self._full: list[str] = []  # packs that get no more pieces
        self._full_bytes = 0  # in them, before compression
        self._open: dict[str, Piece] = {}  # the pack that is written again with each pass, by path
        self._open_bytes = 0  # in it, before compression
        self._open_name = ""  # of that pack, as it is in the storage
        self._unsent = False  # whether the storage lacks something
        self._obsolete: list[str] = []  # names in the storage that the next index does not need
        self._root: list[Piece] = []  # of the search's own files, read before the runs of the next pass
        self._before = "", 0  # session and sequence of the copy that this session replaces
        self._root_names: set[str] = set()  # of all of them
        self._begun = False
        self._lacks_runs = True  # whether the copy may lack runs that have not changed

    @property
    def is_behind(self) -> bool:
        """Whether the next pass has something to send, even if no run changes."""
        return self._unsent or bool(self._root)

    def copy(self, runs: Iterable[Path]) -> None:
        """Copy what has changed in these run folders since the last pass, and the search's own files as of then.

        Everything is copied in the first pass, and when most of the packs is out of date. Raises OSError, LeaseLost.
        """
        if self._lacks_runs or self._is_wasteful():
            self.copy_all()
            return
        for run in runs:
            self._look_below(run)
        self._take_root()
        self._publish()
        self._read_root()

    def copy_all(self, complete: bool = False) -> None:
        """Copy everything that has changed in the run folder. Raises OSError, LeaseLost.

        Args:
            complete: Whether nothing will change any more. The copy says so.
        """
        if not self._begun:
            self._begin()
        if self._is_wasteful():
            self._pack_anew()
        self._read_root()
        self._look_below(self.search.path)
        self._lacks_runs = False
        self._take_root()
        self._publish(complete)

    def _begin(self) -> None:
        """Make the folder of the copy. Large files that an earlier copy has are not sent again."""
        self.place.make()
        data = self.place.read(_INDEX)
        before = None if data is None else _parse_index(data, self.place)
        if before is not None:
            self._before = before.session, before.sequence
        for path, file in before.files.items() if before is not None else ():
            with suppress(OSError):
                state = (self.search.path / path).stat()
                if (state.st_size, state.st_mtime_ns) == (file.size, file.mtime_ns):
                    self._files[path] = file
                    self._copied[path] = _Copied(state.st_ino, state.st_mtime_ns, state.st_size, state.st_size)
        kept = {_INDEX, *(file.object for file in self._files.values())}
        self._obsolete = [name for name in self.place.names()[0] if name not in kept]
        self._begun = True

    def _is_wasteful(self) -> bool:
        if self._full_bytes <= _WASTE_BYTES:
            return False
        needed = sum(file.end for path, file in self._copied.items() if path not in self._files)
        return self._full_bytes > _MOST_WASTE * needed + _WASTE_BYTES

    def _pack_anew(self) -> None:
        """Let the packs count as never written: this pass packs all files again."""
        self._obsolete += [*self._full, *filter(None, [self._open_name])]
        self._full, self._full_bytes, self._open, self._open_bytes = [], 0, {}, 0
        self._open_name, self._root, self._lacks_runs = "", [], True
        self._copied = {path: file for path, file in self._copied.items() if path in self._files}

    def _read_root(self) -> None:
        """Read what has changed of the files of the search itself, the status first.

        What was read before an error is kept: `_read` returns it only once.
        """
        paths = [path for path in _files_in(self.search.path) if path.suffix not in GROWING]
        for path in paths:
            if (piece := self._read(path)) is not None:
                self._root.append(piece)
        names = {path.name for path in paths}
        for name in self._root_names - names:
            if name in self._copied:
                self._root.append(self._removed(name))
        self._root_names = names

    def _take_root(self) -> None:
        """Put the search's own files into the copy, and the journals, which have what the runs have or more."""
        for piece in self._root:
            if piece.path == STATUS_FILE and piece.data is not None:
                with suppress(ValueError):
                    self._status = RunStatus.model_validate_json(piece.data)
            self._take(piece)
        self._root = []
        for path in _files_in(self.search.path):
            if path.suffix in GROWING:
                self._copy_file(path)

    def _look_below(self, folder: Path) -> None:
        """Put into the copy what has changed in a folder and those below it. The search's own files are left out.

        Raises OSError if a folder cannot be read; nothing is removed from the copy then.
        """
        seen: set[str] = set()
        for place in _folders_below(folder):
            for path in _files_in(place):
                seen.add(self._relative(path))
                if place != self.search.path:
                    self._copy_file(path)
        if folder == self.search.path:
            copied = {name for name in self._copied if "/" in name}
        else:
            copied = self._of_run.get(self._relative(folder), set()) & self._copied.keys()
        for name in copied - seen:
            self._take(self._removed(name))
        for name in seen:
            self._of_run.setdefault("/".join(name.split("/")[:2]), set()).add(name)

    def _copy_file(self, path: Path) -> None:
        piece = self._read(path)
        if piece is not None:
            self._take(piece)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.search.path).as_posix()

    def _removed(self, name: str) -> Piece:
        """Return the piece that says that a file is gone."""
        del self._copied[name]
        if file := self._files.pop(name, None):
            self._obsolete.append(file.object)
        return Piece(name, 0, None)

    def _read(self, path: Path) -> Piece | None:
        """Return what the copy lacks of a small file; None if it lacks nothing. A large file is sent at once."""
        name = self._relative(path)
        copied = self._copied.get(name)
        try:
            state = path.stat()
            if copied is not None and (copied.inode, copied.mtime_ns, copied.size) == _identity(state):
                return None
            with open(path, "rb") as file:
                state = os.fstat(file.fileno())
                if path.suffix in GROWING:
                    return self._read_growing(name, file, state, copied)
                if state.st_size >= LARGE_BYTES:
                    self._send_large(name, file, state)
                    return None
                data = file.read()
        except FileNotFoundError:  # replaced or removed at this moment: the next pass sees what became of it
            return None
        if large := self._files.pop(name, None):
            self._obsolete.append(large.object)
        self._copied[name] = _Copied(state.st_ino, state.st_mtime_ns, state.st_size, len(data))
        return Piece(name, 0, data)

    def _read_growing(self, name: str, file: IO[bytes], state: os.stat_result, copied: _Copied | None) -> Piece | None:
        """Return the whole lines that were appended to a file, or all of them if it was replaced."""
        start = 0
        if copied is not None and copied.inode == state.st_ino:
            file.seek(copied.end - len(copied.tail))
            if file.read(len(copied.tail)) == copied.tail:
                start = copied.end
        file.seek(start)
        data = file.read()
        size = start + len(data)
        data = data[: data.rfind(b"\n") + 1]  # a torn last line may be cut, or completed
        if copied is not None and start and not data:
            self._copied[name] = replace(copied, mtime_ns=state.st_mtime_ns, size=size)
            return None
        self._copied[name] = _Copied(state.st_ino, state.st_mtime_ns, size, start + len(data), data[-_TAIL:])
        return Piece(name, start, data)

    def _send_large(self, name: str, file: IO[bytes], state: os.stat_result) -> None:
        stored = self._new_name("file")
        self.place.upload(file, stored)
        if before := self._files.get(name):
            self._obsolete.append(before.object)
        self._files[name] = StoredFile(object=stored, size=state.st_size, mtime_ns=state.st_mtime_ns)
        self._copied[name] = _Copied(state.st_ino, state.st_mtime_ns, state.st_size, state.st_size)
        self._unsent = True

    def _take(self, piece: Piece) -> None:
        """Put a piece into the open pack, which is closed when it is full."""
        before = self._open.get(piece.path)
        if before is not None and before.data is not None and piece.data is not None and piece.offset:
            piece = Piece(piece.path, before.offset, before.data + piece.data)
        self._open[piece.path] = piece
        self._unsent = True
        self._open_bytes += len(piece.data or b"") - len((before.data if before else None) or b"")
        if self._open_bytes > PACK_BYTES:
            self._send_open_pack()
            self._full.append(self._open_name)
            self._full_bytes += self._open_bytes
            self._open, self._open_bytes, self._open_name = {}, 0, ""

    def _send_open_pack(self) -> None:
        name = self._new_name("pack")
        self.place.write(name, pack(self._open.values()))
        self._obsolete += filter(None, [self._open_name])
        self._open_name = name

    def _new_name(self, kind: str) -> str:
        self._names += 1
        return f"{self.session}-{self._names:06d}.{kind}"

    def _publish(self, complete: bool = False) -> None:
        """Let the index in the storage name what was sent, if anything was, and delete what it does not need."""
        if not self._unsent and not complete:
            return
        if self._open:
            self._send_open_pack()
        self.check_lease()
        self.sequence += 1
        mark = CopyMark(
            session=self.session,
            sequence=self.sequence,
            after_session=self._before[0],
            after_sequence=self._before[1],
        )
        write_text(self.search.path / _MARK, mark.model_dump_json())
        index = CopyIndex(
            name=self.search.name,
            key=self.key,
            session=self.session,
            sequence=self.sequence,
            written=time.time(),
            writer=self.writer,
            state=self._status.state,
            reason=self._status.reason,
            complete=complete,
            packs=[*self._full, *filter(None, [self._open_name])],
            files=self._files,
        )
        self.place.write(_INDEX, index.model_dump_json().encode())
        self._unsent = False
        while self._obsolete:
            self.place.delete(self._obsolete[-1])
            self._obsolete.pop()


def _folders_below(folder: Path) -> Iterator[Path]:
    """Yield a folder and those below it that are copied. Raises OSError if one cannot be read.

    `os.walk` would pass over such a folder, and its files would count as deleted.
    """
    yield folder
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:  # removed at this moment
        return
    for name in names:
        yield from _folders_below(folder / name)


def _files_in(folder: Path) -> list[Path]:
    """Return the files of a folder that are copied, in the order in which they are to be read."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    copied = [name for name in names if not name.startswith(".") and name not in PROCESS_FILES]
    copied.sort(key=lambda name: (name != STATUS_FILE, name.endswith(GROWING), name))
    return [folder / name for name in copied]


def _identity(state: os.stat_result) -> tuple[int, int, int]:
    return state.st_ino, state.st_mtime_ns, state.st_size
