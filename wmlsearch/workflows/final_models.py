"""The models of a search: the judgement runs of baseline and champion, each as an ensemble with one threshold."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from wmlsearch.config import RunSettings
from wmlsearch.data.slices import PreparedData
from wmlsearch.inference.ensemble import out_of_fold_threshold
from wmlsearch.inference.export import export_model, is_exported
from wmlsearch.inference.postprocessing import NO_POSTPROCESSING
from wmlsearch.inference.postprocessing_choice import choose_postprocessing
from wmlsearch.inference.predictor import HERE, Predictions
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.names import BASELINE, CHAMPION, PAPER, model_name
from wmlsearch.runs.schema import RUNNING, EpochRow, ModelRecord
from wmlsearch.verdict.champion import Candidate, FinalRun, judgement_pairs, read_candidates
from wmlsearch.workflows.observer import Observer
from wmlsearch.workflows.provenance import versions


def keep_models(
    search: SearchDir, settings: RunSettings, data: Path, observer: Observer, predictions: Predictions = HERE
) -> bool:
    """Export the finished judgement runs of baseline and champion to `models/<role>`.

    The champion is that of `selection.json`; without one there is only a baseline. Of two configurations, only runs
    that both have finished are taken, so that like is compared with like.

    Returns whether there are two models to compare on the sealed test.
    """
    by_name = {candidate.name: candidate for candidate in read_candidates(search)}
    selection = search.selection()
    baseline, champion = by_name.get(PAPER), by_name.get(selection.champion) if selection else None
    runs = {role: _finished(candidate) for role, candidate in ((BASELINE, baseline), (CHAMPION, champion))}
    comparable = False
    if baseline is not None and champion is not None and champion is not baseline:
        pairs = judgement_pairs(baseline, champion)
        comparable = bool(pairs[0])
        if comparable:
            runs = dict(zip((BASELINE, CHAMPION), pairs, strict=True))
    for role, candidate in ((BASELINE, baseline), (CHAMPION, champion)):
        if candidate is not None and runs[role]:
            observer.on_change(_keep_model(search, settings, data, role, candidate, runs[role], predictions))
    if champion is not baseline and champion is not None and not comparable:
        observer.say("no verdict: baseline configuration and champion have finished no judgement run of the same fold")
    elif not runs[BASELINE]:
        observer.say("no model: the baseline configuration has finished no judgement run")
    return comparable


def _finished(candidate: Candidate | None) -> list[FinalRun]:
    return [] if candidate is None else [run for run in candidate.judgement if run.finished]


def _keep_model(
    search: SearchDir,
    settings: RunSettings,
    data: Path,
    role: str,
    candidate: Candidate,
    runs: Sequence[FinalRun],
    predictions: Predictions,
) -> RunDir:
    """Write the folder of a model: its networks, the best one first, and its metrics. Keep one that is complete."""
    folder = search.model(role)
    runs = sorted(runs, key=lambda run: -(run.value or 0.0))
    members = [f"{run.run.name} {run.record.key}" for run in runs]
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
            folds=[run.fold for run in runs],
        )
        if candidate.rate_factors:
            record = record.model_copy(update={"rate_factors": candidate.rate_factors})
        RunDir.create(folder.path, record)
    models = [TrainedModel.from_run(run.run) for run in runs]
    prepared, postprocessing = PreparedData.open(data), NO_POSTPROCESSING
    if settings.postprocessing == "auto":
        threshold, postprocessing = choose_postprocessing(models, prepared, predictions)
    else:
        threshold = out_of_fold_threshold(models, prepared, predictions)
    models = [dataclasses.replace(model, threshold=threshold, postprocessing=postprocessing) for model in models]
    export_model(models, folder.export, threshold if len(models) > 1 else None)
    values = [run.value for run in runs if run.value is not None]
    metrics: dict[str, float | None] = {candidate.metric: statistics.fmean(values)}
    if len(values) > 1:
        metrics[f"{candidate.metric}_sd"] = statistics.stdev(values)
    if postprocessing.mirror_averaging:
        metrics["mirror_averaging"] = 1.0
    if postprocessing.smallest_lesion_mm3:
        metrics["smallest_lesion_mm3"] = postprocessing.smallest_lesion_mm3
    if not folder.rows():
        folder.append(EpochRow(0, time.time(), None, metrics))
    folder.set_status("completed")
    return folder


def _remove_unfinished_export(folder: RunDir) -> None:
    """Remove what a killed process left of an export."""
    for path in (folder.export, *folder.path.glob(f".{folder.export.name}.*")):
        shutil.rmtree(path, ignore_errors=True)
