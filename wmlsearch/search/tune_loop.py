"""The search itself: the study proposes trials, slots run them, a scheduler stops the poor, the run folder hears."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable

from ray import tune

from wmlsearch.cluster.data_shipping import Shipment
from wmlsearch.cluster.resources import ON_HEAD, Slots
from wmlsearch.config import RunSettings
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.schema import UNFINISHED
from wmlsearch.search.budget import Budget
from wmlsearch.search.checkpoint_size import bytes_for_best_weights
from wmlsearch.search.checkpoints import CheckpointRetention
from wmlsearch.search.interrupts import graceful_stop
from wmlsearch.search.optuna_study import Study
from wmlsearch.search.recorder import LOST_PROCESS_RETRIES, _bytes_of_best, _Recorder
from wmlsearch.search.scheduler import Scheduler
from wmlsearch.search.trial_worker import TrialWorker
from wmlsearch.search.tune_patches import keep_all_processes
from wmlsearch.search.tune_searcher import StudySearcher
from wmlsearch.search.worker_group import GroupTrialWorker
from wmlsearch.space import SearchSpace


def run_trials(
    search: SearchDir,
    space: SearchSpace,
    settings: RunSettings,
    data: Shipment,
    slots: Slots,
    place: Callable[[RunDir], str],
    on_change: Callable[[RunDir], None],
    elastic: bool = False,
) -> Budget:
    """Run the trials of a search, or those that it still lacks, to their end; the budget says why it ended early.

    `data` is shipped, `place` says where a trial's checkpoints go. `on_change` is called after each change in a run
    folder. Ctrl-C ends the trials that run, and keeps what is there.
    """
    scheduler = Scheduler(settings)
    for run in _recall(search, settings, scheduler):
        on_change(run)
    study = Study(search, space, settings)
    budget = Budget(search, settings, slots)
    keeper = CheckpointRetention(
        place, _bytes_of_best, bytes_for_best_weights(space, settings, slots), settings.ranked_by
    )
    recorder = _Recorder(search, settings, study, budget, place, keeper, on_change, scheduler)
    job = {"data": data, "settings": settings.model_dump(), "threads": slots.cpus, "slots": dataclasses.asdict(slots)}
    if scheduler.population is not None:
        job["keep_every"] = settings.grace_epochs
    if slots.workers > 1:
        # The slot's own process only drives its worker group, which asks for its resources itself.
        job["elastic"] = elastic
        trainable: type[tune.Trainable] = GroupTrialWorker
        resources = tune.PlacementGroupFactory([ON_HEAD])
    else:
        trainable = TrialWorker
        resources = tune.PlacementGroupFactory([slots.resources])
    numbers = [n for n in range(settings.trials) if search.trial(n).state in UNFINISHED]
    if not numbers or budget.stop_all():
        recorder.finish_open()
        return budget
    scratch = tempfile.mkdtemp(prefix="wmlsearch-tune-")  # Tune wants a folder; nothing in it is ever read again
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trainable, job=job), resources),
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(settings.objective, numbers, recorder.begin),
            scheduler=scheduler,
            num_samples=len(numbers),
            max_concurrent_trials=slots.count,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=search.name,
            storage_path=scratch,
            stop=budget,
            callbacks=[recorder],
            failure_config=tune.FailureConfig(max_failures=LOST_PROCESS_RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the slot writes its own
            verbose=0,
        ),
    )
    try:
        with graceful_stop(budget), keep_all_processes():
            tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        recorder.finish_open()
        budget.tick()
    if budget.broken is not None:
        raise budget.broken
    return budget


def _recall(search: SearchDir, settings: RunSettings, scheduler: Scheduler) -> list[RunDir]:
    """Let the scheduler hear what the run folder holds, in the order in which it happened.

    A trial that died between its last line and the word how it ended gets that word now; those are returned.
    """
    changed = []
    rows = [(row.time, int(run.name), row) for run in search.trials() for row in run.trained_rows()]
    stopped: dict[int, int] = {}
    for _, number, row in sorted(rows, key=lambda it: it[:2]):
        ended = row.ended is not None
        if scheduler.hear(number, row.epoch, row.metrics.get(settings.objective) or 0.0, ended):
            stopped[number] = row.epoch
    for run in search.trials():
        if run.state in UNFINISHED and (its := run.rows()):
            if its[-1].ended:
                run.set_status(its[-1].ended)
                changed.append(run)
            elif stopped.get(number := int(run.name)) == len(its):
                reason, successor = scheduler.why(number, len(its))
                run.set_status("stopped", reason, successor=successor)
                changed.append(run)
    if scheduler.population is not None:
        scheduler.population.recall(search)
    return changed
