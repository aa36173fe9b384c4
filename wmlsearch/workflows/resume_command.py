"""The command that resumes a search, and what it lacks."""

from __future__ import annotations

from wmlsearch.runs.folders import SearchDir, folder_of_all_runs
from wmlsearch.runs.redaction import without_password
from wmlsearch.runs.wording import command, run_words
from wmlsearch.tracking.uri import default_uri, sqlite_file


def resume_command(search: SearchDir, mlflow_uri: str | None = None) -> str:
    """Return the command that resumes a search where it was: with the same MLflow store, on the same cluster.

    Args:
        mlflow_uri: The store that it was given. None: that of its ledger. One with a password is left out, see
            `resume_note`.
    """
    store, address = _store(search, mlflow_uri), search.record().ray_address
    words = ["--mlflow-uri", store] if store and not _lacks_password(store) else []
    words += ["--ray-address", address] if address else []
    return command("tune", "--resume", *run_words(search.path), *words)


def resume_note(search: SearchDir, mlflow_uri: str | None = None) -> str:
    """Return what the command that resumes a search lacks, since no folder and no message has a password; or ""."""
    store = _store(search, mlflow_uri)
    if not _lacks_password(store):
        return ""
    return f"note: its MLflow store is {store}; give --mlflow-uri, or set MLFLOW_TRACKING_URI, with the password"


def _store(search: SearchDir, given: str | None) -> str:
    """Return the MLflow store to resume a search with, without its password; "" for the one beside the run folders.

    A ledger can name a SQLite file of another machine, or one that was moved with the run folders.
    """
    uri = without_password(given) if given else search.ledger().uri or ""
    file = sqlite_file(uri)
    if uri == default_uri(folder_of_all_runs(search)) or (not given and file is not None and not file.exists()):
        return ""
    return uri


def _lacks_password(uri: str) -> bool:
    return "***" in uri
