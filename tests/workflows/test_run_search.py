"""The steps at the end of a search, apart from the searches of test_endings.py."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings
from wmlsearch.inference.predictor import HERE
from wmlsearch.search.cluster_predictions import ClusterPredictions
from wmlsearch.workflows.observer import Observer
from wmlsearch.workflows.placement import LOCAL, Placement
from wmlsearch.workflows.run_search import _predictions, _release


def _fail() -> None:
    raise RuntimeError("the head node does not answer")


def _hang_until_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    pytest.fail("the signal was only noted")


@pytest.mark.parametrize(
    ("release", "message"),
    [
        (_fail, "warning: Ray was not shut down in order (RuntimeError: the head node does not answer); the result is "
                "not affected"),
        (_hang_until_ctrl_c, "the shutdown of Ray was cut short (stopped by Ctrl-C)"),
    ],
)  # fmt: skip
def test_whatever_the_shutdown_of_ray_does_the_search_goes_on_to_its_report(
    release: Callable[[], None], message: str
) -> None:
    lines: list[str] = []
    _release(release, lines.append)
    assert lines == [message]


@pytest.mark.parametrize(
    ("placement", "gpus", "slots"),
    [(LOCAL, 1.0, None), (Placement(ray_address="auto"), 0.0, None), (Placement(ray_address="auto"), 1.0, 10)],
    ids=["one machine", "a cluster without GPUs", "a cluster with GPUs"],
)
def test_the_sealed_test_is_predicted_on_the_gpus_of_a_cluster(
    placement: Placement, gpus: float, slots: int | None
) -> None:
    """On one machine this process uses the GPU. Five judgement runs of two configurations are ten networks."""
    plan: Any = SimpleNamespace(placement=placement, slots=Slots(64, 1, 2, gpus), settings=RunSettings(final_runs=5))
    with _predictions(plan, Observer()) as predictions:
        assert (predictions.count if isinstance(predictions, ClusterPredictions) else None) == slots
        assert (predictions is HERE) == (slots is None)
