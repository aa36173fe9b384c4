"""What MODEL means where a trained model is asked for: a search, a run, an exported folder, or MLflow's registry."""

from __future__ import annotations

import tempfile
from pathlib import Path

from wmlsearch.config import InputError
from wmlsearch.inference.export import ExportedModel, is_exported, load_exported
from wmlsearch.inference.predictor import TrainedModel
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.runs.schema import open_run
from wmlsearch.tracking.model_registry import SCHEME, fetch


def find_model(model: str, runs: Path, mlflow_uri: str) -> ExportedModel:
    """The model that `model` names, and its ensemble where there are several seeds. Raises InputError.

    Args:
        model: an exported folder; `models:/NAME@ALIAS` or `models:/NAME/VERSION` in MLflow's registry; or a search or
            run by name below `runs` or by path. A search stands for its champion's seeds, or, as long as it has no
            champion, for its best trial.
    """
    if model.startswith(SCHEME):
        with tempfile.TemporaryDirectory() as folder:
            return load_exported(fetch(model, mlflow_uri, Path(folder)))
    if is_exported(Path(model)):
        return load_exported(Path(model))
    run = open_run(model, runs)
    champion = run.model("champion").export if isinstance(run, SearchDir) else run.export
    if is_exported(champion):
        return load_exported(champion)
    return ExportedModel((TrainedModel.from_run(_best_trial(run) if isinstance(run, SearchDir) else run),))


def _best_trial(search: SearchDir) -> RunDir:
    best = leaderboard(search).best
    if best is None:
        raise InputError(f"{search.path}: no trial of this search has a score yet; wait for it, or name a run")
    return RunDir(Path(best.path))
