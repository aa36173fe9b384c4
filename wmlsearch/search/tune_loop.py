"""Runs the trials of a search with Ray Tune.

The study proposes a configuration, the recorder makes its folder, Tune gives it to a trial worker, and the worker's
reports go to the scheduler, which may stop the trial, and to the recorder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune

from wmlsearch.cluster.data_shipping import Shipment
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings
from wmlsearch.runs.folders import AnyDir, RunDir, SearchDir
from wmlsearch.runs.schema import UNFINISHED
from wmlsearch.search.budget import Budget
from wmlsearch.search.checkpoint_size import bytes_for_best_weights, checkpoint_bytes
from wmlsearch.search.checkpoints import CheckpointRetention, WhenCopied, at_once
from wmlsearch.search.final_training import LOST_PROCESS_RETRIES
from wmlsearch.search.group_resources import DriverPlace
from wmlsearch.search.interrupts import graceful_stop
from wmlsearch.search.messages import WorkerJob
from wmlsearch.search.optuna_study import Study
from wmlsearch.search.recorder import Recorder
from wmlsearch.search.scheduler import Scheduler
from wmlsearch.search.train_patches import keep_coordinator_here
from wmlsearch.search.trial_worker import TrialWorker
from wmlsearch.search.tune_patches import reuse_all_actors
from wmlsearch.search.tune_searcher import StudySearcher
from wmlsearch.search.worker_group import GroupTrialWorker
from wmlsearch.space import SearchSpace


def run_trials(
    search: SearchDir,
    space: SearchSpace,
    settings: RunSettings,
    shipment: Shipment,
    slots: Slots,
    *,
    location: Callable[[AnyDir], str],
    on_change: Callable[[AnyDir], None],
    elastic: bool = False,
    end_process: Callable[[int], None] | None = None,
    when_copied: WhenCopied = at_once,
    compiled_networks: str = "",
) -> Budget:
    """Run the trials of a search that have not ended, and return its budget, with the reason if they end early.

    Ctrl-C ends the running trials, whose checkpoints stay.

    Args:
        search: The search. Its folder must exist.
        space: The search space.
        settings: The settings of the search.
        shipment: The prepared data set.
        slots: Where the trials run.
        location: Returns where the checkpoints of a run are stored.
        on_change: Called after each change in a run folder.
        elastic: Whether worker groups go on with fewer workers when a machine is lost.
        end_process: Ends this process at once, with a status, at a second Ctrl-C. None: that is an error instead.
        when_copied: See `CheckpointRetention`.
        compiled_networks: See `WorkerJob`.

    Raises:
        InputError: --max-checkpoint-gb is too small.
        OSError: The run folder or the storage cannot be written any more.
    """
    scheduler = Scheduler(settings, space, lambda number: search.trial(number).record().config)
    for run in replay_reports(search, settings, scheduler):
        on_change(run)
    study = Study(search, space, settings, search.record().portfolio)
    budget = Budget(search, settings, slots)
    limit_bytes = bytes_for_best_weights(space, settings, slots)
    retention = CheckpointRetention(location, _bytes_of_best, limit_bytes, settings.objective_names, when_copied)
    recorder = Recorder(search, settings, study, budget, location, retention, on_change, scheduler)
    snapshot_every = settings.grace if scheduler.population is not None else 0
    job = WorkerJob(
        shipment,
        settings,
        threads=slots.cpus,
        slots=slots,
        elastic=elastic,
        snapshot_every=snapshot_every,
        compiled_networks=compiled_networks,
    )
    numbers = [n for n in range(settings.trials) if search.trial(n).state in UNFINISHED]
    if not numbers or budget.stop_all():
        recorder.interrupt_unfinished()
        return budget
    try:
        with (
            tempfile.TemporaryDirectory(prefix="tune-", ignore_cleanup_errors=True) as scratch,  # nothing reads it
            graceful_stop(budget, end_process),
            reuse_all_actors(),
        ):
            _make_tuner(search.name, job, slots, numbers, scheduler, budget, recorder, scratch).fit()
        if recorder.exhausted:
            budget.end(recorder.exhausted)
    finally:
        recorder.interrupt_unfinished()
        budget.waiting = 0
        budget.tick()
        retention.wait()
    if budget.storage_error is not None:
        raise budget.storage_error
    return budget


def with_job(trainable: type[tune.Trainable], job: WorkerJob) -> type[tune.Trainable]:
    """Return a class of trial workers that get this job.

    `tune.with_parameters` would put the job into Ray's object store. This process must own nothing there: where Ray
    tries to recover an object after SIGTERM to all processes, it ends the process that owns it (`data_shipping`).
    """
    values = job.as_plain()

    class WithJob(trainable):  # type: ignore[misc, valid-type]
        def setup(self, config: dict[str, Any], job: dict[str, Any] = values) -> None:
            super().setup(config, job)

    WithJob.__name__ = WithJob.__qualname__ = trainable.__name__
    return WithJob


def _make_tuner(
    name: str,
    job: WorkerJob,
    slots: Slots,
    numbers: Sequence[int],
    scheduler: Scheduler,
    budget: Budget,
    recorder: Recorder,
    scratch: str,
) -> tune.Tuner:
    if slots.workers > 1:  # the trial's process only drives its worker group, which asks for the resources itself
        trainable: type[tune.Trainable] = GroupTrialWorker
        if job.elastic:
            keep_coordinator_here()
        place = DriverPlace.on_this_ray(slots.count)
        selector: dict[str, Any] = {"bundle_label_selector": [dict(place.selector)]} if place.selector else {}
        resources = tune.PlacementGroupFactory([dict(place.resources)], **selector)
    else:
        trainable = TrialWorker
        resources = tune.PlacementGroupFactory([slots.resources])
    return tune.Tuner(
        tune.with_resources(with_job(trainable, job), resources),
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(job.settings.objective, numbers, recorder.begin),
            scheduler=scheduler,
            num_samples=len(numbers),
            max_concurrent_trials=slots.count,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=scratch,
            stop=budget,
            callbacks=[recorder],
            failure_config=tune.FailureConfig(max_failures=LOST_PROCESS_RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a worker writes its own checkpoints
            verbose=0,
            progress_reporter=tune.CLIReporter(),  # silent with verbose=0; Tune's for notebooks clears their output
        ),
    )


def _bytes_of_best(run: RunDir) -> int:
    return checkpoint_bytes(run.record().config).best


def replay_reports(search: SearchDir, settings: RunSettings, scheduler: Scheduler) -> list[RunDir]:
    """Give the reports in the run folder to a new scheduler, in the order in which they were received.

    A search that died may have recorded the last report of a trial without its end. Such a trial gets its status now.

    Returns:
        The trials whose status changed.
    """
    reports = [(row.order, int(run.name), row) for run in search.trials() for row in run.trained_rows()]
    stopped_at: dict[int, int] = {}  # by trial: the epoch
    for _, number, row in sorted(reports, key=lambda report: report[:2]):
        value = row.metrics.get(settings.objective) or 0.0
        if scheduler.report(number, row.epoch, value, ended=row.ended is not None):
            stopped_at[number] = row.epoch
    changed = []
    for run in search.trials():
        if run.state in UNFINISHED and (rows := run.rows()):
            if rows[-1].ended:
                run.set_status(rows[-1].ended)
                changed.append(run)
            elif stopped_at.get(number := int(run.name)) == len(rows):
                reason, successor = scheduler.stop_reason(number, len(rows))
                run.set_status("stopped", reason, successor=successor)
                changed.append(run)
    if scheduler.population is not None:
        scheduler.population.restore_pending(search)
    return changed
