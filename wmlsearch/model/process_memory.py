"""The memory of this process: in use before a training, and at its peak."""

from __future__ import annotations

import functools
import gc
import resource
import sys
from pathlib import Path

import torch


def bytes_in_use(device: torch.device) -> int:
    """Return the bytes that this process uses before a training starts.

    On a GPU: what PyTorch has reserved for the data and other live tensors. On a CPU: the resident memory at the first
    call, libraries included. Later the allocator also keeps freed memory of earlier trainings, which it uses again.
    """
    if device.type == "cpu":
        return _resident_bytes_at_first_call()
    gc.collect()  # frees earlier trainings
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


@functools.cache
def _resident_bytes_at_first_call() -> int:
    return mapped_and_resident_bytes()[1]


def mapped_and_resident_bytes() -> tuple[int, int]:
    """Return the bytes of this process that are mapped, and those that are in memory.

    Without Linux's /proc both are the largest size in memory so far.
    """
    try:
        mapped, resident = Path("/proc/self/statm").read_text().split()[:2]
    except OSError:
        return _peak_resident_bytes(), _peak_resident_bytes()
    return int(mapped) * resource.getpagesize(), int(resident) * resource.getpagesize()


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory in MiB: of this training on its GPU, or of the whole process since its start on a CPU."""
    if device.type == "cuda":  # reserved, since memory of CUDA graphs is not allocated between replays but stays taken
        return torch.cuda.max_memory_reserved(device) / 2**20
    return _peak_resident_bytes() / 2**20


def _peak_resident_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
