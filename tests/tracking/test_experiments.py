"""MLflow experiments: of the user's choice, recorded, kept by a search; deleted ones; where their files go."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from records import epoch_row, run_record, search_record

from wmlsearch.cli import main
from wmlsearch.cli.mlflow import _page
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.errors import InputError
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.schema import MlflowLedger
from wmlsearch.tracking import experiments
from wmlsearch.tracking.client import connect
from wmlsearch.tracking.experiments import artifact_location, check_experiment_name, check_folder_exists
from wmlsearch.tracking.mirror import Answer, copy
from wmlsearch.tracking.mlflow_patches import view_path
from wmlsearch.tracking.problems import why_no_files
from wmlsearch.tracking.sync import sync
from wmlsearch.tracking.uri import default_uri

ABOUT: dict[str, Any] = {
    "settings": RunSettings().model_dump(),
    "data": {"name": "prepared", "fingerprint": "f00d", "optimistic": False},
    "versions": {"wmlsearch": "0"},
}
SPACE = {"source": "here", "values": {"depth": {"choices": [2, 3]}}}


def add_trial(search: SearchDir, number: int) -> RunDir:
    about = {"name": f"trial-{number:04d}", "kind": "trial", "config": TrialConfig().model_dump(), **ABOUT}
    run = RunDir.create(search.trial(number).path, run_record(about))
    run.append(epoch_row({"epoch": 1, "time": 1_700_000_000.0, "ended": None, "val_dice_patients_best": 0.5}))
    run.set_status("completed")
    return run


def make_search(out: Path, name: str, **more: Any) -> SearchDir:
    search = SearchDir.create(
        out / name, search_record({"name": name, "kind": "search", "space": SPACE, **ABOUT, **more})
    )
    add_trial(search, 0)
    return search


@pytest.fixture
def out(empty: Path, tmp_path: Path) -> Path:
    out = tmp_path / "runs"
    out.mkdir()
    shutil.copy(empty, out)
    return out


def held(uri: str) -> dict[str, list[str]]:
    """Return the names of the runs of each active experiment."""
    client = connect(uri)
    return {
        experiment.name: sorted(run.info.run_name for run in client.search_runs([experiment.experiment_id]))
        for experiment in client.search_experiments()
        if experiment.name != "Default"
    }


def test_a_search_and_its_runs_go_into_the_experiment_of_its_record(out: Path) -> None:
    uri = default_uri(out)
    sync(make_search(out, "mine", experiment="lesions 2026"), uri)
    sync(make_search(out, "older"), uri)  # from before a record named an experiment
    assert held(uri) == {"lesions 2026": ["mine", "trial-0000"], "wmlsearch": ["older", "trial-0000"]}


def test_runs_stay_where_they_began(out: Path) -> None:
    """Also when the experiment was renamed, when another is asked for, and when the ledgers are lost."""
    uri, search = default_uri(out), make_search(out, "s", experiment="a")
    sync(search, uri)
    client = connect(uri)
    client.rename_experiment(search.ledger().experiment_id, "b")
    assert copy(uri, search, [add_trial(search, 1)]) == Answer([], "", again=False)
    assert held(uri) == {"b": ["s", "trial-0000", "trial-0001"]}
    words = ["sync", "s", "--out", str(out), "--experiment", "c"]
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, held(uri)) == (0, {"b": ["s", "trial-0000", "trial-0001"]})
    assert f"note: s stays in the experiment 'b', where {uri} had it already\n" in result.stdout
    for run in [search, *search.trials()]:
        run.set_ledger(MlflowLedger())
    sync(search, uri, "c")
    assert held(uri) == {"b": ["s", "trial-0000", "trial-0001"]}


def test_sync_into_another_experiment_of_a_store_that_has_no_run_yet(out: Path) -> None:
    uri, search = default_uri(out), make_search(out, "s", experiment="a")
    words = ["sync", "s", "--out", str(out), "--experiment", "shared"]
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, f"{uri} has all of s (2 MLflow runs)")
    assert held(uri) == {"shared": ["s", "trial-0000"]}
    assert copy(uri, search, [add_trial(search, 1)]) == Answer([], "", again=False)  # as a resumed search does
    assert held(uri) == {"shared": ["s", "trial-0000", "trial-0001"]}


def test_a_new_search_does_not_search_all_experiments(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a shared server that can take longer than we wait, at each attempt. The run cannot exist there."""
    uri, search = default_uri(out), make_search(out, "s", experiment="a")

    def search_experiments(*_: Any, **__: Any) -> None:
        raise AssertionError("all experiments were searched")

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "search_experiments", search_experiments)
        patched.setattr(MlflowClient, "create_run", lambda *_, **__: 1 / 0)  # MLflow breaks off
        assert copy(uri, search, [search]).incomplete == [str(search.path)]
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "search_experiments", search_experiments)
        assert copy(uri, search, [search, *search.trials()]) == Answer([], "", again=False)
    assert held(uri) == {"a": ["s", "trial-0000"]}


