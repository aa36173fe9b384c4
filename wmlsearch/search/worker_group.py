"""A Ray Train worker group that lives for many trainings: several workers train one after another without a restart.

One long `TorchTrainer.fit()` runs in a thread; its rank 0 asks a mailbox actor what to do after each epoch and
broadcasts the answer. A trial that is stopped is simply not continued: its workers take the next one at once, and no
placement group is released on the way.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
import threading
import traceback
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend
from ray.train.v2.api.config import FailureConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import distributed

from wmlsearch.cluster.connect import EMBEDDED
from wmlsearch.cluster.ray_patches import release_placement_groups
from wmlsearch.cluster.resources import Slots
from wmlsearch.search.trial_worker import Training

LOST_WORKER_RETRIES = 5  # how often a group whose worker or node died is set up again
CLOSE_TIMEOUT_S = 20
ANSWER_TIMEOUT_S = 120  # of the mailbox, which has nothing else to do


@dataclass
class OneMachine(TorchConfig):
    """Ranks of one machine find each other by a file in `folder`: torch's own store listens on all interfaces."""

    folder: str = ""

    @property
    def backend_cls(self) -> type[_ByFile]:
        return _ByFile


class _ByFile(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_set_torch_distributed_env_vars)
        place = Path(backend_config.folder, f"rendezvous-{uuid.uuid4().hex}").as_uri()  # a new one at each start
        size = len(worker_group)
        joining = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend=backend_config.backend,
                world_rank=rank,
                world_size=size,
                init_method=place,
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(size)
        ]
        ray.get(joining)


class Mailbox:
    """An actor without CPUs between a group's rank 0 and whoever drives it.

    A command is ("start", trial), ("go", None) or ("quit", None). A group that was set up again after a failure is
    given the trial that was running, which goes on from its checkpoint.
    """

    def __init__(self) -> None:
        self.commands: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.results: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.trial: dict[str, Any] | None = None  # the one that runs
        self.owed = False  # whether it owes a result

    async def command(self, name: str, trial: dict[str, Any] | None = None) -> None:
        if name == "start":
            self.trial, self.results = trial, asyncio.Queue()  # results of an earlier trial are of no interest
        if name != "start":
            self.owed = True
        await self.commands.put((name, trial))

    async def joined(self) -> None:
        """A group has started: if a trial is running, it is the first thing to do."""
        if self.trial is not None:
            self.commands = asyncio.Queue()
            await self.commands.put(("start", self.trial))
            if self.owed:
                await self.commands.put(("go", None))

    async def next_command(self) -> tuple[str, Any]:
        return await self.commands.get()

    async def post(self, result: dict[str, Any]) -> None:
        self.owed = False
        if result.get("done"):
            self.trial = None
        await self.results.put(result)

    async def take(self, timeout_s: float) -> dict[str, Any] | None:
        """The next result; None if none has come within `timeout_s` seconds."""
        try:
            return await asyncio.wait_for(self.results.get(), timeout_s)
        except TimeoutError:
            return None


class WorkerGroup:
    """The workers of one slot, for whoever drives them: `start(trial)`, then `step()` until a result is `done`."""

    def __init__(
        self,
        job: dict[str, Any],
        slots: Slots,
        elastic: bool = False,
        retries: int = LOST_WORKER_RETRIES,
        scratch: str | None = None,
    ) -> None:
        # Train's placement group outlives a run that fails, and nothing else says whose it is: a number of bytes does.
        self.mark = 1_000_000 + secrets.randbelow(1_000_000)
        # On the machine of whoever drives the group, and out of the placement group that a Tune trial may run in.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0)(Mailbox)
        self.mailbox = actor.options(scheduling_strategy=here).remote()
        # Train wants a folder; our checkpoints are elsewhere.
        self.scratch = tempfile.mkdtemp(prefix="wmlsearch-train-", dir=scratch)
        # With a node lost, an elastic group goes on with the workers that are left: they share the same global batch.
        workers: Any = (1, slots.workers) if elastic and slots.workers > 1 else slots.workers
        backend = "nccl" if slots.gpus else "gloo"
        alone = EMBEDDED in os.environ
        trainer = TorchTrainer(
            _rank,
            train_loop_config={"job": job, "mailbox": self.mailbox},
            torch_config=OneMachine(backend, folder=self.scratch) if alone else TorchConfig(backend),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=bool(slots.gpus),
                resources_per_worker={**slots.resources, "memory": self.mark},
            ),
            run_config=RunConfig(
                name="wmlsearch",
                storage_path=self.scratch,
                failure_config=FailureConfig(max_failures=retries, controller_failure_limit=2),
            ),
        )
        self.failure = ""

        def fit() -> None:
            try:
                trainer.fit()
            except Exception:
                self.failure = traceback.format_exc()

        self.thread = threading.Thread(target=fit, name="ray-train", daemon=True)
        self.thread.start()

    def start(self, trial: dict[str, Any]) -> None:
        ray.get(self.mailbox.command.remote("start", trial), timeout=ANSWER_TIMEOUT_S)

    def step(self) -> dict[str, Any]:
        """Train an epoch; returns a result of `Training.step`. Raises RuntimeError where the group is beyond repair."""
        ray.get(self.mailbox.command.remote("go"), timeout=ANSWER_TIMEOUT_S)
        while True:
            alive = self.thread.is_alive()
            result = ray.get(self.mailbox.take.remote(1.0), timeout=ANSWER_TIMEOUT_S)
            if result is not None:
                return dict(result)
            if not alive:
                raise RuntimeError(self.failure or "Ray Train ended without a word")

    def close(self) -> None:
        """Send the workers home; in the middle of an epoch they are not waited for."""
        self.mailbox.command.remote("quit")
        self.thread.join(CLOSE_TIMEOUT_S)
        release_placement_groups(self.mark)
        ray.kill(self.mailbox)
        shutil.rmtree(self.scratch, ignore_errors=True)


class GroupTrialWorker(tune.Trainable):
    """A Tune class trainable that holds no CPU itself and drives a `Group`, trial after trial."""

    def setup(self, config: dict[str, Any], job: dict[str, Any] | None = None) -> None:
        job = job or {}
        self.group = WorkerGroup(job, Slots(**job["slots"]), job["elastic"])
        self.group.start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.group.start(new_config)
        return True

    def step(self) -> dict[str, Any]:
        return self.group.step()

    def cleanup(self) -> None:
        self.group.close()


def _rank(shared: dict[str, Any]) -> None:
    """One rank of the group: all train in step, rank 0 asks and tells."""
    job, mailbox, rank = shared["job"], shared["mailbox"], distributed.get_rank()
    training: Training | None = None
    if rank == 0:
        ray.get(mailbox.joined.remote())
    while True:
        box: list[Any] = [ray.get(mailbox.next_command.remote()) if rank == 0 else None]
        distributed.broadcast_object_list(box, 0)
        name, trial = box[0]
        if name != "go" and training is not None:
            training.close()
        if name == "quit":
            return
        if name == "start":
            training = Training(job, trial, rank)
        elif training is not None:
            result = training.step()
            if rank == 0 or result.get("broke"):
                ray.get(mailbox.post.remote(result))
            if result.get("broke"):  # the other ranks may wait for this one: only a new group frees them
                raise RuntimeError(result["traceback"])
