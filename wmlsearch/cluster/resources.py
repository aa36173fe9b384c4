"""CPUs, memory and GPUs of a machine or cluster, and the slots for trials that fit on them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ray
import torch
from ray.util.placement_group import placement_group, remove_placement_group

from wmlsearch.cluster.autoscaler import machines_that_may_come
from wmlsearch.cluster.ray_patches import ON_HEAD, free_resources
from wmlsearch.errors import InputError
from wmlsearch.runs.machine import available_cpus, free_bytes
from wmlsearch.runs.wording import plural

MEMORY_PER_TRIAL_GB = 2.0  # GiB of a worker process on a CPU: the libraries, the model, its activations
RELEASE_SETTLE_S = 5.0  # time that the head takes to notice that a placement group was removed
FIRST_SLOT = "wmlsearch-first-slot"  # name of the placement group that asks for a cluster's first machines
Reserved = Mapping[str, Mapping[str, float]]  # by the id of a node: resources that are not for this search
Node = Mapping[str, float]  # all resources of a machine, as Ray names them: {"CPU": 16, "GPU": 4}


@dataclass(frozen=True)
class Request:
    """The resources that the user requests for a trial."""

    workers: int = 1
    cpus_per_worker: int | None = None  # None: an equal share of the CPUs
    gpus_per_worker: float | None = None  # None: one if there are enough GPUs, else none

    def __str__(self) -> str:
        return _shape(self.workers, self.cpus_per_worker or 1, self.gpus_per_worker or 0)


@dataclass(frozen=True)
class Slots:
    """The places where trials run: `count` trials at a time, each of `workers` workers with `cpus` and `gpus` each."""

    count: int
    workers: int
    cpus: int
    gpus: float

    @property
    def resources(self) -> dict[str, float]:
        """The resources of one worker, as Ray names them."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    def __str__(self) -> str:
        return f"{self.count} at a time, each {_shape(self.workers, self.cpus, self.gpus)}"


def plan_slots(nodes: Sequence[Node], request: Request, trials: int, memory_gb: float | None = None) -> Slots:
    """Return as many slots as fit on the nodes, at most `trials`. Raises InputError if none fits.

    `memory_gb` is the free memory (GiB) of a single machine; it limits slots without a GPU.
    """
    gpus = request.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if sum(node.get("GPU", 0) for node in nodes) >= request.workers else 0.0
    cpus = request.cpus_per_worker or 1
    count = workers_that_fit(nodes, cpus, gpus) // request.workers
    if count == 0:
        raise InputError(_does_not_fit(nodes, request.workers, cpus, gpus))
    if memory_gb is not None and not gpus:
        count = min(count, max(1, int(memory_gb / MEMORY_PER_TRIAL_GB / request.workers)))
    count = min(count, trials)
    if request.cpus_per_worker is None:  # share all CPUs equally
        while workers_that_fit(nodes, cpus + 1, gpus) >= count * request.workers:
            cpus += 1
    return Slots(count, request.workers, cpus, gpus)


def workers_that_fit(nodes: Sequence[Node], cpus: int, gpus: float) -> int:
    """Return how many workers with these resources fit on the nodes at once; a worker is never split."""
    total = 0
    for node in nodes:
        fits = int(node.get("CPU", 0) / cpus + 1e-9)
        if gpus >= 1:
            fits = min(fits, int(node.get("GPU", 0) / gpus + 1e-9))
        elif gpus:  # a worker's share is on one GPU, never on two
            fits = min(fits, int(node.get("GPU", 0)) * int(1 / gpus + 1e-9))
        total += fits
    return total


def share_of_gpu(trials: int) -> float:
    """Return the share of a GPU for each of `trials` trials, in ten-thousandths: Ray rounds finer shares up."""
    return math.floor(10_000 / trials) / 10_000


def workers_on_this_node(slots: Slots) -> int:
    """Return how many workers of the slots can run at once on the node of this process."""
    node_id = ray.get_runtime_context().get_node_id()
    node = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == node_id)
    return max(1, min(slots.count * slots.workers, workers_that_fit([node], slots.cpus, slots.gpus)))


