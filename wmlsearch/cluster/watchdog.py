"""Watches an embedded Ray and the placement groups that wait for resources."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray.util.placement_group import placement_group_table


@contextlib.contextmanager
def watchdog(
    say: Callable[[str], None], who: Callable[[], str], limit_s: float = 60, every_s: float = 5, hint: str = ""
) -> Iterator[None]:
    """Say what waits for resources longer than `limit_s`, once for each placement group, while the block runs.

    `who()` names the trials that have not begun yet. Where our embedded Ray dies under us, this process says so, with
    the `hint`, and ends with it: whatever it asks Ray for would be waited for in vain.
    """
    done = threading.Event()

    def guard() -> None:
        while not done.wait(0.2):
            if dead := _dead_servers():
                say(f"Ray has died ({dead}), and with it this job; what the run folders hold is kept{hint}")
                os._exit(1)

    def watch() -> None:
        since: dict[str, float] = {}
        told: set[str] = set()
        while not done.wait(every_s):
            if not ray.is_initialized():
                return
            table, free = placement_group_table(), ray.available_resources()
            waiting = {key: group for key, group in table.items() if group["state"] == "PENDING"}
            since = {key: since.get(key, time.monotonic()) for key in waiting}
            for key, group in waiting.items():
                passed = time.monotonic() - since[key]
                if passed > limit_s and key not in told:
                    told.add(key)
                    wants = ", ".join(_amounts(bundle) for bundle in group["bundles"].values())
                    say(f"{who()} has waited {passed:.0f} s for [{wants}]; free in the cluster: {_amounts(free)}")

    threads = [threading.Thread(target=it, name=f"ray-{it.__name__}", daemon=True) for it in (watch, guard)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def _dead_servers() -> str:
    """Of an embedded Ray's own servers, those that have ended though nobody has ended Ray; "" while all is well."""
    node: Any = ray._private.worker._global_node
    up = node is not None and ray.is_initialized()
    dead: set[str] = {name for name, _ in node.dead_processes()} if up else set()
    return " and ".join(name for name in ("gcs_server", "raylet") if name in dead)


def _amounts(resources: Mapping[str, float]) -> str:
    shown = [f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name)]
    return " and ".join(shown) or "nothing"
