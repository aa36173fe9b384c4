"""The mirror of run folders in MLflow: a thread that copies what is new, and may lag or fail without harm.

Everything it sends can be sent again: a run is found by its key before one is made, and a
metric with the same name, step, value and time is one row however often it arrives.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmlsearch.config import InputError
from wmlsearch.data.split import OPTIMISTIC
from wmlsearch.registry import register
from wmlsearch.runs import GOOD, RUNNING, RunDir, SearchDir
from wmlsearch.space import SearchSpace
from wmlsearch.store import connect, why, without_password
from wmlsearch.verdict.champion import MEASURE
from wmlsearch.views import BEST, view_tag

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "wmlsearch"
BATCH_METRICS = 1000  # MLflow takes no more in one call
ROLES = ("baseline", "champion")  # kinds of runs that are registered as models, under these aliases


def default_uri(out: Path) -> str:
    """The MLflow store beside the run folders: a SQLite file."""
    return f"sqlite:///{out.resolve()}/mlflow.db"


class Mirror:
    """Copies a run (a search with all its trials, or a single training) to MLflow while it goes on.

    `notify(run)` returns at once. `close()` waits for what is left, and says what could not be copied.
    """

    def __init__(self, root: RunDir, uri: str) -> None:
        self.root, self.uri, self.problem = root, uri, ""
        self._changed: dict[Path, RunDir] = {root.path: root}
        self._condition = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def notify(self, run: RunDir) -> None:
        """`run` has changed."""
        with self._condition:
            self._changed[run.path] = run
            self._condition.notify()

    def close(self, timeout_s: float = 60) -> str:
        """Copy what is left, for at most `timeout_s` seconds; returns what went wrong, or ""."""
        with self._condition:
            self._changed[self.root.path] = self.root
            self._closing = True
            self._condition.notify()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return self.problem or f"{without_password(self.uri)} has not answered within {timeout_s:g} s"
        return self.problem

    def _work(self) -> None:
        client, wait = None, 0.0
        while True:
            with self._condition:
                if wait:  # MLflow was away: not before a while, however much changes
                    self._condition.wait_for(lambda: self._closing, timeout=wait)
                else:
                    self._condition.wait_for(lambda: self._closing or self._changed)
                changed, self._changed = self._changed, {}
                closing = self._closing
            try:
                client, problem = client or connect(self.uri), ""
                for path in list(changed):
                    try:
                        push(client, self.uri, changed[path], self.root, files=not problem)
                    except FilesMissing as error:  # the rows of the other runs don't wait for them
                        problem = str(error)
                    if not problem:
                        del changed[path]
            except Exception as error:  # whatever MLflow does, the search goes on, and `sync` catches up
                problem = _brief(error)
            self.problem = problem
            wait = min(max(2 * wait, 1.0), 60.0) if problem else 0.0
            with self._condition:
                self._changed = {**changed, **self._changed}
            if closing:
                return


def sync(run: RunDir, uri: str) -> int:
    """Copy all of a run, sent before or not, to MLflow; returns how many MLflow runs it has. Raises InputError."""
    parts, problem = [run, *(run.parts() if isinstance(run, SearchDir) else [])], ""
    try:
        client = connect(uri)
        for part in parts:
            try:
                push(client, uri, part, run, everything=True, files=not problem)
            except FilesMissing as error:
                problem = str(error)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{without_password(uri)}: MLflow doesn't take the runs ({_brief(error)}); nothing is lost, "
            "try `wmlsearch sync` later"
        ) from None
    if problem:
        raise InputError(
            f"{without_password(uri)}: MLflow has all metrics, but doesn't take files ({problem}); see where it keeps "
            "its artifacts and whether that can be written from here, then `wmlsearch sync` again"
        )
    return len(parts)


class FilesMissing(Exception):
    """MLflow has a run's rows, but its store of artifacts did not take the files."""


