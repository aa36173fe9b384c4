"""Confirmation: final runs with several seeds, then the champion selected and the models kept.

Each step is kept in the run folder. A resumed search does only what is missing.
"""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.inference.ensemble import ensemble_threshold
from wmlsearch.inference.export import export_model, is_exported
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.runs.names import BASELINE, BASELINE_RUN, CHAMPION, CONFIRMATION, PAPER, final_run_name, model_name
from wmlsearch.runs.objectives import CANDIDATE_METRIC
from wmlsearch.runs.schema import GOOD, RUNNING, EpochRow, ModelRecord
from wmlsearch.verdict.champion import (
    Candidate,
    finished_baseline,
    read_candidates,
    select_candidates,
    select_champion,
)
from wmlsearch.workflows.observer import Observer
from wmlsearch.workflows.provenance import run_record, versions
from wmlsearch.workflows.search_plan import SearchPlan

if TYPE_CHECKING:
    from wmlsearch.cluster.data_shipping import Shipment
    from wmlsearch.cluster.resources import Slots
    from wmlsearch.search.final_training import TrainingRequest


def train_final_runs(search: SearchDir, plan: SearchPlan, shipment: Shipment, slots: Slots, observer: Observer) -> None:
    """Train the baseline configuration and the best candidates with all seeds and the same budget, on Ray Train.

    Finished runs are not repeated. Raises KeyboardInterrupt when the search is asked to stop.

    Args:
        shipment: The prepared data set on its way to the workers.
        slots: Of the final runs.
    """
    from wmlsearch.search.budget import STOP_REQUESTED
    from wmlsearch.search.final_training import train_runs

    configurations = _final_configurations(search, plan.settings.confirm_top)
    requests = _training_requests(search, plan, configurations)
    if not requests:
        return
    observer.say(_final_runs_message(list(configurations), plan.settings, slots))
    before, began = search.usage(), time.monotonic()

    def record_usage_or_stop(run: RunDir) -> None:
        seconds = time.monotonic() - began
        gpus = slots.count * slots.workers * slots.gpus
        search.update_usage(
            final_seconds=before.final_seconds + seconds,
            final_gpu_seconds=before.final_gpu_seconds + seconds * gpus,
        )
        observer.on_change(run)
        if search.stop_requested():
            raise KeyboardInterrupt(STOP_REQUESTED)

    train_runs(requests, plan.settings, shipment, slots, record_usage_or_stop, elastic=plan.placement.on_cluster)


def _final_configurations(search: SearchDir, count: int) -> dict[str, tuple[TrialConfig, dict[int, float]]]:
    """Return configuration and learning rate factors of the baseline and the best `count` trials, by name."""
    configurations: dict[str, tuple[TrialConfig, dict[int, float]]] = {PAPER: (TrialConfig(), {})}
    for run in select_candidates(leaderboard(search), count):
        configurations[run.record().name] = run.record().config, run.record().rate_factors
    return configurations


def _training_requests(
    search: SearchDir, plan: SearchPlan, configurations: dict[str, tuple[TrialConfig, dict[int, float]]]
) -> list[TrainingRequest]:
    """Return the final runs that are not finished: all configurations with the first seed, then with the next."""
    from wmlsearch.search.final_training import TrainingRequest

    requests = []
    for seed in plan.settings.final_seeds:
        for name, (config, rate_factors) in configurations.items():
            run = search.final(name, seed)
            if run.exists() and run.state in GOOD:
                continue
            record = run_record(
                final_run_name(name, seed),
                BASELINE_RUN if name == PAPER else CONFIRMATION,
                config,
                plan.settings.model_copy(update={"seed": seed}),
                plan.data_record,
            )
            more = {"rate_factors": rate_factors} if rate_factors else {}
            record = record.model_copy(update={"model": name, **more})
            requests.append(TrainingRequest(run, record, seed, plan.placement.checkpoint_location(run)))
    return requests


def _final_runs_message(names: list[str], settings: RunSettings, slots: Slots) -> str:
    others = "".join(f", {name}" for name in names if name != PAPER)
    seeds = len(settings.final_seeds)
    return f"final runs: baseline configuration{others}; {seeds} seed{'s' if seeds > 1 else ''} each, {slots}"


def keep_models(search: SearchDir, settings: RunSettings, data: Path, observer: Observer) -> bool:
    """Select the champion and export it and the baseline to `models/<role>`. Return False where one is missing."""
    candidates = read_candidates(search)
    baseline, champion = finished_baseline(candidates), select_champion(candidates)
    for role, candidate in ((BASELINE, baseline), (CHAMPION, champion)):
        if candidate is not None:
            observer.on_change(_keep_model(search, settings, data, role, candidate))
    if baseline is None:
        observer.say("no verdict: the baseline configuration did not finish with all seeds")
    elif settings.confirm_top and champion is None:
        observer.say("no verdict: no candidate configuration finished with all seeds")
    elif champion is not None:
        error = f", standard error {champion.standard_error:.4f}" if champion.standard_error is not None else ""
        observer.say(
            f"champion, selected on the validation patients: {champion.name}, "
            f"mean {CANDIDATE_METRIC} {champion.mean:.4f}{error}"
        )
    return baseline is not None and champion is not None


def _keep_model(search: SearchDir, settings: RunSettings, data: Path, role: str, candidate: Candidate) -> RunDir:
    """Write the folder of a model: its networks, the best one first, and its metrics. Keep one that is complete."""
    folder, best = search.model(role), candidate.best_run
    runs = [best, *(run for run in candidate.runs if run.path != best.path)]
    members = [f"{run.name} {run.record().key}" for run in runs]
    if folder.exists() and folder.record().members == members:
        if folder.state == "completed" and is_exported(folder.export):
            return folder
        _remove_unfinished_export(folder)
        folder.set_status(RUNNING)
    else:
        folder.remove()
        record = ModelRecord(
            name=model_name(role, candidate.name),
            kind=role,
            config=candidate.config,
            settings=settings,
            data=search.record().data,
            versions=versions(),
            model=candidate.name,
            members=members,
        )
        if rate_factors := best.record().rate_factors:
            record = record.model_copy(update={"rate_factors": rate_factors})
        RunDir.create(folder.path, record)
    models = [TrainedModel.from_run(run) for run in runs]
    export_model(models, folder.export, ensemble_threshold(models, PreparedData.open(data).val))
    values = [value for value in candidate.values if value is not None]
    metrics = {CANDIDATE_METRIC: candidate.mean}
    if len(values) > 1:
        metrics[f"{CANDIDATE_METRIC}_sd"] = statistics.stdev(values)
    if not folder.rows():
        folder.append(EpochRow(0, time.time(), None, metrics))
    folder.set_status("completed")
    return folder


def _remove_unfinished_export(folder: RunDir) -> None:
    """Remove what a killed process left of an export."""
    for path in (folder.export, *folder.path.glob(f".{folder.export.name}.*")):
        shutil.rmtree(path, ignore_errors=True)
