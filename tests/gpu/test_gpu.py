"""What needs GPUs: `make gpu-test` on a machine that has them. Without Ray: the core alone is asked."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.model.inference import Model
from wmlsearch.model.training import epochs, has_fast_bfloat16, load_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason=f"{torch.cuda.device_count()} GPUs here, needs 2")
SMALL = TrialConfig(depth=2, base_channels=8, batch_size=8)


def losses(config: TrialConfig, data: PreparedData, **options: Any) -> list[float]:
    return [report.metrics["train_loss"] or 0.0 for report in epochs(config, data, max_epochs=3, **options)]


def test_a_gpu_trains_like_a_cpu(prepared: Path) -> None:
    config = SMALL.model_copy(update={"dropout": 0.0})
    on_gpu = losses(config, PreparedData.open(prepared, "cuda"), precision="float32")
    assert on_gpu == pytest.approx(losses(config, PreparedData.open(prepared), precision="float32"), rel=2e-2)


def test_mixed_precision_stays_close(prepared: Path) -> None:
    assert has_fast_bfloat16(torch.device("cuda")) == (torch.cuda.get_device_capability() >= (8, 0))
    data, config = PreparedData.open(prepared, "cuda"), SMALL.model_copy(update={"dropout": 0.0})
    mixed = losses(config, data, precision="bfloat16")
    assert mixed == pytest.approx(losses(config, data, precision="float32"), rel=5e-2)


def test_interrupted_and_resumed_on_a_gpu(prepared: Path, tmp_path: Path) -> None:
    data = PreparedData.open(prepared, "cuda")
    whole = losses(SMALL, data, last=tmp_path / "whole.pt")
    first = epochs(SMALL, data, max_epochs=3, last=tmp_path / "parts.pt")
    next(first)
    first.close()
    losses(SMALL, data, last=tmp_path / "parts.pt")
    resumed = [row["train_loss"] for row in load_checkpoint(tmp_path / "parts.pt")["reports"]]
    assert resumed == pytest.approx(whole, rel=1e-2)  # sums of floats have no fixed order on a GPU


def test_the_data_are_on_the_gpu_as_8_bit(prepared: Path) -> None:
    data = PreparedData.open(prepared, "cuda")
    assert (data.train.images.device.type, data.train.images.dtype) == ("cuda", torch.uint8)


def test_a_gpu_predicts_like_a_cpu(prepared: Path, tmp_path: Path) -> None:
    data = PreparedData.open(prepared)
    list(epochs(SMALL, data, max_epochs=1, best=tmp_path / "best.pt"))
    model, images = Model.load(tmp_path / "best.pt"), data.val.images.numpy()
    on_cpu = model.probabilities(images)
    model.unet.to("cuda")
    on_gpu = model.probabilities(images)
    assert on_gpu == pytest.approx(on_cpu, abs=1e-4)
    assert (model.probabilities(images) == on_gpu).all()


def _rank(rank: int, world: int, meeting: str, prepared: str, norm: str, out: str) -> None:
    torch.cuda.set_device(rank)
    distributed.init_process_group("nccl", init_method=f"file://{meeting}", rank=rank, world_size=world)
    config = SMALL.model_copy(update={"dropout": 0.0, "norm": norm})
    found = losses(config, PreparedData.open(Path(prepared), f"cuda:{rank}"), precision="float32")
    if rank == 0:
        torch.save(found, out)
    distributed.destroy_process_group()


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=several)])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_ranks_over_nccl_equal_one(world: int, norm: str, prepared: Path, tmp_path: Path) -> None:
    """With SyncBatchNorm two ranks see the statistics of the whole batch, so batch normalisation agrees too."""
    with tempfile.NamedTemporaryFile() as file:
        meeting = file.name
    out = str(tmp_path / "losses.pt")
    multiprocessing.spawn(_rank, (world, meeting, str(prepared), norm, out), nprocs=world)
    config = SMALL.model_copy(update={"dropout": 0.0, "norm": norm})
    alone = losses(config, PreparedData.open(prepared, "cuda"), precision="float32")
    assert torch.load(out, weights_only=True) == pytest.approx(alone, rel=1e-2)
