"""Tests that need a GPU, without Ray: `make gpu-test`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn import functional as F

from wmlsearch.config import TrialConfig
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.checkpoint import load_checkpoint
from wmlsearch.model.memory import (
    CUDA_CONTEXT_BYTES,
    add_process_overhead,
    count_cuda_graphs,
    estimate_memory,
    largest_step,
    measure_memory,
    predict_peak_bytes,
)
from wmlsearch.model.precision import has_fast_bfloat16
from wmlsearch.model.steps import WARM_UP
from wmlsearch.model.training import epochs
from wmlsearch.model.unet import UNet
from wmlsearch.model.validation import validation_batch_size

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason=f"{torch.cuda.device_count()} GPUs here, needs 2")
CUDA = torch.device("cuda")
SMALL = TrialConfig(depth=2, base_channels=8, batch_size=8)


def losses(config: TrialConfig, data: PreparedData, **options: Any) -> list[float]:
    return [report.metrics["train_loss"] or 0.0 for report in epochs(config, data, max_epochs=3, **options)]


def test_gpu_training_equals_cpu_training(prepared: Path) -> None:
    config = SMALL.model_copy(update={"dropout": 0.0})
    on_gpu = losses(config, PreparedData.open(prepared, "cuda"), precision="float32")
    assert on_gpu == pytest.approx(losses(config, PreparedData.open(prepared), precision="float32"), rel=2e-2)


def test_mixed_precision_stays_close(prepared: Path) -> None:
    assert has_fast_bfloat16(torch.device("cuda")) == (torch.cuda.get_device_capability() >= (8, 0))
    data, config = PreparedData.open(prepared, "cuda"), SMALL.model_copy(update={"dropout": 0.0})
    mixed = losses(config, data, precision="bfloat16")
    assert mixed == pytest.approx(losses(config, data, precision="float32"), rel=5e-2)


def test_first_convolution_under_autocast_equals_one_channel() -> None:
    torch.manual_seed(0)
    block = UNet(depth=1, base_channels=16).down[0].cuda()
    images = torch.rand(3, 1, 32, 32, device="cuda")
    first = block.to(memory_format=torch.channels_last)[0]
    with torch.autocast("cuda", dtype=torch.bfloat16):
        computed = first(images)
    wanted = F.conv2d(images, first.weight, padding=1)
    assert (computed.dtype, computed.is_contiguous(memory_format=torch.channels_last)) == (torch.bfloat16, True)
    assert torch.allclose(computed.float(), wanted, rtol=2e-2, atol=2e-2)


def test_interrupted_and_resumed_on_a_gpu(prepared: Path, tmp_path: Path) -> None:
    data = PreparedData.open(prepared, "cuda")
    whole = losses(SMALL, data, last=tmp_path / "whole.pt")
    first = epochs(SMALL, data, max_epochs=3, last=tmp_path / "parts.pt")
    next(first)
    first.close()
    losses(SMALL, data, last=tmp_path / "parts.pt")
    resumed = [row["train_loss"] for row in load_checkpoint(tmp_path / "parts.pt")["reports"]]
    assert resumed == pytest.approx(whole, rel=1e-2)  # sums of floats have no fixed order on a GPU


def test_data_is_on_the_gpu_as_8_bit(prepared: Path) -> None:
    data = PreparedData.open(prepared, "cuda")
    assert (data.train.images.device.type, data.train.images.dtype) == ("cuda", torch.uint8)


def test_gpu_predictions_equal_cpu_predictions(prepared: Path, tmp_path: Path) -> None:
    data = PreparedData.open(prepared)
    list(epochs(SMALL, data, max_epochs=1, best=tmp_path / "best.pt"))
    model, images = TrainedModel.load(tmp_path / "best.pt"), data.val.images.numpy()
    on_cpu = model.probabilities(images)
    model.unet.to("cuda")
    on_gpu = model.probabilities(images)
    assert on_gpu == pytest.approx(on_cpu, abs=1e-4)
    assert (model.probabilities(images) == on_gpu).all()


@pytest.fixture(scope="session")
def large(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data in the baseline's size, so that training takes more memory than the libraries."""
    out = tmp_path_factory.mktemp("large") / "prepared"
    prepare(raw, out, PrepareOptions(size=256, fit="resize", val_patients=("04",), jobs=1))
    return out


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 16},
        {"depth": 4, "base_channels": 32, "batch_size": 24, "dropout": 0.0},
        {
            "depth": 3,
            "base_channels": 16,
            "batch_size": 24,
            "norm": "instance",
            "optimizer": "sgd",
            "augment": "affine",
        },
    ],
    ids=["paper", "wide", "other"],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_predicted_peak_matches_measured_peak(values: dict[str, Any], precision: Any, large: Path) -> None:
    """Of what PyTorch reserves, graphs' memory included: by steps of one and two images within a quarter."""
    config, data = TrialConfig(**values), PreparedData.open(large, "cuda")
    images, graphs = (
        largest_step(config, len(data.train)),
        count_cuda_graphs(config, len(data.train), CUDA, several=False),
    )
    assert images > 8
    held, expected = predict_peak_bytes(config, data, precision)
    assert measure_memory(config, data, precision) is measure_memory(config, data, precision)  # once for each shape
    *_, last = epochs(config, data, max_epochs=WARM_UP + 2, precision=precision)  # all steps are graphs at last
    peak = torch.cuda.max_memory_reserved() - held
    assert last.metrics["peak_memory_mb"] == (held + peak) / 2**20
    assert expected == pytest.approx(peak, rel=0.25, abs=64 * 2**20)
    val_images = min(validation_batch_size(CUDA, data.manifest.size**2), len(data.val))
    estimate = estimate_memory(config, data.manifest.size, precision == "bfloat16", val_images)
    assert add_process_overhead(estimate.bytes(images, graphs), CUDA) == pytest.approx(peak, rel=0.5, abs=64 * 2**20)


