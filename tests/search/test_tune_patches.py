"""What `tune_patches` relies on in Ray Tune (a new version that changes it fails here), and what the patches do."""

from __future__ import annotations

import importlib
import inspect
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.tune.execution.tune_controller import TuneController
from ray.tune.utils.object_cache import _ObjectCache

from benchmarks.ready import Ready
from benchmarks.simulated import new_search, row, space
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings
from wmlsearch.runs.machine import available_cpus
from wmlsearch.search import tune_loop, tune_patches
from wmlsearch.search.scheduler import Scheduler
from wmlsearch.search.tune_patches import actor_of, named_trial, reset_failures, reuse_all_actors
from wmlsearch.workflows.placement import LOCAL

TRIALS = 12


def test_the_controller_has_the_methods_and_attributes_that_are_replaced() -> None:
    for name, parameters in (
        ("_maybe_reuse_cached_actor", ["self", "trial"]),
        ("_actor_failed", ["self", "tracked_actor", "exception"]),
        ("_process_trial_failure", ["self", "trial", "exception"]),
        ("_trial_task_failure", ["self", "trial", "exception"]),
    ):
        assert list(inspect.signature(getattr(TuneController, name)).parameters) == parameters
        assert name in vars(tune_patches._Controller)
    source = inspect.getsource(TuneController)
    for attribute in ("_trial_to_actor", "_actor_to_trial", "_resetting_trials", "_actor_manager"):
        assert f"self.{attribute}" in source
    assert "self._actor_cache = _ObjectCache(" in source
    assert "self._actor_cache.flush_cached_objects(" in source
    assert hasattr(RayActorManager, "is_actor_started")


def test_tuner_fit_takes_the_controller_from_its_module() -> None:
    module: Any = importlib.import_module("ray.tune.tune")
    assert "TuneController(" in inspect.getsource(module.run)
    with reuse_all_actors():
        assert module.TuneController is tune_patches._Controller
    assert module.TuneController is TuneController


def test_the_cache_keeps_all_actors_until_the_end() -> None:
    plain, patched = _ObjectCache(), tune_patches._UnlimitedCache()
    assert [plain.cache_object("key", number) for number in range(3)] == [True, False, False], "Tune keeps one"
    assert [patched.cache_object("key", number) for number in range(3)] == [True, True, True]
    assert list(patched.flush_cached_objects()) == []
    assert patched.has_cached_object("key")
    assert sorted(patched.flush_cached_objects(force_all=True)) == [0, 1, 2]


def test_a_trial_has_an_actor_and_a_count_of_failures() -> None:
    trial = named_trial("0007")
    assert (trial.trial_id, actor_of(trial), trial.run_metadata.num_failures) == ("0007", None, 0)
    trial.run_metadata.num_failures = 3
    reset_failures(trial)
    assert trial.run_metadata.num_failures == 0


@pytest.mark.parametrize("scheduler", ["asha", "hyperband", "median", "none", "pbt"])
def test_rays_schedulers_need_no_controller(scheduler: str) -> None:
    """`Scheduler` gives them None. With more trials each gets worse, so all but `none` stop some."""
    settings = RunSettings.from_mapping({"epochs": 9, "grace_epochs": 1, "trials": 40, "scheduler": scheduler})
    made, stopped = Scheduler(settings), 0
    for number in range(40):
        for epoch in range(1, 10):
            if made.report(number, epoch, epoch - number, ended=epoch == 9):
                stopped += 1
                break
    assert stopped > 20 if scheduler != "none" else stopped == 0


class Counted(Ready):
    """A trainable that starts much slower than it trains. Each process writes a file."""

    def setup(self, config: dict[str, Any], job: dict[str, Any] | None = None) -> None:
        super().setup(config, job)
        started = Path(self.job["shipment"]["started"])
        (started / str(os.getpid())).touch()
        time.sleep(0.5 * len(list(started.iterdir())))  # not all at the same time

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        with open(Path(self.job["shipment"]["started"]) / str(os.getpid()), "a") as file:
            file.write(f"{new_config['number']}\n")
        return super().reset_config(new_config)


class Mortal(Ready):
    """A trainable whose process dies once in a search, while it is reset for its third trial."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        died = Path(self.job["shipment"]["died"])
        if new_config["number"] == 2 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reset_config(new_config)


@pytest.mark.usefixtures("one_ray")
def test_idle_processes_are_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = min(2, available_cpus())
    settings = RunSettings(trials=TRIALS, epochs=2, scheduler="none", baseline=False, forecast=False)
    search, started = new_search(tmp_path / "s", settings), tmp_path / "started"
    started.mkdir()
    monkeypatch.setattr(tune_loop, "TrialWorker", Counted)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes cannot import this module
    data = {"row": row(0, 1, settings.epochs), "started": str(started)}
    slots = Slots(at_once, 1, 1, 0.0)
    # what this process owns in Ray's store ends it at a SIGTERM to all processes
    monkeypatch.setattr(ray, "put", lambda *_, **__: pytest.fail("the driver puts an object into Ray's store"))
    tune_loop.run_trials(
        search, space(), settings, data, slots, location=LOCAL.checkpoint_location, on_change=lambda _: None
    )
    assert [run.state for run in search.trials()] == ["completed"] * TRIALS
    had = [file.read_text().split() for file in started.iterdir()]
    assert len(had) == at_once, "a process was discarded, or got no trial"
    assert sorted(number for numbers in had for number in numbers) == sorted(str(n) for n in range(TRIALS))
    assert all(had)


@pytest.mark.usefixtures("one_ray")
def test_a_trial_whose_process_dies_during_reset_gets_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RunSettings(trials=4, epochs=2, scheduler="none", baseline=False, forecast=False)
    search, died = new_search(tmp_path / "s", settings), tmp_path / "died"
    monkeypatch.setattr(tune_loop, "TrialWorker", Mortal)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes cannot import this module
    data = {"row": row(0, 1, settings.epochs), "died": str(died)}
    tune_loop.run_trials(
        search,
        space(),
        settings,
        data,
        Slots(1, 1, 1, 0.0),
        location=LOCAL.checkpoint_location,
        on_change=lambda _: None,
    )
    assert died.exists()
    assert [run.state for run in search.trials()] == ["completed"] * 4, [run.status() for run in search.trials()]
