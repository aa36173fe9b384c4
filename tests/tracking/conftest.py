"""Fixtures that the tests of MLflow share."""

from __future__ import annotations

from pathlib import Path

import pytest

from wmlsearch.tracking.client import connect
from wmlsearch.tracking.sync import default_uri


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, shared because MLflow takes some seconds to create it."""
    folder = tmp_path_factory.mktemp("mlflow")
    connect(default_uri(folder)).search_experiments()
    return folder / "mlflow.db"
