"""Run folders in MLflow: what of them it lacks is sent, and may be sent again.

A run is found by its key before one is made, and a metric with the same name, step, value and time is one row however
often it arrives.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmlsearch.config import InputError
from wmlsearch.data.certificate import OPTIMISTIC
from wmlsearch.runs.evaluation import Evaluation
from wmlsearch.runs.files import write_json
from wmlsearch.runs.folders import AnyDir, SearchDir
from wmlsearch.runs.names import ROLES, SEARCH, TRIAL
from wmlsearch.runs.objectives import MEASURE
from wmlsearch.runs.redaction import without_password
from wmlsearch.runs.schema import GOOD, RUNNING, EpochRow, FolderRecord, MlflowLedger, RunRecord, SplitCertificate
from wmlsearch.tracking.client import connect, why
from wmlsearch.tracking.model_registry import register
from wmlsearch.tracking.ui_views import BEST, view_tag

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunTag

EXPERIMENT = "wmlsearch"
DELETED = "deleted"  # the stage of what MLflow keeps, but takes nothing for
BATCH_METRICS = 1000  # MLflow takes no more in one call
REFUSALS = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST")  # answers, to be had again each time
CERTIFICATE = "split_certificate.json"


def default_uri(out: Path) -> str:
    """The MLflow store beside the run folders: a SQLite file."""
    return f"sqlite:///{out.resolve()}/mlflow.db"


def sync(run: AnyDir, uri: str) -> int:
    """Copy all of a run, sent before or not, to MLflow; returns how many MLflow runs it has. Raises InputError."""
    parts: list[AnyDir] = [run, *(run.all_runs() if isinstance(run, SearchDir) else [])]
    problem, refused = "", dict[str, str]()
    try:
        client = connect(uri)
        for part in parts:
            try:
                push(client, uri, part, run, everything=True, files=not problem)
            except FilesMissing as error:
                problem = str(error)
            except Refused as error:  # the others don't wait for it
                refused[part.record().name] = str(error)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{without_password(uri)}: MLflow doesn't take the runs ({why(error, uri)}); nothing is lost, "
            "try `wmlsearch sync` later"
        ) from None
    if refused:
        raise InputError(
            f"{without_password(uri)}: MLflow has the others, but doesn't take {', '.join(refused)} "
            f"({next(iter(refused.values()))}); delete what it has of them there, then `wmlsearch sync` again"
        )
    if problem:
        raise InputError(
            f"{without_password(uri)}: MLflow has all metrics, but doesn't take files ({problem}); see where it keeps "
            "its artifacts and whether that can be written from here, then `wmlsearch sync` again"
        )
    return len(parts)


class FilesMissing(Exception):
    """MLflow has a run's rows, but its store of artifacts did not take the files."""


class Refused(Exception):
    """MLflow answers, and doesn't take what is sent of one run."""


def push(
    client: MlflowClient, uri: str, run: AnyDir, root: AnyDir, everything: bool = False, files: bool = True
) -> None:
    """Send what MLflow lacks of one run folder, as its ledger says; with `everything`, all of it again.

    A run that was deleted there is made anew. Rows and tags first, then `files`, if wanted. Raises FilesMissing where
    only these could not be sent, Refused where this run is not taken, and InputError where none is.
    """
    from mlflow.exceptions import MlflowException

    try:
        try:
            _push(client, uri, run, root, everything, files)
        except MlflowException as error:
            run_id = run.ledger().run_id
            if error.error_code not in REFUSALS or not run_id or _exists(client, run_id):
                raise
            _push(client, uri, run, root, True, files)
    except MlflowException as error:
        if error.error_code not in REFUSALS:
            raise
        _experiment(client, uri)
        raise Refused(why(error, uri)) from None


