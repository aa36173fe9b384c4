"""The lock of a run folder: one process at a time holds it.

Two things say that a folder is held, because no file system can be trusted with one of them alone:

- A lock of the file `owner` (flock), which the system releases when the process ends. Some file systems have no locks
  (ENOSYS, ENOLCK, EOPNOTSUPP), and some grant every lock (network file systems mounted with local locks).
- A claim, the file `.owner-claim`, which only one process can create (O_EXCL). It names its process, which touches it
  every few seconds. A claim whose process is dead is taken over: on the same machine the system knows, for another one
  the claim is watched for a moment. It also holds the number of its own file (inode), so that a copy of the folder is
  not taken for the folder that is held.

A process that stood still for so long that its folder was taken over sees the other claim, and writes nothing more
(`check_still_held`).

`is_running` asks for both without writing: it opens `owner` for reading and tries a shared lock, since NFS grants an
exclusive one only to a file that is open for writing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wmlsearch.errors import InputError
from wmlsearch.runs.file_systems import NO_LOCKS, lasting_inode
from wmlsearch.runs.files import StorageError, write_all, writing
from wmlsearch.runs.process import Process
from wmlsearch.runs.wording import command

OWNER_FILE, CLAIM_FILE = "owner", ".owner-claim"
_ATTEMPTS, _ATTEMPT_S = 5, 0.02  # `is_running` of another process holds the lock for a moment
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN)
TOUCH_S = 2.0  # how often the process that holds a folder touches its claim
WATCH_S = 10.0  # how long a claim of another machine is watched before it is taken over: some touches may be late
FRESH_S = 60.0  # a claim of another machine that is younger counts as alive where there is no time to watch it
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Claim:
    """What the file of a claim says."""

    process: Process
    token: str
    inode: int | None  # of the file itself, to tell it from a copy; None where such numbers do not last

    @classmethod
    def from_text(cls, text: str) -> _Claim | None:
        """Return the claim, or None if it is not written completely."""
        try:
            values = json.loads(text)
            inode = values.get("inode")  # older versions write none
            return cls(Process.from_plain(values), str(values["token"]), None if inode is None else int(inode))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            return None

    def to_text(self) -> str:
        return json.dumps({**self.process.as_plain(), "token": self.token, "inode": self.inode})


@dataclass(frozen=True)
class _ClaimFile:
    """The file of a claim, as it was at one moment."""

    text: str
    touched_ns: int  # by the clock of its file system
    inode: int | None  # None where such numbers do not last

    @classmethod
    def read(cls, path: Path) -> _ClaimFile | None:
        """Read a claim; None if there is none. Raises OSError if that cannot be found out.

        It is opened for its time: of an opened file NFS asks the server for that, else it may answer from memory.
        """
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return cls(file.read(), os.fstat(file.fileno()).st_mtime_ns, lasting_inode(file.fileno(), path))
        except FileNotFoundError:
            return None

    @property
    def claim(self) -> _Claim | None:
        return _Claim.from_text(self.text)

    @property
    def is_copy(self) -> bool:
        """Whether the file was copied, with its folder: then it says nothing of the folder that it is in."""
        return self.claim is not None and None not in (self.inode, self.claim.inode) and self.inode != self.claim.inode

    def is_alive(self) -> bool | None:
        """Return whether its process is alive, or None if this system cannot tell."""
        if self.is_copy:
            return False
        return self.claim.process.is_alive() if self.claim else None


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process. Raises InputError that names the process that holds it.

    Where the file system has no locks, the claim alone tells two processes apart, and a warning says so.
    """
    with open(folder / OWNER_FILE, "a+", encoding="utf-8") as file:
        if not _try_lock(file.fileno(), folder):
            file.seek(0)
            raise _running_already(folder, file.read())
        process = Process.of_this_one()
        with _claimed(folder, process) as hold:
            owner = f"{process}\n"
            with writing(folder / OWNER_FILE, len(owner)):
                file.truncate(0)
                file.write(owner)
                file.flush()
            with _touched(hold):
                yield


def process_files(folder: Path) -> tuple[Path, Path]:
    """Return the files by which a process holds a folder; it touches the second one every few seconds."""
    return folder / OWNER_FILE, folder / CLAIM_FILE


