"""The command that resumes a search: with the MLflow store and on the cluster that it was with, without a password."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner
from records import search_record

import wmlsearch
from wmlsearch.cli import main, options
from wmlsearch.config import RunSettings
from wmlsearch.errors import InputError
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.interrupts import end_by_signal
from wmlsearch.runs.schema import MlflowLedger
from wmlsearch.tracking.uri import default_uri
from wmlsearch.workflows.observer import Outcome
from wmlsearch.workflows.placement import Placement
from wmlsearch.workflows.resume_command import resume_command, resume_note
from wmlsearch.workflows.summaries import SearchSummary

SERVER, LOCKED = "http://mlflow.example.org:5000/a b", "postgresql://me:***@db.example.org/mlflow"
NOTE = f"note: its MLflow store is {LOCKED}; give --mlflow-uri, or set MLFLOW_TRACKING_URI, with the password"


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SearchDir:
    """An interrupted search in `runs`, the default folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = SearchDir.create(Path("runs/s"), search_record())
    made.set_status("interrupted", "stopped by Ctrl-C")
    return made


def words_of(search: SearchDir) -> list[str]:
    """The options of the command as a script reads it."""
    text = SearchSummary.of(search).resume
    assert text == resume_command(search)
    return shlex.split(text)[4:]


def test_the_store_is_that_of_the_ledger(search: SearchDir, tmp_path: Path) -> None:
    assert words_of(search) == [], "no MLflow has had it"
    search.set_ledger(MlflowLedger(uri=SERVER))
    assert words_of(search) == ["--mlflow-uri", SERVER]
    search.set_ledger(MlflowLedger(uri=default_uri(Path("runs"))))
    assert words_of(search) == []
    search.set_ledger(MlflowLedger(uri=f"sqlite:///{tmp_path}/other.db"))
    assert words_of(search) == [], "that file is not on this machine, or was moved with the runs"
    (tmp_path / "other.db").touch()
    assert words_of(search) == ["--mlflow-uri", f"sqlite:///{tmp_path}/other.db"]
    assert resume_command(search, SERVER) == f"wmlsearch tune --resume s --mlflow-uri '{SERVER}'", "as it was given now"


def test_the_ray_is_that_of_the_latest_session(search: SearchDir) -> None:
    search.change_settings(RunSettings(), None, "head:6379")
    search.set_ledger(MlflowLedger(uri="http://h"))
    assert words_of(search) == ["--mlflow-uri", "http://h", "--ray-address", "head:6379"]
    search.change_settings(RunSettings(), None)
    assert words_of(search) == ["--mlflow-uri", "http://h"]


def test_passwords_are_asked_for(search: SearchDir, capsys: pytest.CaptureFixture[str]) -> None:
    search.set_ledger(MlflowLedger(uri=LOCKED))
    assert (words_of(search), resume_note(search)) == ([], NOTE)
    given = LOCKED.replace("***", "secret")
    options.show_next_steps(Outcome(search, end_by_signal(signal.SIGINT), ""), given)
    first, note, *others = capsys.readouterr().out.splitlines()
    assert (first, note) == ("stopped by Ctrl-C; to resume: wmlsearch tune --resume s", NOTE)
    assert "secret" not in " ".join(others)
    search.set_ledger(MlflowLedger(uri="http://h"))
    assert resume_note(search) == ""


def test_status_shows_both_lines(search: SearchDir) -> None:
    search.set_ledger(MlflowLedger(uri=LOCKED))
    search.change_settings(RunSettings(), None, "auto")
    told = CliRunner().invoke(main, ["status", "s"]).stdout.splitlines()
    line = next(number for number, text in enumerate(told) if "continue with" in text)
    assert told[line].endswith("continue with wmlsearch tune --resume s --ray-address auto")
    assert told[line + 1] == NOTE
    summary = json.loads(CliRunner().invoke(main, ["status", "s", "--json"]).stdout)
    assert summary["resume"] == "wmlsearch tune --resume s --ray-address auto"


def test_a_search_is_not_resumed_into_another_store_for_lack_of_a_password(search: SearchDir) -> None:
    """What a script does that runs `.resume`: nothing is copied to the SQLite file beside the runs."""
    search.set_ledger(MlflowLedger(uri=LOCKED))
    expected = (
        f"s: its MLflow store is {LOCKED}, and the password is not stored; give --mlflow-uri (or MLFLOW_TRACKING_URI) "
        "with the password"
    )
    refused = CliRunner().invoke(main, shlex.split(resume_command(search))[1:])
    assert (refused.exit_code, expected in refused.output) == (2, True), refused.output
    with pytest.raises(InputError) as by_python:
        wmlsearch.resume("s")
    assert str(by_python.value) == expected.replace("--mlflow-uri", "mlflow_uri")
    given = CliRunner().invoke(main, ["tune", "--resume", "s", "--mlflow-uri", "http://127.0.0.1:9"])
    assert "lacks shape and data_path, so this search cannot be resumed" in given.output


def test_a_ray_that_ends_with_its_batch_job_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Placement("10.0.0.1:6379").given_ray_address == "10.0.0.1:6379"
    monkeypatch.setenv("WMLSEARCH_RAY_OF_JOB", "10.0.0.1:6379")
    assert Placement("10.0.0.1:6379").given_ray_address is None
    assert Placement("10.0.0.2:6379").given_ray_address == "10.0.0.2:6379"
