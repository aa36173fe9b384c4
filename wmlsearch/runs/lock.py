"""The lock of a run folder: one process at a time holds it.

Two things say that a folder is held, because no file system can be trusted with one of them alone:

- A lock of the file `owner` (flock), which the system releases when the process ends. Some file systems have no locks
  (ENOSYS, ENOLCK, EOPNOTSUPP), and some grant every lock (network file systems mounted with local locks).
- A claim, the file `.owner-claim`, which only one process can create (O_EXCL). It names its process, which touches it
  every few seconds. A claim whose process is dead is taken over: on the same machine the system knows, for another one
  the claim is watched for a moment.

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
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from wmlsearch.config import InputError
from wmlsearch.runs.files import writing
from wmlsearch.runs.wording import command

_FILE, _CLAIM = "owner", ".owner-claim"
_ATTEMPTS, _ATTEMPT_S = 5, 0.02  # `is_running` of another process holds the lock for a moment
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EBADF)
TOUCH_S = 2.0  # how often the process that holds a folder touches its claim
WATCH_S = 10.0  # how long a claim of another machine is watched before it is taken over: some touches may be late
FRESH_S = 60.0  # a claim of another machine that is younger counts as alive where there is no time to watch it
_ZOMBIE = "ended"  # as a start time: nobody has asked yet how the process ended
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Process:
    """A process, as others can recognise it, and the claim that it made."""

    pid: int
    host: str
    started: str  # when, as its system tells it: process ids are used again
    space: str  # within which process ids are unique: this boot of the machine, this container
    token: str  # of the claim

    @classmethod
    def of_this_one(cls) -> _Process:
        pid = os.getpid()
        return cls(pid, socket.gethostname(), _start_time(pid), _pid_space(), secrets.token_hex(8))

    @classmethod
    def from_text(cls, text: str) -> _Process | None:
        """Return the process that a claim names, or None if the claim is not written completely."""
        try:
            values = json.loads(text)
            return cls(**{name: type_(values[name]) for name, type_ in _FIELDS.items()})
        except (ValueError, TypeError, KeyError):
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_here(self) -> bool:
        """Whether this system can tell if the process is alive. A laptop may have got another name meanwhile."""
        return self.space == _pid_space() and (bool(self.space) or self.host == socket.gethostname())

    @property
    def is_alive_here(self) -> bool:
        """Whether the process is alive. Another one with its id has another start time."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:  # it belongs to another user
            pass
        started = _start_time(self.pid)
        return started != _ZOMBIE and (not started or not self.started or started == self.started)


_FIELDS = {"pid": int, "host": str, "started": str, "space": str, "token": str}


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process. Raises InputError that names the process that holds it.

    Where the file system has no locks, the claim alone tells two processes apart, and a warning says so.
    """
    with open(folder / _FILE, "a+", encoding="utf-8") as file:
        if not _try_lock(file.fileno(), folder):
            file.seek(0)
            raise _running_already(folder, file.read())
        process = _Process.of_this_one()
        with _claimed(folder, process):
            owner = f"{process}\n"
            with writing(folder / _FILE, len(owner)):
                file.truncate(0)
                file.write(owner)
                file.flush()
            yield


def check_not_running(folder: Path) -> None:
    """Raise InputError that names the process that holds this folder, if there is one."""
    if is_running(folder):
        with contextlib.suppress(FileNotFoundError):
            raise _running_already(folder, (folder / _FILE).read_text(encoding="utf-8"))
        raise _running_already(folder, "")


def is_running(folder: Path) -> bool:
    """Return whether a process holds this folder, or whether that cannot be found out. Nothing is written."""
    with contextlib.suppress(FileNotFoundError), open(folder / _FILE, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                return True
    return _claim_is_fresh(folder / _CLAIM)


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
                    folder, error.strerror, _CLAIM,
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
def _claimed(folder: Path, process: _Process) -> Iterator[None]:
    """Hold the claim of a folder for the block. Raises InputError that names the process that has it."""
    claim = folder / _CLAIM
    while not _create(claim, process):
        _remove_if_dead(claim)
    done = threading.Event()
    thread = threading.Thread(target=_touch_until, args=(claim, done), name="owner-claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if _read(claim) == process:
            claim.unlink(missing_ok=True)


def _create(claim: Path, process: _Process) -> bool:
    """Create a claim, whole. Return False if there is one already."""
    text = json.dumps(asdict(process)).encode()
    with writing(claim, len(text)):
        try:
            descriptor = os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, text)
        finally:
            os.close(descriptor)
    return True


def _touch_until(claim: Path, done: threading.Event) -> None:
    """Touch a claim again and again, so that other machines see that its process is alive."""
    while not done.wait(TOUCH_S):
        with contextlib.suppress(OSError):  # the storage may come back
            os.utime(claim)


def _remove_if_dead(claim: Path) -> None:
    """Remove a claim whose process is dead. Raises InputError that names the process if it is alive."""
    process = _read(claim)
    if process is not None and process.is_here:
        if process.is_alive_here:
            raise _running_already(claim.parent, str(process))
    elif _changes_within(claim, process):
        raise _running_already(claim.parent, str(_read(claim) or ""))
    # Renamed, not removed: another process may have done the same and made a new claim meanwhile.
    aside = claim.with_name(f"{_CLAIM}.{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        claim.rename(aside)
        moved = _read(aside)
        if moved != process and not claim.exists():
            aside.rename(claim)
        aside.unlink(missing_ok=True)


def _changes_within(claim: Path, process: _Process | None) -> bool:
    """Watch a claim that this system cannot judge; return whether it was touched within WATCH_S."""
    before, end = _touched(claim), time.monotonic() + WATCH_S
    if process is not None:
        _log.warning("note: %s: %s may still hold it; watching for %g s", claim.parent, process, WATCH_S)
    while before is not None and time.monotonic() < end:
        time.sleep(min(TOUCH_S, WATCH_S) / 4)
        now = _touched(claim)
        if now is not None and now != before:
            return True
        if now is None:
            return False
    return False


def _touched(claim: Path) -> int | None:
    """Return when a claim was touched, by the clock of its file system (ns), or None if it is gone.

    It is opened for that: NFS asks the server for the time of a file that is opened, else it may answer from memory.
    """
    try:
        with open(claim, "rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _claim_is_fresh(claim: Path) -> bool:
    """Return whether the process of a claim is alive; of another machine's, whether it was touched lately."""
    process, touched = _read(claim), _touched(claim)
    if touched is None:
        return False
    if process is not None and process.is_here:
        return process.is_alive_here
    return abs(time.time() - touched / 1e9) < FRESH_S


def _read(claim: Path) -> _Process | None:
    try:
        return _Process.from_text(claim.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _pid_space() -> str:
    """Return what names the boot of this machine and the container within which process ids are unique, if known."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _start_time(pid: int) -> str:
    """Return when a process started, as its system tells it; "" if it tells nothing."""
    try:  # proc_pid_stat(5): the name of the program may hold spaces and parentheses; then field 3 and 22
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return _ZOMBIE if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # macOS
        command = ["/bin/ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()  # noqa: S603
    return ""


def _running_already(folder: Path, owner: str) -> InputError:
    return InputError(
        f"{folder}: this search is running already ({owner.strip() or 'owner unknown'}); "
        f"follow it with `{command('status', folder)}`, or choose another --name"
    )
