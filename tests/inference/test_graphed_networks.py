"""Predictions by CUDA graphs equal plain ones. The graphs are fakes that work on a CPU; `tests/gpu` has real ones."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.model.test_steps import pretend_graphs
from wmlsearch.config import TrialConfig
from wmlsearch.inference import graphed_networks
from wmlsearch.inference.graphed_networks import GraphedNetworks, networks_on
from wmlsearch.inference.postprocessing import Postprocessing
from wmlsearch.inference.predictor import HERE
from wmlsearch.inference.preprocessing import Preprocessing
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.unet import UNet

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (56, 8, 8), np.uint8)  # three full batches, and half of one


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was captured and replayed, in order."""
    events: list[str] = []

    def capture_graph(step: Callable[[], None], _stream: object, _pool: object) -> Callable[[], None]:
        number = sum(event.startswith("captured") for event in events)
        events.append(f"captured {number}")

        def replay() -> None:
            events.append(f"replayed {number}")
            step()

        return replay

    pretend_graphs(monkeypatch, capture_graph)
    networks_on.cache_clear()
    yield events
    networks_on.cache_clear()


def model(seed: int, mirror: bool = False, **values: Any) -> TrainedModel:
    torch.manual_seed(seed)
    config = TrialConfig(depth=1, base_channels=4, **values)
    preprocessing = Preprocessing("axial", 2, 8, "resize", 1.0)
    return TrainedModel(
        UNet.of(config).eval(), config, 0.5, preprocessing, postprocessing=Postprocessing(mirror_averaging=mirror)
    )


def plain(models: list[TrainedModel], images: np.ndarray = IMAGES) -> list[np.ndarray]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphed_networks.StepGraphs, "allows", lambda *_: False)
        return HERE.probabilities(models, images)


@pytest.mark.parametrize("mirror", [False, True])
def test_predictions_by_graphs_equal_plain_ones(mirror: bool, captured: list[str]) -> None:
    models = [model(0, mirror), model(1, mirror, input_slices=3)]
    wanted = plain(models)
    for _ in range(2):
        for one, other in zip(HERE.probabilities(models, IMAGES), wanted, strict=True):
            assert np.array_equal(one, other), "bit for bit"
    calls = 2 if mirror else 1
    assert captured[:2] == ["captured 0", "replayed 0"], "the second full batch"
    assert captured.count("captured 0") == captured.count("captured 1") == 1
    assert captured.count("replayed 0") == captured.count("replayed 1") == 2 * 3 * calls - 1
    assert "captured 2" not in captured, "a graph for each network"
    assert not np.array_equal(*wanted)


def test_other_shapes_run_without_a_graph(captured: list[str]) -> None:
    networks = [model(0)]
    HERE.probabilities(networks, IMAGES)
    before = len(captured)
    larger = np.repeat(IMAGES, 2, axis=1)
    assert np.array_equal(HERE.probabilities(networks, larger)[0], plain(networks, larger)[0])
    assert len(captured) == before


@torch.no_grad()
def test_weights_that_change_in_place_are_seen_and_those_that_move_are_captured_anew(captured: list[str]) -> None:
    networks, unet = GraphedNetworks(CPU), model(0).unet
    images = torch.rand(16, 1, 8, 8)
    for _ in range(3):
        networks(unet, images)
    assert captured == ["captured 0", "replayed 0", "replayed 0"]
    for weight in unet.parameters():
        weight += 0.1
    assert torch.equal(networks(unet, images), unet(images))
    assert captured[3:] == ["replayed 0"]
    unet.load_state_dict(copy.deepcopy(unet.state_dict()), assign=True)
    assert torch.equal(networks(unet, images), unet(images))
    assert networks.graphs.sizes("prediction") == []
    networks(unet, images)
    assert captured[4:] == ["captured 1", "replayed 1"]


@torch.no_grad()
def test_results_are_the_callers(captured: list[str]) -> None:
    networks, unet = GraphedNetworks(CPU), model(0).unet
    batches = [torch.rand(16, 1, 8, 8) for _ in range(4)]
    computed = [networks(unet, batch) for batch in batches]
    for logits, batch in zip(computed, batches, strict=True):
        assert torch.equal(logits, unet(batch))


def test_threads_use_the_memory_of_a_graph_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second thread asks while a graph is replayed for the first one."""
    unet, batches, results = model(0).unet, [torch.rand(16, 1, 8, 8) for _ in range(2)], dict[int, torch.Tensor]()

    def ask(number: int) -> None:
        with torch.no_grad():
            results[number] = networks(unet, batches[number])

    second = threading.Thread(target=ask, args=(1,))

    def capture_graph(step: Callable[[], None], _stream: object, _pool: object) -> Callable[[], None]:
        def replay() -> None:
            if second.ident is None:
                second.start()
                second.join(0.2)  # without a lock it is done by then, and has overwritten the first one's images
            step()

        return replay

    pretend_graphs(monkeypatch, capture_graph)
    networks = GraphedNetworks(CPU)
    for _ in range(2):  # the first time runs as usual
        ask(0)
    second.join()
    for number, batch in enumerate(batches):
        with torch.no_grad():
            assert torch.equal(results[number], unet(batch))


@torch.no_grad()
def test_graphs_of_networks_that_are_gone_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_graphs(monkeypatch, lambda _step, _stream, _pool: lambda: None)  # as a graph, it does not hold the network
    networks, images = GraphedNetworks(CPU), torch.rand(16, 1, 8, 8)
    for seed in range(3):
        unet = model(seed).unet
        networks(unet, images)
        networks(unet, images)
        assert len(networks.graphs.sizes("prediction")) == len(networks.networks) == 1
        del unet
        gc.collect()


def test_a_cpu_has_no_graphs() -> None:
    networks_on.cache_clear()
    HERE.probabilities([model(0)], IMAGES)
    networks = networks_on(CPU)
    assert networks.networks == []
    assert networks.graphs.replays == {}
