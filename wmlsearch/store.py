"""MLflow's client, made quiet and impatient: only this module, the registry and the mirror know MLflow."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SILENT = ("mlflow", "alembic", "sqlalchemy", "urllib3")


def connect(uri: str) -> MlflowClient:
    """A client of the tracking store. One that is away is given up on after seconds, since the mirror tries again."""
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow import MlflowClient

    for name in _SILENT:  # MLflow sets its own level when imported
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)
