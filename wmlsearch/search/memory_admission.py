"""What memory a slot has, and whether a training fits into it: known before anything is trained."""

from __future__ import annotations

import math
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from torch import distributed

from wmlsearch.cluster.resources import Slots, at_once_here
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

PATIENCE_S = 180.0  # for a worker that says what memory it has
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class MemoryFit:
    """What a training needs at its peak and what is left for it; of several ranks the most and the least."""

    need_bytes: int
    left_bytes: int
    peak_mb: float  # MiB, what `peak_memory_mb` of its epochs should be

    @property
    def refusal(self) -> str:
        """Why it is not to run, or "" where it fits."""
        if self.need_bytes <= self.left_bytes:
            return ""
        need, left = (f"{size / 1e9:.3g} GB" for size in (self.need_bytes, max(self.left_bytes, 0)))
        return f"needs about {need} of memory, but {left} are there"


def predict_peak_memory(
    config: TrialConfig, data: PreparedData, precision: Precision, slots: Slots | None = None
) -> MemoryFit:
    """Whether `config` fits into the memory of this process, one of `slots`; all ranks of a training ask at once.

    Raises InputError for what can't be trained on this data, torch.OutOfMemoryError where a GPU has no room for two
    images.
    """
    world = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    check_trainable(config, data, world)
    device = data.train.images.device
    limit = limit_bytes(device, slots)
    held, need = predict_peak_bytes(config, data, precision, limit)
    left = limit - held
    if world > 1:  # all of them begin, or none
        least = torch.tensor([left, -need], device=device)
        distributed.all_reduce(least, distributed.ReduceOp.MIN)
        left, need = int(least[0].item()), -int(least[1].item())
    return MemoryFit(need, left, (held + need) / 2**20)


def check_memory_before_start(
    config: TrialConfig, manifest: Manifest, precision: str, slots: Slots, here: bool
) -> MemoryFit:
    """The same by counting alone, before any process of `slots` is there; `here`: they will be on this machine.

    Raises TimeoutError where no worker comes that could say what memory it has.
    """
    if here and not slots.gpus:
        device, left, bfloat16 = _there(slots, precision)
    else:  # only a process that has what a worker gets can see it
        asked: Any = ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus)(_there)
        answer = asked.remote(slots, precision)
        try:
            device, left, bfloat16 = ray.get(answer, timeout=PATIENCE_S)
        except ray.exceptions.GetTimeoutError:
            ray.cancel(answer)
            raise TimeoutError(f"no worker within {PATIENCE_S:g} s") from None
    train, val = (len(manifest.indices(split, kept_only=split == "train")) for split in ("train", "val"))
    if device.type == "cuda":
        left -= 2 * (train + val) * manifest.size**2  # images and masks, 8 bit
    val_images = min(validation_batch_size(device, manifest.size**2), math.ceil(val / slots.workers))
    estimate = estimate_memory(config, manifest.size, bfloat16, val_images, slots.workers)
    graphs = count_cuda_graphs(config, train, device, slots.workers > 1)
    need = add_process_overhead(estimate.bytes(largest_step(config, train, slots.workers), graphs), device)
    return MemoryFit(need, left, need / 2**20)


def _there(slots: Slots, precision: str) -> tuple[torch.device, int, bool]:
    """Where this process would train, what is left for that, and whether in bfloat16."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device, limit_bytes(device, slots) - bytes_in_use(device), uses_bfloat16(precision, device)


def limit_bytes(device: torch.device, slots: Slots | None = None) -> int:
    """What a process of `slots` may hold: its share of the GPU, or of this machine's memory where it is on a CPU.

    On a CPU too each has the same share, though nothing holds it to that: what one takes beyond it is missing to
    another, and the system then kills either. Of the whole, not of what is free just now: other programs' memory may be
    free again at the trial's peak, and what a study hears of a configuration should not depend on the hour.
    """
    if device.type == "cuda":
        share = min(slots.gpus, 1.0) if slots and slots.gpus else 1.0
        return int(share * gpu_bytes(device)) - CUDA_CONTEXT_BYTES
    return min(machine_bytes() // (at_once_here(slots) if slots else 1), _address_space_bytes())


def limit_to_share(device: torch.device, slots: Slots | None) -> None:
    """Where trials share a GPU, let PyTorch give this process no more than its share: its neighbours keep theirs."""
    if device.type == "cuda" and slots and 0 < slots.gpus < 1:
        share = max(limit_bytes(device, slots), 0) / gpu_bytes(device)
        torch.cuda.set_per_process_memory_fraction(share, device)


def gpu_bytes(device: torch.device) -> int:
    """All memory of a GPU."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def machine_bytes() -> int:
    """Memory of this machine, or of the container in which we are."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [path.read_text().strip() for path in CGROUP_LIMITS if path.is_file()]
    return min([total, *(int(limit) for limit in limits if limit.isdigit())])


def _address_space_bytes() -> int:
    """What the process may hold by its limit of address space, `ulimit -v`."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return 2**63 - 1
    mapped, resident = mapped_and_resident_bytes()
    return limit - mapped + resident
