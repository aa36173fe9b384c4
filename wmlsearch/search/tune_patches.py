"""Tune reuses a process for the next trial; here it does so also where trials end sooner than processes start.

With `reuse_actors=True` alone, of trials that end in the same turn of Tune's loop only one leaves its process to a
later trial, and a process that is just starting is thrown away as soon as another one is free. And where a process dies
while it is given to its next trial, or has died since its last one, Tune hears of it twice, by the process and by its
task, and gives the trial up at the second time. It has no switch for any of this, so this is the one place that knows
its controller from inside.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Generator, Iterator
from typing import Any

from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.utils.object_cache import _ObjectCache


class _AllFree(_ObjectCache):
    """Processes without a trial: all are kept until no trial can come any more, when Tune asks for all."""

    def cache_object(self, key: Any, obj: Any) -> bool:
        more = self.num_cached_objects + 1
        self.increase_max(key, more)
        kept = super().cache_object(key, obj)
        self.decrease_max(key, more)
        return bool(kept)

    def flush_cached_objects(self, force_all: bool = False) -> Generator[Any, None, None]:
        if force_all:
            yield from super().flush_cached_objects(force_all=True)


class _Controller(TuneController):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._actor_cache = _AllFree()
        self._heard: Exception | None = None

    def _maybe_reuse_cached_actor(self, trial: Trial) -> bool:
        coming = self._trial_to_actor.get(trial)
        if coming is not None and self._actor_manager.is_actor_started(coming):  # it has its resources already
            return False
        return bool(super()._maybe_reuse_cached_actor(trial))

    def _actor_failed(self, tracked_actor: TrackedActor, exception: Exception) -> None:
        self._resetting_trials.discard(self._actor_to_trial.get(tracked_actor))  # or it would wait for that process
        super()._actor_failed(tracked_actor, exception)

    def _trial_task_failure(self, trial: Trial, exception: Exception) -> None:
        if exception is not self._heard:
            self._heard = exception
            super()._trial_task_failure(trial, exception)


@contextlib.contextmanager
def keep_all_processes() -> Iterator[None]:
    """Within the block, `Tuner.fit` throws away no process that a later trial of the search can have."""
    of_fit: Any = importlib.import_module("ray.tune.tune")
    of_fit.TuneController = _Controller
    try:
        yield
    finally:
        of_fit.TuneController = TuneController
