"""Final runs and `wmlsearch train`: configurations trained through Ray Train, as many at once as fit."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
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
from wmlsearch.search.worker_group import CLOSE_TIMEOUT_S, WorkerGroup

MOST_LOSSES = 3  # so often a training whose process died is taken up again from its last checkpoint


@dataclass(frozen=True)
class TrainingRequest:
    """A training that is wanted: into which folder, of what, with which seed, and where its checkpoints go."""

    run: RunDir
    record: RunRecord  # of the folder, if it does not exist yet
    seed: int
    place: str


def train_runs(
    orders: Sequence[TrainingRequest],
    settings: RunSettings,
    data: Shipment,
    slots: Slots,
    on_change: Callable[[RunDir], None],
    elastic: bool = False,
) -> None:
    """Train each into its folder with Ray Train, `slots.count` at once; its state says how it ended.

    `data` is shipped; weights that are elsewhere than in the run folder are copied there. The rate follows the
    `rate_factors` that a run folder has, if any: so what a trial of population based training has found is trained
    again from its beginning. What was begun goes on from its last checkpoint. Where Ctrl-C or a full storage ends it,
    what ran still says "running": how it ended is for the caller to say, here and in MLflow.
    """
    with tempfile.TemporaryDirectory(prefix="wmlsearch-final-") as scratch:  # gone even where a group was killed
        _train(orders, settings, data, slots, on_change, elastic, scratch)


def _train(
    orders: Sequence[TrainingRequest],
    settings: RunSettings,
    data: Shipment,
    slots: Slots,
    on_change: Callable[[RunDir], None],
    elastic: bool,
    scratch: str,
) -> None:
    job = {"data": data, "settings": settings.model_dump(), "threads": slots.cpus, "slots": dataclasses.asdict(slots)}
    # In processes of their own, on this machine: Ray Train can't be interrupted in mid-epoch, but a process can be.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    host: Any = ray.remote(num_cpus=0)(WorkerGroup)
    start = host.options(scheduling_strategy=here).remote
    waiting, losses, trained = deque(orders), Counter[Path](), set[Path]()
    idle: list[Any] = []  # groups whose workers wait for the next training
    steps: dict[Any, tuple[Any, TrainingRequest]] = {}  # what runs: the epoch in training, by whom, of what
    since: dict[Any, float] = {}  # when it began
    try:
        while waiting or steps:
            while waiting and len(steps) < slots.count:
                order = waiting.popleft()
                if order.run.exists():
                    order.run.set_status(RUNNING)
                else:
                    RunDir.create(order.run.path, order.record)
                on_change(order.run)
                group = idle.pop() if idle else start(job, slots, elastic, scratch=scratch)
                group.start.remote(_trial(order))
                steps[group.step.remote()] = group, order
            ready, _ = ray.wait(list(steps), num_returns=1, timeout=1.0)
            for step, (group, _) in steps.items():  # who hangs is ended, and taken up again as one that has died
                if time.monotonic() - since.setdefault(step, time.monotonic()) > (settings.trial_timeout or math.inf):
                    since[step] = math.inf
                    ray.kill(group)
            if not ready:
                continue
            since.pop(ready[0], None)
            group, order = steps.pop(done := ready[0])
            try:
                result = ray.get(done)
            except (RuntimeError, RayError) as error:
                ray.kill(group)  # and with it go its workers
                losses[order.run.path] += 1
                if isinstance(error, ActorDiedError) and losses[order.run.path] <= MOST_LOSSES:
                    waiting.appendleft(order)
                    continue
                state = "lost" if isinstance(error, ActorDiedError) else "failed"
                order.run.set_status(state, str(error).strip().splitlines()[-1], str(error))
            else:
                write_result(order.run, result, trained)
                if not result.get("done"):
                    steps[group.step.remote()] = group, order
                elif result["ended"] == "interrupted":  # its storage is full or away
                    raise StorageError(result["reason"])
                else:
                    finish(order, result)
                    idle.append(group)
            on_change(order.run)
        with contextlib.suppress(RayError):
            ray.get([group.close.remote() for group in idle], timeout=2 * CLOSE_TIMEOUT_S)
    finally:
        for group in (*idle, *(group for group, _ in steps.values())):
            ray.kill(group)


def _trial(order: TrainingRequest) -> dict[str, Any]:
    """An order as `Training` wants it."""
    return {
        "config": order.run.record().config.model_dump(),
        "seed": order.seed,
        "place": order.place,
        "heard": len(order.run.rows()),
        "rate_factors": order.run.record().rate_factors,
    }


def write_result(run: RunDir, result: dict[str, Any], trained: set[Path], hung: str = "") -> list[EpochRow]:
    """Into the run folder with what a training has reported; returns all its rows.

    `trained` are the folders of which a process has reported in this session. If another one begins, the first has
    died, or was ended since it was `hung`: the folder says so while it goes on.
    """
    if "replayed" in result:  # the first word of a process
        run.reconcile([EpochRow.from_json(row) for row in result["replayed"]])
        if run.path in trained:
            epochs = len(result["replayed"])
            where = f"after epoch {epochs}" if epochs else "at its beginning"
            run.set_status(RUNNING, f"{hung or 'its process or machine died'}, so another one goes on with it {where}")
        trained.add(run.path)
    if "predicted_memory_mb" in result:
        run.set_predicted_memory(result["predicted_memory_mb"])
    rows = run.rows()
    if "report" in result and result["epoch"] > len(rows):  # one of the checkpoint's is there already
        rows.append(EpochRow.from_json(result["report"]))
        run.append(rows[-1])
    return rows


def finish(order: TrainingRequest, result: Mapping[str, Any]) -> None:
    """Keep what a training ends with. Its latest state goes last: what says "running" without it would begin anew."""
    fetch_best_weights(order.run, order.place)
    order.run.set_status(result["ended"], result.get("reason", ""), result.get("traceback", ""))
    if result["ended"] in GOOD:
        delete_checkpoint(order.place, "last")


def fetch_best_weights(run: RunDir, place: str) -> None:
    """Copy the weights of the best epoch into the run folder, from where the checkpoints are."""
    kept = Checkpoints(place)
    if Path(place) != run.path.resolve():
        kept.fetch()
        if kept.best.exists():
            write_bytes(run.best, kept.best.read_bytes())
    kept.close()
