"""Evaluation on the sealed test patients: the last step of a search, and `wmlsearch evaluate`."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from wmlsearch.config import RunSettings
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.sealed_test import Opener, openings
from wmlsearch.data.seen_patients import check_unseen
from wmlsearch.errors import InputError
from wmlsearch.inference.export import load_exported
from wmlsearch.inference.predictor import HERE, Predictions
from wmlsearch.runs.evaluation import SLICES, VOLUMES, Evaluation, EvaluationMetrics
from wmlsearch.runs.folders import AnyDir, SearchDir, parent_search
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.runs.names import BASELINE, CHAMPION, PAPER, TEST_DICE
from wmlsearch.runs.objectives import cut_off_by_budget
from wmlsearch.runs.progress import Progress
from wmlsearch.runs.wording import command, plural
from wmlsearch.verdict.comparison import judge, unit_means
from wmlsearch.verdict.evaluation import evaluate
from wmlsearch.verdict.wording import RATIOS
from wmlsearch.workflows.resume_command import resume_command
from wmlsearch.workflows.stored_weights import load_run_model


def evaluate_search(
    search: SearchDir, settings: RunSettings, data: Path, progress: Progress, predictions: Predictions = HERE
) -> Evaluation:
    """Open the sealed test for a search's baseline and champion, add the verdict, and keep both as `test.json`."""
    models = {role: load_exported(search.model(role).export) for role in (BASELINE, CHAMPION)}
    names = {role: search.model(role).record().model for role in models}
    fingerprint = Manifest.read(data).fingerprint
    own_data = fingerprint == search.record().data.fingerprint
    by = Opener(run=search.name, key=search.record().key, path=str(search.path.resolve()), models=names)
    scored, gallery = evaluate(
        {role: model.members for role, model in models.items()},
        data,
        by,
        {role: model.ensemble_threshold for role, model in models.items() if model.ensemble_threshold},
        progress,
        predictions,
    )
    members = [search.model(role).record().members for role in models]
    compared = {member.split()[0] for of_role in members for member in of_role}
    by_older_version = any(run.name in compared and not run.record().purpose for run in search.finals())
    verdict = judge(scored, BASELINE, CHAMPION, names[CHAMPION], settings.seed, budget_note(search), by_older_version)
    evaluation = scored.with_verdict(names, members, verdict)
    if own_data:
        search.set_gallery(gallery)
        for role in models:
            metrics = metrics_of(evaluation, role)
            search.model(role).set_evaluation(EvaluationMetrics(opened=evaluation.opened, metrics=metrics))
    # Written last: a resumed search that finds test.json does not open the test again.
    search.set_evaluation(evaluation, "" if own_data else fingerprint)
    return evaluation


def budget_note(search: SearchDir) -> str:
    """Return a sentence about the runs of baseline and champion that the limit on epochs ended, or "" without any."""
    counts = {}
    for role in (BASELINE, CHAMPION):
        names = [member.split()[0] for member in search.model(role).record().members]
        runs = [run for run in search.finals() if run.name in names]
        ended = sum(cut_off_by_budget(run.rows(), run.record().config) for run in runs)
        if ended:
            counts[role] = f"{ended} of the {role}'s {plural(len(runs), 'run')}"
    if not counts:
        return ""
    epochs = search.record().settings.epochs
    return f"The limit of {plural(epochs, 'epoch')} ended {' and '.join(counts.values())} that could still improve."


