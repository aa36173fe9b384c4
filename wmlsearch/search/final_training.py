"""Final runs and `wmlsearch train`: configurations trained through Ray Train, as many at a time as fit."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError

from wmlsearch.cluster.data_shipping import Shipment
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings
from wmlsearch.runs.files import StorageError, write_bytes
from wmlsearch.runs.folders import RunDir
from wmlsearch.runs.schema import GOOD, RUNNING, EpochRow, RunRecord
from wmlsearch.search.checkpoints import Checkpoints, WhenCopied, at_once, delete_checkpoint
from wmlsearch.search.group_resources import DriverPlace, KilledGroups, Machines
from wmlsearch.search.machine_health import MachineFailures, machine_error
from wmlsearch.search.memory_kills import ADVICE, REASON, MemoryKills, is_death, was_preempted
from wmlsearch.search.messages import TrialAssignment, TrialResult, WorkerJob
from wmlsearch.search.train_patches import keep_coordinator_here
from wmlsearch.search.worker_group import CLOSE_TIMEOUT_S, WorkerGroup

# How often a run whose process died goes on from its last checkpoint without a new epoch in between.
LOST_PROCESS_RETRIES = 3
MACHINE_CHECK_INTERVAL_S = 1.0


@dataclass(frozen=True)
class RunRequest:
    """A run to train."""

    run: RunDir
    record: RunRecord  # of the folder, if it does not exist yet
    checkpoint_location: str  # folder or URI

    def assignment(self) -> TrialAssignment:
        """Return what its worker group gets."""
        record = self.run.record()
        return TrialAssignment(
            checkpoint_location=self.checkpoint_location,
            reported_epochs=len(self.run.rows()),
            config=record.config,
            rate_factors=record.rate_factors,
            seed=record.settings.seed,
            fold=record.fold,
        )


class RunTrainer:
    """Trains runs through Ray Train. Use it as a context manager, which ends the workers.

    The workers are kept from one call of `train` to the next if the slots are the same: starting them takes as long as
    many epochs of a small network. A Ray actor drives each worker group, since Ray Train cannot be interrupted in the
    middle of an epoch, but a process can be killed.

    Args:
        settings: The settings of the search, or of `wmlsearch train`.
        shipment: The prepared data set.
        elastic: Whether worker groups go on with fewer workers when a machine is lost.
        say: Called with a line for the user about a machine that gets no more runs.
        when_copied: See `CheckpointRetention`.
        compiled_networks: See `WorkerJob`.
    """

    def __init__(
        self,
        settings: RunSettings,
        shipment: Shipment,
        elastic: bool = False,
        say: Callable[[str], None] = lambda _: None,
        when_copied: WhenCopied = at_once,
        compiled_networks: str = "",
    ) -> None:
        self.when_copied, self.compiled_networks = when_copied, compiled_networks
        self.settings, self.shipment, self.elastic, self.say = settings, shipment, elastic, say
        self.machines = MachineFailures(say)
        self.timeout_s = settings.trial_timeout or math.inf
        self.slots: Slots | None = None  # of the groups
        self.idle: list[Any] = []  # groups without a run
        self.steps: dict[Any, tuple[Any, RunRequest]] = {}  # by the reference of the epoch's result
        self.began: dict[Any, float] = {}  # by the same: time.monotonic()
        self.waiting: deque[RunRequest] = deque()
        self.losses = Counter[Path]()  # by run folder: how often its process died since its last epoch
        self.epochs_at_loss: dict[Path, int] = {}  # by run folder: how many it had when its process died
        self.looked, self.held_gpus = time.monotonic(), 0.0  # the latest look for machines, and what it saw
        self.gpu_seconds = 0.0  # that groups have held GPUs; none while they wait for machines
        self.groups_placed = self.groups_waiting = 0  # at the latest look: groups with a run
        self.killed = KilledGroups()
        self.memory_kills = MemoryKills()
        self.seen: set[Path] = set()  # folders of runs of which a process has reported

    def __enter__(self) -> RunTrainer:
        return self

    def __exit__(self, error_type: type[BaseException] | None, error: object, trace: object) -> None:
        try:
            if error_type is None:
                self._close_idle_groups()
        finally:
            for group in (*self.idle, *(group for group, _ in self.steps.values())):
                self._kill(group)
            with contextlib.suppress(RayError):
                self.killed.release(at_once=True)

    def train(
        self,
        requests: Sequence[RunRequest],
        slots: Slots,
        on_change: Callable[[RunDir], None],
        every_second: Callable[[], None] = lambda: None,
    ) -> None:
        """Train each run into its folder, `slots.count` at a time. Its status says how it ended.

        A run that was begun goes on from its last checkpoint. Weights that are stored elsewhere are copied into the run
        folder. A run with `rate_factors` repeats the learning rates of a child of population based training from the
        beginning.

        If Ctrl-C or a full storage ends the training, the status of the running runs stays "running": the caller
        records how they ended, here and in MLflow.

        Args:
            requests: The runs.
            slots: The slots that the runs occupy.
            on_change: Called after each change in a run folder.
            every_second: Called each second, also while all runs wait for machines; may raise KeyboardInterrupt.

        Raises:
            StorageError: The storage of the checkpoints is full or does not answer.
        """
        if slots != self.slots:
            self._close_idle_groups()
            self.slots = slots
        self.waiting.extend(requests)
        self.on_change, self.looked = on_change, time.monotonic()
        while self.waiting or self.steps:
            while self.waiting and len(self.steps) < slots.count:
                self._start(self.waiting.popleft())
            finished, _ = ray.wait(list(self.steps), num_returns=1, timeout=1.0)
            if finished:
                self._collect(finished[0])
            if time.monotonic() - self.looked > MACHINE_CHECK_INTERVAL_S:
                every_second()
                machines = self._look_for_machines()
                self._kill_hung_groups()
                self._move_to_idle_groups(machines)
            self.killed.release()
            self.memory_kills.look()

    def _new_group(self) -> Any:
        if self.slots is None:
            raise RuntimeError("a worker group is started by train()")
        job = WorkerJob(
            self.shipment,
            self.settings,
            threads=self.slots.cpus,
            slots=self.slots,
            elastic=self.elastic,
            compiled_networks=self.compiled_networks,
        )
        if self.elastic:
            keep_coordinator_here()
        place = DriverPlace.on_this_ray(self.slots.count)
        actor: Any = ray.remote(num_cpus=0)(WorkerGroup)
        return actor.options(**place.actor_options()).remote(job)

    def _close_idle_groups(self) -> None:
        with contextlib.suppress(RayError):
            ray.get([group.close.remote() for group in self.idle], timeout=2 * CLOSE_TIMEOUT_S)
        for group in self.idle:
            self._kill(group)
        self.idle = []

    def _kill(self, group: Any) -> None:
        """End the process that drives a group, and with it its workers."""
        ray.kill(group)
        self.killed.add(group)

    def _start(self, request: RunRequest) -> None:
        if request.run.exists():
            request.run.set_status(RUNNING)
        else:
            RunDir.create(request.run.path, request.record)
        self.on_change(request.run)
        group = self.idle.pop() if self.idle else self._new_group()
        group.start.remote(request.assignment())
        self.steps[group.step.remote()] = group, request

    def _look_for_machines(self) -> Machines:
        """Count the GPUs that groups hold. The time for an epoch begins anew while a group waits for machines."""
        machines, now = Machines(), time.monotonic()
        self.gpu_seconds += (now - self.looked) * self.held_gpus
        groups = [*self.idle, *(group for group, _ in self.steps.values())]
        workers = sum(machines.workers_of(group) for group in groups)
        self.looked, self.held_gpus = now, workers * (self.slots.gpus if self.slots else 0.0)
        waiting = [step for step, (group, _) in self.steps.items() if not machines.workers_of(group)]
        for step in waiting:
            if self.began.get(step) != math.inf:
                self.began[step] = now
        self.groups_placed, self.groups_waiting = len(self.steps) - len(waiting), len(waiting)
        return machines

    def _kill_hung_groups(self) -> None:
        """Kill groups that have not reported for --trial-timeout. Their runs go on like those of dead groups."""
        for step, (group, _) in self.steps.items():
            if time.monotonic() - self.began.setdefault(step, time.monotonic()) > self.timeout_s:
                self.began[step] = math.inf
                self._kill(group)

    def _move_to_idle_groups(self, machines: Machines) -> None:
        """Give the runs of groups that wait for machines to groups that have some and nothing to do.

        Where fewer groups fit than slots were planned, since a machine was lost, they would wait for each other.
        """
        if not self.idle or self.waiting:
            return
        for step, (group, request) in list(self.steps.items()):
            if len(self.waiting) < len(self.idle) and not machines.workers_of(group):
                self._kill(group)
                self.began.pop(step, None)
                del self.steps[step]
                self.waiting.append(request)

    def _collect(self, step: Any) -> None:
        """Record the result of an epoch, and go on with the run or its group."""
        self.began.pop(step, None)
        group, request = self.steps.pop(step)
        try:
            result: TrialResult = ray.get(step)
        except (RuntimeError, RayError) as error:
            self._kill(group)
            if self._retry(request, error):
                return
        else:
            write_result(request.run, result, self.seen)
            if result.report is not None:
                self.machines.epoch_trained()
            if not result.done:
                self.steps[group.step.remote()] = group, request
            elif result.ended == "interrupted":  # its storage is full or does not answer
                raise StorageError(result.reason)
            else:
                finish_run(request, result)
                self.idle.append(group)
                self.on_change(request.run)
                self.when_copied(lambda: delete_unneeded(request))
                return
        self.on_change(request.run)

    def _retry(self, request: RunRequest, error: Exception) -> bool:
        """Queue the run of a group that died, or record its end after too many losses or another error.

        Only losses without an epoch in between count, and none of a machine that was taken away.
        """
        run, epochs = request.run, len(request.run.rows())
        if epochs > self.epochs_at_loss.get(run.path, 0):
            self.losses[run.path], self.epochs_at_loss[run.path] = 0, epochs
        if not was_preempted(error):
            self.losses[run.path] += 1
        killed, fault = self.memory_kills.reason_of_loss(error), machine_error(error)
        another = self.machines.note(fault, self.slots) if fault and self.slots else True
        if another and is_death(error) and self.losses[run.path] <= LOST_PROCESS_RETRIES:
            self.waiting.appendleft(request)
            return True
        if killed or isinstance(error, OutOfMemoryError):
            run.set_status("out_of_memory", f"{killed or REASON}; {ADVICE}", str(error))
            return False
        reason = str(fault or str(error).strip().splitlines()[-1])
        run.set_status("lost" if is_death(error) else "failed", reason, str(error))
        return False


def write_result(
    run: RunDir, result: TrialResult, seen: set[Path], timeout: str = "", received: float | None = None
) -> list[EpochRow]:
    """Write the result of a step into its run folder, and return all rows of the run.

    Args:
        run: The trial or final run.
        result: The result that the worker returned.
        seen: Folders of runs of which a process has reported in this session. If another process begins with one of
            them, the first one died, and the status says so while the run goes on.
        timeout: Why the first process was ended, if it was.
        received: When the new rows were received, see `EpochRow`.
    """
    if result.replayed is not None:  # the first result of a process
        run.reconcile([replace(row, received=received) for row in result.replayed])
        if run.path in seen:
            epochs = len(result.replayed)
            where = f"after epoch {epochs}" if epochs else "from the beginning"
            reason = timeout or "its process or machine died"
            run.set_status(RUNNING, f"{reason}, so a new process continues it {where}")
        seen.add(run.path)
    if result.predicted_memory_mb is not None:
        run.set_predicted_memory(result.predicted_memory_mb)
    rows = run.rows()
    if result.report is not None and result.epoch > len(rows):  # epochs of the checkpoint are there already
        row = replace(result.report, received=received)
        run.append(row)
        rows.append(row)
    return rows


def finish_run(request: RunRequest, result: TrialResult) -> None:
    """Copy the weights, then write the status. `delete_unneeded` comes after it.

    A run that is killed in between either goes on from the checkpoint or has ended.
    """
    if not _needs_only_metrics(request.run):
        fetch_best_weights(request.run, request.checkpoint_location)
    request.run.set_status(result.ended, result.reason, result.traceback)


def delete_unneeded(request: RunRequest) -> None:
    """Delete the latest checkpoint of a run whose folder says that it has ended well, and weights that nobody needs."""
    if request.run.state not in GOOD:
        return
    delete_checkpoint(request.checkpoint_location, "last")
    if _needs_only_metrics(request.run):
        delete_checkpoint(request.checkpoint_location, "best")


def _needs_only_metrics(run: RunDir) -> bool:
    """Whether the weights of a run are of no use: those of a selection run."""
    return run.record().purpose == "selection"


def fetch_best_weights(run: RunDir, location: str) -> None:
    """Copy the weights of the best epoch into the run folder, if they are stored elsewhere."""
    checkpoints = Checkpoints(location)
    if Path(location) != run.path.resolve():
        checkpoints.fetch()
        if checkpoints.best.exists():
            write_bytes(run.best, checkpoints.best.read_bytes())
    checkpoints.close()
