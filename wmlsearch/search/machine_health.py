"""Whether the machine of a worker can be trusted: its GPU is checked when a process starts, and failures are counted.

A process that got a CUDA error is poisoned: each later call fails too, so it must end. A GPU that does not answer, is
not the one that Ray has given, or computes wrong numbers must get no trial, and neither must a machine whose disk is
full.
"""

from __future__ import annotations

import functools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping

import ray
import torch
from ray.util.placement_group import placement_group

from wmlsearch.cluster.resources import Slots, workers_that_fit
from wmlsearch.cluster.watchdog import PUT_ASIDE
from wmlsearch.runs.files import FULL, StorageError

FAILURES = 2  # of a machine, after which it gets no more trials
_CUDA_ERROR = re.compile(r"CUDA error|CUDA driver error|cuDNN error|cuBLAS|CUBLAS_STATUS|CUDNN_STATUS|HIP error|Xid")
_SIZE = 64  # of the matrices of the check


class MachineError(RuntimeError):
    """The machine of a worker failed. The worker's process must end, and the trial goes on in another one.

    Attributes:
        node_id: Ray's id of the machine.
        ip: The machine's address.
    """

    def __init__(self, message: str, node_id: str = "", ip: str = "") -> None:
        super().__init__(message, node_id, ip)  # so it survives pickling
        self.node_id, self.ip = node_id, ip

    def __str__(self) -> str:
        return str(self.args[0])

    @classmethod
    def of_this_machine(cls, what: str, why: str) -> MachineError:
        """Return the error of the machine of this process: `what` of it failed, and why."""
        ip = ray.util.get_node_ip_address()
        return cls(f"{what} of {ip} failed: {why}", ray.get_runtime_context().get_node_id(), ip)


def machine_error(error: BaseException | None) -> MachineError | None:
    """Return the error of a machine that an exception is, or that Ray has wrapped in one; else None."""
    cause = getattr(error, "cause", error)
    return cause if isinstance(cause, MachineError) else None


def as_machine_error(error: Exception) -> MachineError | None:
    """Return an exception of a training as one of its machine, if the GPU or the disk failed; else None."""
    if is_gpu_error(error):
        return MachineError.of_this_machine(_gpu(), str(error).strip().splitlines()[0])
    if isinstance(error, OSError) and error.errno in FULL and not isinstance(error, StorageError):
        return MachineError.of_this_machine(
            "the disk", f"{error.filename or 'a file'} cannot be written ({error.strerror})"
        )
    return None


def is_gpu_error(error: BaseException) -> bool:
    """Return whether an exception says that the GPU failed, out of memory excepted.

    Versions of PyTorch before 2.8 have no class for it.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    kinds = (getattr(torch, "AcceleratorError", RuntimeError), RuntimeError)
    return isinstance(error, kinds) and bool(_CUDA_ERROR.search(str(error)))


def _gpu() -> str:
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return f"GPU {devices}" if devices else "the GPU"


@functools.cache  # once in a process, before its first trial
def check_gpu(gpus: float) -> None:
    """Check the GPU of this process, if its slot has one. Raises MachineError.

    Args:
        gpus: The GPUs of a worker, as Ray has given them.
    """
    if not gpus:
        return
    try:
        fault = _fault()
    except RuntimeError as error:
        fault = str(error).strip().splitlines()[0]
    if fault:
        raise MachineError.of_this_machine(_gpu(), fault)


def _fault() -> str:
    """Return what is wrong with the GPU of this process, or ""."""
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU, so the trial would train on the CPU"
    given = len(ray.get_gpu_ids())
    if torch.cuda.device_count() < given:
        return f"Ray has given {given} GPUs to this process, but PyTorch finds {torch.cuda.device_count()}"
    return "" if product_is_right("cuda") else "it computes wrong numbers"


def product_is_right(device: str) -> bool:
    """Return whether a small product of matrices of whole numbers is right to the last digit on a device."""
    left = torch.arange(_SIZE * _SIZE, dtype=torch.float64, device=device).reshape(_SIZE, _SIZE) % 17
    right = torch.arange(_SIZE * _SIZE, dtype=torch.float64, device=device).reshape(_SIZE, _SIZE) % 13
    expected = left.cpu() @ right.cpu()  # whole numbers below 2^53
    return bool(torch.equal((left @ right).cpu(), expected))


class MachineFailures:
    """Counts the failures of each machine, and puts a machine aside that has too many.

    A machine is put aside by reserving its slots as they become free; trials that run there go on.

    Args:
        say: Called with a line for the user when a machine is put aside.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._failures: dict[str, int] = defaultdict(int)  # by Ray's id of the machine
        self._since_epoch = 0  # failures of any machine since a trial has trained an epoch
        self._put_aside: set[str] = set()

    def note(self, error: MachineError, slots: Slots) -> bool:
        """Count a failure of a machine that has some of the slots.

        Returns False if the search has to end: no other machine has a slot, and this one fails on. A machine without
        which nothing can be trained may fail as often as it likes, as long as epochs come between.
        """
        self._failures[error.node_id] += 1
        self._since_epoch += 1
        if self._failures[error.node_id] < FAILURES or error.node_id in self._put_aside:
            return True
        nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        others = [resources for key, resources in nodes.items() if key not in (error.node_id, *self._put_aside)]
        if workers_that_fit(others, slots.cpus, slots.gpus) < slots.workers:
            return self._since_epoch <= max(FAILURES, slots.count)
        self.say(f"machine {error.ip} gets no more trials, since it failed {FAILURES} times: {error}")
        self._put_aside.add(error.node_id)
        _reserve(error.node_id, nodes.get(error.node_id, {}), slots)
        return True

    def epoch_trained(self) -> None:
        """Note that a trial has trained an epoch, on whatever machine."""
        self._since_epoch = 0


def _reserve(node_id: str, node: Mapping[str, float], slots: Slots) -> None:
    """Ask for each slot of a machine until the search ends; what is in use is given when it becomes free."""
    selector = [{"ray.io/node-id": node_id}]
    for _ in range(workers_that_fit([node], slots.cpus, slots.gpus)):
        placement_group([slots.resources], name=PUT_ASIDE, bundle_label_selector=selector)
