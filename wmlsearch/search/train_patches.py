"""Every use of Ray Train's private names. `tests/search/test_train_patches.py` checks what they rely on."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.exceptions import RayActorError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import ENABLE_PREEMPTION_WATCHER_ENV_VAR, get_env_vars_to_propagate
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle

# At import time `ray.train.FailureConfig` may be the class of v1, which has no `controller_failure_limit`.
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
from ray.util.placement_group import placement_group

__all__ = [
    "FailureConfig",
    "FileRendezvousConfig",
    "GroupTrainer",
    "RecordedError",
    "keep_coordinator_here",
    "workers_died",
    "workers_were_preempted",
]

# Of each group, a process that keeps data sets of Ray Data, and one on the head that releases what a killed group holds
# (`group_resources.KilledGroups` does that): a search has none of the former, and many groups.
_LEFT_OFF = (DatasetsCallback, PlacementGroupCleanerCallback)


def workers_died(error: Exception) -> bool:
    """Return whether `TorchTrainer.fit` ended because a process or machine died. The other ranks then fail too.

    It may be that of a rank, in its training or while the group started, or that of Train's controller.
    """
    failure = getattr(error, "controller_failure", None)
    return isinstance(failure, WorkerGroupStartupFailedError) or workers_were_preempted(error) or bool(_deaths(error))


def workers_were_preempted(error: Exception) -> bool:
    """Return whether `TorchTrainer.fit` ended because a worker's machine was taken away."""
    return isinstance(error, PreemptionError) or any(death.preempted for death in _deaths(error))


def _deaths(error: Exception) -> list[RayActorError]:
    failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else [error]
    if isinstance(error, ControllerError):
        failures = [error.controller_failure, *_causes(error.controller_failure)]
    causes = (getattr(each, "health_check_failure", each) for each in failures)
    return [cause for cause in causes if isinstance(cause, RayActorError)]


def _causes(error: Exception) -> list[Exception]:
    return [error.__cause__] if isinstance(error.__cause__, Exception) else []


def keep_coordinator_here() -> None:
    """Start the actor that all groups ask for machines on the machine of this process, if it does not run yet.

    The first group would start it on its own machine. It never leaves that one: were the machine taken away, no elastic
    group could start any more.
    """
    get_or_create_autoscaling_coordinator()


class GroupTrainer(TorchTrainer):
    """A TorchTrainer whose group waits for machines as long as it takes, and starts no process that it does not need.

    Train gives up a group that has waited for machines three times; an autoscaler may need longer. The name of the
    RunConfig begins the names of the group's placement groups.
    """

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        """Do what Train does, with a controller and a failure policy of ours."""
        parts["failure_policy"] = GroupFailures(cast(FailureConfig, self.run_config.failure_config))
        parts["callbacks"] = [callback for callback in parts["callbacks"] if not isinstance(callback, _LEFT_OFF)]
        variables = {**get_env_vars_to_propagate(), ENABLE_PREEMPTION_WATCHER_ENV_VAR: "0"}
        same_node = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        actor: Any = ray.remote(num_cpus=0, label_selector=same_node, runtime_env={"env_vars": variables})(
            GroupController
        )
        controller = actor.remote(**parts)
        ray.get(controller.run.remote())
        result = ray.get(controller.get_result.remote())
        if result.error:
            raise result.error
        return result


class RecordedError(RuntimeError):
    """Ends a rank whose error the driving process has as the result of a trial or run: the next one needs new ranks."""


class GroupFailures(DefaultFailurePolicy):
    """Sets a group up again without counting that as a loss where it has waited for machines, or for a RecordedError.

    Train counts failures over the life of a group, which trains many runs. Each attempt to get machines ends after a
    minute: one without an end would not notice that a machine died which Train had counted.
    """

    def make_decision(self, training_failed_error: Any) -> Any:
        waited = isinstance(getattr(training_failed_error, "controller_failure", None), WorkerGroupStartupTimeoutError)
        failures = getattr(training_failed_error, "worker_failures", {}).values()
        if waited or any(isinstance(failure, RecordedError) for failure in failures):
            return FailureDecision.RETRY
        return super().make_decision(training_failed_error)


class _NamedWorkerGroup(WorkerGroup):
    """A worker group whose placement groups can be found by their names."""

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> Any:
        group = placement_group(
            [worker_group_context.resources_per_worker] * worker_group_context.num_workers,
            strategy=worker_group_context.placement_strategy,
            # Each has a name of its own: the one before may not be removed yet.
            name=f"{self._train_run_context.run_config.name}{uuid.uuid4().hex}",
            bundle_label_selector=worker_group_context.label_selector,
        )
        return DefaultPlacementGroupHandle(group)


class GroupController(TrainController):
    """Train's controller, of a group whose placement groups can be found."""

    worker_group_cls = _NamedWorkerGroup


@dataclass
class FileRendezvousConfig(TorchConfig):
    """The ranks of one machine meet through a file in `folder`: torch's TCP store would listen on all interfaces."""

    folder: str = ""

    @property
    def backend_cls(self) -> type[_FileRendezvousBackend]:
        return _FileRendezvousBackend


class _FileRendezvousBackend(_TorchBackend):
    """Train's backend sets up the process group through the address and a port of rank 0, without a choice."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_set_torch_distributed_env_vars)
        file = Path(backend_config.folder, f"rendezvous-{uuid.uuid4().hex}")  # torch needs a new file at each start
        world_size = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    _setup_torch_process_group,
                    backend=backend_config.backend,
                    world_rank=rank,
                    world_size=world_size,
                    init_method=file.as_uri(),
                    timeout_s=backend_config.timeout_s,
                )
                for rank in range(world_size)
            ]
        )
