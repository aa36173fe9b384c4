"""The MLflow experiment and the MLflow runs of run folders: find them, create them, delete duplicates.

Each MLflow run has the `key` of its run folder as tag `wmlsearch.key`, by which it is found before one is created.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wmlsearch.config import InputError
from wmlsearch.runs.redaction import without_password
from wmlsearch.runs.schema import FolderRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "wmlsearch"
DELETED = "deleted"  # the lifecycle stage of what MLflow keeps, but adds nothing to


@dataclass(frozen=True)
class MlflowRun:
    """The MLflow run of a run folder."""

    run_id: str
    experiment_id: str
    created: bool  # now; False: it was found
    artifact_uri: str = ""  # of a created run; "" of one that was found: MLflow must be asked


def find_or_create_run(
    client: MlflowClient, uri: str, record: FolderRecord, parent: str | None = None, experiment_id: str | None = None
) -> MlflowRun:
    """Return the MLflow run with the record's key, or create one.

    Args:
        parent: The id of its parent run.
        experiment_id: Given where there can be no run with this key yet: it is created without a search.
    """
    if experiment_id is None:
        experiment_id = experiment_of(client, uri)
        if run_id := single_run(client, experiment_id, record.key):
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


def experiment_of(client: MlflowClient, uri: str) -> str:
    """Return the id of the experiment `wmlsearch`, which is created if it is missing.

    Raises InputError if it was deleted: MLflow keeps its name, and whoever deleted it may not want its runs back.
    """
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None and experiment.lifecycle_stage == DELETED:
        raise InputError(
            f"{without_password(uri)}: the experiment {EXPERIMENT!r} was deleted there, so it takes no runs; restore "
            f"it (`mlflow experiments restore -x {experiment.experiment_id}`, with MLFLOW_TRACKING_URI), or give "
            "another --mlflow-uri"
        )
    if experiment is not None:
        return str(experiment.experiment_id)
    if not uri.startswith("sqlite:///"):
        return str(client.create_experiment(EXPERIMENT))
    artifacts = Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlflow-artifacts"
    return str(client.create_experiment(EXPERIMENT, artifacts.as_uri()))


def run_exists(client: MlflowClient, run_id: str) -> bool:
    """Return whether a run takes metrics; a deleted run can still be read, but takes none."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_run(run_id).info.lifecycle_stage) != DELETED
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
