"""MLflow's client, made quiet and impatient: only this module, the registry and the mirror know MLflow."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from wmlsearch.config import InputError
from wmlsearch.runs.redaction import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SILENT = ("mlflow", "alembic", "sqlalchemy", "urllib3")
_DATABASES = ("postgresql", "mysql", "mssql")


def check_uri(uri: str) -> None:
    """Refuse what can't be the address of a store of MLflow's, before anything runs for it. Raises InputError.

    Whether somebody answers there is another question: training doesn't wait for that.
    """
    kind, colon, _ = uri.partition(":")
    kind, fault = kind.partition("+")[0].lower(), ""
    if kind in ("http", "https"):
        fault = _fault_of_server(uri)
    elif kind == "sqlite" and colon:
        fault = _fault_of_file(uri)
    elif (not colon and kind != "databricks") or kind == "file":
        fault = "is a folder, and MLflow keeps no store in folders any more"
    elif kind not in (*_DATABASES, "databricks", *(it.name for it in entry_points(group="mlflow.tracking_store"))):
        fault = f"MLflow has no store of the kind {kind!r}"
    if fault:
        shown = without_password(uri if "://" in uri else f"://{uri}").removeprefix("://")
        raise InputError(
            f"{shown}: {fault}; give --mlflow-uri (or MLFLOW_TRACKING_URI) a server or a database, "
            "such as http://127.0.0.1:5000 or sqlite:///PATH/mlflow.db"
        )


def _fault_of_server(uri: str) -> str:
    try:
        parts = urlsplit(uri)
        return "" if parts.hostname and parts.port != 0 else "must name a host, and a port from 1 to 65535"
    except ValueError as error:
        if "@" in uri:  # what it says may be a part of the password
            return "is no address (a name or password has its : / ? # [ ] @ written as %3A %2F %3F %23 %5B %5D %40)"
        return f"is no address ({error})"


def _fault_of_file(uri: str) -> str:
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path in (Path(), Path(":memory:")):
        return "must name a file (sqlite:///PATH), since nothing would be kept"
    above = next((folder for folder in path.absolute().parents if folder.exists()), path)
    if path.is_dir() or not above.is_dir():
        return f"{path} is a folder" if path.is_dir() else f"{above} is no folder"
    if path.exists():
        with path.open("rb") as file:
            if file.read(16) not in (b"", b"SQLite format 3\0"):
                return f"{path} is no SQLite database, and is left as it is"
    return ""


def why(error: Exception, uri: str = "") -> str:
    """Why MLflow at `uri` failed, in a line without passwords; where it wants to know who we are, how to tell it."""
    kind, said = type(error).__name__, str(error)
    if uri:
        said = said.replace(uri, without_password(uri))
    text = without_password(f"{kind}: {' '.join(said.split())}")[: len(kind) + 302]
    if re.search(r"\b401\b|\b403\b|not authenticated", text, re.IGNORECASE):
        text += "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (run folders keep no password)"
    return text


def connect(uri: str) -> MlflowClient:
    """A client of the tracking store. One that is away is given up on after seconds, since the mirror tries again."""
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    # Its own retries send again what may have arrived: a run that was made would be made twice. We look first.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow import MlflowClient

    for name in _SILENT:  # MLflow sets its own level when imported
        logging.getLogger(name).setLevel(logging.ERROR)
    file = uri.removeprefix("sqlite:///").partition("?")[0]
    if uri.startswith("sqlite:///") and not file.startswith("file:") and not Path(file).exists():
        _make(Path(file))
    return MlflowClient(tracking_uri=uri)


def answers(uri: str) -> bool:
    """Whether MLflow answers at all, within seconds."""
    try:
        connect(uri).search_experiments(max_results=1)
    except Exception:  # of all the libraries that it talks through
        return False
    return True


def _make(path: Path) -> None:
    """A new store in a SQLite file, which appears when it is whole.

    MLflow makes its tables in many steps, for seconds, and can never open what was left by a death between them.
    """
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as aside:
        made = Path(aside, path.name)
        MlflowClient(tracking_uri=f"sqlite:///{made.absolute()}").search_experiments()
        try:
            os.link(made, path)
        except FileExistsError:  # another process was faster
            return
        except OSError:  # a file system without hard links
            if not path.exists():
                made.rename(path)