def _limited(rank: int, prepared: str, share: float, out: str) -> None:
    data, config = PreparedData.open(Path(prepared), "cuda"), TrialConfig(batch_size=16)
    held, expected = predict_peak_bytes(config, data, "auto")
    limit = held + share * expected
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        list(epochs(config, data, max_epochs=WARM_UP + 2))
        ended = "completed"
    except torch.OutOfMemoryError:
        ended = "out of memory"
    torch.save(ended, out)


@pytest.mark.parametrize(("share", "ended"), [(1.0, "completed"), (0.4, "out of memory")])
def test_the_predicted_peak_is_enough_and_not_far_too_much(
    share: float, ended: str, large: Path, tmp_path: Path
) -> None:
    multiprocessing.spawn(_limited, (str(large), share, str(tmp_path / "out")), nprocs=1)
    assert torch.load(tmp_path / "out", weights_only=True) == ended


def _context(rank: int, prepared: str, out: str) -> None:
    list(epochs(SMALL, PreparedData.open(Path(prepared), "cuda"), max_epochs=WARM_UP + 2))
    free, _ = torch.cuda.mem_get_info()
    torch.save((free, torch.cuda.memory_reserved()), out)


def test_process_memory_beside_its_tensors(prepared: Path, tmp_path: Path) -> None:
    """Needs a GPU that no other process uses."""
    free_before, _ = torch.cuda.mem_get_info()
    multiprocessing.spawn(_context, (str(prepared), str(tmp_path / "out")), nprocs=1)
    free, reserved = torch.load(tmp_path / "out", weights_only=True)
    assert 0.3 * CUDA_CONTEXT_BYTES < free_before - free - reserved < CUDA_CONTEXT_BYTES


def _greedy(rank: int, out: str) -> None:
    from wmlsearch.cluster.resources import Slots
    from wmlsearch.search.memory_admission import limit_bytes, limit_to_share

    device, slots = torch.device("cuda", 0), Slots(4, 1, 1, 0.25)
    limit_to_share(device, slots)
    limit = limit_bytes(device, slots)
    kept = torch.empty(int(0.9 * limit), dtype=torch.uint8, device=device)
    try:
        torch.empty(int(0.2 * limit), dtype=torch.uint8, device=device)
        ended = "took more than its share"
    except torch.OutOfMemoryError:
        ended = "out of memory"
    torch.save((ended, len(kept), limit), out)


def test_trials_on_one_gpu_keep_to_their_memory(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    multiprocessing.spawn(_greedy, (str(tmp_path / "out"),), nprocs=1)
    ended, kept, limit = torch.load(tmp_path / "out", weights_only=True)
    assert ended == "out of memory"
    assert kept == int(0.9 * limit)
    assert limit < 0.25 * torch.cuda.get_device_properties(0).total_memory


def _rank(rank: int, world: int, meeting: str, prepared: str, norm: str, out: str) -> None:
    torch.cuda.set_device(rank)
    distributed.init_process_group("nccl", init_method=f"file://{meeting}", rank=rank, world_size=world)
    config = SMALL.model_copy(update={"dropout": 0.0, "norm": norm})
    computed = losses(config, PreparedData.open(Path(prepared), f"cuda:{rank}"), precision="float32")
    if rank == 0:
        torch.save(computed, out)
    distributed.destroy_process_group()


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=several)])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_nccl_ranks_equal_one_rank(world: int, norm: str, prepared: Path, tmp_path: Path) -> None:
    """With SyncBatchNorm two ranks see the statistics of the whole batch, so batch normalisation agrees too."""
    with tempfile.NamedTemporaryFile() as file:
        meeting = file.name
    out = str(tmp_path / "losses.pt")
    multiprocessing.spawn(_rank, (world, meeting, str(prepared), norm, out), nprocs=world)
    config = SMALL.model_copy(update={"dropout": 0.0, "norm": norm})
    single = losses(config, PreparedData.open(prepared, "cuda"), precision="float32")
    assert torch.load(out, weights_only=True) == pytest.approx(single, rel=1e-2)
