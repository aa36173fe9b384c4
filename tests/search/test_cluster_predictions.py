"""Predictions on the slots of a cluster (an embedded Ray stands for it), and by this machine where there are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import ray
import torch
from processes import wait_for

from wmlsearch.cluster.resources import Slots
from wmlsearch.config import TrialConfig
from wmlsearch.inference.predictor import HERE
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.unet import UNet
from wmlsearch.search import cluster_predictions
from wmlsearch.search.cluster_predictions import ClusterPredictions

CPU = Slots(1, 1, 1, 0.0)


def models(count: int) -> list[TrainedModel]:
    config = TrialConfig(depth=2, base_channels=4)
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(TrainedModel(UNet.of(config).eval(), config, 0.5, name=f"m{seed}"))
    return made


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32), dtype=np.uint8)


def all_free() -> bool:
    return bool(ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


def test_slots_predict_what_this_process_predicts(one_ray: None) -> None:
    said: list[str] = []
    networks = models(3)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the slots, so that the sums are the same
    try:
        expected = [HERE.probabilities(networks, images(5, seed)) for seed in (0, 1)]
    finally:
        torch.set_num_threads(before)
    with ClusterPredictions(CPU, 3, said.append) as predictions:
        got = [predictions.probabilities(networks, images(5, seed)) for seed in (0, 1)]
        reverse = predictions.probabilities(networks[::-1], images(5))
        assert len(predictions.models) == 3, "each network is sent once"
    for one, other in zip([*got, reverse[::-1]], [*expected, expected[0]], strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), rtol=0, atol=1e-6)
    assert said == ["predicting on 1 slot of the cluster"]
    wait_for(all_free, 30)


def test_without_a_gpu_in_time_this_machine_predicts(one_ray: None) -> None:
    said: list[str] = []
    networks = models(2)
    with ClusterPredictions(Slots(1, 1, 1, 1.0), 2, said.append, wait_s=0.2) as predictions:
        for _ in range(2):  # it is asked for once
            got = predictions.probabilities(networks, images(3))
    np.testing.assert_array_equal(np.array(got), np.array(HERE.probabilities(networks, images(3))))
    assert said == [
        "note: the cluster had no GPU for predictions within 0 s, so this machine predicts, which takes longer"
    ]
    wait_for(all_free, 30)


def test_a_lost_slot_is_replaced_by_this_machine(one_ray: None) -> None:
    said: list[str] = []
    (network,) = models(1)
    with ClusterPredictions(CPU, 1, said.append) as predictions:
        predictions.probabilities([network], images(2))
        (actor,) = predictions.actors or []
        ray.kill(actor)
        (got,) = predictions.probabilities([network], images(2))
        predictions.probabilities([network], images(2))
    np.testing.assert_array_equal(got, HERE.probabilities([network], images(2))[0])
    assert len(said) == 2
    assert said[1].startswith("note: a slot of the cluster was lost (")
    assert said[1].endswith("), so this machine goes on predicting")


def test_nothing_is_asked_for_before_the_first_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: Any) -> None:
        raise AssertionError("Ray was asked")

    monkeypatch.setattr(cluster_predictions.ray, "remote", never)
    with ClusterPredictions(CPU, 1, print):
        pass
