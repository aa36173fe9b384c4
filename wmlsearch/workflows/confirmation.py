"""How a search ends: final runs with several seeds, a champion, the sealed test, a verdict.

Each step is kept in the run folder and not done again when a search is resumed.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.inference.ensemble import ensemble_threshold
from wmlsearch.inference.export import export_model, is_exported
from wmlsearch.inference.predictor import TrainedModel
from wmlsearch.runs.folders import GOOD, RUNNING, RunDir, SearchDir
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.runs.names import (
    BASELINE,
    BASELINE_RUN,
    CHAMPION,
    CONFIRMATION,
    PAPER,
    final_run_name,
    model_name,
)
from wmlsearch.runs.objectives import MEASURE
from wmlsearch.verdict.champion import Candidate, candidates, champion, select_candidates
from wmlsearch.workflows.placement import Placement
from wmlsearch.workflows.provenance import run_record

if TYPE_CHECKING:
    from wmlsearch.cluster.data_shipping import Shipment
    from wmlsearch.cluster.resources import Slots


def confirm(
    search: SearchDir,
    settings: RunSettings,
    data: Shipment,
    placement: Placement,
    slots: Slots,
    changed: Callable[[RunDir], None],
    say: Callable[[str], None],
) -> None:
    """Train the paper's configuration and the best others, with all seeds, through Ray Train, under the same budget.

    `data` is shipped. Runs that have come to their end are left as they are. KeyboardInterrupt when the search is
    asked to stop.
    """
    from wmlsearch.search.budget import STOP_WISH
    from wmlsearch.search.final_training import TrainingRequest, train_runs

    models: dict[str, tuple[dict[str, Any], dict[int, float]]] = {PAPER: (TrialConfig().model_dump(), {})}
    for run in select_candidates(leaderboard(search), settings.confirm_top):
        models[run.about()["name"]] = run.about()["config"], run.rate_factors()
    orders = []
    for seed in settings.final_seeds:
        for name, (config, factors) in models.items():
            run = search.final(name, seed)
            if run.exists() and run.state in GOOD:
                continue
            about = run_record(
                final_run_name(name, seed),
                BASELINE_RUN if name == PAPER else CONFIRMATION,
                TrialConfig(**config),
                settings.model_copy(update={"seed": seed}),
                search.about()["data"],
            )
            more = {"rate_factors": factors} if factors else {}
            orders.append(
                TrainingRequest(run, {**about, "model": name, **more}, seed, placement.checkpoint_location(run))
            )
    if not orders:
        return
    names = ", ".join(name for name in models if name != PAPER)
    seeds = f"{len(settings.final_seeds)} seed{'s' if len(settings.final_seeds) > 1 else ''}"
    say(f"final runs: the paper's configuration{f' and {names}' if names else ''}, {seeds} each, {slots}")
    before, began = search.used(), time.monotonic()

    def changed_or_stop(run: RunDir) -> None:
        passed = time.monotonic() - began
        held = slots.count * slots.workers * slots.gpus
        search.set_used(
            {
                "final_seconds": before["final_seconds"] + passed,
                "final_gpu_seconds": before["final_gpu_seconds"] + passed * held,
            }
        )
        changed(run)
        if search.stop_requested():
            raise KeyboardInterrupt(STOP_WISH)

    train_runs(orders, settings, data, slots, changed_or_stop, elastic=placement.on_cluster)


def select_champion(
    search: SearchDir, settings: RunSettings, data: Path, changed: Callable[[RunDir], None], say: Callable[[str], None]
) -> bool:
    """Choose the champion on the validation patients; export it and the baseline. False where one of them is missing.

    A model is a folder `models/<role>`: its networks, the best one first, and what is known of it as metrics.
    """
    found = candidates(search)
    paper = next((it for it in found if it.name == PAPER and it.score is not None), None)
    best = champion(found)
    for role, candidate in ((BASELINE, paper), (CHAMPION, best)):
        if candidate is not None:
            changed(_keep_model(search, settings, data, role, candidate))
    if paper is None:
        say("no verdict: the baseline did not come to its end with all seeds")
    elif settings.confirm_top and best is None:
        say("no verdict: no other configuration than the paper's came to its end with all seeds")
    elif best is not None:
        spread = f", standard error {best.standard_error:.4f}" if best.standard_error is not None else ""
        say(f"champion by the validation patients: {best.name}, mean {MEASURE} {best.mean:.4f}{spread}")
    return paper is not None and best is not None


def _keep_model(search: SearchDir, settings: RunSettings, data: Path, role: str, candidate: Candidate) -> RunDir:
    """The folder of a model, made anew where it is another one than before, or was not finished."""
    kept, first = search.model(role), candidate.best
    runs = [first, *(run for run in candidate.runs if run.path != first.path)]
    key = [f"{run.name} {run.about()['key']}" for run in runs]
    if kept.exists() and kept.about()["members"] == key:
        if kept.state == "completed" and is_exported(kept.export):
            return kept
        for half in (kept.export, *kept.path.glob(f".{kept.export.name}.*")):  # its writer may have been killed
            shutil.rmtree(half, ignore_errors=True)
        kept.set_status(RUNNING)
    else:
        kept.remove()
        config = TrialConfig(**candidate.config)
        about = run_record(model_name(role, candidate.name), role, config, settings, search.about()["data"])
        factors = {"rate_factors": first.rate_factors()} if first.rate_factors() else {}
        RunDir.create(kept.path, {**about, "model": candidate.name, "members": key, **factors})
    models = [TrainedModel.from_run(run) for run in runs]
    export_model(models, kept.export, ensemble_threshold(models, PreparedData.open(data).val))
    values = [value for value in candidate.values if value is not None]
    spread = {f"{MEASURE}_sd": statistics.stdev(values)} if len(values) > 1 else {}
    if not kept.rows():
        kept.append({"epoch": 0, "time": time.time(), "ended": None, MEASURE: candidate.mean, **spread})
    kept.set_status("completed")
    return kept
