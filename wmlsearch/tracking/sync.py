"""Run folders in MLflow: send what MLflow lacks. Sending again changes nothing.

A run is found by its key before one is created, and a metric with equal name, step, value and time is one row however
often it arrives.

Tags of every run: `kind` (see runs/names.py), `state` and `reason`, `wmlsearch.key`, `data.*`, `version.*`. Where they
apply: `mlflow.parentRunId`, `search` (the search's name), `warning` (an optimistic split), `traceback`,
`predicted_memory_mb`, `pareto_front`, `configuration` (of a final run), and of a child in population based training
`parent_trial`, `parent_epoch` and `rate_factors`. Of a search with a champion: `champion` and `mlflow.note.content`
(why it is the champion, and the verdict). With a verdict: `verdict` (about the configurations) and `verdict.models`;
both are WITHDRAWN where the search has other models than the last verdict, and no new one: metrics cannot be deleted.

Metrics of a search with a verdict, all of the mean Dice per patient in claim (a): `test_difference` (champion minus
baseline), `test_difference_low` and `test_difference_high` (its 95 % interval), `test_p`, and
`test_detectable_difference` (the smallest that would be found with 80 % probability). `test_models_difference` and the
like are those of claim (b).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wmlsearch.data.certificate import OPTIMISTIC
from wmlsearch.errors import InputError
from wmlsearch.runs.evaluation import Evaluation, EvaluationMetrics, Verdict
from wmlsearch.runs.folders import AnyDir, RunDir, SearchDir
from wmlsearch.runs.names import BEST_DICE, PAPER, ROLES, SEARCH, TRIAL
from wmlsearch.runs.objectives import candidate_value, dice_value
from wmlsearch.runs.redaction import without_password
from wmlsearch.runs.schema import (
    GOOD,
    RUNNING,
    EpochRow,
    FolderRecord,
    MlflowLedger,
    RunRecord,
    RunStatus,
    SplitCertificate,
)
from wmlsearch.runs.wording import command, plural, rounded_beside
from wmlsearch.tracking.client import answers, connected
from wmlsearch.tracking.experiments import check_folder_exists, experiment_of, is_lost
from wmlsearch.tracking.mlflow_patches import log_dict_to
from wmlsearch.tracking.mlflow_runs import find_or_create_run, run_exists, single_run
from wmlsearch.tracking.model_registry import MODEL, register
from wmlsearch.tracking.problems import PROBLEM_FILE, forget, why, why_no_files
from wmlsearch.tracking.ui_views import view_tag
from wmlsearch.tracking.uri import sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

BATCH_METRICS = 1000  # MLflow takes no more in one call
MAX_TAG = 4000  # characters of a reason or traceback that are sent
REFUSALS = ("INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST")  # errors that a retry repeats
MAX_ERRORS = 10  # runs that MLflow fails on, though it answers, before a sync gives up
CERTIFICATE = "split_certificate.json"
WITHDRAWN = "withdrawn"


def sync(run: AnyDir, uri: str, experiment: str | None = None) -> int:
    """Copy a search or run to MLflow completely, sent before or not; return how many MLflow runs it has.

    Args:
        experiment: Another one than the folder's own, for a search or run that this store has not yet.

    Raises InputError if MLflow does not answer or does not take all of it.
    """
    parts: list[AnyDir] = [run, *(run.all_runs() if isinstance(run, SearchDir) else [])]
    problem, refused, failed, errors, log = "", dict[str, str](), list[str](), 0, run.path / PROBLEM_FILE
    try:
        with connected(uri) as client:
            for part in parts:
                try:
                    push(client, uri, part, run, everything=True, files=not problem, experiment=experiment)
                except FilesMissing as error:
                    problem = str(error)
                except Refused as error:  # the other runs are sent all the same
                    refused[part.record().name] = str(error)
                except InputError as error:  # the folder of a run is damaged
                    if part is run:
                        raise
                    failed.append(str(error))
                except Exception as error:
                    errors += 1
                    if part is run or errors > MAX_ERRORS or not answers(uri):
                        raise
                    failed.append(f"{part.path}: {why(error, uri)}")
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{without_password(uri)}: MLflow does not take the runs ({why(error, uri, log)}); nothing is lost; "
            "run `wmlsearch sync` later"
        ) from None
    if failed:
        lacks = f"lacks {len(failed)} of {plural(len(parts), 'run')}"
        raise InputError(
            f"{without_password(uri)}: MLflow {lacks} (nothing is lost); correct this, then run `wmlsearch sync` again",
            failed,
        )
    if refused:
        raise InputError(
            f"{without_password(uri)}: MLflow has the other runs, but does not take {', '.join(refused)} "
            f"({next(iter(refused.values()))}); delete these runs in MLflow, then run `wmlsearch sync` again"
        )
    if problem:
        raise InputError(
            f"{without_password(uri)}: MLflow has all metrics, but does not take files ({problem}); then run "
            "`wmlsearch sync` again"
        )
    forget(log)
    return len(parts)


def is_mirrored(root: AnyDir, uri: str) -> bool:
    """Return whether MLflow has everything of a search or run, by the ledgers in the folders: no server is asked."""
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        return False
    runs: list[AnyDir] = [root, *(root.all_runs() if isinstance(root, SearchDir) else [])]
    return all(_is_sent(run, root, without_password(uri)) for run in runs)


def _is_sent(run: AnyDir, root: AnyDir, store: str) -> bool:
    """Return whether `push` would send nothing of one run."""
    ledger, evaluation = run.ledger(), _evaluation(run)
    front, files = _on_front(run.record(), root.status()), _files(run, root, ledger)
    return (
        (ledger.uri, bool(ledger.run_id), ledger.params) == (store, True, True)
        and ledger.state == run.state
        and ledger.rows == (0 if isinstance(run, SearchDir) else len(run.rows()))
        and (evaluation is None or ledger.tested == evaluation.opened)
        and (front is None or ledger.front == front)
        and (not isinstance(run, SearchDir) or ledger.outcome == _outcome(run))
        and all(name in ledger.files for name in vars(files).values() if name)
    )


class FilesMissing(Exception):
    """MLflow has a run's metrics, but its artifact store did not take the files."""


