"""Every change to, and use of, Ray Tune's internals. `tests/search/test_tune_patches.py` checks what they rely on."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Generator, Iterator
from typing import Any

from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.utils.object_cache import _ObjectCache


def actor_of(trial: Trial) -> Any:
    """Return the actor handle that runs a trial, or None. Tune has no public way to end a trial's process."""
    return trial.temporary_state.ray_actor


def reset_failures(trial: Trial) -> None:
    """Set a trial's failure count to 0. Tune counts failures over the whole trial, not since its last report."""
    trial.run_metadata.num_failures = 0


def failure_of(trial: Trial) -> Exception | None:
    """Return what Ray raised for the latest failure of a trial, or None.

    Tune's own `Trial.get_error` reads a file that is not there yet when the callbacks are told of the failure.
    """
    return getattr(trial.temporary_state, "failure", None)


def named_trial(name: str) -> Trial:
    """Return a trial without a trainable, for a scheduler. Tune's own trials get a new name in each session."""
    return Trial("stand-in", trial_id=name, stub=True)


class _UnlimitedCache(_ObjectCache):
    """Keeps all idle actors. Tune's cache keeps one of those that become idle in one turn of its loop."""

    def cache_object(self, key: Any, obj: Any) -> bool:
        limit = self.num_cached_objects + 1
        self.increase_max(key, limit)
        cached = super().cache_object(key, obj)
        self.decrease_max(key, limit)
        return bool(cached)

    def flush_cached_objects(self, force_all: bool = False) -> Generator[Any, None, None]:
        if force_all:  # no trial can come any more
            yield from super().flush_cached_objects(force_all=True)


class _Controller(TuneController):
    """Tune's controller, with changes for trials that end sooner than actors start."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._actor_cache = _UnlimitedCache()
        self._last_failure: Exception | None = None

    def _maybe_reuse_cached_actor(self, trial: Trial) -> bool:
        """Let a trial keep the actor that starts for it. Tune drops that one as soon as an idle one is free."""
        starting = self._trial_to_actor.get(trial)
        if starting is not None and self._actor_manager.is_actor_started(starting):  # it has its resources already
            return False
        return bool(super()._maybe_reuse_cached_actor(trial))

    def _actor_failed(self, tracked_actor: TrackedActor, exception: Exception) -> None:
        """Stop waiting for the reset of an actor that died. Tune waits for it until the end."""
        self._resetting_trials.discard(self._actor_to_trial.get(tracked_actor))
        super()._actor_failed(tracked_actor, exception)

    def _process_trial_failure(self, trial: Trial, exception: Any) -> None:
        """Keep the error for `failure_of`: callbacks get the trial only."""
        state: Any = trial.temporary_state
        state.failure = exception
        super()._process_trial_failure(trial, exception)

    def _trial_task_failure(self, trial: Trial, exception: Exception) -> None:
        """Count a failure once. Tune counts an actor that dies during its reset twice, and gives the trial up."""
        if exception is not self._last_failure:
            self._last_failure = exception
            super()._trial_task_failure(trial, exception)


@contextlib.contextmanager
def reuse_all_actors() -> Iterator[None]:
    """In the block, `Tuner.fit` keeps every actor that a later trial can use. Tune has no option for this."""
    module: Any = importlib.import_module("ray.tune.tune")
    module.TuneController = _Controller
    try:
        yield
    finally:
        module.TuneController = TuneController
