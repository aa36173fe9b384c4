"""A watchdog of a job on Ray: it reports what waits for resources, and ends the job when the embedded Ray dies."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import ray
from ray.util.placement_group import placement_group_table

from wmlsearch.cluster.ray_patches import dead_servers


@contextlib.contextmanager
def watchdog(
    say: Callable[[str], None], waiting: Callable[[], str], limit_s: float = 60, every_s: float = 5, hint: str = ""
) -> Iterator[None]:
    """Watch Ray while the block runs.

    A placement group that waits for resources longer than `limit_s` is reported once. When a server of the embedded
    Ray dies, this process reports it and exits with status 1: each further call to Ray would block.

    Args:
        say: Takes a line for the user.
        waiting: Returns the names of the trials that have not begun yet.
        every_s: Time between two looks at the placement groups.
        hint: What the user can do after Ray has died; it is appended to that report.
    """
    done = threading.Event()
    targets = {
        "ray-servers": lambda: _watch_servers(done, say, hint),
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


def _watch_servers(done: threading.Event, say: Callable[[str], None], hint: str) -> None:
    while not done.wait(0.2):
        if dead := dead_servers():
            say(f"Ray has died ({' and '.join(dead)}), and this job with it; the run folders are kept{hint}")
            os._exit(1)


def _watch_placement_groups(
    done: threading.Event, say: Callable[[str], None], waiting: Callable[[], str], limit_s: float, every_s: float
) -> None:
    since: dict[str, float] = {}
    reported: set[str] = set()
    while not done.wait(every_s):
        if not ray.is_initialized():
            return
        table, free = placement_group_table(), ray.available_resources()
        pending = {key: group for key, group in table.items() if group["state"] == "PENDING"}
        since = {key: since.get(key, time.monotonic()) for key in pending}
        for key, group in pending.items():
            waited_s = time.monotonic() - since[key]
            if waited_s > limit_s and key not in reported:
                reported.add(key)
                request = ", ".join(_amounts(bundle) for bundle in group["bundles"].values())
                say(f"{waiting()} has waited {waited_s:.0f} s for [{request}]; free in the cluster: {_amounts(free)}")


def _amounts(resources: Mapping[str, float]) -> str:
    """Return `2 CPU and 1 GPU`, or `nothing`."""
    amounts = [f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name)]
    return " and ".join(amounts) or "nothing"
