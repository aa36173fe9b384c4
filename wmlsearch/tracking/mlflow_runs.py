"""The MLflow runs of run folders: find them, create them, delete duplicates.

Each MLflow run has the `key` of its run folder as tag `wmlsearch.key`, by which it is found before one is created.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from wmlsearch.runs.schema import FolderRecord
from wmlsearch.tracking.experiments import DELETED

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class MlflowRun:
    """The MLflow run of a run folder."""

    run_id: str
    experiment_id: str
    created: bool  # now; False: it was found
    artifact_uri: str = ""  # of a created run; "" of one that was found: MLflow must be asked


def find_or_create_run(
    client: MlflowClient, record: FolderRecord, experiment_id: str, parent: str | None = None, search_first: bool = True
) -> MlflowRun:
    """Return the MLflow run with the record's key, or create one.

    Args:
        experiment_id: The experiment of the search or run.
        parent: The id of its parent run.
        search_first: False where there can be no run with this key yet.
    """
    if search_first and (run_id := single_run(client, experiment_id, record.key)):
        return MlflowRun(run_id, experiment_id, created=False)
    tags = {"wmlsearch.key": record.key, **({"mlflow.parentRunId": parent} if parent else {})}
    info = client.create_run(experiment_id, int(record.created * 1000), tags, record.name).info
    return MlflowRun(info.run_id, experiment_id, created=True, artifact_uri=info.artifact_uri)


def single_run(client: MlflowClient, experiment_id: str, key: str, keep: str = "") -> str:
    """Return the id of the run with this key ("" if there is none) and delete others with the same key.

    A server that did not answer in time may still have created a run, after another was created in its place. `keep`
    is the id of the one to keep.
    """
    filter_ = f"tags.`wmlsearch.key` = '{key}'"
    ids = sorted(run.info.run_id for run in client.search_runs([experiment_id], filter_, max_results=100))
    kept = keep if keep in ids else ids[0] if ids else ""
    for run_id in ids:
        if run_id != kept:
            client.delete_run(run_id)
    return kept


def run_exists(client: MlflowClient, run_id: str) -> bool:
    """Return whether a run takes metrics; a deleted run can still be read, but takes none."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_run(run_id).info.lifecycle_stage) != DELETED
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
