"""Which losses of trials and final runs a kill for memory explains, and which not. Nothing here starts Ray."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.tune.execution.tune_controller import TuneController
from records import run_record

from benchmarks.simulated import new_search, space
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings
from wmlsearch.runs.folders import RunDir
from wmlsearch.runs.schema import RunStatus
from wmlsearch.search import memory_kills, tune_patches
from wmlsearch.search.budget import Budget
from wmlsearch.search.checkpoints import CheckpointRetention
from wmlsearch.search.final_training import LOST_PROCESS_RETRIES, RunRequest, RunTrainer
from wmlsearch.search.memory_kills import ADVICE, REASON, MemoryKills
from wmlsearch.search.optuna_study import Study
from wmlsearch.search.recorder import Recorder, describe_failure
from wmlsearch.search.scheduler import Scheduler
from wmlsearch.search.train_patches import workers_died
from wmlsearch.search.tune_patches import failure_of, named_trial
from wmlsearch.search.worker_group import WorkersDiedError
from wmlsearch.workflows.placement import LOCAL

DIED = ray.exceptions.ActorDiedError()
BAD = ValueError("bad config")


class System:
    """The kernel's counter, and the time."""

    def __init__(self) -> None:
        self.kills, self.now = 7, 1000.0


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    made = System()
    monkeypatch.setattr(memory_kills, "memory_kills", lambda: made.kills)
    monkeypatch.setattr(memory_kills, "time", SimpleNamespace(monotonic=lambda: made.now))
    monkeypatch.setenv(memory_kills.EMBEDDED, "1")
    return made


def test_each_recent_kill_explains_one_death(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = MemoryKills()
    assert kills.reason_of_loss(DIED) == "", "what was killed before is none of this search"
    system.kills = 8
    assert kills.reason_of_loss(BAD) == "", "an error in the program is no death"
    assert kills.reason_of_loss(DIED) == REASON
    assert kills.reason_of_loss(DIED) == "", "another process that dies now has another reason"
    system.kills = 10
    assert [kills.reason_of_loss(DIED) for _ in range(3)] == [REASON, REASON, ""]
    system.kills = 11
    kills.look()
    system.now += memory_kills.COUNTER_INTERVAL_S
    kills.look()
    system.now += memory_kills.RECENT_S + 1
    assert kills.reason_of_loss(DIED) == "", "it was another process that was killed"
    system.kills = 12
    monkeypatch.delenv(memory_kills.EMBEDDED)
    assert kills.reason_of_loss(DIED) == "", "the workers of a cluster are elsewhere"


def test_a_failure_in_tune_has_a_state() -> None:
    assert describe_failure(None)[0] == "lost"
    assert describe_failure(DIED)[0] == "lost"
    assert describe_failure(WorkersDiedError("two ranks"))[0] == "lost"
    assert describe_failure(ray.exceptions.OutOfMemoryError("low on memory"))[0] == "out_of_memory"
    assert describe_failure(RuntimeError("first\nlast"))[:2] == ("failed", "last")
    assert describe_failure(BAD, REASON)[:2] == ("failed", "bad config")
    assert describe_failure(DIED, REASON)[:2] == ("out_of_memory", f"{REASON}; {ADVICE}")
    reason = "no report for 5 s (--trial-timeout)"
    assert describe_failure(None, reason)[:2] == ("lost", f"{reason} 4 times without a new epoch")


def recorder_of(folder: Path, trials: int) -> Recorder:
    settings = RunSettings(trials=trials, epochs=3, baseline=False, forecast=False, trial_timeout=60)
    search = new_search(folder, settings)
    retention = CheckpointRetention(LOCAL.checkpoint_location, lambda _: 0, math.inf, settings.objective_names)
    study, budget = Study(search, space(), settings), Budget(search, settings, Slots(1, 1, 1, 0.0))
    return Recorder(
        search, settings, study, budget, LOCAL.checkpoint_location, retention, lambda _: None, Scheduler(settings)
    )


def test_a_kill_is_not_pinned_on_a_trial_that_fails_by_itself(system: System, tmp_path: Path) -> None:
    """One trial is killed for memory while another one fails: each has its own state."""
    recorder = recorder_of(tmp_path / "s", 2)
    trials: list[Any] = []
    for number, error in enumerate([BAD, DIED]):
        assignment = recorder.begin(number)
        assert assignment is not None
        state = SimpleNamespace(failure=error)
        trials.append(SimpleNamespace(config=assignment.as_plain(), temporary_state=state, status="RUNNING"))
    system.kills += 1
    for trial in trials:
        recorder.on_trial_error(0, [], trial)
    first, second = (recorder.search.trial(number).status() for number in (0, 1))
    assert (first.state, first.reason) == ("failed", "bad config")
    assert (second.state, second.reason) == ("out_of_memory", f"{REASON}; {ADVICE}")


def test_a_kill_of_long_ago_and_a_timeout_are_not_out_of_memory(system: System, tmp_path: Path) -> None:
    recorder = recorder_of(tmp_path / "s", 2)
    for number, before in enumerate([1, 0]):
        assignment = recorder.begin(number)
        assert assignment is not None
        trial: Any = SimpleNamespace(config=assignment.as_plain(), temporary_state=SimpleNamespace(failure=DIED))
        system.kills += 1
        if before:  # the loop turns, the time passes
            for wait in (memory_kills.COUNTER_INTERVAL_S, memory_kills.RECENT_S + 1):
                system.now += wait
                recorder.on_step_begin(0, [])
        else:
            recorder.last_report[number] = math.inf  # this process has just been ended for --trial-timeout
            recorder.losses[number] = "no report for 60 s (--trial-timeout)"
        recorder.on_trial_error(0, [], trial)
    assert [recorder.search.trial(number).state for number in (0, 1)] == ["lost", "lost"]


def test_tune_keeps_the_error_for_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[Exception] = []
    monkeypatch.setattr(
        TuneController, "_process_trial_failure", lambda _self, _trial, exception: passed.append(exception)
    )
    trial = named_trial("0007")
    assert failure_of(trial) is None
    controller: Any = object.__new__(tune_patches._Controller)
    controller._process_trial_failure(trial, exception=BAD)
    assert (failure_of(trial), passed) == (BAD, [BAD])


@pytest.fixture
def final(tmp_path: Path, system: System) -> Callable[..., RunStatus]:
    """Return how a final run ends whose process was killed meanwhile, after the last retry."""

    def end(error: Exception) -> RunStatus:
        run = RunDir.create(tmp_path / type(error).__name__, run_record({"name": "r"}))
        trainer = RunTrainer(RunSettings(), None)  # type: ignore[arg-type]
        trainer.losses[run.path] = LOST_PROCESS_RETRIES
        system.kills += 1
        assert not trainer._retry(RunRequest(run, run.record(), str(run.path)), error)
        return run.status()

    return end


def test_final_runs(final: Callable[..., RunStatus]) -> None:
    assert (final(BAD).state, final(RuntimeError("x")).reason) == ("failed", "x")
    for error in (DIED, WorkersDiedError("rank 1")):
        assert (final(error).state, final(error).reason) == ("out_of_memory", f"{REASON}; {ADVICE}")


def test_groups_of_train_whose_worker_died() -> None:
    """Train wraps the death; the other ranks fail with an error of their own, since they wait for the dead one."""
    died = WorkerHealthCheckFailedError("rank 0", DIED)
    assert workers_died(WorkerGroupError("", {0: died, 1: RuntimeError("connection closed by peer")}))
    assert not workers_died(WorkerGroupError("", {0: RuntimeError("connection closed by peer")}))
    assert not workers_died(ValueError("x"))
