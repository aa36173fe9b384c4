"""A watchdog of a job on Ray: it reports what waits for resources, and ends the job when Ray dies."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray.util.placement_group import placement_group_table

from wmlsearch.cluster.connect import own_address
from wmlsearch.cluster.embedded import EMBEDDED
from wmlsearch.cluster.head_probe import RESTART_S, HeadProbe
from wmlsearch.cluster.ray_patches import dead_servers
from wmlsearch.cluster.resources import FIRST_SLOT
from wmlsearch.runs.early_end import EarlyEnd
from wmlsearch.runs.interrupts import end_by_signal, first_request
from wmlsearch.runs.process import end_this_process

PUT_ASIDE = "wmlsearch-put-aside"  # name of the placement groups that keep trials off a machine
PATIENCE_AFTER_SIGNAL_S = 1.0  # a signal to the whole process group may reach Ray's servers first


@contextlib.contextmanager
def watchdog(
    say: Callable[[str], None],
    waiting: Callable[[], str],
    limit_s: float = 60,
    every_s: float = 5,
    end: Callable[[EarlyEnd, int], None] = lambda _, status: end_this_process(status),
) -> Iterator[None]:
    """Watch Ray while the block runs.

    Placement groups that wait for the same resources longer than `limit_s` are reported once. When a server of the
    embedded Ray dies, or the head of a cluster is gone for RESTART_S, the job ends, and by default this process: each
    further call to Ray may block. The exit status is 1, or 128 + N where signal N asked this process to end: SIGTERM to
    a process group or batch job ends Ray's servers too.

    Args:
        say: Takes a line for the user.
        waiting: Returns the names of the trials that have not begun yet.
        every_s: Time between two looks at the placement groups.
        end: Ends the job, for this reason (a dead Ray, or a signal) and with an exit status.
    """
    done = threading.Event()
    targets = {
        "ray-servers": lambda: _watch_servers(done, say, end),
        "ray-placement-groups": lambda: _watch_placement_groups(done, say, waiting, limit_s, every_s),
    }
    threads = [threading.Thread(target=target, name=name, daemon=True) for name, target in targets.items()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _watch_servers(done: threading.Event, say: Callable[[str], None], end: Callable[[EarlyEnd, int], None]) -> None:
    address = None if EMBEDDED in os.environ else own_address()
    head = HeadProbe(address) if address else None
    while not done.wait(0.2):
        if dead := dead_servers() or (_gone(head) if head else []):
            break
    else:
        return
    status, early_end = 1, EarlyEnd.by_dead_ray(dead)
    try:
        if not first_request():
            time.sleep(PATIENCE_AFTER_SIGNAL_S)
        if number := first_request():
            early_end, status = end_by_signal(number), 128 + number
        say(f"{early_end}; the run folders are kept")
    finally:
        end(early_end, status)


def _gone(head: HeadProbe) -> list[str]:
    """Return the head as a list if it is gone for good; after a request to end this process it need not come back."""
    patience_s = PATIENCE_AFTER_SIGNAL_S if first_request() else RESTART_S
    return [f"its head at {head.address}"] if head.gone_s() > patience_s else []


def _watch_placement_groups(
    done: threading.Event, say: Callable[[str], None], waiting: Callable[[], str], limit_s: float, every_s: float
) -> None:
    """Report what waits by the resources that it waits for: Ray Train asks for a group's machines anew each minute."""
    since: dict[str, float] = {}
    reported: set[str] = set()
    while not done.wait(every_s):
        if not ray.is_initialized():
            return
        table, free = placement_group_table(), ray.available_resources()
        pending = Counter(_request(group) for group in table.values() if _waits(group))
        since = {request: since.get(request, time.monotonic()) for request in pending}
        reported &= since.keys()
        for request, count in pending.items():
            waited_s = time.monotonic() - since[request]
            if waited_s > limit_s and request not in reported:
                reported.add(request)
                times = f"{count} times " if count > 1 else ""
                say(f"{waiting()} has waited {waited_s:.0f} s for {times}[{request}]; free in the cluster: "
                    f"{_amounts(free)}")  # fmt: skip


def _waits(group: Mapping[str, Any]) -> bool:
    return group["state"] == "PENDING" and group["name"] not in (PUT_ASIDE, FIRST_SLOT)


def _request(group: Mapping[str, Any]) -> str:
    return ", ".join(_amounts(bundle) for bundle in group["bundles"].values())


def _amounts(resources: Mapping[str, float]) -> str:
    """Return `2 CPU and 1 GPU`, or `nothing`."""
    amounts = [f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name)]
    return " and ".join(amounts) or "nothing"