class Refused(Exception):
    """MLflow answers, but does not take what is sent of one run."""


def push(
    client: MlflowClient,
    uri: str,
    run: AnyDir,
    root: AnyDir,
    everything: bool = False,
    files: bool = True,
    experiment: str | None = None,
) -> None:
    """Send what MLflow lacks of one run folder, according to its ledger; with `everything`, send all of it again.

    A run that was deleted in MLflow is created again; if MLflow has lost all runs, none counts as sent any more.
    Metrics and tags are sent first, then the files if `files`. Raises FilesMissing if only the files could not be sent,
    Refused if this run is not taken, InputError if none is.

    Args:
        root: The search that `run` belongs to, or `run` itself.
        experiment: Another one than that of `root`, for a search or run that this store has not yet.
    """
    from mlflow.exceptions import MlflowException

    try:
        try:
            _again_if_broken_off(lambda: _push(client, uri, run, root, everything, files, experiment))
        except MlflowException as error:
            run_id = run.ledger().run_id
            if error.error_code not in REFUSALS:
                raise
            if is_lost(client, uri, root):
                _forget_ledgers(root)
            elif not run_id or run_exists(client, run_id):
                raise
            _push(client, uri, run, root, True, files, experiment)
    except MlflowException as error:
        if error.error_code not in REFUSALS:
            raise
        experiment_of(client, uri, root)
        raise Refused(why(error, uri, root.path / PROBLEM_FILE)) from None


def _forget_ledgers(root: AnyDir) -> None:
    """Let nothing of a search or single run count as sent."""
    for run in [root, *(root.all_runs() if isinstance(root, SearchDir) else [])]:
        run.set_ledger(MlflowLedger())


def _again_if_broken_off(send: Callable[[], object]) -> None:
    """Send, and once more if the connection breaks off.

    Servers drop connections that were kept open, and those on which they refused a file before they had read it.
    """
    from mlflow.exceptions import MlflowException

    try:
        send()
    except MlflowException as error:
        if "Connection aborted" not in str(error):
            raise
        send()


