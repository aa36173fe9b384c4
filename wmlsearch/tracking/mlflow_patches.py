"""MLflow's undocumented names and forms. No other module uses any.

tests/tracking/test_mlflow_patches.py fails when one of them changes; tests/tracking/test_ui_views.py opens a saved view
in a browser.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wmlsearch.runs.files import write_json
from wmlsearch.tracking.uri import sqlite_file

# The prefix of an experiment's tag that holds a saved view of the UI. MLflow has no API for views.
SHARED_VIEW_TAG = "mlflow.sharedViewState."

# The part of an address with which the UI shows the pages about training. Without it, the menus are about prompts.
TRAINING_PAGES = "workflowType=machine_learning"

# Characters of an experiment's tag: MLflow 3.17 takes 20,000, older servers 5000.
MAX_EXPERIMENT_TAG = 5000


def view_path(experiment_id: str, view: str) -> str:
    """Return the path of the UI's page of an experiment with a saved view. MLflow does not document its URLs."""
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={view}&{TRAINING_PAGES}"


def log_dict_to(artifact_uri: str, tracking_uri: str, content: Mapping[str, Any], name: str) -> None:
    """Log a JSON file into the artifact store of a run.

    `MlflowClient.log_dict` asks the server for the store at each run, one more call for each trial; the repository
    that it then uses is not documented.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with tempfile.TemporaryDirectory(prefix="wmlsearch-") as folder:
        path = Path(folder) / name
        write_json(path, content)
        get_artifact_repository(artifact_uri, tracking_uri=tracking_uri).log_artifact(str(path))


def make_folders_of_sqlite_files() -> None:
    """Let MLflow make the folder that a SQLite file is in, where the path is quoted in the URI.

    MLflow itself makes a folder of the quoted name, which stays empty, and fails where it may not make it.
    """
    from mlflow.store.db import utils

    utils._make_parent_dirs_if_sqlite = _make_folder


def _make_folder(db_uri: str) -> None:
    if (file := sqlite_file(db_uri)) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