def check_not_running(folder: Path) -> None:
    """Raise InputError that names the process that holds this folder, if there is one."""
    if is_running(folder):
        with contextlib.suppress(FileNotFoundError):
            raise _running_already(folder, (folder / OWNER_FILE).read_text(encoding="utf-8"))
        raise _running_already(folder, "")


def is_running(folder: Path) -> bool:
    """Return whether a process holds this folder, or whether that cannot be found out. Nothing is written."""
    with contextlib.suppress(FileNotFoundError), open(folder / OWNER_FILE, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                return True
    return _claim_is_fresh(folder / CLAIM_FILE)


def claim_of(folder: Path) -> Path:
    """Return the file that says which process holds a folder, while there is one."""
    return folder / CLAIM_FILE


def _try_lock(descriptor: int, folder: Path) -> bool:
    """Lock an open file until it is closed, where its file system can. Return False if another process holds the lock.

    Raises InputError if the lock fails for another reason than a missing or held lock.
    """
    for _ in range(_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                _log.warning(
                    "warning: %s: its file system has no locks (%s), so a file in it (%s) keeps a second process out",
                    folder, error.strerror, CLAIM_FILE,
                )  # fmt: skip
                return True
            if error.errno not in _HELD:
                raise InputError(
                    f"{folder}: cannot be locked ({error.strerror or error}); check that its file system is there "
                    "(`df`, `ls`), or give --out on another one"
                ) from None
            time.sleep(_ATTEMPT_S)
        else:
            return True
    return False


@contextlib.contextmanager
def _claimed(folder: Path, process: Process) -> Iterator[_Hold]:
    """Hold the claim of a folder for the block. Raises InputError that names the process that has it."""
    hold = _Hold(folder, process)
    while not hold.create():
        _remove_if_dead(hold.path)
    try:
        yield hold
    finally:
        hold.release()


@contextlib.contextmanager
def _touched(hold: _Hold) -> Iterator[None]:
    """Touch a claim again and again, and let `check_still_held` know of it."""
    done = threading.Event()
    thread = threading.Thread(target=_touch_until, args=(hold, done), name="owner-claim", daemon=True)
    key = hold.folder.absolute()
    _holds[key] = hold
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        del _holds[key]


class _Hold:
    """The claim that this process has made of a folder, and whether another process has taken it."""

    def __init__(self, folder: Path, process: Process) -> None:
        self.folder, self.path, self.process = folder, folder / CLAIM_FILE, process
        self.token = secrets.token_hex(8)
        self.taken_by = ""  # the other process, or "" while the claim is this one's
        self.taken_where = ""  # the storage in which it holds the search, or "" where it holds this folder
        self._looked = time.time()  # this clock goes on while a machine sleeps
        self._lock = threading.Lock()

    def create(self) -> bool:
        """Create the claim. Return False if there is one already."""
        with writing(self.path, len(_Claim(self.process, self.token, 2**63).to_text())):
            try:
                descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                return False
            try:
                with open(descriptor, "wb", buffering=0) as file:
                    claim = _Claim(self.process, self.token, lasting_inode(descriptor, self.path))
                    write_all(file, claim.to_text().encode())
            except OSError:
                with contextlib.suppress(OSError):
                    self.path.unlink()
                raise
        return True

    def touch(self) -> None:
        """Touch the claim, if it is still this process's, so that other machines see that the process is alive."""
        with self._lock, contextlib.suppress(OSError):  # the storage may come back
            try:
                with open(self.path, encoding="utf-8", errors="replace") as file:
                    claim = _Claim.from_text(file.read())
                    if claim is not None and claim.token == self.token:
                        os.utime(file.fileno())
                    elif claim is not None:
                        self.taken_by = str(claim.process)
            except FileNotFoundError:
                self._claim_again()
            self._looked = time.time()

    def _claim_again(self) -> None:
        """Make the claim anew, unless another process has held the folder meanwhile, and perhaps let it go."""
        owner = (self.folder / OWNER_FILE).read_text(encoding="utf-8", errors="replace").strip()
        if owner in ("", str(self.process)):
            self.create()
        else:
            self.taken_by = owner

    def check(self) -> None:
        """Raise StorageError if another process has taken the folder. Looks first, if this process has stood still."""
        if not 0 <= time.time() - self._looked < WATCH_S / 2:
            self.touch()
        if self.taken_where:
            raise StorageError(
                f"{self.folder}: {self.taken_by} has taken the search over in {self.taken_where}, since this process "
                "did not renew its lease there; this one writes nothing more"
            )
        if self.taken_by:
            raise StorageError(
                f"{self.folder}: {self.taken_by} has taken it over, since this process stood still for more than "
                f"{WATCH_S:g} s; this one writes nothing more into it"
            )

    def release(self) -> None:
        with contextlib.suppress(OSError):
            file = _ClaimFile.read(self.path)
            if file is not None and file.claim is not None and file.claim.token == self.token:
                self.path.unlink(missing_ok=True)


_holds: dict[Path, _Hold] = {}  # the folders that this process holds


def check_still_held(path: Path) -> None:
    """Raise StorageError if `path` is in a folder that this process held, until another one took it over."""
    path = path.absolute()
    for folder, hold in list(_holds.items()):
        if path.is_relative_to(folder):
            hold.check()


def note_taken_over(folder: Path, process: str, where: str) -> None:
    """Let `check_still_held` fail for a folder that this process holds: another one goes on with it elsewhere.

    Args:
        folder: The run folder.
        process: The other process, in words.
        where: The storage in which it has the search.
    """
    if hold := _holds.get(folder.absolute()):
        hold.taken_by, hold.taken_where = process, where


def _touch_until(hold: _Hold, done: threading.Event) -> None:
    while not done.wait(TOUCH_S):
        hold.touch()


def _remove_if_dead(path: Path) -> None:
    """Remove a claim whose process is dead. Raises InputError that names the process if it is alive."""
    try:
        before = _ClaimFile.read(path)
        if before is not None and before.is_alive() is None:
            before = _watch(path, before)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}), so another process may hold this folder; check that "
            "its file system is there (`df`, `ls`), or give --out on another one"
        ) from None
    if before is None:
        return
    if before.is_alive():
        raise _running_already(path.parent, str(before.claim.process) if before.claim else "")
    # Renamed, not removed: another process may have done the same and made a new claim meanwhile.
    aside = path.with_name(f"{CLAIM_FILE}.{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        moved = _ClaimFile.read(aside)
        if moved is not None and (moved.text, moved.touched_ns) != (before.text, before.touched_ns):
            _put_back(aside, path)
        aside.unlink(missing_ok=True)


def _put_back(aside: Path, path: Path) -> None:
    """Give a claim its name again, unless there is another one by now."""
    try:
        os.link(aside, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            aside.rename(path)


def _watch(path: Path, before: _ClaimFile) -> _ClaimFile | None:
    """Watch a claim that this system cannot judge for WATCH_S; return it as it is then, None if it is gone.

    Raises InputError that names its process if it was touched, and OSError if it could not be read at the end.
    """
    end = time.monotonic() + WATCH_S
    if before.claim is not None:
        _log.warning("note: %s: %s may still hold it; watching for %g s", path.parent, before.claim.process, WATCH_S)
    while True:
        time.sleep(min(TOUCH_S, WATCH_S) / 4)
        try:
            now = _ClaimFile.read(path)
        except OSError:  # as a server that is started again
            if time.monotonic() >= end:
                raise
            continue
        if now is None:
            return None
        if now.touched_ns != before.touched_ns:
            raise _running_already(path.parent, str(now.claim.process) if now.claim else "")
        if time.monotonic() >= end:
            return now


def _claim_is_fresh(path: Path) -> bool:
    """Return whether the process of a claim is alive; of another machine's, whether it was touched lately."""
    try:
        file = _ClaimFile.read(path)
    except OSError:
        return True  # it may be
    if file is None:
        return False
    alive = file.is_alive()
    return abs(time.time() - file.touched_ns / 1e9) < FRESH_S if alive is None else alive


def _running_already(folder: Path, owner: str) -> InputError:
    return InputError(
        f"{folder}: this search is running already ({owner.strip() or 'owner unknown'}); "
        f"follow it with `{command('status', folder)}`, or choose another --name"
    )
