"""Records what Tune reports: run folder first, then study and budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from wmlsearch.config import RunSettings
from wmlsearch.runs.files import StorageError
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.objectives import values_of
from wmlsearch.runs.schema import RUNNING, UNFINISHED, Successor
from wmlsearch.search.budget import Budget
from wmlsearch.search.checkpoint_size import checkpoint_bytes
from wmlsearch.search.checkpoints import CheckpointRetention
from wmlsearch.search.final_training import write_result
from wmlsearch.search.optuna_study import Study
from wmlsearch.search.pbt import Snapshots, child_of, trial_record
from wmlsearch.search.scheduler import Scheduler

LOST_PROCESS_RETRIES = 3  # how often a trial whose process died goes on from its checkpoint without a new epoch


def _bytes_of_best(run: RunDir) -> int:
    return checkpoint_bytes(run.record().config)[1]


class _Recorder(tune.Callback):
    """Writes down what Tune hears, run folder first, and tells study and budget the truth about it."""

    def __init__(
        self,
        search: SearchDir,
        settings: RunSettings,
        study: Study,
        budget: Budget,
        place: Callable[[RunDir], str],
        keeper: CheckpointRetention,
        on_change: Callable[[RunDir], None],
        scheduler: Scheduler,
    ) -> None:
        self.search, self.settings, self.study, self.budget = search, settings, study, budget
        self.place, self.keeper, self.on_change, self.scheduler = place, keeper, on_change, scheduler
        self.snapshots = Snapshots(scheduler.population, search, place) if scheduler.population else None
        self.open: set[int] = set()
        self.trained: set[Path] = set()  # of trials of which a process has reported in this session
        self.told: dict[int, int] = {}  # how many epochs of a trial study and budget have heard of
        self.heard: dict[int, float] = {}  # when a trial that runs has reported last, or was started
        self.hung: dict[int, str] = {}  # of trials whose process was ended since it had said nothing for too long
        for run in search.trials():
            if run.state not in UNFINISHED:
                self.keeper.ended(run, self._best(run))

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for Tuner.restore, which isn't used

    def begin(self, number: int) -> dict[str, Any] | None:
        """Begin a trial, or go on with it: its folder is there before it runs. None when the search is to end."""
        if self.budget.stop_all():
            return None
        try:
            return self._begin(number)
        except OSError as error:
            self.budget.break_off(error)
            return None

    def _begin(self, number: int) -> dict[str, Any]:
        run = self.search.trial(number)
        if run.exists():
            run.set_status(RUNNING)
        else:
            takeover = self.snapshots.take_over(number) if self.snapshots else None
            if takeover:
                record = child_of(self.search, takeover, number, self.settings.seed)
            else:
                record = trial_record(self.search, number, self.study.ask(number))
            RunDir.create(run.path, record)
            if takeover and self.snapshots:
                self.snapshots.begun(takeover)
        record = run.record()
        if record.parent is not None and len(run.rows()) < record.parent_epoch:
            run.reconcile(self.search.trial(record.parent).rows()[: record.parent_epoch])
        self.told[number] = len(run.rows())
        self.open.add(number)
        self.budget.running = len(self.open)
        self.on_change(run)
        told = {"number": number, "place": self.place(run), "heard": self.told[number]}
        return {**told, "config": record.config.model_dump(), "rate_factors": record.rate_factors}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self.heard[trial.config["number"]] = time.monotonic()
        if self.budget.broken is None:  # whoever could not write it down once writes nothing more: it comes again
            try:
                self._hear(trial, result)
            except OSError as error:
                self.budget.break_off(error)

    def _hear(self, trial: Trial, result: dict[str, Any]) -> None:
        number = trial.config["number"]
        run = self.search.trial(number)
        rows = write_result(run, result, self.trained, self.hung.get(number, ""))
        for row in rows[self.told[number] : result.get("epoch", 0)]:
            self.study.report(number, row.epoch, row.metrics[self.settings.objective] or 0.0)
            self.budget.add(row)
            self.told[number] = row.epoch
            # Tune counts a trial's failures from its beginning; only those without an epoch in between speak against it
            trial.run_metadata.num_failures = 0
            self.hung.pop(number, None)
        if "ended" in result:
            if result["ended"] == "interrupted":  # and so is the whole search
                self.budget.break_off(StorageError(result["reason"]))
            else:
                self._finish(number, result["ended"], result.get("reason", ""), result.get("traceback", ""))
        elif result.get("done"):
            reason, successor = self.scheduler.why(number, result["epoch"])
            self._finish(number, "stopped", reason, successor=successor)
            if self.scheduler.population:
                self.scheduler.population.owe(number)
        else:
            self.on_change(run)
        if self.snapshots and "epoch" in result:
            self.snapshots.heard(number, result["epoch"])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        number = trial.config["number"]
        state, reason, trace = _failure(trial.get_error(), self.hung.get(number, ""))
        try:
            self._finish(number, state, reason, trace)
        except OSError as error:
            self.budget.break_off(error)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.heard[trial.config["number"]] = time.monotonic()

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """End the processes that have said nothing for too long: their trials go on from their checkpoints."""
        limit = self.settings.trial_timeout or math.inf
        for trial in trials:
            number, actor = trial.config["number"], trial.temporary_state.ray_actor
            if trial.status != Trial.RUNNING or actor is None:
                continue
            if time.monotonic() - self.heard.setdefault(number, time.monotonic()) > limit:
                self.hung[number] = f"no report for {limit:g} s (--trial-timeout)"
                self.heard[number] = math.inf  # until it starts again
                ray.kill(actor)

    def finish_open(self) -> None:
        """What has not ended by itself is interrupted, whether it ran in this session or not."""
        reason = (self.budget.reason or "the search ended").splitlines()[0]
        for run in self.search.trials():
            if run.state in UNFINISHED:
                try:
                    self._finish(int(run.name), "interrupted", reason)
                except OSError as error:  # it says "running", as after a kill
                    self.budget.break_off(error)
        if self.snapshots and all(
            self.search.trial(number).state not in UNFINISHED for number in range(self.settings.trials)
        ):
            self.snapshots.clear()

    def _finish(
        self, number: int, state: str, reason: str, trace: str = "", successor: Successor | None = None
    ) -> None:
        self.open.discard(number)
        self.budget.tick()
        self.budget.running = len(self.open)
        run = self.search.trial(number)
        run.set_status(state, reason, trace, successor)
        best = self._best(run)
        self.study.tell(number, state, best)
        if state == "failed":
            self.budget.add_error(trace or reason)
        if state != "interrupted":
            self.keeper.ended(run, best)
        self.on_change(run)

    def _best(self, run: RunDir) -> list[float] | None:
        """A trial's value of each objective, where it has them."""
        return values_of(run.rows(), self.settings.ranked_by)


def _failure(error: Exception | None, hung: str = "") -> tuple[str, str, str]:
    """State, reason and traceback of a trial that Tune gave up; `hung` says that its process had to be ended."""
    text = str(error or "its process died").strip()
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "out_of_memory", "Ray ended its process, since the machine ran low on memory", text
    if error is None or isinstance(error, ray.exceptions.RayActorError | ray.exceptions.NodeDiedError):
        times = f"{LOST_PROCESS_RETRIES + 1} times without a new epoch"
        return "lost", f"{hung or 'its process or machine died'} {times}", text
    return "failed", text.splitlines()[-1], text