def push(
    client: MlflowClient, uri: str, run: RunDir, root: RunDir, everything: bool = False, files: bool = True
) -> None:
    """Send what MLflow lacks of one run folder, as its ledger says; with `everything`, all of it again.

    Rows and tags first, then `files`, if wanted. Raises FilesMissing where only these could not be sent.
    """
    from mlflow.entities import Metric, Param, RunTag

    uri = without_password(uri)  # the ledger is a plain file
    about, status = run.about(), run.status()
    ledger = run.ledger()
    if ledger.get("uri") != uri or everything:
        ledger = {"uri": uri, "run_id": ledger.get("run_id") if ledger.get("uri") == uri else None, "rows": 0}
    if not ledger["run_id"] or (everything and not _exists(client, ledger["run_id"])):
        parent = None
        if run.path != root.path:
            of_root = root.ledger()
            parent = of_root["run_id"] if of_root.get("uri") == uri else _make(client, uri, root, None)
        ledger = {"uri": uri, "run_id": _make(client, uri, run, parent), "rows": 0}
        run.set_ledger(ledger)
    rows = [] if isinstance(run, SearchDir) else run.rows()
    fresh = rows[ledger["rows"] :]
    metrics = [
        Metric(name, float(value), int(row["time"] * 1000), row["epoch"])
        for row in fresh
        for name, value in row.items()
        if name not in ("epoch", "time", "ended") and value is not None
    ] + [
        Metric(BEST, float(row[MEASURE]), int(row["time"] * 1000), row["epoch"])
        for row in _better(rows, about["settings"]["objective"])[ledger["rows"] :]
        if row and row.get(MEASURE) is not None
    ]
    params, tags = [], []
    if "params" not in ledger:
        params = [Param(name, str(value)) for name, value in _params(about).items()]
        tags = [RunTag("search", root.name)] if isinstance(root, SearchDir) else []
        certificate = root.about().get("certificate")
        tags += [RunTag(name, str(value)) for name, value in _tags(about, certificate).items()]
        if isinstance(run, SearchDir):
            space = SearchSpace.of(about["space"]["values"], about["space"]["source"])
            client.set_experiment_tag(_experiment(client, uri), *view_tag(run.name, list(space.dimensions)))
    test = run.test()
    if test and ledger.get("tested") != test["opened"]:
        opened = int(test["opened"] * 1000)
        if isinstance(run, SearchDir):
            found = test["verdict"]
            note = RunTag("mlflow.note.content", found["sentence"])  # the description at the top of its page
            tags += [RunTag("verdict", found["verdict"]), RunTag("champion", test["names"]["champion"]), note]
        else:
            metrics += [Metric(name, value, opened, 0) for name, value in test["metrics"].items()]
        ledger["tested"] = test["opened"]
    state, reason = status.get("state", RUNNING), status.get("reason", "")
    if ledger.get("state") != state:
        tags += [RunTag("state", state), RunTag("reason", reason[-4000:])]
        if "traceback" in status:
            tags.append(RunTag("traceback", status["traceback"][-4000:]))
    front = root.status().get("front")  # of a search with several objectives, from its end on
    if front is not None and about["kind"] == "trial" and ledger.get("front") != (on_front := about["name"] in front):
        tags.append(RunTag("pareto_front", str(on_front).lower()))
        ledger["front"] = on_front
    for start in range(0, max(len(metrics), 1), BATCH_METRICS):
        part = metrics[start : start + BATCH_METRICS]
        if part or params or tags:
            client.log_batch(ledger["run_id"], part, params, tags)
            params, tags = [], []
    if ledger.get("state") != state:
        if state == RUNNING:
            client.update_run(ledger["run_id"], status="RUNNING")
        else:
            end = int(status.get("ended", time.time()) * 1000)
            client.set_terminated(ledger["run_id"], _mlflow_status(state), end)
    ledger |= {"rows": len(rows), "params": True, "state": state}
    run.set_ledger(ledger)
    if files:
        try:
            _push_files(client, run, root, ledger)
        except Exception as error:  # of any of the stores that MLflow knows
            raise FilesMissing(_brief(error)) from None


