"""What a worker group holds of the machines: its placement group, found by a mark that its driving actor decides.

Ray Train keeps no handle of the placement group, names no owner, and leaves it behind if the process that drives the
group is killed. So each bundle asks for an odd number of bytes of memory, which follows from the actor's id: whoever
knows the actor finds the placement group, also after its death.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import ray

from wmlsearch.cluster.ray_patches import actor_id, placed_marks, release_placement_groups

_FIRST_MARK, _MARKS = 1_000_000, 1_000_000  # bytes
# The processes of a killed group take some seconds to end, and may still ask for machines.
RELEASE_FOR_S, RELEASE_EVERY_S = 60.0, 1.0


def mark_of(identity: str) -> int:
    """Return the mark, in bytes of memory, of the group that the actor with this id drives."""
    return _FIRST_MARK + int(hashlib.sha256(identity.encode()).hexdigest(), 16) % _MARKS


def own_mark() -> int:
    """Return the mark of the group that this process drives."""
    context = ray.get_runtime_context()
    return mark_of(context.get_actor_id() or context.get_worker_id())


class Machines:
    """Which groups have their machines now, asked for once."""

    def __init__(self) -> None:
        self._marks = placed_marks()

    def are_given_to(self, actor: Any) -> bool:
        """Return whether the group that an actor drives has its machines."""
        return mark_of(actor_id(actor)) in self._marks


class KilledGroups:
    """Releases what groups hold whose driving actor died or was killed.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._until: dict[int, float] = {}  # by mark
        self._next = 0.0

    def add(self, actor: Any) -> None:
        """Begin to release what the group of a dead actor holds."""
        self._until[mark_of(actor_id(actor))] = self.clock() + RELEASE_FOR_S
        self._next = 0.0

    def release(self, at_once: bool = False) -> None:
        """Release what is there now. Call it often: it looks once a second, while there is something to look for."""
        now = self.clock()
        if not self._until or (now < self._next and not at_once):
            return
        self._next = now + RELEASE_EVERY_S
        release_placement_groups(set(self._until))
        self._until = {mark: until for mark, until in self._until.items() if until > now}
