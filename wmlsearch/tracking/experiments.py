"""The MLflow experiment of a search or run: which one it is, where its files go, what to do if it was deleted.

The first run of a folder goes into the experiment of its record. From then on it stays there, and so do all runs of a
search, even if the experiment is renamed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from wmlsearch.config import InputError
from wmlsearch.runs.folders import AnyDir
from wmlsearch.runs.names import EXPERIMENT
from wmlsearch.runs.redaction import without_password
from wmlsearch.runs.wording import command
from wmlsearch.tracking.client import THIS_MACHINE
from wmlsearch.tracking.mlflow_patches import TRAINING_EXPERIMENT
from wmlsearch.tracking.uri import is_database

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

DELETED = "deleted"  # the lifecycle stage of what MLflow keeps, but adds nothing to
MAX_NAME = 500  # characters of an experiment's name that MLflow takes
ARTIFACTS = "mlflow-artifacts"  # the folder of the files of a store without a server


def check_experiment_name(name: str) -> str:
    """Return the name. Raises InputError if MLflow takes no experiment of that name."""
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise InputError(
            f"--experiment {name[:40]!r}: must be 1 to {MAX_NAME} printable characters, and not only spaces"
        )
    return name


def experiment_of(client: MlflowClient, uri: str, root: AnyDir, wanted: str | None = None) -> str:
    """Return the id of the experiment of a search or single run, which is created if it is missing.

    Args:
        wanted: Another experiment than the one of the folder's record, for a folder that this store has not yet, or
            has in a deleted experiment only.

    Raises InputError if it was deleted: MLflow keeps its name, and whoever deleted it may not want its runs back.
    """
    record = root.record()
    experiment = _noted_experiment(client, uri, root) or _experiment_with_run(client, record.key)
    if experiment is None or (wanted is not None and experiment.lifecycle_stage == DELETED):
        name = wanted or record.experiment or EXPERIMENT
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            return str(client.create_experiment(name, artifact_location(uri, root), TRAINING_EXPERIMENT))
    if experiment.lifecycle_stage == DELETED:
        raise InputError(
            f"{without_password(uri)}: the experiment {experiment.name!r} was deleted there, so it takes no runs; "
            f"restore it (`mlflow experiments restore -x {experiment.experiment_id}`, with MLFLOW_TRACKING_URI), or "
            f"copy the runs into another one (`{command('sync', record.name, '--experiment', 'NAME')}`)"
        )
    return str(experiment.experiment_id)


def experiment_name(client: MlflowClient, root: AnyDir) -> str:
    """Return the name of the experiment that a search or run, which is in MLflow, is in."""
    return str(client.get_experiment(root.ledger().experiment_id or "").name)


def active_experiments(client: MlflowClient, roots: Iterable[AnyDir]) -> list[Experiment]:
    """Return the experiments of searches and single runs that MLflow has and that are not deleted, each once."""
    names: dict[str, None] = {}
    for root in roots:
        with contextlib.suppress(InputError):  # a damaged folder
            names[root.record().experiment or EXPERIMENT] = None
    experiments = [client.get_experiment_by_name(name) for name in names or [EXPERIMENT]]
    return [
        experiment for experiment in experiments if experiment is not None and experiment.lifecycle_stage != DELETED
    ]


def artifact_location(uri: str, root: AnyDir) -> str | None:
    """Return where the files of a new experiment go; None: where its server keeps them.

    Without a server, MLflow would take a folder below the current one, another in each terminal.
    """
    if not is_database(uri):
        return None
    if given := os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT", ""):
        return given if "://" in given else Path(given).resolve().as_uri()
    if uri.startswith("sqlite:///"):
        return (Path(uri.removeprefix("sqlite:///")).resolve().parent / ARTIFACTS).as_uri()
    return (root.path.resolve().parent / ARTIFACTS).as_uri()


def check_folder_exists(uri: str, location: str) -> None:
    """Raises FileNotFoundError if a server on another machine names a folder that this machine does not have.

    MLflow would create it here, and nobody would find the files.
    """
    host = urlsplit(uri).hostname if uri.startswith(("http://", "https://")) else None
    if host is None or host in THIS_MACHINE or re.match(r"(?!file:)[a-z][\w+.-]*:", location):
        return
    root = Path(location.removeprefix("file://")).parents[2]  # of ROOT/EXPERIMENT/RUN/artifacts
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: the server on {host} keeps files in this folder (--no-serve-artifacts), and this machine has no "
            "such folder"
        )


def _noted_experiment(client: MlflowClient, uri: str, root: AnyDir) -> Experiment | None:
    """Return the experiment that the folder's ledger names, or None."""
    from mlflow.exceptions import MlflowException

    ledger = root.ledger()
    if ledger.uri != without_password(uri) or not ledger.experiment_id:
        return None
    try:
        return client.get_experiment(ledger.experiment_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _experiment_with_run(client: MlflowClient, key: str) -> Experiment | None:
    """Return the active experiment that has the run with this key, or None."""
    experiments = {experiment.experiment_id: experiment for experiment in client.search_experiments()}
    if not experiments:
        return None
    runs = client.search_runs(list(experiments), f"tags.`wmlsearch.key` = '{key}'", max_results=1)
    return experiments[runs[0].info.experiment_id] if runs else None