def _push(client: MlflowClient, uri: str, run: AnyDir, root: AnyDir, everything: bool, files: bool) -> None:
    from mlflow.entities import Metric, Param, RunTag

    address, uri = uri, without_password(uri)  # the ledger is a plain file
    record, status = run.record(), run.status()
    ledger = run.ledger()
    untried = ledger.uri != uri  # as far as its ledger knows
    if untried or everything:
        ledger = MlflowLedger(uri=uri, run_id=None if untried else ledger.run_id, rows=0)
    place = ""  # for the files of a run that is made now
    if not ledger.run_id or (everything and not _exists(client, ledger.run_id)):
        run.set_ledger(
            ledger.model_copy(update={"run_id": None})
        )  # who dies from here on may have made one: it is looked for
        if run.path == root.path:
            ledger, place = _make(client, uri, run)
        else:
            ledger_of_root = root.ledger()
            if ledger_of_root.uri != uri:
                ledger_of_root, _ = _make(client, uri, root)
            # below a run that was made for this search there is nothing but what its folders have noted
            alone = untried and not everything and ledger_of_root.made
            experiment_id = ledger_of_root.experiment_id if alone else None
            made, place = _make(client, uri, run, ledger_of_root.run_id, experiment_id)
            ledger = MlflowLedger(uri=made.uri, run_id=made.run_id, rows=made.rows)
        run.set_ledger(ledger)
    elif everything:
        _alone(client, _experiment(client, uri), record.key, ledger.run_id)
    run_id = ledger.run_id or ""  # it has one now
    rows = [] if isinstance(run, SearchDir) else run.rows()
    metrics = [
        Metric(name, float(value), int(row.time * 1000), row.epoch)
        for row in rows[ledger.rows :]
        for name, value in row.metrics.items()
        if value is not None
    ] + [
        Metric(BEST, float(value), int(row.time * 1000), row.epoch)
        for row in _better(rows, record.settings.objective)[ledger.rows :]
        if row is not None and (value := row.metrics.get(MEASURE)) is not None
    ]
    params, tags = [], []
    if not ledger.params:
        params = [Param(name, str(value)) for name, value in _params(record).items()]
        tags = [RunTag("search", root.name)] if isinstance(root, SearchDir) else []
        certificate = root.record().certificate
        tags += [RunTag(name, str(value)) for name, value in _tags(record, certificate).items()]
        if run.path != root.path:  # which may be another one now
            tags.append(RunTag("mlflow.parentRunId", root.ledger().run_id or ""))
        if isinstance(run, SearchDir):
            space = run.record().space.space()
            client.set_experiment_tag(_experiment(client, uri), *view_tag(run.name, list(space.dimensions)))
    evaluation = run.evaluation() if isinstance(run, SearchDir) else run.evaluation_metrics()
    if evaluation and ledger.tested != evaluation.opened:
        if isinstance(evaluation, Evaluation):
            tags += _verdict_tags(evaluation)
        opened_ms = int(evaluation.opened * 1000)
        metrics += [Metric(name, value, opened_ms, 0) for name, value in evaluation.metrics.items()]
        ledger.tested = evaluation.opened
    state, reason = status.state, status.reason
    if ledger.state != state:
        tags += [RunTag("state", state), RunTag("reason", reason[-4000:])]
        if status.predicted_memory_mb is not None:  # beside the metric peak_memory_mb
            tags.append(RunTag("predicted_memory_mb", f"{status.predicted_memory_mb:.0f}"))
        if status.traceback:
            tags.append(RunTag("traceback", status.traceback[-4000:]))
    front = root.status().front  # of a search with several objectives, from its end on
    if front is not None and record.kind == TRIAL and ledger.front != (on_front := record.name in front):
        tags.append(RunTag("pareto_front", str(on_front).lower()))
        ledger.front = on_front
    for start in range(0, max(len(metrics), 1), BATCH_METRICS):
        part = metrics[start : start + BATCH_METRICS]
        if part or params or tags:
            client.log_batch(run_id, part, params, tags)
            params, tags = [], []
    if ledger.state != state:
        if state == RUNNING:
            if not place:  # a new one has this status
                client.update_run(run_id, status="RUNNING")
        else:
            ended = time.time() if status.ended is None else status.ended
            client.set_terminated(run_id, _mlflow_status(state), int(ended * 1000))
    ledger.rows, ledger.params, ledger.state = len(rows), True, state
    run.set_ledger(ledger)
    if files:
        try:
            _push_files(client, run, root, ledger, address, place)
        except Exception as error:  # of any of the stores that MLflow knows
            raise FilesMissing(why(error, address)) from None


def _push_files(
    client: MlflowClient, run: AnyDir, root: AnyDir, ledger: MlflowLedger, address: str, place: str
) -> None:
    """Send the files that belong to a run: its split certificate; a search's report; a model, registered.

    `place` is where MLflow at `address` keeps the files of a run that it has just made; "" if that is to be asked.
    """
    record, run_id = run.record(), ledger.run_id or ""

    def once(what: str, send: Callable[[], object]) -> None:
        if what not in ledger.files:
            send()
            ledger.files = [*ledger.files, what]
            run.set_ledger(ledger)

    if certificate := root.record().certificate:
        once("certificate", lambda: _log_certificate(client, run_id, certificate.as_json(), address, place))
    if isinstance(run, SearchDir) and run.report.is_dir() and ledger.state != RUNNING:
        # written anew at each end of a search, and by each evaluation
        report = f"report {run.status().ended} {ledger.tested}"
        once(report, lambda: client.log_artifacts(run_id, str(run.report), "report"))
    if isinstance(record, RunRecord) and record.kind in ROLES and run.export.is_dir():
        words = f"{record.model} of {root.name}"
        once("model", lambda: register(client, run_id, run.export, record.kind, words))


