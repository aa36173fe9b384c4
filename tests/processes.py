"""Processes that tests look for, wait for and kill."""

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
    """So many cores of this machine, the first of them this test process's own, if pytest runs in several."""
    there = sorted(os.sched_getaffinity(0))
    place = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % len(there)
    return [*there[place:], *there[:place]][:number]


def descendants(pid: int) -> list[int]:
    """The children of a process, their children, and so on, as /proc has them."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = list(children.get(pid, []))
    for child in found:
        found += children.get(child, [])
    return found


def slots(driver: int) -> list[int]:
    """The processes in which the trials of a driver's search run."""
    found = []
    for pid in descendants(driver):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        # Tune's class around a trial worker is named "Trainable"
        if "ray::" in title and ("TrialWorker" in title or "Trainable" in title):
            found.append(pid)
    return found


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Whether there was such a process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def kill_everything(pid: int) -> None:
    """As when the power goes: a driver, Ray's head and all its workers."""
    for each in [pid, *descendants(pid)]:
        kill(each)


def wait_for(condition: Callable[[], bool], timeout_s: float = 300) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)  # what is looked at, processes and run folders, costs a core more than a wait does


def listening(pids: list[int]) -> set[tuple[str, str, int]]:
    """The TCP sockets on which processes listen, as /proc has them: name of the process, address, port."""
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
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended, or closes them now
            name = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0].rpartition("/")[2]
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if (held := str(entry.readlink())) in sockets:
                        found.add((name, *sockets[held]))
    return found


@contextlib.contextmanager
def watching_sockets(pid: int) -> Iterator[set[tuple[str, str, int]]]:
    """All sockets on which a process and its descendants listen while the block runs, those of helpers too."""
    seen: set[tuple[str, str, int]] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.25):
            seen.update(listening([pid, *descendants(pid)]))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