@dataclass
class _Batch:
    """What MLflow lacks of a run, to be sent with as few calls as MLflow allows."""

    metrics: list[Metric] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)
    tags: list[RunTag] = field(default_factory=list)

    def send(self, client: MlflowClient, run_id: str) -> None:
        from mlflow.entities import Param, RunTag

        params = [Param(param.key, _storable(param.value)) for param in self.params]
        tags = [RunTag(tag.key, _storable(tag.value)) for tag in self.tags]
        for start in range(0, max(len(self.metrics), 1), BATCH_METRICS):
            metrics = self.metrics[start : start + BATCH_METRICS]
            if metrics or params or tags:
                client.log_batch(run_id, metrics, params, tags)
                params, tags = [], []


def _storable(text: str) -> str:
    """Return a text that every store takes: the names of files may be no valid text, and PostgreSQL takes no NUL."""
    return text.encode("utf-8", errors="backslashreplace").decode().replace("\0", "")


def _push(
    client: MlflowClient, uri: str, run: AnyDir, root: AnyDir, everything: bool, files: bool, experiment: str | None
) -> None:
    ledger, artifact_uri = _open_run(client, uri, run, root, everything, experiment)
    run_id, record, status = ledger.run_id or "", run.record(), run.status()
    rows = [] if isinstance(run, SearchDir) else run.rows()
    batch = _Batch(metrics=_epoch_metrics(rows, ledger.rows, record.settings.objective))
    if not ledger.params:
        _add_constants(batch, run, root)
        if isinstance(run, SearchDir):
            view = view_tag(run.name, list(run.record().space.space().dimensions), record.settings.objective)
            client.set_experiment_tag(experiment_of(client, uri, run), *view)
    _add_evaluation(batch, run, ledger)
    if isinstance(run, SearchDir):
        _add_outcome(batch, run, ledger)
    if ledger.state != status.state:
        _add_state(batch, status)
    _add_pareto_front(batch, record, root.status(), ledger)
    batch.send(client, run_id)
    if ledger.state != status.state:
        _set_run_status(client, run_id, status, created=bool(artifact_uri))
    ledger.rows, ledger.params, ledger.state = len(rows), True, status.state
    run.set_ledger(ledger)
    if files:
        _push_files(client, run, root, ledger, uri, artifact_uri)


def _open_run(
    client: MlflowClient, uri: str, run: AnyDir, root: AnyDir, everything: bool, experiment: str | None
) -> tuple[MlflowLedger, str]:
    """Return the ledger of the folder's MLflow run, which is found or created if need be.

    The second value is the artifact URI of a run that was created now, else "".
    """
    store = without_password(uri)  # the ledger is a plain file
    ledger = run.ledger()
    new_store = ledger.uri != store
    if new_store or everything:
        ledger = MlflowLedger(
            uri=store,
            run_id=None if new_store else ledger.run_id,
            experiment_id=None if new_store else ledger.experiment_id,
        )
    if ledger.run_id and not (everything and not run_exists(client, ledger.run_id)):
        if everything:
            single_run(client, experiment_of(client, uri, root, everywhere=True), run.record().key, ledger.run_id)
        return ledger, ""
    if run.path == root.path:
        ledger, artifact_uri = _open_root(client, uri, root, experiment, everything)
    else:
        # If this process dies before the id is noted, the next one must look for the run.
        run.set_ledger(ledger.model_copy(update={"run_id": None}))
        root_ledger = root.ledger()
        if root_ledger.uri != store or root_ledger.experiment_id is None:
            root_ledger, _ = _open_root(client, uri, root, experiment, everything)
        experiment_id = root_ledger.experiment_id or ""
        # A search's run that was created from this folder has no children but those that their folders have noted.
        cannot_exist = new_store and not everything and root_ledger.made
        opened = find_or_create_run(
            client, run.record(), experiment_id, root_ledger.run_id, search_first=not cannot_exist
        )
        ledger, artifact_uri = MlflowLedger(uri=store, run_id=opened.run_id), opened.artifact_uri
    run.set_ledger(ledger)
    return ledger, artifact_uri


