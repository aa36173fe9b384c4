"""Fixtures that the tests of MLflow share."""

from __future__ import annotations

from pathlib import Path

import pytest

from wmlsearch.tracking.client import connect
from wmlsearch.tracking.uri import default_uri


@pytest.fixture(autouse=True)
def _machines_may_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a server that has just started, on a busy machine, have a minute for an answer."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store, shared because MLflow takes some seconds to create it."""
    folder = tmp_path_factory.mktemp("mlflow")
    connect(default_uri(folder)).search_experiments()
    return folder / "mlflow.db"
