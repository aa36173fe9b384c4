"""MLflow's client, configured to print nothing and to give up within seconds."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from wmlsearch.runs.environment import is_loopback, loopback_exceptions, variables_set
from wmlsearch.tracking.mlflow_patches import make_folders_of_sqlite_files
from wmlsearch.tracking.uri import is_database, sqlite_file, sqlite_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

CONNECT_S = 10  # seconds to wait for a database
# The drivers that take `connect_timeout`; others name it differently, and refuse a name that they do not know.
_TAKE_CONNECT_TIMEOUT = ("psycopg", "psycopg2", "mysqldb", "pymysql", "mysqlconnector")
_DEFAULTS = {  # unless the user has set them
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# MLflow's own retries may create a run twice, if the first request arrived. We look for the run before we retry.
_ALWAYS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
_SILENT = ("mlflow", "alembic", "sqlalchemy", "urllib3")


@contextlib.contextmanager
def connected(uri: str) -> Iterator[MlflowClient]:
    """Yield a client of the tracking store. In the block, MLflow prints nothing, and fails within seconds."""
    with variables_set(_variables(uri)):
        yield connect(uri)


def _variables(uri: str) -> dict[str, str]:
    """Return the environment for calls of a store, which MLflow reads at each call."""
    unset = {name: value for name, value in _DEFAULTS.items() if name not in os.environ}
    host = (urlsplit(uri).hostname or "") if uri.lower().startswith(("http://", "https://")) else ""
    exceptions = loopback_exceptions(os.environ, host if is_loopback(host) else "")
    return {**unset, **_ALWAYS, **exceptions}


def connect(uri: str) -> MlflowClient:
    """Return a client of the tracking store, which is made if it is a new SQLite file; see also `connected`."""
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow import MlflowClient

    for name in _SILENT:  # MLflow sets its own level when imported
        logging.getLogger(name).setLevel(logging.ERROR)
    file = sqlite_file(uri)
    if file is not None:
        make_folders_of_sqlite_files()
        if not file.exists():
            _create_store(file)
    if is_database(uri) and not uri.startswith("sqlite"):
        _check_connection(uri)
    return MlflowClient(tracking_uri=uri)


def _check_connection(uri: str) -> None:
    """Connect to a database once. MLflow tries ten times, for almost two minutes, before it says what is wrong."""
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.pool import NullPool

    takes_limit = make_url(uri).get_driver_name() in _TAKE_CONNECT_TIMEOUT
    limit = {"connect_timeout": CONNECT_S} if takes_limit else {}
    with create_engine(uri, poolclass=NullPool, connect_args=limit).connect():
        pass


def answers(uri: str) -> bool:
    """Return whether the store answers, within seconds."""
    try:
        with connected(uri) as client:
            client.search_experiments(max_results=1)
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
        MlflowClient(tracking_uri=sqlite_uri(complete)).search_experiments()
        try:
            os.link(complete, path)
        except FileExistsError:  # another process was faster
            return
        except OSError:  # a file system without hard links
            if not path.exists():
                complete.rename(path)
