"""The lease of a search in its storage: one head at a time runs the search.

The lease is the file `STORAGE/NAME/lease.json`. The process that runs the search renews it every few seconds, and gives
it back at its end. The clocks of two machines may differ, so another head does not compare times: it watches the lease,
and takes it over when it has not changed for EXPIRES_S. The storages have no common way to write a file only if nobody
else has, so who takes a lease reads it again after a pause: of two that wrote it, the later one has it.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from wmlsearch.cluster.storage import Storage, reason
from wmlsearch.errors import InputError
from wmlsearch.runs.process import Process

_FILE = "lease.json"
RENEW_S = 10.0  # between two renewals
EXPIRES_S = 60.0  # without a change, after which another head takes the lease over
SETTLE_S = 2.0  # between taking a lease and reading it again
RELEASE_S = 10.0  # how long the end of a search waits for a renewal that has begun
_LEASE_POLL_S = 1.0  # between two looks at the lease of another head
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Record:
    """What the file of a lease says."""

    process: Process
    token: str  # of the process's lease; no other one has it
    renewals: int
    renewed: float  # Unix seconds by the clock of the process; for people
    released: bool

    @classmethod
    def from_bytes(cls, data: bytes) -> _Record | None:
        """Return the record, or None if it is damaged."""
        try:
            values = json.loads(data)
            return cls(
                Process.from_plain(values["process"]),
                str(values["token"]),
                int(values["renewals"]),
                float(values["renewed"]),
                bool(values["released"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            return None

    def to_bytes(self) -> bytes:
        values: dict[str, Any] = {
            "process": self.process.as_plain(),
            "token": self.token,
            "renewals": self.renewals,
            "renewed": self.renewed,
            "released": self.released,
        }
        return json.dumps(values).encode()


class Lease:
    """The lease that this process has of a search, renewed by a thread until `release`.

    Attributes:
        token: Names the session that has the lease.
        lost_to: The other process that has the lease now, or "" while this one has it.
    """

    def __init__(self, location: str, name: str) -> None:
        self.location, self.name = location, name
        self.token, self.lost_to = secrets.token_hex(8), ""
        self.process = Process.of_this_one()
        self._place = Storage(location).below(name)
        self._renewals = 0
        self._done = threading.Event()
        self._told: Callable[[str], None] | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._renew_until_done, name="lease", daemon=True)

    @classmethod
    def take(cls, location: str, name: str, say: Callable[[str], None]) -> Lease:
        """Take the lease of a search. Raises InputError if another head has it, or if the storage cannot be used."""
        lease = cls(location, name)
        try:
            lease._place.make(parents=True)
            _wait_until_free(lease._place, name, say)
            lease._write()
        except OSError as error:
            raise InputError(
                f"--storage {Storage(location)}: cannot be used ({reason(error, location)}); name a folder or URI that "
                "can be read and written"
            ) from None
        lease._thread.start()
        return lease

    def on_loss(self, tell: Callable[[str], None]) -> None:
        """Call `tell` with the other process if this one loses the lease, or has lost it already."""
        with self._lock:
            self._told = tell
            lost_to = self.lost_to
        if lost_to:
            tell(lost_to)

    def release(self) -> None:
        """Give the lease back, so that another head need not wait."""
        self._done.set()
        self._thread.join(RELEASE_S)
        if self._thread.is_alive():  # the storage does not answer: the lease expires
            return
        with suppress(OSError):
            if not self.lost_to and holder(self._place, self.token) == "":
                self._write(released=True)

    def _write(self, released: bool = False) -> None:
        self._renewals += 1
        record = _Record(self.process, self.token, self._renewals, time.time(), released)
        self._place.write(_FILE, record.to_bytes())

    def _renew_until_done(self) -> None:
        wait_s = SETTLE_S
        while not self._done.wait(wait_s):
            wait_s = RENEW_S
            try:
                other = holder(self._place, self.token)
                if other:
                    self.lose_to(other)
                    return
                self._write()
            except Exception as error:  # the storage is away: it is asked again
                _log.debug("the lease of %s could not be renewed: %s", self.name, error)

    def lose_to(self, other: str) -> None:
        """Note that another process has the lease."""
        with self._lock:
            self.lost_to = other
            tell = self._told
        if tell is not None:
            tell(other)


def holder(place: Storage, token: str) -> str:
    """Return which process has a lease instead of the one with this token, or "" if this one has it.

    A lease that is missing was deleted by hand, so it is still the one's that had it. Raises OSError.

    Args:
        place: The folder of the search in the storage.
        token: Token of the lease.
    """
    data = place.read(_FILE)
    record = None if data is None else _Record.from_bytes(data)
    return "" if record is None or record.token == token else str(record.process)


def _wait_until_free(place: Storage, name: str, say: Callable[[str], None]) -> None:
    """Return when nobody has a lease. Raises InputError that names the process that has it and renews it."""
    before = place.read(_FILE)
    record = None if before is None else _Record.from_bytes(before)
    if before is None or (record is not None and record.released):
        return
    alive = record.process.is_alive() if record is not None else None
    if alive is False:
        return
    who = str(record.process) if record is not None else "a process that it does not name"
    if not alive:
        say(
            f"note: {place}: {who} may still run {name}; watching its lease for up to {EXPIRES_S:g} s, after which "
            "the search continues here"
        )
    end = time.monotonic() + EXPIRES_S
    while not alive and time.monotonic() < end:
        time.sleep(min(_LEASE_POLL_S, EXPIRES_S / 4))
        now = place.read(_FILE)
        record = None if now is None else _Record.from_bytes(now)
        if now is None or (record is not None and record.released):
            return
        alive = now != before
        who = str(record.process) if record is not None else who
    if alive:
        raise InputError(
            f"{place}: {who} runs {name} and renews its lease; end it there (`wmlsearch stop`, Ctrl-C), and resume it "
            f"here as soon as it has ended, or {EXPIRES_S:g} s after its machine has died"
        )
