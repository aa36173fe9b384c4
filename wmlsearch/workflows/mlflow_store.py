"""The MLflow store of a search or training: which one it is, and what it lacks at the end."""

from __future__ import annotations

from pathlib import Path

from wmlsearch.errors import InputError
from wmlsearch.runs.folders import AnyDir, SearchDir, folder_of_all_runs
from wmlsearch.runs.redaction import without_password
from wmlsearch.runs.wording import command, run_words
from wmlsearch.tracking.uri import check_uri, default_uri, usual_form


def store_uri(out: Path, given: str | None) -> str:
    """Return the URI of the MLflow store: the given one, or that beside the runs. Raises InputError."""
    uri = given or default_uri(out)
    if given or out.is_dir():
        check_uri(uri)
    return usual_form(uri)


def store_uri_of(run: AnyDir, given: str | None) -> str:
    """Return the URI of the MLflow store of an existing search or run, as `store_uri` does. Raises InputError."""
    return store_uri(folder_of_all_runs(run), given)


def check_store_of_resumed(search: SearchDir, given: str | None) -> None:
    """Refuse to resume a search without its MLflow store, if that has a password. Raises InputError.

    The run folder does not hold the password, and the rest of the runs would be copied to another store.
    """
    before = search.ledger().uri or ""
    if not given and "***" in before:
        raise InputError(
            f"{search.name}: its MLflow store is {before}, and the password is not stored; give --mlflow-uri (or "
            "MLFLOW_TRACKING_URI) with the password"
        )


def uri_words(mlflow_uri: str | None) -> tuple[str, ...]:
    """Return `--mlflow-uri URI` for a command to paste, or nothing without a URI. A password becomes `***`."""
    return ("--mlflow-uri", without_password(mlflow_uri)) if mlflow_uri else ()


def missing_results_warning(run: AnyDir, problem: str, mlflow_uri: str | None = None) -> str:
    """Return the warning that MLflow lacks results of a search or training, and how to send them.

    Args:
        run: The search or training.
        problem: Why MLflow lacks them.
        mlflow_uri: The store that was given. None: the one beside the run folders.
    """
    later = command("sync", *run_words(run.path), *uri_words(mlflow_uri))
    return f"warning: MLflow does not have all results ({problem}); to send them later: {later}"
