"""A process, as a file names it, so that other processes can tell whether it is alive."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_ZOMBIE = "ended"  # as a start time: nobody has asked yet how the process ended


@dataclass(frozen=True)
class Process:
    """A process, as others can recognise it."""

    pid: int
    host: str
    started: str  # when, as its system tells it: process ids are used again
    space: str  # within which process ids are unique: this boot of the machine, this container
    machine: str = ""  # its number, the same after a reboot; "" where it has none

    @classmethod
    def of_this_one(cls) -> Process:
        pid = os.getpid()
        return cls(pid, socket.gethostname(), _start_time(pid), _pid_space(), _machine_id())

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Process:
        """Return the process of `as_plain`. Raises ValueError, TypeError or KeyError for anything else."""
        pid, machine = int(values["pid"]), str(values.get("machine", ""))  # older versions name no machine
        return cls(pid, str(values["host"]), str(values["started"]), str(values["space"]), machine)

    @classmethod
    def from_text(cls, text: str) -> Process | None:
        """Return the process that the text of a file names, or None if the file is damaged or torn."""
        try:
            return cls.from_plain(json.loads(text))
        except (ValueError, TypeError, KeyError, OverflowError):
            return None

    def as_plain(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_alive(self) -> bool | None:
        """Return whether the process is alive; None where this system cannot tell, as of another machine's process."""
        if self.space == _pid_space() and (self.space or self.host == socket.gethostname()):
            return self._is_alive_here()  # a laptop may have got another name meanwhile
        return False if self._is_of_an_earlier_boot() else None

    def _is_alive_here(self) -> bool:
        """Return whether the process is alive. Another one with its id has another start time."""
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except OSError:  # it belongs to another user
            pass
        started = _start_time(self.pid)
        return started != _ZOMBIE and (not started or not self.started or started == self.started)

    def _is_of_an_earlier_boot(self) -> bool:
        """Return whether the process was on this machine, before it was started again.

        Machines that were set up as copies may share their number, so the host's name counts as well.
        """
        boots = self.space.partition(" ")[0], _pid_space().partition(" ")[0]
        same_machine = self.machine and (self.machine, self.host) == (_machine_id(), socket.gethostname())
        return bool(same_machine and all(boots) and boots[0] != boots[1])


def _machine_id() -> str:
    """Return the number of this machine, or "". machine-id(5) asks that programs show only a hash of it."""
    with contextlib.suppress(OSError):
        number = Path("/etc/machine-id").read_text(encoding="utf-8", errors="replace").strip()
        return hashlib.sha256(f"wmlsearch {number}".encode()).hexdigest()[:16] if number else ""
    return ""


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


def end_this_process(status: int) -> None:
    """End this process at once; what it has printed is shown."""
    try:
        sys.stdout.flush()
    finally:
        os._exit(status)
