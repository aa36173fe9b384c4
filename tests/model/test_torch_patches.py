"""Contracts of torch's private names and undocumented behaviour: each test fails when torch changes what we rely on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.model.compiler import needs_compiler
from wmlsearch.model.torch_patches import (
    FakeTensorMode,
    LiveTensorBytes,
    capturable,
    cast_all,
    count_compilations,
    forget_cache_artifacts,
    keys_of_artifacts,
    let_size_vary,
)


def test_foreach_copy_casts_in_one_call() -> None:
    """`torch._foreach_copy_` copies into tensors of another type and keeps their memory formats."""
    shape = (4, 8, 3, 3)
    tensors = torch.rand(shape), torch.rand(shape).contiguous(memory_format=torch.channels_last), torch.rand(5)
    for tensor, copy in zip(tensors, cast_all(tensors, torch.bfloat16), strict=True):
        assert torch.equal(copy, tensor.bfloat16())
        assert copy.stride() == tensor.stride()


def test_fake_tensors_have_shapes_and_no_memory() -> None:
    with FakeTensorMode():
        huge = nn.Conv2d(1, 8, 3, padding=1)(torch.empty(1, 1, 10**6, 10**6))  # 32 TB
    assert huge.shape == (1, 8, 10**6, 10**6)
    assert huge.untyped_storage().nbytes() == 4 * 8 * 10**12


@pytest.mark.parametrize("fake", [False, True])
def test_a_dispatch_mode_sees_each_storage_once_until_it_is_freed(fake: bool) -> None:
    """`_cdata` is the same for all views of a storage, and a weak reference to a storage dies with its last tensor."""
    with FakeTensorMode() if fake else torch.no_grad():
        excluded = torch.zeros(7)
        with LiveTensorBytes([excluded]) as live:
            images = torch.zeros(2, 1, 4, 4)
            assert live.now == images.nbytes == 128
            view = images.view(-1)
            excluded.add_(1)
            assert live.now == 128, "neither the view nor the excluded tensor counts"
            doubled = images * 2
            assert (live.now, live.peak, live.largest_per_image) == (256, 256, 64)
            del doubled
            assert live.now == 128
            del images
            assert live.now == 128, "the view keeps the storage alive"
            del view
            assert (live.now, live.peak) == (0, 256)


@pytest.mark.parametrize(("kind", "has_flag"), [(torch.optim.Adam, True), (torch.optim.SGD, False)])
def test_the_capturable_flag_of_adam_is_in_its_parameter_group(kind: type, has_flag: bool) -> None:
    optimizer = kind([nn.Parameter(torch.zeros(1))], lr=0.1)
    (group,) = optimizer.param_groups
    assert ("capturable" in group) == has_flag
    before = dict(group)
    with capturable(optimizer):
        assert group.get("capturable", False) == has_flag
    assert group == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_allocator_has_the_names_that_end_a_failed_capture() -> None:
    """What they do is tested by `tests/gpu/test_graphs.py`, with a capture that fails."""
    assert callable(torch._C._cuda_endAllocateToPool)
    assert callable(torch._C._cuda_releasePool)
    generator = torch.cuda.default_generators[0]
    assert callable(generator.graphsafe_set_state)
    assert callable(generator.graphsafe_get_state)


@needs_compiler
def test_compilations_are_counted_and_artifacts_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph serves all sizes; a cache on disk counts as none; what was forgotten is not saved."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def misses(*sizes: int) -> int:
        torch.compiler.reset()  # of what this process holds, not of the files
        before = count_compilations()
        double = torch.compile(lambda values: values * 2)
        for size in sizes:
            values = torch.rand(size, 8)
            let_size_vary(values, 0)
            assert torch.equal(double(values), values * 2)
        return count_compilations() - before

    forget_cache_artifacts()
    assert misses(5) > 0
    saved = torch.compiler.save_cache_artifacts()
    assert saved is not None
    content, info = saved
    keys = keys_of_artifacts(info)
    assert {kind for kind, _ in keys} >= {"aot_autograd", "inductor"}
    assert keys_of_artifacts(torch.compiler.load_cache_artifacts(content)) == keys
    forget_cache_artifacts()
    assert torch.compiler.save_cache_artifacts() is None
    assert misses(7, 9) == 0, "the files hold code for any size"
    again = torch.compiler.save_cache_artifacts()
    assert again is not None, "what a cache had is saved too"
    assert keys_of_artifacts(again[1]) == keys
    torch.compiler.reset()