def _log_certificate(client: MlflowClient, run_id: str, certificate: dict[str, Any], address: str, place: str) -> None:
    """As `log_dict` does, which asks for each run where its files go; and each trial has the certificate."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    if not place:
        client.log_dict(run_id, certificate, CERTIFICATE)
        return
    with tempfile.TemporaryDirectory(prefix="wmlsearch-") as folder:
        write_json(Path(folder) / CERTIFICATE, certificate)
        get_artifact_repository(place, tracking_uri=address).log_artifact(str(Path(folder) / CERTIFICATE))


def _make(
    client: MlflowClient, uri: str, run: AnyDir, parent: str | None = None, experiment_id: str | None = None
) -> tuple[MlflowLedger, str]:
    """The ledger of a run folder's MLflow run: the one with its key if there is one, else a new one.

    Of a new one also where its files go, else "". With the `experiment_id` nothing is looked for.
    """
    record, found, place = run.record(), "", ""
    if experiment_id is None:
        experiment_id = _experiment(client, uri)
        found = _alone(client, experiment_id, record.key)
    if found:
        run_id = found
    else:
        tags = {"wmlsearch.key": record.key, **({"mlflow.parentRunId": parent} if parent else {})}
        made = client.create_run(experiment_id, int(record.created * 1000), tags, record.name).info
        run_id, place = made.run_id, made.artifact_uri
    return MlflowLedger(uri=uri, run_id=run_id, rows=0, made=not found, experiment_id=experiment_id), place


def _alone(client: MlflowClient, experiment_id: str, key: str, keep: str = "") -> str:
    """The id of the run with this key, `keep` if that is one, or "". Others with the key are deleted.

    A server that has not answered in time may have made a run all the same, after another one was made in its place.
    """
    filter_ = f"tags.`wmlsearch.key` = '{key}'"
    ids = sorted(run.info.run_id for run in client.search_runs([experiment_id], filter_, max_results=100))
    first = keep if keep in ids else ids[0] if ids else ""
    for run_id in ids:
        if run_id != first:
            client.delete_run(run_id)
    return first


def _experiment(client: MlflowClient, uri: str) -> str:
    """The id of our experiment, made where it is missing.

    Raises InputError where it was deleted: MLflow keeps its name, and who deleted it may not want its runs back.
    """
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None and found.lifecycle_stage == DELETED:
        raise InputError(
            f"{without_password(uri)}: the experiment {EXPERIMENT!r} was deleted there, so it takes no runs; restore "
            f"it (`mlflow experiments restore -x {found.experiment_id}`, with MLFLOW_TRACKING_URI), or give another "
            "--mlflow-uri"
        )
    if found is not None:
        return str(found.experiment_id)
    place = (
        Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlflow-artifacts"
        if uri.startswith("sqlite:///")
        else None
    )
    return str(client.create_experiment(EXPERIMENT, place.as_uri() if place else None))


def _better(rows: Sequence[EpochRow], objective: str) -> list[EpochRow | None]:
    """Each epoch that was better than all before it; in the place of others None."""
    best, found = -math.inf, list[EpochRow | None]()
    for row in rows:
        value = row.metrics.get(objective, row.metrics.get(MEASURE))
        better = value is not None and value > best
        best = value if value is not None and better else best
        found.append(row if better else None)
    return found


def _exists(client: MlflowClient, run_id: str) -> bool:
    """Whether a run takes rows: one that was deleted can be had, but takes none."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_run(run_id).info.lifecycle_stage) != DELETED
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _verdict_tags(evaluation: Evaluation) -> list[RunTag]:
    """Return the tags of a search's verdict; its sentence is the description at the top of the run's page."""
    from mlflow.entities import RunTag

    if evaluation.verdict is None:
        return []
    outcome, sentence = evaluation.verdict.outcome, evaluation.verdict.sentence
    champion = evaluation.names["champion"]
    return [RunTag("verdict", outcome), RunTag("champion", champion), RunTag("mlflow.note.content", sentence)]


def _params(record: FolderRecord) -> dict[str, Any]:
    names = ["epochs", "seed", "objective", "precision"]
    if record.kind == SEARCH:
        names += ["sampler", "scheduler"]
    settings = {name: getattr(record.settings, name) for name in names}
    if record.settings.objectives:
        settings["objectives"] = ",".join(record.settings.objectives)
    return {**(record.config.model_dump() if isinstance(record, RunRecord) else {}), **settings}


def _tags(record: FolderRecord, certificate: SplitCertificate | None) -> dict[str, Any]:
    data = {f"data.{name}": value for name, value in record.data.as_json().items()}
    note = (certificate.note if certificate else None) or OPTIMISTIC
    warning = {"warning": note} if record.data.optimistic else {}
    versions = {f"version.{name}": value for name, value in record.versions.items()}
    lineage: dict[str, Any] = {}
    if isinstance(record, RunRecord) and record.parent is not None:
        lineage = {"parent_trial": record.parent_name, "parent_epoch": record.parent_epoch}
    if isinstance(record, RunRecord) and record.rate_factors:
        lineage["rate_factors"] = json.dumps(record.rate_factors)
    return {"kind": record.kind, **warning, **data, **versions, **lineage}


def _mlflow_status(state: str) -> str:
    if state in GOOD:
        return "FINISHED"
    return "KILLED" if state == "interrupted" else "FAILED"
