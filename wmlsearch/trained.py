"""What MODEL means where a trained model is asked for: a search, a run, an exported folder, or MLflow's registry."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from wmlsearch.config import InputError
from wmlsearch.model.export import Exported, is_exported, load_exported
from wmlsearch.model.inference import Model
from wmlsearch.registry import SCHEME, fetch
from wmlsearch.runs import RunDir, SearchDir, find
from wmlsearch.verdict.leaderboard import leaderboard


def trained(model: str, runs: Path, mlflow_uri: str) -> Exported:
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
    run = find(model, runs)
    members = _of_search(run) if isinstance(run, SearchDir) else [run]
    return Exported(tuple(Model.of_run(it) for it in members))


def _of_search(search: SearchDir) -> list[RunDir]:
    champion = search.status().get("champion")
    if champion is None:
        best = leaderboard(search).best
        if best is None:
            raise InputError(f"{search.path}: no trial of this search has a score yet; wait for it, or name a run")
        return [RunDir(Path(best.path))]
    seeds = {}
    for run in search.finals():
        named = re.fullmatch(rf"{re.escape(str(champion))}-seed(\d+)", run.name)
        if named and run.best.is_file():
            seeds[int(named[1])] = run
    if not seeds:
        raise InputError(f"{search.path}: its champion {champion} has no weights in final/; name a run instead")
    return [run for _, run in sorted(seeds.items())]
