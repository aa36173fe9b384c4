"""Validation: the same counts in batches of any size and as graphs, and nothing leaves the device before the end."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.test_steps import pretend_graphs
from wmlsearch.config import TrialConfig
from wmlsearch.data.slices import PreparedData, Slices
from wmlsearch.model import validation as module
from wmlsearch.model.graphs import StepGraphs
from wmlsearch.model.metrics import ValidationCounts
from wmlsearch.model.torch_patches import FakeTensorMode, TorchDispatchMode
from wmlsearch.model.training import Trainer, epochs
from wmlsearch.model.unet import UNet
from wmlsearch.model.validation import Validation

SMALL = TrialConfig(depth=2, base_channels=4, batch_size=7)
CLOCK = ("epoch_s", "images_per_s", "peak_memory_mb")
CPU = torch.device("cpu")


def unet(seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    return UNet(2, 4)


@pytest.mark.parametrize("loss", ["bce", "bce_dice", "tversky"])
def test_batches_of_any_size_have_the_same_histograms(
    data: PreparedData, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, counted = unet(), []
    for size in (1, 5, 12, 100):
        monkeypatch.setattr(module, "VALIDATION_BATCH", size)
        with torch.no_grad():
            counted.append(Validation(network, data.val, loss, False).run())
    for counts in counted:
        assert torch.equal(counts.histograms, counted[0].histograms)
        assert torch.allclose(counts.sums, counted[0].sums)
        assert counts.slices == len(data.val) == 12
    size = data.val.images[0].numel()
    assert int(counted[0].histograms.sum()) == 12 * size, "each pixel of each slice once"


@torch.no_grad()
def test_each_batch_size_is_a_graph_from_the_second_validation_on(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured, replayed = [], []

    def capture_graph(step: Callable[[], None], _stream: object, _pool: object) -> Callable[[], None]:
        place = len(captured)
        captured.append(step)

        def replay() -> None:
            replayed.append(place)
            step()

        return replay

    monkeypatch.setattr(module, "VALIDATION_BATCH", 5)
    pretend_graphs(monkeypatch, capture_graph)
    network, graphs = unet(), StepGraphs(CPU)
    validation = Validation(network, data.val, "bce", False, graphs=graphs)
    places = set()
    for run in range(4):
        for weight in network.parameters():
            weight += 0.01  # in place, as an optimiser does
        counts = validation.run()
        places.add(counts.memory.data_ptr())
        eager = Validation(network, data.val, "bce", False).run()
        assert torch.equal(counts.memory, eager.memory), "bit for bit"
        assert (counts.slices, counts.metrics()) == (12, eager.metrics())
        assert len(captured) == (2 if run else 0)
    assert graphs.sizes("validation") == [5, 2]
    assert replayed == [0, 0, 1] * 3
    assert len(places) == 1, "a graph adds to the same memory each time"


def test_a_training_with_graphs_of_both_kinds_equals_one_without(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SMALL.model_copy(update={"ema": 0.9, "loss": "bce_dice", "dice_over": "batch"})

    def rows() -> list[dict[str, float | None]]:
        trained = epochs(config, data, max_epochs=4, precision="float32")
        return [{name: row.metrics[name] for name in row.metrics if name not in CLOCK} for row in trained]

    eager = rows()
    captured = []

    def capture_graph(step: Callable[[], None], _stream: object, _pool: object) -> Callable[[], None]:
        captured.append(step)
        return step

    pretend_graphs(monkeypatch, capture_graph)
    assert rows() == eager
    assert len(captured) == 3, "two sizes of training batches, and one of validation"


def test_other_slices_are_captured_anew(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_graphs(monkeypatch, lambda step, _stream, _pool: step)
    trainer = Trainer(SMALL, data, 1, 0, "float32")
    whole = [trainer.validate().slices for _ in range(2)]
    assert trainer.graphs.sizes("validation") == [12]
    val = data.val
    few = Slices(val.images, val.masks, val.rows[:3], val.patients[:3], val.patient_names)
    trainer.data = dataclasses.replace(trainer.data, val=few)
    assert [*whole, trainer.validate().slices] == [12, 12, 3]
    assert trainer.graphs.sizes("validation") == []


def test_validation_continues_when_its_capture_fails(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    """And training captures its graphs again, since the reset after a failure replaces the GPU's generator."""
    fails = True

    def capture_graph(step: Callable[[], None], _stream: object, _pool: object) -> Callable[[], None]:
        if fails:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return step

    monkeypatch.setattr(module, "VALIDATION_BATCH", 5)
    pretend_graphs(monkeypatch, capture_graph)
    trainer = Trainer(SMALL, data, 1, 0, "float32")
    trainer.graphs.replays["training", 7] = lambda: None
    wanted = trainer.validate().metrics()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert trainer.validate().metrics() == wanted
    assert [str(warning.message) for warning in caught] == [
        "validation continues without CUDA graphs, since a capture failed: "
        "RuntimeError: operation not permitted when stream is capturing"
    ]
    assert trainer.graphs.replays == {}
    assert (trainer.graphs.allows("training"), trainer.graphs.allows("validation")) == (True, False)
    fails = False
    assert trainer.validate().metrics() == wanted
    assert trainer.graphs.sizes("validation") == []