def metrics_of(evaluation: Evaluation, role: str) -> dict[str, float]:
    """Return a model's test scores as metrics of an MLflow run: mean over runs, and `_sd` where there are several.

    `test_dice` and `test_dice_ensemble` are means over the patients with lesions; `test_lesion_free_` is what is found
    in one of the others, as a mean.
    """
    metrics: dict[str, float] = {}
    members, ensemble = evaluation.models[role].members, evaluation.models[role].ensemble
    for scope, short in ((VOLUMES, "volumes"), (SLICES, "slices")):
        if scope not in members[0].scopes:
            continue
        scores = [member.scope(scope) for member in members]
        for end, pooled in (("", [one.pooled for one in scores]), ("_half", [one.pooled_half for one in scores])):
            for name in RATIOS:
                values = [value for value in (row.value(name) for row in pooled) if value is not None]
                if values:
                    metrics[f"test_{short}_{name}{end}"] = statistics.fmean(values)
                if len(values) > 1:
                    metrics[f"test_{short}_{name}{end}_sd"] = statistics.stdev(values)
    means = [value for value in unit_means(evaluation, role, "dice").values() if value is not None]
    if means:
        metrics[TEST_DICE] = statistics.fmean(means)
    units = [unit for member in members for unit in member.scope(evaluation.scope).units]
    lesion_free = [unit for unit in units if not unit.has_lesions]
    if lesion_free and evaluation.unit == "patients":
        metrics["test_lesion_free_patients"] = len({unit.unit for unit in lesion_free})
        metrics["test_lesion_free_lesions"] = statistics.fmean(unit.lesions_false for unit in lesion_free)
        volumes = [unit.volume_ml for unit in lesion_free if unit.volume_ml is not None]
        if volumes:
            metrics["test_lesion_free_ml"] = statistics.fmean(volumes)
    dices = [unit.dice for unit in ensemble.scope(evaluation.scope).units] if ensemble else []
    if defined := [dice for dice in dices if dice is not None]:
        metrics[f"{TEST_DICE}_ensemble"] = statistics.fmean(defined)
    return metrics


def _opening_note(run: AnyDir, data: Path) -> str:
    """Return what is said before the sealed test is opened for a run."""
    before = len(openings(data))
    times = f"has been opened {plural(before, 'time')} before" if before else "has not been opened before"
    return (
        f"opening the sealed test of {data} for {run.name}: it {times}; each opening is recorded, and makes its result "
        "less reliable"
    )


def evaluate_run(
    run: AnyDir, data: Path | None, progress: Progress, say: Callable[[str], None] = print
) -> tuple[Evaluation, Path]:
    """Evaluate a search's models, or a single run, on the sealed test; return the evaluation and its file.

    Announces the opening before it happens.

    Raises InputError where there is no model, or for data that the models may have been trained on.
    """
    record = run.record()
    parent = parent_search(run)
    trained_on = Path(parent.record().data_path)
    if data is None:
        data = trained_on
        if not data.is_dir() or Manifest.read(data).fingerprint != record.data.fingerprint:
            raise InputError(f"{run.name}: its prepared data set is no longer at {data}; give its path with --data")
    fingerprint = Manifest.read(data).fingerprint
    if fingerprint == record.data.fingerprint:
        fingerprint = ""
    else:
        for warning in check_unseen(parent.record(), data, progress):
            say(warning)
    if isinstance(run, SearchDir):
        without = "--confirm-top 0" if record.settings.baseline else "--no-baseline"
        if not (record.settings.baseline and record.settings.confirm_top):
            best = leaderboard(run).best
            example = f", such as `{command('evaluate', best.path)}`" if best else ""
            raise InputError(
                f"{run.name}: was searched with {without}, so it has no champion to compare with the baseline; name a "
                f"single run{example}, or start a search without {without} (--warm-start {run.name} learns from this "
                "one)"
            )
        if missing := [role for role in (BASELINE, CHAMPION) if not run.model(role).exists()]:
            raise InputError(
                f"{run.name}: has no {' and no '.join(missing)} yet (state: {run.state}); finish the search with "
                f"`{resume_command(run)}`, or name a single run"
            )
        if run.model(CHAMPION).record().model == PAPER:
            raise InputError(
                f"{run.name}: its champion is the baseline configuration, so there is nothing to compare on the sealed "
                f"test; name a single run, such as {run.judgement_run(PAPER, 0).path}"
            )
        say(_opening_note(run, data))
        return evaluate_search(run, record.settings, data, progress), run.evaluation_file(fingerprint)
    model = load_run_model(run)
    say(_opening_note(run, data))
    by = Opener(run=run.name, key=record.key, path=str(run.path.resolve()))
    scored, _ = evaluate({"model": [model]}, data, by, progress=progress)
    evaluation = scored.with_metrics(metrics_of(scored, "model"))
    run.set_evaluation(evaluation, fingerprint)
    return evaluation, run.evaluation_file(fingerprint)
