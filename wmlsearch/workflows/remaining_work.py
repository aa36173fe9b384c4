"""Whether a search that is to go on has anything left to do, as its run folder tells."""

from __future__ import annotations

from wmlsearch.config import RunSettings
from wmlsearch.inference.export import is_exported
from wmlsearch.runs.evaluation import Evaluation
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.names import BASELINE, CHAMPION, PAPER
from wmlsearch.runs.schema import UNFINISHED
from wmlsearch.tracking.sync import is_mirrored
from wmlsearch.workflows.final_runs import final_runs_are_finished


def nothing_left(search: SearchDir, settings: RunSettings, mlflow_uri: str) -> str:
    """Return the message that there is nothing to go on with, or "" if there is.

    A completed search goes on if a budget changes, and if part of it is missing: a final run that failed, the sealed
    test, the report, or the copy in MLflow as far as the run folder knows it.

    Args:
        search: The search.
        settings: The settings, perhaps with changed budgets.
        mlflow_uri: URI of the MLflow store to copy the search to.
    """
    is_complete = (
        search.state == "completed"
        and settings == search.record().settings
        and _trials_have_ended(search, settings)
        and (not settings.baseline or judged_by_older_version(search) or _is_judged(search, settings))
        and search.report_page.is_file()
        and is_mirrored(search, mlflow_uri)
    )
    if not is_complete:
        return ""
    why = f" ({reason})" if (reason := search.status().reason) else ""
    return f"{search.name}: is completed{why}, so nothing is left to do; its results: {search.path}"


def _trials_have_ended(search: SearchDir, settings: RunSettings) -> bool:
    """Return whether all trials have ended, or a budget ended them: the same budget would end them again."""
    if search.status().reason:
        return True
    return all(search.trial(number).state not in UNFINISHED for number in range(settings.trials))


def _is_judged(search: SearchDir, settings: RunSettings) -> bool:
    """Return whether the champion is chosen, the final runs are trained and kept, and the sealed test is evaluated."""
    selection = search.selection()
    if settings.confirm_top and selection is None:
        return False
    champion = selection.champion if selection else PAPER
    roles = (BASELINE, CHAMPION) if selection else (BASELINE,)
    models = [search.model(role) for role in roles]
    if not final_runs_are_finished(search, settings, champion):
        return False
    if not all(model.exists() and model.state == "completed" and is_exported(model.export) for model in models):
        return False
    evaluation = search.evaluation()
    return champion == PAPER or (evaluation is not None and evaluates_models(search, evaluation))


def evaluates_models(search: SearchDir, evaluation: Evaluation) -> bool:
    """Return whether an evaluation is that of the models that the search keeps now."""
    return evaluation.members == [model.record().members for model in search.models()]


def judged_by_older_version(search: SearchDir) -> bool:
    """Return whether an older version, without judgement runs, has ended this search, and no trial was added since."""
    champion = search.model(CHAMPION)
    if search.evaluation() is None or not champion.exists() or any(run.record().purpose for run in search.finals()):
        return False
    selected = champion.record().created
    return all(row.time <= selected for run in search.trials() for row in run.rows())