def test_there_are_no_graphs_on_a_cpu(data: PreparedData) -> None:
    trainer = Trainer(SMALL, data, 1, 0, "float32")
    for _ in range(3):
        counts = trainer.validate()
        assert trainer.validate() is not counts, "a caller may keep what it got"
    assert (trainer.graphs.replays, trainer.graphs.stream, trainer.graphs.pool) == ({}, None, None)


@pytest.mark.parametrize("loss", ["bce", "bce_dice"])
@pytest.mark.parametrize("has_ignored", [False, True])
@torch.no_grad()
def test_nothing_is_copied_to_the_host(loss: str, has_ignored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device "meta", whose tensors have no values: whatever reads one, or copies it to the CPU, raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # unknown on this device
    monkeypatch.setattr(module, "VALIDATION_BATCH", 4)
    with torch.device("meta"):
        stored = torch.zeros(9, 32, 32, dtype=torch.uint8)
        patients = torch.zeros(7, dtype=torch.int64)
        slices = Slices(stored, stored, torch.arange(7), patients, ("a", "b"), has_ignored)
        network = UNet(2, 4)
    validation = Validation(network, slices, loss, False)
    assert validation.batch_sizes == [4, 3]
    counts = validation.run()
    assert counts.histograms.is_meta
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        counts.to_host()


class Copies(TorchDispatchMode):
    """Records which operations make a tensor on the CPU of one on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = args[0] if args else None
        if isinstance(given, Tensor) and isinstance(result, Tensor):
            devices = given.device.type, result.device.type
            self.names += [func.overloadpacket.__name__] if devices == ("cuda", "cpu") else []
        return result


def test_one_copy_takes_all_counts_to_the_host() -> None:
    with FakeTensorMode():
        counts = ValidationCounts(3, "cuda")
        counts.slices = 5
        with Copies() as copies:
            on_host = counts.to_host()
    assert copies.names == ["_to_copy"]
    assert on_host.sums.untyped_storage()._cdata == on_host.histograms.untyped_storage()._cdata
    assert {tensor.device.type for tensor in (on_host.sums, on_host.histograms)} == {"cpu"}
    assert (on_host.patients, on_host.slices, on_host.histograms.shape) == (3, 5, counts.histograms.shape)


def test_counts_on_a_cpu_are_not_copied(data: PreparedData) -> None:
    counts = Validation(unet(), data.val, "bce", False).run()
    assert counts.to_host() is counts


def test_counts_begin_again_in_the_same_memory(data: PreparedData) -> None:
    with torch.no_grad():
        counts = Validation(unet(), data.val, "bce", False).run()
    before = counts.memory.data_ptr(), counts.histograms.data_ptr(), counts.sums.data_ptr()
    counts.reset()
    assert (counts.memory.data_ptr(), counts.histograms.data_ptr(), counts.sums.data_ptr()) == before
    assert (counts.slices, counts.histograms.any().item(), counts.sums.any().item()) == (0, False, False)
