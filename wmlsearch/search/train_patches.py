"""Every use of Ray Train's private names. `tests/search/test_train_patches.py` checks what they rely on."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend

# At import time `ray.train.FailureConfig` may be the class of v1, which has no `controller_failure_limit`.
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import WorkerGroupError

__all__ = ["FailureConfig", "FileRendezvousConfig", "workers_died", "workers_were_preempted"]


def workers_died(error: Exception) -> bool:
    """Return whether `TorchTrainer.fit` ended because a worker's process died. The other ranks then fail too."""
    return bool(_deaths(error))


def workers_were_preempted(error: Exception) -> bool:
    """Return whether `TorchTrainer.fit` ended because a worker's machine was taken away."""
    return any(death.preempted for death in _deaths(error))


def _deaths(error: Exception) -> list[RayActorError]:
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    causes = (getattr(each, "health_check_failure", each) for each in failures)
    return [cause for cause in causes if isinstance(cause, RayActorError)]


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
