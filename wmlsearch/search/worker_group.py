"""A Ray Train worker group that trains many runs one after another without a restart.

`TorchTrainer.fit()` runs in a thread for as long as the group lives. Rank 0 asks a mailbox actor for a command before
each epoch and broadcasts it to the other ranks. When a trial is stopped, its workers take the next one at once, and no
placement group is released in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import traceback
from typing import Any, Literal, NamedTuple

import ray
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import distributed

from wmlsearch.cluster.embedded import EMBEDDED
from wmlsearch.cluster.ray_patches import release_placement_groups
from wmlsearch.runs.scratch import scratch_folder
from wmlsearch.search.group_resources import own_name
from wmlsearch.search.machine_health import MachineError
from wmlsearch.search.messages import MachineFault, TrialAssignment, TrialResult, WorkerJob
from wmlsearch.search.train_patches import (
    FailureConfig,
    FileRendezvousConfig,
    GroupTrainer,
    RecordedError,
    workers_died,
    workers_were_preempted,
)
from wmlsearch.search.trial_worker import TrainingSession

LOST_WORKER_RETRIES = 5  # how often a group whose worker or node died is set up again
CLOSE_TIMEOUT_S = 20
MAILBOX_TIMEOUT_S = 120  # the mailbox has nothing else to do


class Command(NamedTuple):
    """An order for all ranks of a group: begin with an assignment, train an epoch of it, or end."""

    action: Literal["start", "step", "quit"]
    assignment: TrialAssignment | None = None  # of "start"
    number: int = 0  # of "start": the mailbox counts the assignments of its group from 1

    def after_report(self, epoch: int) -> Command:
        """Return this "start" as a new group must get it once the driving process has the report of an epoch."""
        if self.assignment is None:
            return self
        reported_epochs = max(self.assignment.reported_epochs, epoch)
        return self._replace(assignment=self.assignment.model_copy(update={"reported_epochs": reported_epochs}))


class Mailbox:
    """An actor without CPUs between rank 0 of a group and the process that drives the group.

    A group that is set up again after a failure gets the assignment that was running, with the number of epochs that
    were reported, and goes on from its checkpoint. Ranks of the group before may still post results then.
    """

    def __init__(self) -> None:
        self.commands: asyncio.Queue[Command] = asyncio.Queue()
        self.results: asyncio.Queue[TrialResult] = asyncio.Queue()
        self.number = 0  # of the latest assignment
        self.unfinished: list[Command] = []  # what a group that starts must get: "start", perhaps "step"; or "quit"

    async def order(self, command: Command) -> None:
        """Pass a command to rank 0."""
        if command.action == "start":  # results of an earlier assignment are dropped
            self.number, self.results = self.number + 1, asyncio.Queue()
            command = command._replace(number=self.number)
        self.unfinished = [*self.unfinished, command] if command.action == "step" else [command]
        await self.commands.put(command)

    async def group_started(self) -> None:
        """Repeat the commands that are unfinished, and no others, for a group that starts."""
        self.commands = asyncio.Queue()
        for command in self.unfinished:
            await self.commands.put(command)

    async def next_command(self) -> Command:
        return await self.commands.get()

    async def post(self, number: int, result: TrialResult) -> None:
        """Pass a result of the assignment with this number to the driving process, unless that assignment has ended.

        Where several ranks break, each posts its error: the first one is the result.
        """
        if not self.unfinished or self.unfinished[0].number != number:
            return
        self.unfinished = [] if result.done else [self.unfinished[0].after_report(result.epoch)]
        await self.results.put(result)

    async def take(self, timeout_s: float) -> TrialResult | None:
        """Return the next result, or None if none has come within `timeout_s` seconds."""
        try:
            return await asyncio.wait_for(self.results.get(), timeout_s)
        except TimeoutError:
            return None


class WorkersDiedError(RuntimeError):
    """Processes or machines of a worker group died more often than it may be set up again.

    Attributes:
        preempted: Whether a machine was taken away.
    """

    def __init__(self, message: str, preempted: bool = False) -> None:
        super().__init__(message, preempted)  # so it survives pickling
        self.preempted = preempted

    def __str__(self) -> str:
        return str(self.args[0])


class WorkerGroup:
    """The workers of one slot. The process that drives them calls `start`, then `step` until a result is `done`.

    Args:
        job: The job; this group is one of its `slots`.
        retries: How often the group is set up again after a worker or its machine died.
    """

    def __init__(self, job: WorkerJob, retries: int = LOST_WORKER_RETRIES) -> None:
        if job.slots is None:
            raise ValueError("a worker group needs the slots of its job")
        slots = job.slots
        self.name = own_name()
        # On the machine of the driving process, and outside the placement group that a Tune trial may run in.
        same_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0)(Mailbox)
        self.mailbox = actor.options(scheduling_strategy=same_node).remote()
        self.stack = contextlib.ExitStack()
        scratch = str(self.stack.enter_context(scratch_folder("train")))  # for Train's files, which nothing reads
        # If a machine is lost, an elastic group continues with the remaining workers and the same global batch size.
        workers: Any = (1, slots.workers) if job.elastic and slots.workers > 1 else slots.workers
        backend = "nccl" if slots.gpus else "gloo"
        on_one_machine = EMBEDDED in os.environ
        trainer = GroupTrainer(
            _rank,
            train_loop_config={"job": job, "mailbox": self.mailbox},
            torch_config=FileRendezvousConfig(backend, folder=scratch) if on_one_machine else TorchConfig(backend),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=bool(slots.gpus),
                resources_per_worker=slots.resources,
            ),
            run_config=RunConfig(
                name=self.name,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=retries, controller_failure_limit=2),
            ),
        )
        self.failure, self.died, self.preempted = "", False, False

        def fit() -> None:
            try:
                trainer.fit()
            except Exception as error:
                self.failure, self.died = traceback.format_exc(), workers_died(error)
                self.preempted = workers_were_preempted(error)

        self.thread = threading.Thread(target=fit, name="ray-train", daemon=True)
        self.thread.start()

    def start(self, assignment: TrialAssignment) -> None:
        ray.get(self.mailbox.order.remote(Command("start", assignment)), timeout=MAILBOX_TIMEOUT_S)

    def step(self) -> TrialResult:
        """Train an epoch. Raises RuntimeError, or WorkersDiedError, if the group may not be set up again.

        Raises MachineError if the machine of a rank failed: the group must end.
        """
        ray.get(self.mailbox.order.remote(Command("step")), timeout=MAILBOX_TIMEOUT_S)
        while True:
            alive = self.thread.is_alive()
            result: TrialResult | None = ray.get(self.mailbox.take.remote(1.0), timeout=MAILBOX_TIMEOUT_S)
            if result is not None and result.machine_fault:
                raise MachineError(*result.machine_fault)
            if result is not None:
                return result
            if not alive:
                failure = self.failure or "Ray Train ended without an error message"
                raise WorkersDiedError(failure, self.preempted) if self.died else RuntimeError(failure)

    def close(self) -> None:
        """End the workers. Workers in the middle of an epoch are not waited for longer than CLOSE_TIMEOUT_S."""
        self.mailbox.order.remote(Command("quit"))
        self.thread.join(CLOSE_TIMEOUT_S)
        release_placement_groups([self.name])
        ray.kill(self.mailbox)
        self.stack.close()


class GroupTrialWorker(tune.Trainable):
    """A Tune class trainable that holds no CPU itself and drives a WorkerGroup, trial after trial."""

    def setup(self, config: dict[str, Any], job: dict[str, Any] | None = None) -> None:
        self.job = WorkerJob.from_plain(job or {})
        self.group = WorkerGroup(self.job)
        self.group.start(TrialAssignment.from_plain(config))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.group.start(TrialAssignment.from_plain(new_config))
        return True

    def step(self) -> dict[str, Any]:
        return self.group.step().as_plain(self.job.settings.objective)

    def cleanup(self) -> None:
        self.group.close()


def _rank(shared: dict[str, Any]) -> None:
    """Run one rank of the group: all ranks train in step, rank 0 receives the commands and posts the results."""
    job, mailbox, rank = shared["job"], shared["mailbox"], distributed.get_rank()
    session: TrainingSession | None = None
    number = 0  # of the assignment
    if rank == 0:
        ray.get(mailbox.group_started.remote())
    while True:
        box: list[Any] = [ray.get(mailbox.next_command.remote()) if rank == 0 else None]
        distributed.broadcast_object_list(box, 0)
        command: Command = box[0]
        if command.action != "step" and session is not None:
            session.close()
            session = None
        if command.action == "quit":
            return
        if command.assignment is not None:
            session, number = TrainingSession(job, command.assignment, rank), command.number
        elif session is not None:
            try:
                result = session.step()
            except MachineError as error:
                fault = TrialResult(done=True, machine_fault=MachineFault(*error.args))
                ray.get(mailbox.post.remote(number, fault))
                raise
            if rank == 0 or result.broke:
                ray.get(mailbox.post.remote(number, result))
            if result.broke:  # the other ranks may wait for this one: only a new group frees them
                raise RecordedError(result.traceback)