def _open_root(
    client: MlflowClient, uri: str, root: AnyDir, experiment: str | None, everywhere: bool
) -> tuple[MlflowLedger, str]:
    """Return a new ledger of a search or single run, and the artifact URI of a run that was created now, else ""."""
    opened = find_or_create_run(client, root.record(), experiment_of(client, uri, root, experiment, everywhere))
    ledger = MlflowLedger(
        uri=without_password(uri), run_id=opened.run_id, made=opened.created, experiment_id=opened.experiment_id
    )
    return ledger, opened.artifact_uri


def _epoch_metrics(rows: Sequence[EpochRow], sent: int, objective: str) -> list[Metric]:
    """Return the metrics of all epochs after the first `sent`, and BEST_DICE at each epoch that was the best so far."""
    from mlflow.entities import Metric

    metrics = [
        Metric(name, float(value), int(row.time * 1000), row.epoch)
        for row in rows[sent:]
        for name, value in row.metrics.items()
        if value is not None
    ]
    best = -math.inf
    for place, row in enumerate(rows):
        value = row.metrics.get(objective, candidate_value(row))
        if value is None or value <= best:
            continue
        best = value
        dice = dice_value(row, objective)
        if place >= sent and dice is not None:
            metrics.append(Metric(BEST_DICE, float(dice), int(row.time * 1000), row.epoch))
    return metrics


def _add_constants(batch: _Batch, run: AnyDir, root: AnyDir) -> None:
    """Add the parameters, and the tags that do not change."""
    from mlflow.entities import Param, RunTag

    record = run.record()
    batch.params += [Param(name, str(value)) for name, value in _params(record).items()]
    if isinstance(root, SearchDir):
        batch.tags.append(RunTag("search", root.name))
    batch.tags += [RunTag(name, str(value)) for name, value in _tags(record, root.record().certificate).items()]
    if description := _description(record, root.name):
        batch.tags.append(RunTag("mlflow.note.content", description))
    if run.path != root.path:  # set again: the parent run may have been created again
        batch.tags.append(RunTag("mlflow.parentRunId", root.ledger().run_id or ""))


def _add_evaluation(batch: _Batch, run: AnyDir, ledger: MlflowLedger) -> None:
    """Add the scores on the sealed test, unless the ledger says that MLflow has them."""
    from mlflow.entities import Metric

    evaluation = _evaluation(run)
    if not evaluation or ledger.tested == evaluation.opened:
        return
    metrics = evaluation.metrics
    if isinstance(evaluation, Evaluation) and evaluation.verdict is not None:
        metrics = {**metrics, **_verdict_metrics(evaluation.verdict)}
    opened_ms = int(evaluation.opened * 1000)
    batch.metrics += [Metric(name, value, opened_ms, 0) for name, value in metrics.items()]
    ledger.tested = evaluation.opened


def _evaluation(run: AnyDir) -> Evaluation | EvaluationMetrics | None:
    return run.evaluation() if isinstance(run, SearchDir) else run.evaluation_metrics()


def _verdict_metrics(verdict: Verdict) -> dict[str, float]:
    """Return the numbers of both claims as metrics; none of a file from before there were claims."""
    metrics: dict[str, float | None] = {}
    for name, claim in (("test", verdict.configuration), ("test_models", verdict.models)):
        if claim is not None:
            metrics[f"{name}_difference"] = claim.difference
            metrics[f"{name}_difference_low"], metrics[f"{name}_difference_high"] = claim.low, claim.high
            metrics[f"{name}_p"] = claim.p
    if verdict.configuration is not None:
        metrics["test_detectable_difference"] = verdict.configuration.detectable
    return {name: value for name, value in metrics.items() if value is not None}


def _add_outcome(batch: _Batch, search: SearchDir, ledger: MlflowLedger) -> None:
    """Add a search's champion and its verdict, unless the ledger says that MLflow has them."""
    from mlflow.entities import RunTag

    outcome = _outcome(search)
    if outcome != ledger.outcome:
        withdrawn = dict.fromkeys(ledger.outcome, "")  # a resumed search may have another champion and no verdict yet
        batch.tags += [RunTag(name, value) for name, value in {**withdrawn, **outcome}.items()]
        ledger.outcome = outcome


