"""What a worker group holds of the machines: its placement groups, found by the name of the actor that drives it.

Ray Train keeps no handle of a placement group, names no owner, and leaves it behind if the process that drives the
group is killed. So its name begins with the actor's id: whoever knows the actor finds it, also after the actor's death.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from wmlsearch.cluster.embedded import EMBEDDED
from wmlsearch.cluster.ray_patches import ON_HEAD, actor_id, placed_groups, release_placement_groups
from wmlsearch.cluster.resources import Node, nodes_that_may_come

# Of a group beside its ranks: the process that drives it, Train's controller, the mailbox, and Train's barrier.
PROCESSES_BYTES = 2**30
# Of the head, for Ray's servers, the search, and MLflow.
HEAD_BYTES = 4 * 2**30
_PREFIX = "wmlsearch-group"
# The processes of a killed group take some seconds to end, and may still ask for machines.
RELEASE_FOR_S, RELEASE_EVERY_S = 60.0, 1.0


def name_of(identity: str) -> str:
    """Return the name prefix of the placement groups that belong to the actor with this id."""
    return f"{_PREFIX}-{identity}-"


def own_name() -> str:
    """Return the name prefix of the placement groups that belong to the group that this process drives."""
    context = ray.get_runtime_context()
    return name_of(context.get_actor_id() or context.get_worker_id())


@dataclass(frozen=True)
class DriverPlace:
    """Where a worker group's helper processes (driver, controller, mailbox, barrier) run."""

    resources: Mapping[str, float]  # Ray reserves them for these processes on their machine
    selector: Mapping[str, str]  # Ray's label selector for the machine; {}: any machine

    @classmethod
    def on_this_ray(cls, groups: int) -> DriverPlace:
        """Return the place on the Ray that this process is connected to, for so many groups at a time."""
        if EMBEDDED in os.environ:
            return cls(ON_HEAD, {})
        return cls.on_nodes([node for node in ray.nodes() if node["Alive"]], groups, nodes_that_may_come())

    @classmethod
    def on_nodes(cls, alive: Sequence[Mapping[str, Any]], groups: int, may_come: Sequence[Node]) -> DriverPlace:
        """Return the head, which outlives other machines, if it has room for all; else the other machines.

        Ray counts the memory of the processes, so that no machine gets more of them than it can hold. Machines whose
        memory is not known (an autoscaler's configuration may not say it) are left out until they run.

        Args:
            alive: The machines that run, as `ray.nodes` returns them.
            groups: The number of groups.
            may_come: The resources of the machines that the cluster's autoscaler may add.
        """
        (head,) = [node for node in alive if ON_HEAD.keys() <= node["Resources"].keys()]
        others = [node["Resources"] for node in alive if node is not head]
        memory = {"memory": float(PROCESSES_BYTES)}
        room = head["Resources"].get("memory", 0.0) - HEAD_BYTES
        if room >= groups * PROCESSES_BYTES:
            return cls({**ON_HEAD, **memory}, {})
        if any(node.get("memory", 0.0) >= PROCESSES_BYTES for node in (*others, *may_come)):
            return cls(memory, {"ray.io/node-id": f"!{head['NodeID']}"})
        return cls(memory, {}) if room >= PROCESSES_BYTES else cls(ON_HEAD, {})

    def actor_options(self) -> dict[str, Any]:
        """Return the place as options of a Ray actor."""
        others = {name: amount for name, amount in self.resources.items() if name != "memory"}
        return {"memory": self.resources.get("memory"), "resources": others, "label_selector": dict(self.selector)}


class Machines:
    """Which groups have their machines now, asked for once."""

    def __init__(self) -> None:
        self._workers = placed_groups()

    def workers_of(self, actor: Any) -> int:
        """Return how many workers of the group that an actor drives have their places on machines; 0 while it waits."""
        prefix = name_of(actor_id(actor))
        return sum(count for name, count in self._workers.items() if name.startswith(prefix))


class KilledGroups:
    """Releases what groups hold whose driving actor died or was killed.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._until: dict[str, float] = {}  # by the beginning of the names
        self._next = 0.0

    def add(self, actor: Any) -> None:
        """Begin to release what the group of a dead actor holds."""
        self._until[name_of(actor_id(actor))] = self.clock() + RELEASE_FOR_S
        self._next = 0.0

    def release(self, at_once: bool = False) -> None:
        """Release what is there now. Call it often: it looks once a second, while there is something to look for."""
        now = self.clock()
        if not self._until or (now < self._next and not at_once):
            return
        self._next = now + RELEASE_EVERY_S
        release_placement_groups(set(self._until))
        self._until = {name: until for name, until in self._until.items() if until > now}
