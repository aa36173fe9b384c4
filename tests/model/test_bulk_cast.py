"""Casting all weights at once equals autocast bit for bit, with two operations instead of two per weight."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData, batches
from wmlsearch.model import steps as module
from wmlsearch.model.bulk_cast import BulkCastUNet
from wmlsearch.model.torch_patches import TorchDispatchMode
from wmlsearch.model.training import Trainer
from wmlsearch.model.unet import UNet


def unet(**changes: Any) -> UNet:
    torch.manual_seed(0)
    made = UNet(depth=2, base_channels=8, dropout=0.0, **changes)
    return made.to(memory_format=torch.channels_last)  # torch's stubs lack memory_format


class Watched(TorchDispatchMode):
    """Counts torch's operations, and the casts of tensors other than images."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.casts = Counter[str](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.names[name] += 1
        self.casts += name == "_to_copy" and isinstance(args[0], Tensor) and len(args[0]) != 3
        return func(*args, **(kwargs or {}))


def step(network: UNet, at_once: bool) -> tuple[Tensor, list[Tensor | None], Watched]:
    """Return logits and gradients for three images."""
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with Watched() as watched:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = (BulkCastUNet(network) if at_once else network)(images)
        logits.square().mean().backward()
    return logits, [parameter.grad for parameter in network.parameters()], watched


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "batch"},
        {"norm": "instance"},
        {"up_kernel": 3, "norm_momentum": 0.01, "norm_epsilon": 1e-3, "head_init": "glorot"},
        {"network": "residual"},
    ],
    ids=["batch", "instance", "as Keras", "residual"],
)
def test_logits_gradients_and_statistics_equal_autocast(changes: dict[str, Any]) -> None:
    one, other = unet(**changes), unet(**changes)
    logits, gradients, _ = step(one, at_once=True)
    wanted, wanted_gradients, _ = step(other, at_once=False)
    assert torch.equal(logits, wanted)
    for (name, weight), mine, expected in zip(one.named_parameters(), gradients, wanted_gradients, strict=True):
        assert (mine is None) == (expected is None) == (not weight.requires_grad), name
        if mine is not None and expected is not None:
            assert torch.equal(mine, expected), name
            assert (mine.dtype, mine.stride()) == (torch.float32, expected.stride()), name
    for name, buffer in one.named_buffers():
        assert torch.equal(buffer, other.get_buffer(name)), name
    assert all(weight.dtype == torch.float32 for weight in one.parameters()), "the network keeps its own"


def test_one_operation_casts_all_weights_and_one_their_gradients() -> None:
    network = unet()
    weights = len(BulkCastUNet(network).weights)
    assert weights == 5 * 2 + 2 * 2, "two in each of the blocks, and weight and bias on each way up"
    _, _, watched = step(network, at_once=True)
    _, _, autocast = step(unet(), at_once=False)
    assert (watched.casts, watched.names["_foreach_copy_"]) == (0, 2)
    assert (autocast.casts, autocast.names["_foreach_copy_"]) == (2 * weights, 0)
    assert watched.names["clone"] == autocast.names["clone"], "gradients are taken, not copied again"


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_bfloat16_training_equals_autocast(prepared: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = PreparedData.open(prepared)
    config = TrialConfig(depth=2, base_channels=8, batch_size=7, optimizer=optimizer, dropout=0.2)
    computed = []
    for precision, at_once in (("bfloat16", True), ("bfloat16", False), ("float32", True)):
        if not at_once:
            monkeypatch.setattr(module, "BulkCastUNet", lambda network: network)
        trainer = Trainer(config, data, 1, 0, precision)
        trainer.unet.train()
        steps = trainer.steps
        assert isinstance(steps.network, BulkCastUNet) == (at_once and precision == "bfloat16")
        order = batches(len(data.train), 7, torch.Generator().manual_seed(1))
        computed.append(steps.run(order, [1e-2] * len(order), None, 1))
    assert computed[0] == computed[1]
    assert computed[0] != computed[2]
