"""Find, wait for and kill processes."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def own_cores(number: int) -> list[int]:
    """Return so many cores of this machine. Under pytest-xdist each test process starts at another core."""
    cores = sorted(os.sched_getaffinity(0))
    place = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % len(cores)
    return [*cores[place:], *cores[:place]][:number]


def descendants(pid: int) -> list[int]:
    """Return the process ids of the children of a process, of their children, and so on, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    pids = list(children.get(pid, []))
    for child in pids:
        pids += children.get(child, [])
    return pids


def slots(driver: int) -> list[int]:
    """Return the ids of the processes in which the trials of a driver's search run."""
    pids = []
    for pid in descendants(driver):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        # Tune's class around a trial worker is named "Trainable"
        if "ray::" in title and ("TrialWorker" in title or "Trainable" in title):
            pids.append(pid)
    return pids


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal to a process. Returns whether the process existed."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def kill_everything(pid: int) -> None:
    """Kill a driver, Ray's head and all its workers at once, as a power cut does."""
    for process in [pid, *descendants(pid)]:
        kill(process)


def wait_for(condition: Callable[[], bool], timeout_s: float = 300, problem: str = "not true") -> None:
    """Return as soon as the condition holds. Fails with the `problem` after `timeout_s` seconds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{problem} after {timeout_s:g} s"
        time.sleep(0.05)  # conditions read processes and run folders, which keeps a core busy


def listening(pids: list[int]) -> set[tuple[str, str, int]]:
    """Return the TCP sockets on which processes listen, from /proc: name of the process, address, port."""
    sockets: dict[str, tuple[str, int]] = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            address, port = local.split(":")
            words = bytes.fromhex(address)  # in words of four bytes, each in the machine's order
            packed = b"".join(words[n : n + 4][::-1] for n in range(0, len(words), 4))
            if state == "0A":
                at = ipaddress.ip_address(packed)  # ::ffff:127.0.0.1 is 127.0.0.1, on a socket that could do both
                at = (at.ipv4_mapped or at) if isinstance(at, ipaddress.IPv6Address) else at
                sockets[f"socket:[{rest[5]}]"] = str(at), int(port, 16)
    listeners = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # the process has ended, or closes its sockets
            name = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0].rpartition("/")[2]
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if (target := str(entry.readlink())) in sockets:
                        listeners.add((name, *sockets[target]))
    return listeners


@contextlib.contextmanager
def watching_sockets(pid: int) -> Iterator[set[tuple[str, str, int]]]:
    """Collect the sockets on which a process and its descendants listen while the block runs."""
    seen: set[tuple[str, str, int]] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.25):
            seen.update(listening([pid, *descendants(pid)]))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
