"""The search itself: the study proposes trials, slots run them, a scheduler stops the poor, the run folder hears."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from wmlsearch.search.cluster import ON_HEAD, Slots  # isort: skip - sets Ray's environment before Ray is imported

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler

from wmlsearch.config import RunSettings
from wmlsearch.runs import RunDir, SearchDir
from wmlsearch.search.confirm import write_result
from wmlsearch.search.group import GroupSlot
from wmlsearch.search.slot import Slot
from wmlsearch.search.suggest import Study, StudySearcher
from wmlsearch.space import SearchSpace

LOST_PROCESS_RETRIES = 3  # how often a trial whose process died goes on from its checkpoint


class Stop(tune.Stopper):
    """Why the search should end before its last trial, if it should: a budget, or Ctrl-C."""

    def __init__(self, max_hours: float | None) -> None:
        self.reason = ""
        self._deadline = math.inf if max_hours is None else time.monotonic() + max_hours * 3600

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if not self.reason and time.monotonic() > self._deadline:
            self.reason = "the time of --max-hours is over"
        return bool(self.reason)


def run_trials(
    search: SearchDir,
    space: SearchSpace,
    settings: RunSettings,
    data: dict[str, Any],
    slots: Slots,
    place: Callable[[RunDir], str],
    on_change: Callable[[RunDir], None],
    elastic: bool = False,
) -> str:
    """Run the trials of a search to their end; returns why it ended early, or "".

    `data` is a parcel, `place` says where a trial's checkpoints go. `on_change` is called after each change in a run
    folder. Ctrl-C ends the trials that run, and keeps what is there.
    """
    study = Study(search, space, settings.seed)
    stop = Stop(settings.max_hours)
    recorder = _Recorder(search, settings, study, on_change)
    job = {"data": data, "settings": settings.model_dump(), "threads": slots.cpus}
    if slots.workers > 1:
        # The slot's own process only drives its worker group, which asks for its resources itself.
        job |= {"slots": dataclasses.asdict(slots), "elastic": elastic}
        trainable: type[tune.Trainable] = GroupSlot
        resources = tune.PlacementGroupFactory([ON_HEAD])
    else:
        trainable = Slot
        resources = tune.PlacementGroupFactory([slots.resources])
    scratch = tempfile.mkdtemp(prefix="wmlsearch-tune-")  # Tune wants a folder; nothing in it is ever read again
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trainable, job=job), resources),
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(study, settings.objective, lambda number: place(search.trial(number))),
            scheduler=ASHAScheduler(
                time_attr="epoch",
                metric=settings.objective,
                mode="max",
                max_t=settings.epochs,
                grace_period=min(settings.grace_epochs, settings.epochs),
                reduction_factor=settings.reduction_factor,
            ),
            num_samples=settings.trials,
            max_concurrent_trials=slots.count,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=search.name,
            storage_path=scratch,
            stop=stop,
            callbacks=[recorder],
            failure_config=tune.FailureConfig(max_failures=LOST_PROCESS_RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the slot writes its own
            verbose=0,
        ),
    )
    try:
        with _interrupts(stop):
            tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        recorder.finish_open(stop.reason or "the search ended")
    return stop.reason


class _Recorder(tune.Callback):
    """Writes down what Tune hears, run folder first, and tells the study the truth about it."""

    def __init__(
        self, search: SearchDir, settings: RunSettings, study: Study, on_change: Callable[[RunDir], None]
    ) -> None:
        self.search, self.settings, self.study, self.on_change = search, settings, study, on_change
        about = search.about()
        self.shared = {name: about[name] for name in ("settings", "data", "versions")}
        self.open: set[int] = set()
        self.told: dict[int, int] = {}  # how many epochs of a trial the study has heard of

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for Tuner.restore, which isn't used

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        number = trial.config["number"]
        if number not in self.open:
            self.open.add(number)
            run = RunDir.create(
                self.search.trial(number).path,
                {
                    "name": f"trial-{number:04d}",
                    "kind": "trial",
                    "config": trial.config["config"],
                    **self.shared,
                },
            )
            self.on_change(run)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        number = trial.config["number"]
        run = self.search.trial(number)
        write_result(run, result)
        rows = run.rows()
        for row in rows[self.told.get(number, 0) :]:
            self.study.report(number, row["epoch"], row[self.settings.objective] or 0.0)
        self.told[number] = len(rows)
        if result.get("done"):
            stopped = "behind the best of its rung at epoch " + str(result.get("epoch"))
            self._finish(
                number, result.get("ended", "stopped"), result.get("reason", "" if "ended" in result else stopped)
            )
        else:
            self.on_change(run)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        error = trial.get_error() or "its process died"
        self._finish(trial.config["number"], "failed", str(error))

    def finish_open(self, reason: str) -> None:
        for number in sorted(self.open):
            self._finish(number, "interrupted", reason)

    def _finish(self, number: int, state: str, reason: str) -> None:
        self.open.discard(number)
        run = self.search.trial(number)
        run.set_status(state, reason)
        values = [row[self.settings.objective] for row in run.rows()]
        self.study.tell(number, state, max((value for value in values if value is not None), default=None))
        self.on_change(run)


class _interrupts:
    """Ctrl-C (and SIGTERM) ends the search cleanly; a second one ends it at once."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop

    def __enter__(self) -> None:
        self.old = {}
        if threading.current_thread() is threading.main_thread():
            self.old = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def _handle(self, number: int, frame: Any) -> None:
        if self.stop.reason:
            os._exit(130)
        self.stop.reason = "stopped by Ctrl-C" if number == signal.SIGINT else "stopped by SIGTERM"

    def __exit__(self, *error: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)
