"""How the MLflow server of `wmlsearch ui` and of a cluster's head is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wmlsearch.tracking import server
from wmlsearch.tracking.server import start_server
from wmlsearch.tracking.uri import sqlite_file, sqlite_uri


@pytest.mark.parametrize("name", ["runs", "a%20b?", "a b#c"])
def test_the_server_opens_the_store_and_its_uri_quotes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """MLflow's server makes the folder of a SQLite file by the URI, as it stands there: `a%2520b%3F` for `a%20b?`."""
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(server.subprocess, "Popen", lambda _, **options: started.append(options))
    store = tmp_path / name / "mlflow.db"
    store.parent.mkdir()
    start_server(sqlite_uri(store), 5000)
    (options,) = started
    uri = options["env"]["MLFLOW_BACKEND_STORE_URI"]
    monkeypatch.chdir(options["cwd"] or Path.cwd())
    opened = sqlite_file(uri)
    assert opened is not None
    assert opened.absolute() == store
    assert Path(uri.removeprefix("sqlite:///")).absolute().parent == store.parent
    assert (options["cwd"] is None) == ("%" not in name)
