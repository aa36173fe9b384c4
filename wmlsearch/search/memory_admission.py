"""Memory admission: whether the predicted peak memory of a configuration fits into a slot, before it is trained."""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import distributed

from wmlsearch.cluster.resources import Slots, workers_on_this_node
from wmlsearch.config import TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.slices import PreparedData
from wmlsearch.model.checks import check_trainable
from wmlsearch.model.memory import (
    CUDA_CONTEXT_BYTES,
    add_process_overhead,
    count_cuda_graphs,
    estimate_memory,
    largest_step,
    predict_peak_bytes,
)
from wmlsearch.model.precision import Precision, uses_bfloat16
from wmlsearch.model.process_memory import bytes_in_use, mapped_and_resident_bytes
from wmlsearch.model.validation import validation_batch_size
from wmlsearch.runs.machine import machine_bytes

WORKER_TIMEOUT_S = 180.0  # for a worker to report its free memory


@dataclass(frozen=True)
class MemoryFit:
    """The predicted peak memory of a run and the free memory: of several ranks the largest and the smallest."""

    need_bytes: int  # beside what the process holds already
    left_bytes: int
    peak_mb: float  # predicted `peak_memory_mb` of its epochs, MiB

    @property
    def refusal(self) -> str:
        """The reason not to run it, or "" if it fits."""
        if self.need_bytes <= self.left_bytes:
            return ""
        need, remaining = (f"{size / 1e9:.3g} GB" for size in (self.need_bytes, max(self.left_bytes, 0)))
        return f"needs about {need} of memory, but {remaining} is available"


def predict_peak_memory(
    config: TrialConfig, data: PreparedData, precision: Precision, slots: Slots | None = None
) -> MemoryFit:
    """Predict the peak memory of `config` in this process, a worker of `slots`. All ranks must call it at once.

    Raises InputError if the configuration cannot be trained on this data, and torch.OutOfMemoryError if two images do
    not fit into the GPU.
    """
    world = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    check_trainable(config, data, world)
    device = data.train.images.device
    limit = limit_bytes(device, slots)
    held, need = predict_peak_bytes(config, data, precision, limit)
    left_bytes = limit - held
    if world > 1:  # all ranks must decide alike
        least = torch.tensor([left_bytes, -need], device=device)
        distributed.all_reduce(least, distributed.ReduceOp.MIN)
        left_bytes, need = int(least[0].item()), -int(least[1].item())
    return MemoryFit(need, left_bytes, (held + need) / 2**20)


def check_memory_before_start(
    config: TrialConfig, manifest: Manifest, precision: str, slots: Slots, on_this_machine: bool
) -> MemoryFit:
    """Predict the peak memory without a training step, before the workers of `slots` start.

    Args:
        on_this_machine: Whether the workers will be on this machine.

    Raises:
        TimeoutError: No worker started that could report its free memory.
    """
    if on_this_machine and not slots.gpus:
        device, left_bytes, bfloat16 = _worker_memory(slots, precision)
    else:  # only a process with the resources of a worker sees its GPU or machine
        task: Any = ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus)(_worker_memory)
        answer = task.remote(slots, precision)
        try:
            device, left_bytes, bfloat16 = ray.get(answer, timeout=WORKER_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            ray.cancel(answer)
            raise TimeoutError(f"no worker started within {WORKER_TIMEOUT_S:g} s") from None
    train, val = (
        max(len(manifest.indices(split, split == "train", fold)) for fold in range(manifest.fold_count))
        for split in ("train", "val")
    )
    if device.type == "cuda":
        left_bytes -= 2 * len(manifest.slices) * manifest.size**2  # images and masks, 8 bit
    val_images = min(validation_batch_size(device, manifest.size**2), math.ceil(val / slots.workers))
    estimate = estimate_memory(config, manifest.size, bfloat16, val_images, slots.workers, manifest.has_ignored)
    graphs = count_cuda_graphs(config, train, device, slots.workers > 1)
    need = add_process_overhead(estimate.bytes(largest_step(config, train, slots.workers), graphs), device)
    return MemoryFit(need, left_bytes, need / 2**20)


def _worker_memory(slots: Slots, precision: str) -> tuple[torch.device, int, bool]:
    """Return the device on which this process would train, its free memory in bytes, and whether it uses bfloat16."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device, limit_bytes(device, slots) - bytes_in_use(device), uses_bfloat16(precision, device)


def limit_bytes(device: torch.device, slots: Slots | None = None) -> int:
    """Return the bytes that a worker of `slots` may hold: its share of the GPU or, on a CPU, of the machine's memory.

    On a CPU nothing enforces the share, but a worker that exceeds it takes memory from another one, and the system then
    kills either. The share is of the whole memory, not of what is free now: other programs may free theirs before the
    peak, and whether a configuration fits should not depend on the time of day.
    """
    if device.type == "cuda":
        share = min(slots.gpus, 1.0) if slots and slots.gpus else 1.0
        return int(share * gpu_bytes(device)) - CUDA_CONTEXT_BYTES
    return min(machine_bytes() // (workers_on_this_node(slots) if slots else 1), _address_space_bytes())


def limit_to_share(device: torch.device, slots: Slots | None) -> None:
    """Where trials share a GPU, keep PyTorch from allocating more than this process's share."""
    if device.type == "cuda" and slots and 0 < slots.gpus < 1:
        share = max(limit_bytes(device, slots), 0) / gpu_bytes(device)
        torch.cuda.set_per_process_memory_fraction(share, device)


def gpu_bytes(device: torch.device) -> int:
    """Return the total memory of a GPU."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def _address_space_bytes() -> int:
    """Return what the limit of address space (`ulimit -v`) leaves to this process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return 2**63 - 1
    mapped, resident = mapped_and_resident_bytes()
    return limit - mapped + resident
