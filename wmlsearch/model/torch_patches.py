"""Every use of torch's private names and undocumented behaviour, each with its reason.

`tests/model/test_torch_patches.py` has a contract test for each, which fails when torch changes.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode  # private module: tensors with shapes and no memory
from torch.utils._python_dispatch import TorchDispatchMode  # private module: sees each operation and its results

__all__ = [
    "FakeTensorMode",
    "LiveTensorBytes",
    "TorchDispatchMode",
    "capturable",
    "cast_all",
    "count_compilations",
    "forget_cache_artifacts",
    "keys_of_artifacts",
    "let_size_vary",
    "reset_after_failed_capture",
]


def cast_all(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return copies of another type in the same memory formats. On a GPU one kernel writes them all.

    Uses `torch._foreach_copy_`, since torch has no public function that copies several tensors in one kernel.
    """
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(copies, tensors)
    return tuple(copies)


class LiveTensorBytes(TorchDispatchMode):
    """Counts the bytes of live tensors that are made while it is on, without those of `excluded`.

    Uses `_cdata` of a storage, since several tensors may share one storage and torch has no other public identity of
    it that fake tensors have too.
    """

    def __init__(self, excluded: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = 0  # bytes
        self.peak = 0  # bytes
        self.largest_per_image = 0  # bytes: of the largest (N, C, H, W), for each of its N
        self._excluded = {tensor.untyped_storage()._cdata for tensor in excluded}
        self._live: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in results if isinstance(results, tuple | list) else (results,):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return results

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()

        def subtract(_: object) -> None:
            self.now -= size
            del self._live[key]

        if key not in self._live and key not in self._excluded:
            self._live[key] = weakref.ref(storage, subtract)
            self.now += size
            self.peak = max(self.peak, self.now)
            if tensor.dim() == 4:
                self.largest_per_image = max(self.largest_per_image, size // len(tensor))


@contextlib.contextmanager
def capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let the optimiser's step be captured in a CUDA graph inside the block.

    Sets the flag in the parameter group, since Adam refuses a capture without it, and a checkpoint that was saved with
    it fits no CPU. Fused optimisers need nothing else.
    """
    (group,) = optimizer.param_groups
    if "capturable" not in group:
        yield
        return
    before, group["capturable"] = group["capturable"], True
    try:
        yield
    finally:
        group["capturable"] = before


def reset_after_failed_capture(device: torch.device, pool: Any) -> None:
    """Undo what a failed CUDA graph capture leaves behind, since later steps and trainings of this process would fail.

    The GPU's generator still waits for the end of the capture, so dropout raises. So does the allocator, which then
    cannot free memory; torch has no public function to end that.
    """
    generator = torch.cuda.default_generators[device.index]
    fresh = torch.Generator(device).manual_seed(generator.initial_seed()).set_offset(generator.get_offset())
    generator.graphsafe_set_state(fresh.graphsafe_get_state())
    # The allocator does not know a capture that came to its end; torch 2.6 has other names.
    with contextlib.suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)


def let_size_vary(tensor: Tensor, dimension: int) -> None:
    """Let `torch.compile` make code for any size of this dimension, when it is given this tensor.

    The function is documented, but in a private module. "Maybe": where code for one size only is possible, torch makes
    that, and no error.
    """
    torch._dynamo.maybe_mark_dynamic(tensor, dimension)


def count_compilations() -> int:
    """Return how many graphs `torch.compile` has compiled anew in this process: no cache of it had them.

    torch has no public counters. It counts a graph as a whole, and its forward and backward part.
    """
    from torch._dynamo.utils import counters  # imports the compiler, for a second

    return counters["aot_autograd"]["autograd_cache_miss"] + counters["inductor"]["fxgraph_cache_miss"]


def forget_cache_artifacts() -> None:
    """Let `torch.compiler.save_cache_artifacts` return only what is compiled, or found in a cache, from here on.

    torch collects them for as long as a process lives, so those of a later training would come with all earlier ones.
    """
    from torch.compiler._cache import CacheArtifactManager

    CacheArtifactManager.clear()


def keys_of_artifacts(info: Any) -> set[tuple[str, str]]:
    """Return kind and key of the artifacts that `load_cache_artifacts` or `save_cache_artifacts` has described.

    Code for several ranges of sizes may have one key. The attribute is not documented.
    """
    return {(kind, key) for kind, keys in info.artifacts.items() for key in keys}
