"""The choice of kernels, and the Triton kernels where Triton is installed: interpreted on the CPU, and compiled."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.errors import InputError
from wmlsearch.model import kernels, training
from wmlsearch.model.kernels import VARIABLE, use_selected_kernels
from wmlsearch.model.loss_kernels import fused_slice_losses
from wmlsearch.model.losses import Loss, slice_losses
from wmlsearch.model.training import Trainer
from wmlsearch.model.unet import Layers, UNet

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SMALL = TrialConfig(depth=1, base_channels=2)


def runners(network: nn.Module) -> list[Any]:
    return [module.runner for module in network.modules() if isinstance(module, Layers)]


def pretend(monkeypatch: pytest.MonkeyPatch, *, has_triton: bool, capability: tuple[int, int]) -> None:
    """Let this machine have a GPU, and Triton or not."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: object() if has_triton else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.version, "hip", None)


@pytest.mark.parametrize("value", [None, "", "torch"])
def test_torchs_layers_are_the_default(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, value)
    network = UNet(depth=1, base_channels=2)
    assert use_selected_kernels(network, CPU) is None
    assert runners(network) == [None] * 3
    assert not {"wmlsearch.model.triton_kernels", "wmlsearch.model.triton_loss"} & set(sys.modules)


def test_triton_is_refused_without_a_gpu(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "triton")
    with pytest.raises(InputError) as error:
        Trainer(SMALL, PreparedData.open(prepared), 1, 0, "auto")
    assert str(error.value).splitlines() == [
        "WMLSEARCH_KERNELS=triton cannot be used for this training",
        "  - it needs a GPU with CUDA, but the training runs on: cpu; unset WMLSEARCH_KERNELS to train with PyTorch's "
        "layers",
    ]


@pytest.mark.parametrize(
    ("machine", "network", "reason"),
    [
        ({"has_triton": False}, UNet(depth=1), "the Python package triton is not installed here; install it, or unset"),
        ({"capability": (7, 5)}, UNet(depth=1), "it needs a GPU of compute capability 8.0 or more, but got 7.5; unset"),
        (
            {},
            nn.SyncBatchNorm.convert_sync_batchnorm(UNet(depth=1)),
            "batch normalisation over several workers has no kernel; use --workers-per-trial 1, or unset",
        ),
    ],
    ids=["no Triton", "old GPU", "several workers"],
)
def test_triton_is_refused_where_it_cannot_run(
    machine: dict[str, Any], network: nn.Module, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "triton")
    pretend(monkeypatch, **{"has_triton": True, "capability": (9, 0), **machine})
    with pytest.raises(
        InputError, match=f"\n  - {re.escape(reason)} WMLSEARCH_KERNELS to train with PyTorch's layers$"
    ):
        use_selected_kernels(network, CUDA)
    assert runners(network) == [None] * len(runners(network))


def test_unknown_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "Triton")
    with pytest.raises(InputError, match=r"^WMLSEARCH_KERNELS must be torch, triton or compile, but got 'Triton'$"):
        use_selected_kernels(UNet(depth=1), CUDA)


@pytest.mark.parametrize("network", ["paper", "residual"])
def test_triton_is_used_where_it_is_selected(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "triton")
    pretend(monkeypatch, has_triton=True, capability=(9, 0))
    unet = UNet(depth=2, base_channels=2, network=network)
    names = list(unet.state_dict())
    assert use_selected_kernels(unet, CUDA) is fused_slice_losses
    used = runners(unet)
    assert all(isinstance(runner, kernels.FusedLayers) for runner in used)
    assert len({runner.first_stream for runner in used}) == len(used) == (5 if network == "paper" else 10)
    assert list(unet.state_dict()) == names


@pytest.mark.parametrize("selected", ["torch", "triton"])
def test_the_steps_of_a_training_use_the_selected_loss(
    selected: str, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def fused(logits: Tensor, masks: Tensor, loss: Loss, counted: Tensor | None) -> Tensor:
        nonlocal calls
        calls += 1
        return slice_losses(logits, masks, loss, counted)

    monkeypatch.setattr(training, "use_selected_kernels", lambda *_: fused if selected == "triton" else None)
    trainer = Trainer(SMALL, data, 1, 0, "float32")
    trainer.train_epoch()
    steps = len(trainer.draw_batches(torch.Generator()))
    assert calls == (steps if selected == "triton" else 0), "in each step, and not in validation"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed here")
@pytest.mark.parametrize("name", ["interpreted_kernels", "interpreted_losses", "compiled_kernels"])
def test_triton_kernels(name: str, tmp_path: Path) -> None:
    helpers = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": helpers}
    environment.pop("TRITON_INTERPRET", None)
    if name.startswith("interpreted"):
        environment["TRITON_INTERPRET"] = "1"
    file = Path(__file__).parent / f"{name}.py"
    command = [sys.executable, "-m", "pytest", "-rs", "--noconftest", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if skipped := re.search(r"^SKIPPED .*", done.stdout, re.MULTILINE):
        pytest.skip(skipped.group())