def test_all_experiments_are_searched_page_by_page(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For `sync`, whose ledgers may be lost, and for a store that may have had the search before another one."""
    uri, search = default_uri(out), make_search(out, "s", experiment="a")
    sync(search, uri, "shared")
    client = connect(uri)
    for name in "abc":
        client.create_experiment(name)
    monkeypatch.setattr(experiments, "PAGE", 1)
    other = out / "other"
    other.mkdir()
    shutil.copy(out / "mlflow.db", other)
    assert copy(default_uri(other), search, [search, *search.trials()]) == Answer([], "", again=False)
    assert held(uri) == {"a": [], "b": [], "c": [], "shared": ["s", "trial-0000"]}
    assert copy(uri, search, [search, *search.trials()]) == Answer([], "", again=False), "back to the first store"
    for run in [search, *search.trials()]:
        run.set_ledger(MlflowLedger())
    assert sync(search, uri) == 2
    assert held(uri) == held(default_uri(other)) == {"a": [], "b": [], "c": [], "shared": ["s", "trial-0000"]}


def test_ui_opens_the_view_of_a_search_wherever_its_experiment_is(out: Path) -> None:
    uri, search = default_uri(out), make_search(out, "s", experiment="a")
    client = connect(uri)
    assert _page(uri, out) == "", "MLflow has nothing yet"
    sync(search, uri)
    identity = search.ledger().experiment_id or ""
    assert _page(uri, out) == view_path(identity, "s")
    client.rename_experiment(identity, "lesions of 2026")
    assert _page(uri, out) == view_path(identity, "s")
    second = make_search(out, "t", experiment="a", created=search.record().created + 60)
    sync(second, uri, "shared")
    assert _page(uri, out) == view_path(second.ledger().experiment_id or "", "t") != view_path(identity, "t")
    client.delete_experiment(second.ledger().experiment_id)
    assert _page(uri, out) == view_path(identity, "s")
    for run in (search, second):  # lost ledgers: by the names of the records
        run.set_ledger(MlflowLedger())
    client.rename_experiment(identity, "a")
    assert _page(uri, out) == view_path(identity, "s")


def test_ui_without_runs_opens_the_experiment_of_new_ones(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine from which one only looks at a shared server, or after the run folders were moved away."""
    uri = default_uri(out)
    sync(make_search(out, "s"), uri)
    sync(make_search(out, "t", experiment="other"), uri)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    identity = connect(uri).get_experiment_by_name("wmlsearch").experiment_id
    assert _page(uri, tmp_path / "elsewhere") == f"/#/experiments/{identity}/runs"
    connect(uri).delete_experiment(identity)
    assert _page(uri, tmp_path / "elsewhere") == ""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    other = connect(uri).get_experiment_by_name("other").experiment_id
    assert _page(uri, tmp_path / "elsewhere") == f"/#/experiments/{other}/runs"


def test_a_deleted_experiment_of_that_name(out: Path) -> None:
    uri, search = default_uri(out), make_search(out, "s", experiment="gone")
    client = connect(uri)
    identity = client.create_experiment("gone")
    client.delete_experiment(identity)
    message = (
        f"{uri}: the experiment 'gone' was deleted there and accepts no runs; restore it (`MLFLOW_TRACKING_URI={uri} "
        f"mlflow experiments restore -x {identity}`), or copy the runs into another one (`wmlsearch sync s --out {out} "
        f"--experiment NAME --mlflow-uri {uri}`)"
    )
    assert copy(uri, search, [search]) == Answer([str(search.path)], message, again=False)
    sync(search, uri, "other")
    client.delete_experiment(search.ledger().experiment_id)
    with pytest.raises(InputError, match="the experiment 'other' was deleted there"):
        sync(search, uri)
    assert sync(search, uri, "third") == 2
    assert held(uri) == {"third": ["s", "trial-0000"]}


@pytest.mark.parametrize("name", ["  ", "a\nb", "x" * 501])
def test_names_that_mlflow_does_not_take(name: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["tune", "quick", "--out", str(tmp_path / "runs"), "--experiment", name])
    assert result.exit_code == 2
    assert "must be 1 to 500 printable characters, and not only spaces" in result.stderr
    assert not (tmp_path / "runs").exists()
    assert check_experiment_name("x" * 500) == "x" * 500


def test_where_the_files_of_a_new_experiment_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server has a place of its own. Without one, files must not go into a folder below the current one."""
    run = RunDir(tmp_path / "runs" / "r")
    beside = (tmp_path / "runs" / "mlflow-artifacts").as_uri()
    assert artifact_location("http://127.0.0.1:5000", run) is None
    assert artifact_location("postgresql://me:pw@db/mlflow", run) == beside
    assert artifact_location("postgresql+psycopg://db/mlflow", run) == beside
    for uri in (f"sqlite:///{tmp_path}/x/m.db", f"sqlite:///file:{tmp_path}/x/m.db?uri=true"):
        assert artifact_location(uri, run) == (tmp_path / "x" / "mlflow-artifacts").as_uri()
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", "s3://bucket/wml")
    assert artifact_location("postgresql://db/mlflow", run) == "s3://bucket/wml"
    assert artifact_location("http://127.0.0.1:5000", run) is None


def test_a_folder_of_another_machine_is_not_created_here(tmp_path: Path) -> None:
    here, away = tmp_path / "shared", tmp_path / "of-the-server"
    here.mkdir()
    remote = "https://mlflow.example.org/mlflow"
    for location in (f"{here}/1/run/artifacts", "mlflow-artifacts:/1/run/artifacts", "s3://b/1/run/artifacts"):
        check_folder_exists(remote, location)
    for location in (f"{away}/1/run/artifacts", f"file://{away}/1/run/artifacts"):
        check_folder_exists("http://127.0.0.1:5000", location)  # it may not exist yet
        check_folder_exists("sqlite:////m.db", location)
        with pytest.raises(FileNotFoundError, match=r"of-the-server: the server on mlflow.example.org keeps files in"):
            check_folder_exists(remote, location)
    for location in ("file:/nowhere/my%20files/1/run/artifacts", "FILE://localhost/nowhere/my%20files/1/run/artifacts"):
        with pytest.raises(FileNotFoundError, match=r"^/nowhere/my files: the server on mlflow.example.org"):
            check_folder_exists(remote, location)
    (tmp_path / "my files").mkdir()
    check_folder_exists(remote, f"file:{tmp_path}/my%20files/1/run/artifacts")


@pytest.mark.parametrize("uri", ["postgresql://me:p%40w@db.example.org/mlflow", "mysql+pymysql://db.example.org/m"])
def test_the_first_users_folder_is_not_made_on_another_machine(uri: str, tmp_path: Path) -> None:
    """Without a server, an experiment keeps its files where the machine that created it had its runs."""
    run = "1b2c/artifacts"
    (tmp_path / "runs").mkdir()
    check_folder_exists(uri, f"file://{tmp_path}/runs/mlflow-artifacts/{run}")  # the folder itself may be new
    with pytest.raises(FileNotFoundError) as refused:
        check_folder_exists(uri, f"file:///nowhere/alice/runs/mlflow-artifacts/{run}")
    assert str(refused.value).startswith("/nowhere/alice/runs: this experiment of the database on db.example.org")
    message = why_no_files(refused.value, uri, f"file:///nowhere/alice/runs/mlflow-artifacts/{run}")
    assert "set MLFLOW_DEFAULT_ARTIFACT_ROOT to a folder or bucket that all machines reach" in message
    assert "give another --experiment, since an experiment keeps its place" in message
    for here in ("postgresql://me@localhost/m", "postgresql:///m", "postgresql://me@/m?host=/var/run/postgresql"):
        check_folder_exists(here, f"file:///nowhere/alice/runs/mlflow-artifacts/{run}")