def _does_not_fit(nodes: Sequence[Node], workers: int, cpus: int, gpus: float) -> str:
    """Return the message for a trial that does not fit, with the nearest one that does."""
    machines = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    text = f"a trial of {_shape(workers, cpus, gpus)} does not fit on the machines ({machines or 'none'})"
    for fewer_gpus in (gpus, 0.0):
        fits = min(workers_that_fit(nodes, 1, fewer_gpus), workers)
        if fits:
            return f"{text}; the nearest that fits: {_shape(fits, 1, fewer_gpus)}"
    return f"{text}; add a machine"


def _shape(workers: int, cpus: int, gpus: float) -> str:
    """Return `2 workers with 4 CPUs and 1 GPU each`."""
    each = plural(cpus, "CPU") + (f" and {gpus:g} GPU{'s' if gpus != 1 else ''}" if gpus else "")
    return f"{plural(workers, 'worker')} with {each} each"


def this_machine() -> list[Node]:
    """Return this machine as the only node of an embedded Ray."""
    return [{"CPU": float(available_cpus()), "GPU": float(torch.cuda.device_count())}]


def free_memory_gb() -> float:
    """Return the free memory of this machine within the limits of this process, GiB. The page cache is free."""
    return free_bytes() / 2**30


def cluster_nodes(reserved: Reserved) -> list[Node]:
    """Return the nodes of the connected cluster without what is reserved, and those that its autoscaler may add."""
    return running_nodes(reserved) + nodes_that_may_come()


def running_nodes(reserved: Reserved) -> list[Node]:
    """Return the nodes of the connected cluster that run, without what is reserved."""
    return [
        {name: value - reserved.get(node["NodeID"], {}).get(name, 0.0) for name, value in node["Resources"].items()}
        for node in ray.nodes()
        if node["Alive"]
    ]


def nodes_that_may_come() -> list[Node]:
    """Return the nodes that the autoscaler of the connected cluster may add."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return machines_that_may_come([node for node in nodes if not ON_HEAD.keys() <= node.keys()])


def wait_for_machines(slots: Slots, reserved: Reserved, say: Callable[[str], None]) -> None:
    """Return when the machines of a slot run, and say what is waited for.

    A cluster with an autoscaler may begin without any: a pending placement group makes Ray start them.
    """
    running = workers_that_fit(running_nodes(reserved), slots.cpus, slots.gpus) // slots.workers
    if running >= slots.count:
        return
    say(
        f"{running} of {plural(slots.count, 'slot')} can run now; Ray is starting machines for the rest, up to the "
        "cluster's limit"
    )
    if running:
        return
    shape = _shape(slots.workers, slots.cpus, slots.gpus)
    say(f"waiting for the cluster to start machines for a trial of {shape} ...")
    began = time.monotonic()
    group = placement_group([slots.resources] * slots.workers, name=FIRST_SLOT)
    try:
        while not group.wait(1):
            pass
    finally:
        remove_placement_group(group)
    say(f"machines for the first trial are ready ({time.monotonic() - began:.0f} s)")


def reserved_by_others() -> Reserved:
    """Return the CPUs and GPUs of each node that are reserved while this process has no training of its own.

    What our own processes held until now takes a moment to be free.
    """
    deadline = time.monotonic() + RELEASE_SETTLE_S
    least: dict[str, dict[str, float]] = {}
    while True:
        for key, reserved in _reserved_now().items():
            before = least.get(key, reserved)
            least[key] = {name: min(value, before.get(name, value)) for name, value in reserved.items()}
        if not any(any(reserved.values()) for reserved in least.values()) or time.monotonic() > deadline:
            return least
        time.sleep(0.1)


def _reserved_now() -> dict[str, dict[str, float]]:
    free = free_resources()  # of a node without anything free, Ray lists no CPU at all
    return {
        node["NodeID"]: {
            name: node["Resources"][name] - free.get(node["NodeID"], {}).get(name, 0.0)
            for name in ("CPU", "GPU")
            if name in node["Resources"]
        }
        for node in ray.nodes()
        if node["Alive"]
    }