def _outcome(search: SearchDir) -> dict[str, str]:
    """Return a search's champion and verdict as tags; the sentences are the description at the top of its page."""
    selection, evaluation = search.selection(), search.evaluation()
    verdict = evaluation.verdict if evaluation else None
    tags: dict[str, str] = {}
    sentences = []
    if selection is not None:
        tags["champion"] = selection.champion
        sentences.append(selection.sentence)
    if evaluation is not None and verdict is not None:
        tags |= {"champion": evaluation.names["champion"], "verdict": verdict.outcome}
        about = "(a) The configurations: " if verdict.has_claims else ""
        if headline := _headline(verdict):
            sentences.insert(0, headline)
        sentences.append(f"{about}{verdict.sentence}")
        if verdict.models is not None:
            tags["verdict.models"] = verdict.models.outcome
            sentences.append(f"(b) The models: {verdict.models.sentence}")
    elif champions := search.withdrawn_champions():
        tags |= {"verdict": WITHDRAWN, "verdict.models": WITHDRAWN}
        sentences.append(
            f"The verdict on {' and that on '.join(champions)} was withdrawn, because the search was resumed and has "
            "other models now. The metrics test_* of this run are of that verdict, and so are files of its report that "
            "the page does not show."
        )
    return {**tags, "mlflow.note.content": "\n\n".join(sentences)} if tags else {}


def _headline(verdict: Verdict) -> str:
    """Return both claims in one line, since the UI folds a long description; "" where there are not both."""
    if verdict.configuration is None or verdict.models is None:
        return ""
    claims = []
    for name, claim in (("(a) configurations", verdict.configuration), ("(b) models", verdict.models)):
        shown = ""
        if claim.difference is not None and claim.low is not None and claim.high is not None:
            low, high = (rounded_beside(bound, 0, ".3f") for bound in (claim.low, claim.high))
            shown = f" {claim.difference:+.3f} ({low} to {high})"
        claims.append(f"{name}{shown}: {claim.outcome}")
    return f"**Champion minus baseline, mean Dice per test patient: {'; '.join(claims)}**"


def _add_state(batch: _Batch, status: RunStatus) -> None:
    from mlflow.entities import RunTag

    batch.tags += [RunTag("state", status.state), RunTag("reason", _storable(status.reason)[-MAX_TAG:])]
    if status.predicted_memory_mb is not None:  # to compare with the metric peak_memory_mb
        batch.tags.append(RunTag("predicted_memory_mb", f"{status.predicted_memory_mb:.0f}"))
    if status.traceback:
        batch.tags.append(RunTag("traceback", _storable(status.traceback)[-MAX_TAG:]))


def _add_pareto_front(batch: _Batch, record: FolderRecord, search: RunStatus, ledger: MlflowLedger) -> None:
    """Add whether a trial is on the Pareto front, which an ended search with several objectives knows."""
    from mlflow.entities import RunTag

    on_front = _on_front(record, search)
    if on_front is not None and ledger.front != on_front:
        batch.tags.append(RunTag("pareto_front", str(on_front).lower()))
        ledger.front = on_front


def _on_front(record: FolderRecord, search: RunStatus) -> bool | None:
    """Return whether a trial is on the Pareto front; None where there is none, or not yet."""
    return None if search.front is None or record.kind != TRIAL else record.name in search.front


def _set_run_status(client: MlflowClient, run_id: str, status: RunStatus, created: bool) -> None:
    """Set MLflow's own status of a run; one that was `created` now is RUNNING already."""
    if status.state != RUNNING:
        ended = time.time() if status.ended is None else status.ended
        client.set_terminated(run_id, _mlflow_status(status.state), int(ended * 1000))
    elif not created:
        client.update_run(run_id, status="RUNNING")


