"""Final runs: those that choose the champion, then those of champion and baseline that are judged.

Each run is kept in the run folder. A resumed search trains only what is missing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.early_end import STOP_REQUESTED
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.interrupts import Interrupted
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.runs.names import JUDGEMENT_RUN, PAPER, SELECTION_RUN, judgement_run_name, selection_run_name
from wmlsearch.runs.schema import GOOD
from wmlsearch.runs.wording import plural
from wmlsearch.verdict.champion import baseline_config, read_candidates, select_candidates, selection_seeds
from wmlsearch.workflows.observer import Observer
from wmlsearch.workflows.provenance import run_record
from wmlsearch.workflows.search_plan import SearchPlan

if TYPE_CHECKING:
    from wmlsearch.cluster.resources import Slots
    from wmlsearch.search.final_training import RunRequest, RunTrainer


@dataclass(frozen=True)
class _Configuration:
    """What final runs train."""

    name: str  # "paper" for the baseline, else of the trial
    config: TrialConfig
    rate_factors: Mapping[int, float]  # of a child of population based training


@dataclass(frozen=True)
class _PlannedRun:
    """A final run, whether it has been trained or not."""

    run: RunDir
    configuration: _Configuration
    purpose: Literal["selection", "judgement"]
    number: int
    seed: int

    @property
    def is_finished(self) -> bool:
        return self.run.exists() and self.run.state in GOOD


class FinalSlots:
    """Plans where the runs of a stage are trained, when it begins: a cluster may have gained or lost machines by then.

    The free memory of a single machine is that before any worker starts, since workers that are kept for the next stage
    hold a part of it. The slots follow from the number of runs that a search without a stop would train, not from those
    that are left: a resumed run has the threads it began with.
    """

    def __init__(self, plan: SearchPlan) -> None:
        self._plan, self._free_gb = plan, plan.placement.free_memory_gb()

    def of(self, runs: int) -> Slots:
        """Return the slots of a stage of so many runs. Raises InputError if none fits."""
        return self._plan.placement.slots(runs, self._plan.reserved, self._free_gb)


def final_runs_are_finished(search: SearchDir, settings: RunSettings, champion: str) -> bool:
    """Whether all final runs of a search with this champion are trained, so that a resumed search trains none."""
    selection = _selection_runs(search, settings)[1] if settings.confirm_top else []
    return all(run.is_finished for run in (*selection, *_judgement_runs(search, settings, champion)))


def _selection_runs(search: SearchDir, settings: RunSettings) -> tuple[list[_Configuration], list[_PlannedRun]]:
    """Return the baseline configuration and the best candidates, and their runs: none where there is no candidate."""
    baseline = baseline_config(search)
    configurations = [_Configuration(PAPER, baseline, {})]
    old_rule = search.record().candidates_differ_in == "hyperparameters"
    for trial in select_candidates(leaderboard(search), settings.confirm_top, baseline, all_hyperparameters=old_rule):
        record = trial.record()
        configurations.append(_Configuration(record.name, record.config, record.rate_factors))
    if len(configurations) == 1 and all(run.record().purpose == "judgement" for run in search.finals()):
        return configurations, []
    return configurations, [
        _PlannedRun(search.final(configuration.name, seed), configuration, "selection", number, seed)
        for number, seed in enumerate(selection_seeds(search, settings))
        for configuration in configurations
    ]


def _judgement_runs(search: SearchDir, settings: RunSettings, champion: str) -> list[_PlannedRun]:
    """Return the runs of the baseline configuration and the champion, which may be the same configuration."""
    configurations = {PAPER: _Configuration(PAPER, baseline_config(search), {})}
    for candidate in read_candidates(search):
        if candidate.name == champion:
            configurations[champion] = _Configuration(champion, candidate.config, candidate.rate_factors)
    return [
        _PlannedRun(search.judgement_run(name, number), configuration, "judgement", number, seed)
        for number, seed in enumerate(settings.judgement_seeds)
        for name, configuration in configurations.items()
    ]


def train_selection_runs(
    search: SearchDir, plan: SearchPlan, slots: FinalSlots, trainer: RunTrainer, observer: Observer
) -> None:
    """Train the baseline configuration and the best candidates with new seeds, run k with fold k for validation.

    Nothing is trained where there is no candidate. Finished runs are not repeated. Raises KeyboardInterrupt when the
    search is asked to stop.
    """
    settings = plan.settings
    configurations, runs = _selection_runs(search, settings)
    requests = [_request(run, plan) for run in runs if not run.is_finished]
    others = "".join(f", {configuration.name}" for configuration in configurations[1:])
    what = f"baseline configuration{others}; {plural(settings.confirm_seeds, 'run')} each"
    _train(search, slots, trainer, requests, f"selection runs: {what}", settings.selection_run_count, observer)


def train_judgement_runs(
    search: SearchDir, plan: SearchPlan, slots: FinalSlots, champion: str, trainer: RunTrainer, observer: Observer
) -> None:
    """Train the baseline configuration and the champion with new seeds, run r with fold r for validation.

    Where the champion is the baseline configuration, it is trained once. Finished runs are not repeated. Raises
    KeyboardInterrupt when the search is asked to stop.
    """
    settings = plan.settings
    runs = _judgement_runs(search, settings, champion)
    requests = [_request(run, plan) for run in runs if not run.is_finished]
    what = "baseline configuration" if champion == PAPER else f"baseline configuration and champion ({champion})"
    message = f"judgement runs: {what}; {plural(settings.final_runs, 'run')} each"
    _train(search, slots, trainer, requests, message, settings.judgement_run_count, observer)


def _request(planned: _PlannedRun, plan: SearchPlan) -> RunRequest:
    """Return what is to be trained of a final run."""
    from wmlsearch.search.final_training import RunRequest

    configuration, number, seed = planned.configuration, planned.number, planned.seed
    selection = planned.purpose == "selection"
    record = run_record(
        selection_run_name(configuration.name, seed) if selection else judgement_run_name(configuration.name, number),
        SELECTION_RUN if selection else JUDGEMENT_RUN,
        configuration.config,
        plan.settings.model_copy(update={"seed": seed}),
        plan.data_record,
    )
    schedule = {"rate_factors": configuration.rate_factors} if configuration.rate_factors else {}
    fold = number % plan.manifest.fold_count
    record = record.model_copy(
        update={"model": configuration.name, "purpose": planned.purpose, "fold": fold, **schedule}
    )
    return RunRequest(planned.run, record, plan.placement.checkpoint_location(planned.run))


def _train(
    search: SearchDir,
    planned: FinalSlots,
    trainer: RunTrainer,
    requests: Sequence[RunRequest],
    message: str,
    count: int,
    observer: Observer,
) -> None:
    """Train final runs on Ray Train, `count` being the number of those that the search would train without a stop."""
    if not requests:
        return
    slots = planned.of(count)
    observer.say(f"{message}, {slots}")
    before, began, gpu_seconds = search.usage(), time.monotonic(), trainer.gpu_seconds

    def record_usage_or_stop() -> None:
        search.update_usage(
            final_seconds=before.final_seconds + time.monotonic() - began,
            final_gpu_seconds=before.final_gpu_seconds + trainer.gpu_seconds - gpu_seconds,
            slots=trainer.groups_placed,
            slots_waiting=trainer.groups_waiting,
        )
        if search.stop_requested():
            raise Interrupted(STOP_REQUESTED)

    def on_change(run: RunDir) -> None:
        observer.on_change(run)
        record_usage_or_stop()

    try:
        trainer.train(requests, slots, on_change, record_usage_or_stop)
    finally:
        with contextlib.suppress(OSError):  # the disk is full, which the error says that is raised
            search.update_usage(slots=0, slots_waiting=0)