def _push_files(client: MlflowClient, run: RunDir, root: RunDir, ledger: dict[str, Any]) -> None:
    """Send the files that belong to a run: its split certificate; a search's report; a model, registered."""
    about, run_id = run.about(), ledger["run_id"]

    def once(what: str, send: Callable[[], object]) -> None:
        if what not in ledger.get("files", []):
            send()
            ledger["files"] = [*ledger.get("files", []), what]
            run.set_ledger(ledger)

    if certificate := root.about().get("certificate"):
        once("certificate", lambda: client.log_dict(run_id, certificate, "split_certificate.json"))
    if isinstance(run, SearchDir) and run.report.is_dir() and ledger["state"] != RUNNING:
        # written anew at each end of a search, and by each evaluation
        report = f"report {run.status().get('ended')} {ledger.get('tested')}"
        once(report, lambda: client.log_artifacts(run_id, str(run.report), "report"))
    if about["kind"] in ROLES and run.export.is_dir():
        words = f"{about['model']} of {root.name}"
        once("model", lambda: register(client, run_id, run.export, about["kind"], words))


def _make(client: MlflowClient, uri: str, run: RunDir, parent: str | None) -> str:
    """The MLflow run of a run folder: the one with its key if there is one, else a new one."""
    about, experiment_id = run.about(), _experiment(client, uri)
    found = client.search_runs([experiment_id], f"tags.`wmlsearch.key` = '{about['key']}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {"wmlsearch.key": about["key"], **({"mlflow.parentRunId": parent} if parent else {})}
    made = client.create_run(experiment_id, int(about["created"] * 1000), tags, about["name"])
    return str(made.info.run_id)


def _experiment(client: MlflowClient, uri: str) -> str:
    """The id of our experiment, made where it is missing."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    place = (
        Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlflow-artifacts"
        if uri.startswith("sqlite:///")
        else None
    )
    return str(client.create_experiment(EXPERIMENT, place.as_uri() if place else None))


def _better(rows: Sequence[Mapping[str, Any]], objective: str) -> list[Mapping[str, Any]]:
    """Each epoch that was better than all before it; in the place of others {}."""
    best, found = -math.inf, []
    for row in rows:
        value = row.get(objective, row.get(MEASURE))
        better = value is not None and value > best
        best = value if better else best
        found.append(row if better else {})
    return found


def _brief(error: Exception) -> str:
    return why(error)


def _exists(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _params(about: Mapping[str, Any]) -> dict[str, Any]:
    names = ["epochs", "seed", "objective", "precision"]
    if about["kind"] == "search":
        names += ["sampler", "scheduler"]
    settings = {name: about["settings"][name] for name in names}
    if objectives := about["settings"].get("objectives"):
        settings["objectives"] = ",".join(objectives)
    return {**about.get("config", {}), **settings}


def _tags(about: Mapping[str, Any], certificate: Mapping[str, Any] | None) -> dict[str, Any]:
    data = {f"data.{name}": value for name, value in about["data"].items()}
    note = (certificate or {}).get("note") or OPTIMISTIC
    warning = {"warning": note} if about["data"]["optimistic"] else {}
    versions = {f"version.{name}": value for name, value in about["versions"].items()}
    lineage = {}
    if "parent" in about:
        lineage = {"parent_trial": f"trial-{about['parent']:04d}", "parent_epoch": about["parent_epoch"]}
    if "rate_factors" in about:
        lineage["rate_factors"] = json.dumps(about["rate_factors"])
    return {"kind": about["kind"], **warning, **data, **versions, **lineage}


def _mlflow_status(state: str) -> str:
    if state in GOOD:
        return "FINISHED"
    return "KILLED" if state == "interrupted" else "FAILED"
