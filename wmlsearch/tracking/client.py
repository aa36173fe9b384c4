"""MLflow's client, configured to print nothing and to give up within seconds."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from wmlsearch.runs.redaction import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SILENT = ("mlflow", "alembic", "sqlalchemy", "urllib3")


def why(error: Exception, uri: str = "") -> str:
    """Return why MLflow at `uri` failed: one line without passwords, with the next step where a login is missing."""
    kind, message = type(error).__name__, str(error)
    if uri:
        message = message.replace(uri, without_password(uri))
    text = without_password(f"{kind}: {' '.join(message.split())}")[: len(kind) + 302]
    if re.search(r"\b401\b|\b403\b|not authenticated", text, re.IGNORECASE):
        text += "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (run folders keep no password)"
    return text


def connect(uri: str) -> MlflowClient:
    """Return a client of the tracking store, whose calls fail within seconds if the store is away."""
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    # MLflow's own retries may create a run twice, if the first request arrived. We look for the run before we retry.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow import MlflowClient

    for name in _SILENT:  # MLflow sets its own level when imported
        logging.getLogger(name).setLevel(logging.ERROR)
    file = uri.removeprefix("sqlite:///").partition("?")[0]
    if uri.startswith("sqlite:///") and not file.startswith("file:") and not Path(file).exists():
        _create_store(Path(file))
    return MlflowClient(tracking_uri=uri)


def answers(uri: str) -> bool:
    """Return whether the store answers, within seconds."""
    try:
        connect(uri).search_experiments(max_results=1)
    except Exception:  # each store has its own library, with its own errors
        return False
    return True


def _create_store(path: Path) -> None:
    """Create a new store in a SQLite file, which appears when it is complete.

    MLflow creates its tables in many steps, for seconds, and can never open what an interruption between them leaves.
    """
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        complete = Path(folder, path.name)
        MlflowClient(tracking_uri=f"sqlite:///{complete.absolute()}").search_experiments()
        try:
            os.link(complete, path)
        except FileExistsError:  # another process was faster
            return
        except OSError:  # a file system without hard links
            if not path.exists():
                complete.rename(path)
