"""Where Ray is, what fits on it, and what waits: an embedded Ray of our own, or a cluster that is there already."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import yaml
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from wmlsearch.config import InputError

MEMORY_PER_TRIAL_GB = 2.0  # of a trial's process on a CPU: the libraries, the model, its activations
CONNECT_TIMEOUT_S = 30
EMBEDDED = "WMLSEARCH_EMBEDDED_RAY"  # in the environment of all processes of an embedded Ray
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


@contextlib.contextmanager
def ray_at(address: str | None) -> Iterator[None]:
    """Connected to the cluster at `address`, or to an embedded Ray of our own that ends with the block.

    Others on this machine are neither joined nor disturbed. Raises InputError where the cluster doesn't answer, and
    ConnectionError where Ray's own servers don't come up, twice.
    """
    with _connected(address) if address else _embedded(), _quiet():
        for name in ("ray.tune", "ray.train"):  # what fails there is told by the run folder, with its reason
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield


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


@contextlib.contextmanager
def _embedded() -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="wmlsearch-ray-")  # short: it holds sockets, whose paths may have 107 characters
    before = dict(os.environ)
    os.environ |= _on_this_machine_only()
    try:
        try:
            _start(folder)
        except ConnectionError:  # Ray gives them 30 s, which a machine may exceed that is very busy just then
            ray.shutdown()
            _start(folder)
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        for name in _on_this_machine_only():
            os.environ.pop(name)
            os.environ |= {name: before[name]} if name in before else {}


def _start(folder: str) -> None:
    """Raises ConnectionError where Ray's servers don't come up."""
    try:
        ray.init(
            address="local",
            num_cpus=available_cpus(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
            # Ray may hold objects for us, but nothing that we send is big: a small store spares /dev/shm
            object_store_memory=200 * 2**20,
        )
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # of a file: it is full, or may not be written
        why = " ".join(str(error).split())[:200]
        raise ConnectionError(
            f"Ray's servers have not come up on this machine ({why}); is it very busy or short of memory "
            "(`uptime`, `free`)? Then say the command again when it is not"
        ) from error


def _on_this_machine_only() -> dict[str, str]:
    """The environment of an embedded Ray: its ranks talk over the loopback interface ("lo", on a Mac "lo0")."""
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")
    return {EMBEDDED: "1", "GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    knock(address)
    failure: list[BaseException] = []

    def connect() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
        except BaseException as error:
            failure.append(error)

    # Ray retries for long and says why on the error stream only: a thread of its own, and an eye on that stream, so
    # that a wrong address or token is told at once, in one message.
    thread = threading.Thread(target=connect, name="ray-connect", daemon=True)
    end = time.monotonic() + CONNECT_TIMEOUT_S
    with _error_stream() as said:
        thread.start()
        while thread.is_alive() and "InvalidAuthToken" not in said() and time.monotonic() < end:
            thread.join(0.1)
        refused = "InvalidAuthToken" in said()
    if refused:
        raise InputError(
            f"{address}: the cluster wants its token, and this machine has none or another; copy ~/.ray/auth_token "
            "from the head, or set RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token"
        )
    if thread.is_alive():
        raise _nobody(address, f"no answer within {CONNECT_TIMEOUT_S} s")
    if failure:
        raise _nobody(address, " ".join(str(failure[0]).split())[:200]) from None
    try:
        yield
    finally:
        ray.shutdown()


def knock(address: str) -> None:
    """Whether anybody listens there, before Ray tries for long. Raises InputError."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        except (OSError, OverflowError) as error:
            raise _nobody(address, getattr(error, "strerror", None) or str(error)) from None


def _nobody(address: str, reason: str) -> InputError:
    return InputError(
        f"{address}: no Ray cluster answers there ({reason}); is it up (`ray up cluster.yaml`), "
        "and is the address right? (--ray-address, RAY_ADDRESS)"
    )


@contextlib.contextmanager
def _error_stream() -> Iterator[Callable[[], str]]:
    """Keep what this process writes on its error stream, Ray's own core included, to be read instead of shown."""
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: os.pread(file.fileno(), 2**20, 0).decode(errors="replace")
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)


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


def release_placement_groups(memory: int) -> None:
    """Remove the placement groups whose bundles ask for just so many bytes of memory."""
    for key, group in placement_group_table().items():
        if group["state"] != "REMOVED" and any(b.get("memory") == memory for b in group["bundles"].values()):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(key)))


def _amounts(resources: Mapping[str, float]) -> str:
    shown = [f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name)]
    return " and ".join(shown) or "nothing"
