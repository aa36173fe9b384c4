"""The MLflow experiment of a search or run: which one it is, where its files go, what to do if it was deleted.

The first run of a folder goes into the experiment of its record. From then on it stays there, and so do all runs of a
search, even if the experiment is renamed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from wmlsearch.errors import InputError
from wmlsearch.runs.environment import is_loopback
from wmlsearch.runs.folders import AnyDir
from wmlsearch.runs.names import EXPERIMENT
from wmlsearch.runs.redaction import without_password
from wmlsearch.runs.schema import MlflowLedger
from wmlsearch.runs.wording import command, run_words
from wmlsearch.tracking.client import connected
from wmlsearch.tracking.problems import local_folder
from wmlsearch.tracking.uri import is_database, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

DELETED = "deleted"  # the lifecycle stage of what MLflow keeps, but adds nothing to
MAX_NAME = 500  # characters of an experiment's name that MLflow takes
PAGE = 200  # experiments that are searched at once
ARTIFACTS = "mlflow-artifacts"  # the folder of the files of a store without a server


def check_experiment_name(name: str) -> str:
    """Return the name. Raises InputError if MLflow takes no experiment of that name."""
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise InputError(
            f"--experiment {name[:40]!r}: must be 1 to {MAX_NAME} printable characters, and not only spaces"
        )
    return name


def experiment_of(
    client: MlflowClient, uri: str, root: AnyDir, wanted: str | None = None, everywhere: bool = False
) -> str:
    """Return the id of the experiment of a search or single run, which is created if it is missing.

    A folder that no MLflow has had yet belongs into the experiment of its record. One that was sent before may be in a
    renamed experiment, so it is searched in all of them, unless the ledger names its experiment.

    Args:
        wanted: Another experiment than the one of the folder's record, for a folder that this store has not yet, or
            has in a deleted experiment only.
        everywhere: Search all experiments for a folder without a ledger too, which can be lost.

    Raises InputError if it was deleted: MLflow keeps its name, and whoever deleted it may not want its runs back.
    """
    record = root.record()
    recorded = record.experiment or EXPERIMENT
    experiment = _noted_experiment(client, uri, root)
    if experiment is None and (everywhere or root.ledger().experiment_id):
        experiment = _experiment_with_run(client, record.key, recorded)
    if experiment is None or (wanted is not None and experiment.lifecycle_stage == DELETED):
        name = wanted or recorded
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            return str(client.create_experiment(name, artifact_location(uri, root)))
    if experiment.lifecycle_stage == DELETED:
        store = without_password(uri)
        elsewhere = command("sync", *run_words(root.path), "--experiment", "NAME", "--mlflow-uri", store)
        raise InputError(
            f"{store}: the experiment {experiment.name!r} was deleted there and accepts no runs; restore it "
            f"(`MLFLOW_TRACKING_URI={shlex.quote(store)} mlflow experiments restore -x {experiment.experiment_id}`), "
            f"or copy the runs into another one (`{elsewhere}`)"
        )
    return str(experiment.experiment_id)


def experiment_name(uri: str, root: AnyDir) -> str:
    """Return the name of the experiment that a search or run, which is in MLflow, is in."""
    with connected(uri) as client:
        return str(client.get_experiment(root.ledger().experiment_id or "").name)


def active_experiments(uri: str, roots: Iterable[AnyDir]) -> list[Experiment]:
    """Return the experiments of searches and single runs that MLflow has and that are not deleted, each once.

    They are those that the ledgers name, since an experiment can be renamed, and `sync` can send a folder into another
    one; of a folder that this MLflow has not yet, the one of its record. Without folders, as on a machine from which
    one only looks at the runs of others, it is that of new ones.
    """
    with connected(uri) as client:
        return _active_experiments(client, uri, roots)


def _active_experiments(client: MlflowClient, uri: str, roots: Iterable[AnyDir]) -> list[Experiment]:
    noted: dict[str, Experiment | None] = {}
    for root in roots:
        with contextlib.suppress(InputError):  # a damaged folder
            ledger, name = root.ledger(), root.record().experiment or EXPERIMENT
            key = f"id {ledger.experiment_id}" if _notes(ledger, uri) else f"name {name}"
            if key not in noted:
                noted[key] = _noted_experiment(client, uri, root) or client.get_experiment_by_name(name)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    experiments = noted.values() if noted else [client.get_experiment_by_name(name)]
    active = {
        experiment.experiment_id: experiment
        for experiment in experiments
        if experiment is not None and experiment.lifecycle_stage != DELETED
    }
    return list(active.values())


def artifact_location(uri: str, root: AnyDir) -> str | None:
    """Return where the files of a new experiment go; None: where its server keeps them.

    Without a server, MLflow would take a folder below the current one, another in each terminal.
    """
    if not is_database(uri):
        return None
    if given := os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT", ""):
        return given if "://" in given else Path(given).resolve().as_uri()
    beside = sqlite_file(uri) or root.path
    return (beside.resolve().parent / ARTIFACTS).as_uri()


def check_folder_exists(uri: str, location: str) -> None:
    """Raises FileNotFoundError if files belong into a folder of another machine, which this one does not have.

    MLflow would create it here, and nobody would find the files.
    """
    host, folder = _other_host(uri), local_folder(location)
    if not host or folder is None:
        return
    # A run's files are in ROOT/EXPERIMENT/RUN/artifacts, or in ROOT/RUN/artifacts, where ROOT need not exist yet.
    root = folder.parents[min(2, len(folder.parents) - 1)]
    if root.is_dir():
        return
    if is_database(uri):
        raise FileNotFoundError(
            f"{root}: this experiment of the database on {host} keeps its files in this folder of the machine that "
            "created it, and this machine has no such folder"
        )
    raise FileNotFoundError(
        f"{root}: the server on {host} keeps files in this folder (--no-serve-artifacts), and this machine has no "
        "such folder"
    )


def _other_host(uri: str) -> str:
    """Return the other machine that a server or database is on, or ""."""
    if uri.startswith(("http://", "https://")):
        host = urlsplit(uri).hostname
    elif is_database(uri):
        from sqlalchemy import make_url

        host = make_url(uri).host  # of a connection through a socket: none, or its folder
    else:
        return ""
    return "" if not host or is_loopback(host) or host.startswith("/") else host


def _noted_experiment(client: MlflowClient, uri: str, root: AnyDir) -> Experiment | None:
    """Return the experiment that the folder's ledger names, or None."""
    from mlflow.exceptions import MlflowException

    ledger = root.ledger()
    if not _notes(ledger, uri):
        return None
    try:
        return client.get_experiment(ledger.experiment_id or "")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def is_lost(client: MlflowClient, uri: str, root: AnyDir) -> bool:
    """Return whether a store no longer has the experiment that it had given to the folder, not even as a deleted one.

    It was emptied: such as that of a server in a container, which was started anew.
    """
    return _notes(root.ledger(), uri) and _noted_experiment(client, uri, root) is None


def _notes(ledger: MlflowLedger, uri: str) -> bool:
    """Return whether a ledger names an experiment of this store."""
    return ledger.uri == without_password(uri) and bool(ledger.experiment_id)


def _experiment_with_run(client: MlflowClient, key: str, first: str) -> Experiment | None:
    """Return the active experiment that has the run with this key, or None. The one called `first` is searched first.

    A shared server can have thousands of experiments, and must answer each question within seconds.
    """
    named = client.get_experiment_by_name(first)
    if named is not None and named.lifecycle_stage != DELETED and _has_run(client, [named.experiment_id], key):
        return named
    token: str | None = None
    while True:
        page = client.search_experiments(max_results=PAGE, page_token=token)
        experiments = {experiment.experiment_id: experiment for experiment in page}
        if experiments and (experiment_id := _has_run(client, list(experiments), key)):
            return experiments[experiment_id]
        token = page.token
        if not token:
            return None


def _has_run(client: MlflowClient, experiment_ids: list[str], key: str) -> str:
    """Return which of these experiments has the run with this key, or ""."""
    runs = client.search_runs(experiment_ids, f"tags.`wmlsearch.key` = '{key}'", max_results=1)
    return str(runs[0].info.experiment_id) if runs else ""
