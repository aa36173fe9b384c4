"""Predictions of networks on the slots of a cluster: its head, where the driver runs, often has no GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError

from wmlsearch.cluster.resources import Slots
from wmlsearch.inference.predictor import HERE
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.runs.wording import duration, plural

WAIT_FOR_SLOTS_S = 600.0  # until this machine predicts by itself
MORE_SLOTS_S = 5.0  # how long further slots are waited for once there is one
PREDICTION_S = 600.0  # a volume takes seconds on a GPU: a slot that takes longer is lost


class _Networks:
    """An actor on one slot. It keeps the networks that it was given."""

    def __init__(self, needs_gpu: bool, threads: int) -> None:
        torch.set_num_threads(threads)
        self._needs_gpu = needs_gpu
        self._models: dict[int, TrainedModel] = {}

    def is_ready(self) -> bool:
        """Return whether it has the GPU that it asked for."""
        return torch.cuda.is_available() or not self._needs_gpu

    def add(self, key: int, model: TrainedModel) -> None:
        self._models[key] = model

    def probabilities(self, key: int, images: np.ndarray, head_grey: Sequence[tuple[float, float]]) -> np.ndarray:
        return HERE.probabilities([self._models[key]], images, head_grey)[0]


class ClusterPredictions:
    """Predicts on slots of the cluster, which are asked for with the first prediction. Use it as a context manager.

    If no slot is free within `wait_s`, or a slot is lost, this machine predicts instead, and a note says so: the result
    is the same except for rounding.

    Args:
        slots: The slots that the trials had. One worker of a slot predicts with one network at a time.
        networks: The number of networks at most; there are not more slots.
        say: Shows the user a note.
        wait_s: Seconds until this machine predicts by itself.
    """

    def __init__(
        self, slots: Slots, networks: int, say: Callable[[str], None], wait_s: float = WAIT_FOR_SLOTS_S
    ) -> None:
        self.slots, self.say, self.wait_s = slots, say, wait_s
        self.count = max(1, min(networks, slots.count * slots.workers))
        self.actors: list[Any] | None = None  # None: not asked for; empty: this machine predicts
        self.models: list[TrainedModel] = []  # that the actors have, by their key

    def __enter__(self) -> ClusterPredictions:
        return self

    def __exit__(self, *error: object) -> None:
        self._release(self.actors or [])
        self.actors = []

    def probabilities(
        self, models: Sequence[TrainedModel], images: np.ndarray, head_grey: Sequence[tuple[float, float]] = ()
    ) -> list[np.ndarray]:
        """Return the probabilities of each model: 8-bit slices (N, H, W) -> (N, H, W) float32.

        `head_grey` as in `TrainedModel.probabilities`.
        """
        if self.actors is None:
            self.actors = self._ask_for_slots()
        if self.actors:
            try:
                return self._predict(models, images, head_grey)
            except RayError as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                self.say(f"note: a slot of the cluster was lost ({reason}), so this machine goes on predicting")
                self._release(self.actors)
                self.actors = []
        return HERE.probabilities(models, images, head_grey)

    def _predict(
        self, models: Sequence[TrainedModel], images: np.ndarray, head_grey: Sequence[tuple[float, float]]
    ) -> list[np.ndarray]:
        shared, steps = ray.put(images), []
        for model in models:
            key, actor = self._actor_with(model)
            steps.append(actor.probabilities.remote(key, shared, head_grey))
        predicted = ray.get(steps, timeout=PREDICTION_S)
        return [np.array(probabilities) for probabilities in predicted]  # Ray's own arrays cannot be written

    def _actor_with(self, model: TrainedModel) -> tuple[int, Any]:
        """Return the key of a model and the actor that has it: each model is sent once."""
        key = next((key for key, sent in enumerate(self.models) if sent is model), len(self.models))
        actors = self.actors or []
        actor = actors[key % len(actors)]
        if key == len(self.models):
            self.models.append(model)
            actor.add.remote(key, model)
        return key, actor

    def _ask_for_slots(self) -> list[Any]:
        """Return an actor on each slot that is free, and where there is none after `wait_s`, no actor."""
        actor: Any = ray.remote(_Networks)
        options = {"num_cpus": self.slots.cpus, "num_gpus": self.slots.gpus}
        by_answer = {}
        for _ in range(self.count):
            one = actor.options(**options).remote(bool(self.slots.gpus), self.slots.cpus)
            by_answer[one.is_ready.remote()] = one
        end, ready, waiting = time.monotonic() + self.wait_s, list[Any](), list(by_answer)
        while waiting and (left_s := end - time.monotonic()) > 0:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=left_s)
            ready += [by_answer[step] for step in done if self._answers(step)]
            if ready:
                end = min(end, time.monotonic() + MORE_SLOTS_S)
        self._release([one for one in by_answer.values() if one not in ready])
        what = "GPU" if self.slots.gpus else "slot"
        if ready:
            self.say(f"predicting on {plural(len(ready), what)} of the cluster")
        else:
            self.say(
                f"note: the cluster had no {what} for predictions within {duration(self.wait_s)}, so this machine "
                "predicts, which takes longer"
            )
        return ready

    @staticmethod
    def _answers(step: Any) -> bool:
        try:
            return bool(ray.get(step))
        except RayError:
            return False

    @staticmethod
    def _release(actors: Sequence[Any]) -> None:
        for actor in actors:
            ray.kill(actor)
