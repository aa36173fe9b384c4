"""What a machine or cluster has, and how many trials fit on it at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
import yaml

from wmlsearch.config import InputError

MEMORY_PER_TRIAL_GB = 2.0  # of a trial's process on a CPU: the libraries, the model, its activations
HEAD_CONFIG = Path("~/ray_bootstrap_config.yaml")  # where `ray up` leaves the cluster file on the head
# On the head, and next to nothing of it: where the drivers of worker groups stay, whatever happens to other machines.
ON_HEAD = {"node:__internal_head__": 0.0001}
Node = Mapping[str, float]  # {"CPU": 16, "GPU": 4}: what a machine has in all


@dataclass(frozen=True)
class Request:
    """What a trial asks for: its workers, and what each of them gets. No CPUs given: as many as its share is."""

    workers: int = 1
    cpus_per_worker: int | None = None
    gpus_per_worker: float | None = None  # None: one, where there are GPUs

    def __str__(self) -> str:
        return _shape(self.workers, self.cpus_per_worker or 1, self.gpus_per_worker or 0)


@dataclass(frozen=True)
class Slots:
    """How many trials run at once, and what each of their workers gets."""

    count: int
    workers: int
    cpus: int
    gpus: float

    @property
    def resources(self) -> dict[str, float]:
        """Of one worker."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}

    def __str__(self) -> str:
        return f"{self.count} at a time, each {_shape(self.workers, self.cpus, self.gpus)}"


def plan_slots(nodes: Sequence[Node], request: Request, trials: int, memory_gb: float | None = None) -> Slots:
    """As many slots as the nodes hold at once. Raises InputError where not even one fits.

    With `memory_gb` (what is free on a single machine without GPUs), no more than have room in it.
    """
    gpus = request.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if sum(node.get("GPU", 0) for node in nodes) >= request.workers else 0.0
    cpus = request.cpus_per_worker or 1
    count = _workers_that_fit(nodes, cpus, gpus) // request.workers
    if count == 0:
        raise InputError(_does_not_fit(nodes, request.workers, cpus, gpus))
    if memory_gb is not None and not gpus:
        count = min(count, max(1, int(memory_gb / MEMORY_PER_TRIAL_GB / request.workers)))
    count = min(count, trials)
    if request.cpus_per_worker is None:  # share out what there is
        while _workers_that_fit(nodes, cpus + 1, gpus) >= count * request.workers:
            cpus += 1
    return Slots(count, request.workers, cpus, gpus)


def _workers_that_fit(nodes: Sequence[Node], cpus: int, gpus: float) -> int:
    total = 0
    for node in nodes:
        fits = int(node.get("CPU", 0) / cpus + 1e-9)
        if gpus >= 1:
            fits = min(fits, int(node.get("GPU", 0) / gpus + 1e-9))
        elif gpus:  # a worker's part of a GPU is never spread over two
            fits = min(fits, int(node.get("GPU", 0)) * int(1 / gpus + 1e-9))
        total += fits
    return total


def share_of_gpu(trials: int) -> float:
    """What each of so many trials has of a GPU: Ray counts in ten-thousandths, and rounds up what is finer."""
    return math.floor(10_000 / trials) / 10_000


def at_once_here(slots: Slots) -> int:
    """How many workers of the slots may run at once on the machine of this process."""
    here = ray.get_runtime_context().get_node_id()
    node = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    return max(1, min(slots.count * slots.workers, _workers_that_fit([node], slots.cpus, slots.gpus)))


def _does_not_fit(nodes: Sequence[Node], workers: int, cpus: int, gpus: float) -> str:
    there = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes) or "no machine"
    text = f"a trial of {_shape(workers, cpus, gpus)} doesn't fit on what there is ({there})"
    for fewer in (gpus, 0.0):
        fits = min(_workers_that_fit(nodes, 1, fewer), workers)
        if fits:
            return f"{text}; the nearest that fits: {_shape(fits, 1, fewer)}"
    return f"{text}; add a machine"


def _shape(workers: int, cpus: int, gpus: float) -> str:
    each = f"{cpus} CPU{'s' if cpus != 1 else ''}" + (f" and {gpus:g} GPU{'s' if gpus != 1 else ''}" if gpus else "")
    return f"of {workers} worker{'s' if workers > 1 else ''} with {each} each".removeprefix("of ")


def this_machine() -> list[Node]:
    """What an embedded Ray would have."""
    return [{"CPU": float(available_cpus()), "GPU": float(torch.cuda.device_count())}]


def free_memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 2**30


def available_cpus() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cluster_nodes() -> list[Node]:
    """The machines of the cluster that we are connected to, with those that its autoscaler may add."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return alive + _autoscaler_may_add(len(alive))


def _autoscaler_may_add(there: int) -> list[Node]:
    """On the head of a cluster made by `ray up`: the machines of its cluster file that aren't running yet."""
    try:
        config = yaml.safe_load(HEAD_CONFIG.expanduser().read_text())
        kinds, most = config["available_node_types"], config.get("max_workers", 0)
        head = config.get("head_node_type")
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return []
    if config.get("provider", {}).get("type") == "local":  # machines that are there or not
        return []
    room = max(0, most + 1 - there)
    nodes: list[Node] = []
    for name, kind in kinds.items():
        if name != head:
            nodes += [kind.get("resources", {})] * kind.get("max_workers", most)
    return nodes[:room]