def _push_files(
    client: MlflowClient, run: AnyDir, root: AnyDir, ledger: MlflowLedger, uri: str, artifact_uri: str
) -> None:
    """Send the files of a run: the split certificate, a search's report, a model (which is also registered).

    `artifact_uri` is where MLflow keeps the files of a run that was created now; "" if MLflow must be asked. Raises
    FilesMissing.
    """
    record, run_id = run.record(), ledger.run_id or ""

    def once(name: str, send: Callable[[], object]) -> None:
        if name in ledger.files:
            return
        location = artifact_uri or client.get_run(run_id).info.artifact_uri
        try:
            check_folder_exists(uri, location)
            _again_if_broken_off(send)
        except Exception as error:  # any artifact store that MLflow supports may raise its own
            raise FilesMissing(why_no_files(error, uri, location, root.path / PROBLEM_FILE)) from None
        ledger.files = [*ledger.files, name]
        run.set_ledger(ledger)

    names = _files(run, root, ledger)
    if names.certificate and (certificate := root.record().certificate):
        once(names.certificate, lambda: _log_certificate(client, run_id, certificate.as_json(), uri, artifact_uri))
    if names.report and isinstance(run, SearchDir):
        once(names.report, lambda: client.log_artifacts(run_id, str(run.report), "report"))
    if names.model and isinstance(run, RunDir) and isinstance(record, RunRecord):
        description = f"{record.kind} of the search {root.name}: configuration {record.model}"
        once(names.model, lambda: register(client, run_id, run.export, record.kind, description))


@dataclass(frozen=True)
class _Files:
    """What the ledger calls the files of a run when they are sent; "" where a run has none of the kind."""

    certificate: str = ""
    report: str = ""
    model: str = ""


def _files(run: AnyDir, root: AnyDir, ledger: MlflowLedger) -> _Files:
    """Return which files of a run belong into MLflow."""
    record = run.record()
    has_report = isinstance(run, SearchDir) and run.report.is_dir() and ledger.state != RUNNING
    has_model = isinstance(run, RunDir) and record.kind in ROLES and run.export.is_dir()
    return _Files(
        certificate="certificate" if root.record().certificate else "",
        # each end of a search and each evaluation write a new report
        report=f"report {run.status().ended} {ledger.tested}" if has_report else "",
        model="model" if has_model else "",
    )


def _log_certificate(
    client: MlflowClient, run_id: str, certificate: dict[str, Any], uri: str, artifact_uri: str
) -> None:
    """Log the split certificate; for a run that was created now, without asking MLflow where its files go."""
    if artifact_uri:
        log_dict_to(artifact_uri, uri, certificate, CERTIFICATE)
    else:
        client.log_dict(run_id, certificate, CERTIFICATE)


def _params(record: FolderRecord) -> dict[str, Any]:
    names = ["epochs", "seed", "objective", "precision"]
    if record.kind == SEARCH:
        names += ["sampler", "scheduler"]
    settings = {name: getattr(record.settings, name) for name in names}
    if isinstance(record, RunRecord) and "fold" in record.model_fields_set:
        settings["fold"] = record.fold
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
    if isinstance(record, RunRecord) and record.origin:
        lineage["origin"] = record.origin
    if isinstance(record, RunRecord) and record.rate_factors:
        lineage["rate_factors"] = json.dumps(record.rate_factors)
    if isinstance(record, RunRecord) and record.model is not None:
        lineage["configuration"] = record.model
    return {"kind": record.kind, **warning, **data, **versions, **lineage}


def _description(record: FolderRecord, search: str) -> str:
    """Return what the page of a final run or model says at its top; "" for other runs."""
    if not isinstance(record, RunRecord) or record.model is None:
        return ""
    configuration = "the baseline configuration" if record.model == PAPER else f"the configuration of {record.model}"
    if record.kind in ROLES:
        return (
            f"The {record.kind} model of the search {search}: {configuration}. Its metrics test_* are scores on the "
            f"sealed test patients. To use it: `"
            + command("predict", f"models:/{MODEL}@{record.kind}", "IMAGE", "--out", "FOLDER")
            + "`"
        )
    purpose = {
        "selection": "It is compared with others on the validation patients, to choose the champion.",
        "judgement": "Its model is scored on the sealed test patients, for the verdict.",
    }
    if record.purpose not in purpose:
        return ""
    return f"A new training of {configuration}, validated on fold {record.fold}. {purpose[record.purpose]}"


def _mlflow_status(state: str) -> str:
    if state in GOOD:
        return "FINISHED"
    return "KILLED" if state == "interrupted" else "FAILED"
