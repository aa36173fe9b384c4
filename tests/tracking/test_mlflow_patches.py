"""MLflow's undocumented names that tracking/mlflow_patches.py uses: each test fails when MLflow changes one of them."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
from mlflow.utils import validation

from wmlsearch.tracking import mlflow_patches
from wmlsearch.tracking.client import connect
from wmlsearch.tracking.uri import sqlite_uri


def test_artifact_repository_of_a_run_logs_a_file(tmp_path: Path) -> None:
    mlflow_patches.log_dict_to((tmp_path / "store").as_uri(), f"sqlite:///{tmp_path}/m.db", {"a": 1}, "a.json")
    assert json.loads((tmp_path / "store" / "a.json").read_text()) == {"a": 1}


def test_pages_about_training_that_the_ui_knows() -> None:
    name, _, value = mlflow_patches.TRAINING_PAGES.partition("=")
    scripts = [path.read_text() for path in (Path(mlflow.__file__).parent / "server" / "js").rglob("*.js")]
    for text in (f'"{name}"', f'"{value}"'):
        assert any(text in script for script in scripts)


def test_length_limit_of_experiment_tags() -> None:
    assert validation.MAX_EXPERIMENT_TAG_VAL_LENGTH >= mlflow_patches.MAX_EXPERIMENT_TAG


def test_folder_of_a_sqlite_file_is_made_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "50%20?"
    client = connect(sqlite_uri(folder / "m.db"))
    assert [experiment.name for experiment in client.search_experiments()] == ["Default"]
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [Path("50%20?"), Path("50%20?/m.db")]
