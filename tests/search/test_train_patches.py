"""What `train_patches` relies on in Ray Train: a new version that changes it fails here."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig
from ray.train.torch import config as torch_config
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
from ray.train.v2._internal.execution.worker_group.thread_runner import ThreadRunner
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from wmlsearch.search import train_patches
from wmlsearch.search.train_patches import (
    FailureConfig,
    FileRendezvousConfig,
    GroupFailures,
    GroupTrainer,
    RecordedError,
    workers_died,
    workers_were_preempted,
)


def test_the_private_functions_take_what_they_are_given() -> None:
    group = inspect.signature(torch_config._setup_torch_process_group)
    assert {"backend", "world_rank", "world_size", "init_method", "timeout_s"} <= set(group.parameters)
    assert list(inspect.signature(torch_config._set_torch_distributed_env_vars).parameters) == []
    assert list(inspect.signature(torch_config._TorchBackend.on_start).parameters)[1:] == [
        "worker_group",
        "backend_config",
    ]
    assert "init_method=init_method" in inspect.getsource(torch_config._setup_torch_process_group)


def test_the_configuration_is_trains_own_with_a_folder() -> None:
    made = FileRendezvousConfig("gloo", folder="/tmp/x")  # noqa: S108 - nothing is written
    assert isinstance(made, TorchConfig)
    assert (made.backend, made.folder) == ("gloo", "/tmp/x")  # noqa: S108
    assert {field.name for field in dataclasses.fields(TorchConfig)} >= {"backend", "timeout_s"}
    assert issubclass(made.backend_cls, torch_config._TorchBackend)


def test_all_ranks_get_the_same_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    class Group:
        def __len__(self) -> int:
            return 3

        def execute(self, function: Any) -> None:
            assert function is torch_config._set_torch_distributed_env_vars

        def execute_single_async(self, rank: int, function: Any, **arguments: Any) -> int:
            assert function is torch_config._setup_torch_process_group
            calls.append({"rank": rank, **arguments})
            return rank

    monkeypatch.setattr(train_patches, "ray", SimpleNamespace(get=lambda refs: refs))
    made = FileRendezvousConfig("gloo", folder=str(tmp_path))
    for _ in range(2):
        made.backend_cls().on_start(Group(), made)
    assert [(call["rank"], call["world_rank"], call["world_size"]) for call in calls] == [
        (rank, rank, 3) for rank in (0, 1, 2)
    ] * 2
    files = [call["init_method"] for call in calls]
    assert len(set(files[:3])) == len(set(files[3:])) == 1
    assert files[0] != files[3]
    assert all(file.startswith(tmp_path.as_uri()) for file in files)


def test_failures_of_the_controller_have_a_limit() -> None:
    made = FailureConfig(max_failures=5, controller_failure_limit=2)
    assert (made.max_failures, made.controller_failure_limit) == (5, 2)


def test_a_group_that_waits_for_machines_asks_again_and_again() -> None:
    policy = GroupFailures(FailureConfig(max_failures=1, controller_failure_limit=1))
    waited = ControllerError(WorkerGroupStartupTimeoutError(2))
    assert {policy.make_decision(waited) for _ in range(100)} == {FailureDecision.RETRY}
    failed = ControllerError(WorkerGroupStartupFailedError("a worker died"))
    assert [policy.make_decision(failed) for _ in range(2)] == [FailureDecision.RETRY, FailureDecision.RAISE]
    ranks = WorkerGroupError("rank 0", {0: RuntimeError("rank 0")})
    assert [policy.make_decision(ranks) for _ in range(2)] == [FailureDecision.RETRY, FailureDecision.RAISE]
    assert list(inspect.signature(DefaultFailurePolicy.make_decision).parameters) == ["self", "training_failed_error"]


def test_errors_that_are_recorded_do_not_use_up_the_restarts_of_a_group() -> None:
    """The next run of the group would be told as failed, with the error of another one."""
    policy = GroupFailures(FailureConfig(max_failures=1))
    runner = ThreadRunner()

    def rank() -> None:
        raise RecordedError("of a trial")

    runner.run(rank)
    assert runner._thread is not None
    runner._thread.join()
    broke = WorkerStatus(running=False, error=pickle.loads(pickle.dumps(runner.get_error())))  # noqa: S301 - made here
    hangs = WorkerStatus(running=True)
    error = WorkerGroupPollStatus({0: hangs, 1: broke}).get_worker_group_error()
    assert {policy.make_decision(error) for _ in range(100)} == {FailureDecision.RETRY}
    died = WorkerGroupError("rank 0", {0: ActorDiedError()})
    assert [policy.make_decision(died) for _ in range(2)] == [FailureDecision.RETRY, FailureDecision.RAISE]


def test_a_death_of_any_process_of_a_group_is_no_error_of_the_program() -> None:
    died = ActorDiedError()
    for error in (
        died,  # Train's controller
        WorkerGroupError("rank 1", {1: died}),
        ControllerError(died),
        ControllerError(WorkerGroupStartupFailedError("a worker died while it started")),
    ):
        assert workers_died(error), error
        assert workers_died(pickle.loads(pickle.dumps(error))), error  # noqa: S301 - made here
        assert not workers_were_preempted(error)
    assert not workers_died(WorkerGroupError("rank 1", {1: ValueError("in the program")}))
    assert not workers_died(ControllerError(ValueError("in Train")))


def test_train_gives_the_controller_what_is_replaced() -> None:
    source = inspect.getsource(DataParallelTrainer.fit)
    for part in ("train_fn_ref", "scaling_policy", "failure_policy", "train_run_context", "callbacks"):
        assert f"{part}=" in source
        assert part in inspect.signature(TrainController.__init__).parameters
    assert "self._initialize_and_run_controller(" in source
    assert "self.worker_group_cls.create(" in inspect.getsource(TrainController)
    assert "self._create_placement_group(" in inspect.getsource(WorkerGroup._start_impl)
    assert list(inspect.signature(WorkerGroup._create_placement_group).parameters) == [
        "self",
        "scaling_config",
        "worker_group_context",
    ]


def test_the_coordinator_of_elastic_groups_stays_where_it_is_started() -> None:
    source = inspect.getsource(train_patches.get_or_create_autoscaling_coordinator)
    for words in ("get_if_exists=True", "soft=False", "get_node_id()"):
        assert words in source
    from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client as client

    assert client.get_or_create_autoscaling_coordinator is train_patches.get_or_create_autoscaling_coordinator


def test_what_a_search_does_not_need_is_left_off() -> None:
    """Each is a process of each group: the first keeps data sets of Ray Data, the second runs on the head."""
    trainer = GroupTrainer(lambda: None, scaling_config=ScalingConfig(num_workers=1))
    kinds = {type(callback) for callback in trainer._create_default_callbacks()}
    assert set(train_patches._LEFT_OFF) <= kinds
    source = inspect.getsource(TrainController)
    assert "ENABLE_PREEMPTION_WATCHER_ENV_VAR" in source, "an actor of each group, without the variable"
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

    parameter = inspect.signature(RayTrainWorker.init_train_context).parameters["dataset_shard_provider"]
    assert parameter.default is None
