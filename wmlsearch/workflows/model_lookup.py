"""Find the trained model that a name means: a search, a run, an exported folder, or a model in MLflow's registry."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from wmlsearch.errors import InputError
from wmlsearch.inference.export import ExportedModel, is_exported, load_exported
from wmlsearch.runs.checks import open_run
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.tracking.model_registry import SCHEME, fetch
from wmlsearch.workflows.stored_weights import load_run_model


@dataclass(frozen=True)
class ModelOrigin:
    """Where a model comes from, in words."""

    name: str  # "champion of search s", "trial-0003 of search s", "run r", or the folder or MLflow name of an export
    data: str = ""  # name of the prepared data set that it was trained on; "" where its files do not tell


def find_model(model: str, runs: Path, mlflow_uri: str) -> ExportedModel:
    """Return the model that `model` names, with all its networks. Raises InputError. See `find_model_and_origin`."""
    return find_model_and_origin(model, runs, mlflow_uri)[0]


def find_model_and_origin(model: str, runs: Path, mlflow_uri: str) -> tuple[ExportedModel, ModelOrigin]:
    """Return the model that `model` names, with all its networks, and where it comes from. Raises InputError.

    Args:
        model: An exported folder; `models:/NAME@ALIAS` or `models:/NAME/VERSION` in MLflow's registry; or a search or
            run by path or by its name in `runs`. A search means the networks of its champion, or its best trial if it
            has no champion yet.
        runs: The folder of all runs.
        mlflow_uri: The MLflow store whose registry has the `models:/` names.
    """
    if model.startswith(SCHEME):
        with tempfile.TemporaryDirectory() as folder:
            return load_exported(fetch(model, mlflow_uri, Path(folder))), ModelOrigin(model)
    if is_exported(Path(model)):
        return load_exported(Path(model)), ModelOrigin(model)
    run = open_run(model, runs)
    data = run.record().data.name
    if isinstance(run, SearchDir):
        champion = run.model("champion").export
        if is_exported(champion):
            return load_exported(champion), ModelOrigin(f"champion of search {run.name}", data)
        best = load_run_model(_best_trial(run))
        return ExportedModel((best,)), ModelOrigin(f"{best.name} of search {run.name}", data)
    exported = load_exported(run.export) if is_exported(run.export) else ExportedModel((load_run_model(run),))
    return exported, ModelOrigin(f"run {run.record().name}", data)


def _best_trial(search: SearchDir) -> RunDir:
    best = leaderboard(search).best
    if best is None:
        raise InputError(f"{search.path}: no trial of this search has a score yet; wait for one, or name a run")
    return RunDir(Path(best.path))
