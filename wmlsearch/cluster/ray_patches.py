"""Every use of Ray's private names, outside Tune and Train."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the standard output what raylets and Ray's other servers tell: Ray prints it there, whatever
    `log_to_driver` is.

    Of a training that lost its process its folder tells what became of it; of what waits for room, `watchdog`.
    """
    worker: Any = ray._private.worker
    printed = worker.print_to_stdstream
    worker.print_to_stdstream = lambda data, *_, **__: logging.getLogger("ray").debug("%s", data)
    try:
        yield
    finally:
        worker.print_to_stdstream = printed


def release_placement_groups(memory: int) -> None:
    """Remove the placement groups whose bundles ask for just so many bytes of memory."""
    for key, group in placement_group_table().items():
        if group["state"] != "REMOVED" and any(b.get("memory") == memory for b in group["bundles"].values()):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(key)))
