"""Predictions on a GPU by CUDA graphs equal plain ones, bit for bit."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from wmlsearch.config import TrialConfig
from wmlsearch.inference.graphed_networks import networks_on
from wmlsearch.inference.postprocessing import Postprocessing
from wmlsearch.inference.predictor import HERE
from wmlsearch.inference.preprocessing import Preprocessing
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.graphs import StepGraphs
from wmlsearch.model.unet import UNet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
IMAGES = np.random.default_rng(0).integers(0, 256, (88, 64, 64), np.uint8)  # five full batches, and half of one


@pytest.mark.parametrize("mirror", [False, True])
def test_predictions_by_graphs_equal_plain_ones(mirror: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    config, preprocessing = TrialConfig(depth=3, base_channels=8), Preprocessing("axial", 2, 64, "resize", 1.0)
    models = [
        TrainedModel(
            UNet.of(config).to(memory_format=torch.channels_last).eval(),  # type: ignore[call-overload]  # torch's stubs
            config,
            0.5,
            preprocessing,
            postprocessing=Postprocessing(mirror_averaging=mirror),
        )
        for _ in range(3)
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="prediction continues")
        by_graphs = [HERE.probabilities(models, IMAGES) for _ in range(2)]
    networks = networks_on(models[0].unet.head.weight.device)
    assert len(networks.graphs.sizes("prediction")) == len(models)
    monkeypatch.setattr(StepGraphs, "allows", lambda *_: False)
    plain = HERE.probabilities(models, IMAGES)
    for again in by_graphs:
        for one, other in zip(again, plain, strict=True):
            assert np.array_equal(one, other)
    assert not np.array_equal(plain[0], plain[1])
