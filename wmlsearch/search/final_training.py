"""Final runs and `wmlsearch train`: configurations trained through Ray Train, as many at a time as fit."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wmlsearch.cluster.data_shipping import Shipment
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings
from wmlsearch.runs.files import StorageError, write_bytes
from wmlsearch.runs.folders import RunDir
from wmlsearch.runs.schema import GOOD, RUNNING, EpochRow, RunRecord
from wmlsearch.search.checkpoints import Checkpoints, delete_checkpoint
from wmlsearch.search.messages import TrialAssignment, TrialResult, WorkerJob
from wmlsearch.search.worker_group import CLOSE_TIMEOUT_S, WorkerGroup

# How often a run whose process died goes on from its last checkpoint. Of a trial: without a new epoch between.
LOST_PROCESS_RETRIES = 3


@dataclass(frozen=True)
class TrainingRequest:
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


def train_runs(
    requests: Sequence[TrainingRequest],
    settings: RunSettings,
    shipment: Shipment,
    slots: Slots,
    on_change: Callable[[RunDir], None],
    elastic: bool = False,
) -> None:
    """Train each run into its folder with Ray Train, `slots.count` at a time. Its status says how it ended.

    A run that was begun goes on from its last checkpoint. Weights that are stored elsewhere are copied into the run
    folder. A run with `rate_factors` repeats the learning rates of a child of population based training from the
    beginning.

    If Ctrl-C or a full storage ends the training, the status of the running runs stays "running": the caller records
    how they ended, here and in MLflow.

    Raises:
        StorageError: The storage of the checkpoints is full or does not answer.
    """
    job = WorkerJob(shipment, settings, slots.cpus, slots, elastic)
    with tempfile.TemporaryDirectory(prefix="wmlsearch-final-") as scratch:  # also removes what killed groups leave
        training = _FinalTraining(job, slots.count, requests, on_change, scratch)
        try:
            training.run()
        finally:
            training.kill_groups()


class _FinalTraining:
    """The requests that wait, and the worker groups that train. Each group is a Ray actor on this machine.

    An actor, since Ray Train cannot be interrupted in the middle of an epoch, but a process can be killed.
    """

    def __init__(
        self,
        job: WorkerJob,
        at_once: int,
        requests: Sequence[TrainingRequest],
        on_change: Callable[[RunDir], None],
        scratch: str,
    ) -> None:
        same_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0)(WorkerGroup)
        self._new_group = lambda: actor.options(scheduling_strategy=same_node).remote(job, scratch=scratch)
        self.timeout_s = job.settings.trial_timeout or math.inf
        self.at_once, self.on_change = at_once, on_change
        self.waiting = deque(requests)
        self.idle: list[Any] = []  # groups without a run
        self.steps: dict[Any, tuple[Any, TrainingRequest]] = {}  # by the reference of the epoch's result
        self.began: dict[Any, float] = {}  # by the same: time.monotonic()
        self.losses = Counter[Path]()  # by run folder: how often its process died
        self.seen: set[Path] = set()  # folders of runs of which a process has reported

    def run(self) -> None:
        """Train all requests to their end."""
        while self.waiting or self.steps:
            while self.waiting and len(self.steps) < self.at_once:
                self._start(self.waiting.popleft())
            finished, _ = ray.wait(list(self.steps), num_returns=1, timeout=1.0)
            self._kill_hung_groups()
            if finished:
                self._collect(finished[0])
        with contextlib.suppress(RayError):
            ray.get([group.close.remote() for group in self.idle], timeout=2 * CLOSE_TIMEOUT_S)

    def kill_groups(self) -> None:
        for group in (*self.idle, *(group for group, _ in self.steps.values())):
            ray.kill(group)

    def _start(self, request: TrainingRequest) -> None:
        if request.run.exists():
            request.run.set_status(RUNNING)
        else:
            RunDir.create(request.run.path, request.record)
        self.on_change(request.run)
        group = self.idle.pop() if self.idle else self._new_group()
        group.start.remote(request.assignment())
        self.steps[group.step.remote()] = group, request

    def _kill_hung_groups(self) -> None:
        """Kill groups that have not reported for --trial-timeout. Their runs go on like those of dead groups."""
        for step, (group, _) in self.steps.items():
            if time.monotonic() - self.began.setdefault(step, time.monotonic()) > self.timeout_s:
                self.began[step] = math.inf
                ray.kill(group)

    def _collect(self, step: Any) -> None:
        """Record the result of an epoch, and go on with the run or its group."""
        self.began.pop(step, None)
        group, request = self.steps.pop(step)
        try:
            result: TrialResult = ray.get(step)
        except (RuntimeError, RayError) as error:
            ray.kill(group)  # and with it its workers
            if self._retry(request, error):
                return
        else:
            write_result(request.run, result, self.seen)
            if not result.done:
                self.steps[group.step.remote()] = group, request
            elif result.ended == "interrupted":  # its storage is full or does not answer
                raise StorageError(result.reason)
            else:
                finish_run(request, result)
                self.idle.append(group)
        self.on_change(request.run)

    def _retry(self, request: TrainingRequest, error: Exception) -> bool:
        """Queue the run of a group that died, or record its end after too many losses or another error."""
        self.losses[request.run.path] += 1
        died = isinstance(error, ActorDiedError)
        if died and self.losses[request.run.path] <= LOST_PROCESS_RETRIES:
            self.waiting.appendleft(request)
            return True
        request.run.set_status("lost" if died else "failed", str(error).strip().splitlines()[-1], str(error))
        return False


def write_result(run: RunDir, result: TrialResult, seen: set[Path], timeout: str = "") -> list[EpochRow]:
    """Write the result of a step into its run folder, and return all rows of the run.

    Args:
        run: The trial or final run.
        result: What its worker returned.
        seen: Folders of runs of which a process has reported in this session. If another process begins with one of
            them, the first one died, and the status says so while the run goes on.
        timeout: Why the first process was ended, if it was.
    """
    if result.replayed is not None:  # the first result of a process
        run.reconcile(result.replayed)
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
        run.append(result.report)
        rows.append(result.report)
    return rows


def finish_run(request: TrainingRequest, result: TrialResult) -> None:
    """Copy the weights, write the status, delete the latest checkpoint: in this order.

    A run that is killed in between either goes on from the checkpoint or has ended. Of a selection run only the metrics
    are needed: its weights are deleted too.
    """
    only_metrics = request.run.record().purpose == "selection"
    if not only_metrics:
        fetch_best_weights(request.run, request.checkpoint_location)
    request.run.set_status(result.ended, result.reason, result.traceback)
    if result.ended in GOOD:
        delete_checkpoint(request.checkpoint_location, "last")
        if only_metrics:
            delete_checkpoint(request.checkpoint_location, "best")


def fetch_best_weights(run: RunDir, location: str) -> None:
    """Copy the weights of the best epoch into the run folder, if they are stored elsewhere."""
    checkpoints = Checkpoints(location)
    if Path(location) != run.path.resolve():
        checkpoints.fetch()
        if checkpoints.best.exists():
            write_bytes(run.best, checkpoints.best.read_bytes())
    checkpoints.close()
