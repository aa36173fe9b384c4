"""Data and ports visible to others: MLflow's store, run folders, the head's MLflow, sockets. See docs/security.md."""

from __future__ import annotations

import base64
import configparser
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from paths import REPOSITORY as ROOT
from processes import descendants, listening, wait_for

from wmlsearch.cli import main
from wmlsearch.config import RunSettings
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData
from wmlsearch.errors import InputError
from wmlsearch.report.page import write_report
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.redaction import without_home, without_password
from wmlsearch.search.checkpoints import check_writable
from wmlsearch.tracking.problems import why
from wmlsearch.tracking.server import is_healthy
from wmlsearch.tracking.sync import sync
from wmlsearch.tracking.uri import check_uri, default_uri
from wmlsearch.workflows.provenance import data_record, versions
from wmlsearch.workflows.sealed_test import evaluate_search

MARKER = "Mustermann"
HOME = f"/home/{MARKER}"


def holding(folder: Path, word: str) -> list[str]:
    """Return the files below a folder with a word in their name or content."""
    return [
        path.name
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (word in str(path.relative_to(folder)) or word.encode() in path.read_bytes())
    ]


@pytest.fixture
def copied(searched: SearchDir, tmp_path: Path) -> SearchDir:
    """A copy of the shared search in its own folder, in no MLflow store yet."""
    copy = SearchDir(Path(shutil.copytree(searched.path, tmp_path / "runs" / "s")))
    copy.file("record").write_text(json.dumps({**copy.record().as_json(), "versions": versions()}))
    for run in [copy, *copy.all_runs()]:
        run.file("ledger").unlink(missing_ok=True)
    return copy


# ------------------------------------------------------------------------------------------------- what MLflow is told


def marked(raw: Path, to: Path) -> Path:
    """The phantom in a home directory, with a name in each header and in each file's name."""
    shutil.copytree(raw, to)
    for path in sorted(to.rglob("*.nii.gz")):
        image = nib.load(path)
        for name in ("descrip", "aux_file", "intent_name", "db_name"):
            image.header[name] = MARKER
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", MARKER.encode()))
        nib.save(image, path.with_name(path.name.replace("_ses", f"_acq-{MARKER}_ses")))
        path.unlink()
    return to


def test_mlflow_gets_nothing_of_a_patient_but_the_manifests_ids(copied: SearchDir, raw: Path, tmp_path: Path) -> None:
    data = tmp_path / "home" / MARKER / "prepared"
    options = PrepareOptions(size=32, fit="resize", val_patients=("04",), jobs=1)
    prepare(marked(raw, data.parent / "raw"), data, options)
    assert MARKER in (data / "manifest.json").read_text(), "as names of files"
    opened = PreparedData.open(data)
    copied.change_settings(RunSettings(), None)
    about = copied.record().as_json() | {
        "data": data_record(data, opened).as_json(),
        "data_path": str(data),
        "space": {**copied.record().space.as_json(), "source": f"{HOME}/space.yaml"},
        "certificate": dataclasses.asdict(opened.manifest.certificate),
    }
    copied.file("record").write_text(json.dumps(about))
    baseline, champion = copied.model("baseline"), copied.model("champion")
    shutil.copytree(champion.path, baseline.path)
    other = {"key": "b", "kind": "baseline", "model": "paper", "name": "baseline (paper)"}
    baseline.file("record").write_text(json.dumps(champion.record().as_json() | other))
    evaluate_search(copied, RunSettings(), data, lambda *_: None)
    lost = f"OSError: {HOME}/prepared/images.npy"
    copied.trial(0).set_status("failed", lost, traceback=f'File "{HOME}/venv/torch.py", line 1\n{lost}')
    write_report(copied)
    assert MARKER in (copied.path / "test.json").read_text(), "the run folder has the patient ids"
    uri = default_uri(copied.path.parent)
    sync(copied, uri)
    store = tmp_path / "store"
    store.mkdir()
    for part in ("mlflow.db", "mlflow-artifacts"):
        (copied.path.parent / part).rename(store / part)
    texts = sorted({path.suffix for path in store.rglob("*") if path.is_file()})
    assert set(texts) >= {".csv", ".db", ".html", ".json", ".png", ".safetensors", ".yaml"}
    assert holding(store, MARKER) == []
    assert holding(store, "split_certificate"), "the scan finds a word that is in the store"
    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name("wmlsearch")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (failed,) = (run for run in runs if run.data.tags.get("state") == "failed")
    assert failed.data.tags["reason"] == "OSError: ~/prepared/images.npy"
    assert failed.data.tags["traceback"].startswith('File "~/venv/torch.py", line 1')
    assert {run.info.user_id for run in runs} <= {None, "", "unknown"}
    assert not {"mlflow.user", "mlflow.source.name"} & {name for run in runs for name in run.data.tags}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"{HOME}/x.py, and '{HOME}'", "~/x.py, and '~'"),
        ("/Users/ann/data: no such file", "~/data: no such file"),
        ("in /root: /rooted, /data/home.npy", "in ~: /rooted, /data/home.npy"),
        (
            "/srv/ann/x.py and /srv/ann, not /srv/annex or /data/srv/ann",
            "~/x.py and ~, not /srv/annex or /data/srv/ann",
        ),
    ],
)
def test_home_directories_are_not_recorded(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/srv/ann")
    assert without_home(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:p@ss@host:5000", "http://me:***@host:5000"),
        ("http://me@corp.com:p@ss@host", "http://me@corp.com:***@host"),
        ("postgresql://me:pa/s?s@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:p w@host/db", "postgresql://me:***@host/db"),
        (
            "postgresql://host:5432/db?user=me&password=s3@c ret&x=1",
            "postgresql://host:5432/db?user=me&password=***&x=1",
        ),
        ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dpa%3Bx", "mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3D***"),
        ("s3://key:se/cret@bucket/x?region=eu", "s3://key:***@bucket/x?region=eu"),
        ("s3://bucket/x?sas_token=abc&sig=def", "s3://bucket/x?sas_token=***&sig=***"),
        ("an error at http://me:p@s/s@host:1/x, for a@b", "an error at http://me:***@host:1/x, for a@b"),
        (
            "no passwords: http://host:5000/x, s3://bucket/a@b?c=d",
            "no passwords: http://host:5000/x, s3://bucket/a@b?c=d",
        ),
        ("sqlite:////data/a:b/m@il/mlflow.db", "sqlite:////data/a:b/m@il/mlflow.db"),
    ],
)
def test_passwords_are_not_shown(text: str, shown: str) -> None:
    assert without_password(text) == shown
    assert without_password(shown) == shown


def test_messages_contain_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("http://me:se/cret@host", "me:secret@host:1", "ftp://me:sec ret@host"):
        with pytest.raises(InputError) as refused:
            check_uri(uri)
        assert re.search("se/?c ?r?et", str(refused.value)) is None, str(refused.value)
        assert re.match(r"(\w+://)?me:\*\*\*@host", str(refused.value))
    uri = f"postgresql://me:{'p w' * 100}@host"
    assert why(ValueError(f"can't parse {uri}"), uri) == "ValueError: can't parse postgresql://me:***@host"
    assert "cut" not in why(ValueError(f"{'x' * 280} http://me:cutthis@host"))
    with pytest.raises(InputError, match=r"^--storage foo://key:\*\*\*@bucket: cannot be written \(") as refused:
        check_writable("foo://key:se/cret@bucket")
    assert "cret" not in str(refused.value)


# ------------------------------------------------------------------------------------------------ MLflow of a cluster


@dataclasses.dataclass(frozen=True)
class HeadServer:
    """The head's MLflow server: home, process, port, user and password."""

    home: Path
    process: int
    port: int
    user: str
    password: str

    def answer(self, path: str, host: str = "", user: str = "", password: str = "") -> int:
        """Return the status of a GET request."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers={"Host": host} if host else {})
        if user:
            request.add_header("Authorization", f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answered:  # noqa: S310 - our own server
                return int(answered.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeadServer]:
    """The server that a cluster file starts, with a temporary home and a listener in place of Ray."""
    pytest.importorskip("flask_wtf", reason="MLflow's authentication needs Flask-WTF")
    home = tmp_path_factory.mktemp("head")
    with socket.create_server(("127.0.0.1", 0)) as ray:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
            "HOME": str(home),
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
            "RAY_ADDRESS": f"127.0.0.1:{ray.getsockname()[1]}",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        with (home / "log").open("wb") as log:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "wmlsearch.cluster.head_mlflow", "keep"],
                cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            wait_for(lambda: is_healthy(port) or keeper.poll() is not None)
            assert keeper.poll() is None, (home / "log").read_text()
            file = configparser.ConfigParser(interpolation=None)
            file.read(home / ".mlflow/credentials")
            section = file["mlflow"]
            yield HeadServer(
                home, keeper.pid, port, section["mlflow_tracking_username"], section["mlflow_tracking_password"]
            )
        finally:
            os.killpg(keeper.pid, signal.SIGTERM)
            keeper.wait(60)


LISTING = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"


def test_the_heads_mlflow_wants_a_password_and_its_own_name(head: HeadServer) -> None:
    assert head.answer("/health") == 200
    for path in ("/", LISTING):
        assert head.answer(path) == 401
        assert head.answer(path, user=head.user, password=head.password[::-1]) == 401
        assert head.answer(path, user=head.user, password=head.password) == 200
        for host in ("evil.example", f"10.0.0.1:{head.port}"):  # a page that has its own name lead here
            assert head.answer(path, host, head.user, head.password) == 403
    assert len(head.password) == 32
    assert {address for _, address, _ in listening([head.process, *descendants(head.process)])} == {"127.0.0.1"}


def test_the_heads_password_is_its_users_alone(head: HeadServer) -> None:
    assert (head.home / ".mlflow/credentials").stat().st_mode & 0o777 == 0o600
    assert (head.home / "wmlsearch-head/mlflow").stat().st_mode & 0o777 == 0o700
    assert holding(head.home, head.password) == ["credentials"], "in no log, no database, no other file"
    words = "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in (head.process, *descendants(head.process)))
    assert "mlflow" in words
    assert head.password not in words, "all users of a machine see the words of a command"


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Remove user and password for MLflow from environment and home."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def test_a_password_is_used_and_kept_nowhere(
    head: HeadServer, copied: SearchDir, nobody: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, bare = copied.trial(0), f"http://127.0.0.1:{head.port}"
    with pytest.raises(InputError) as error:
        sync(run, bare)
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (run folders keep no password)" in str(
        error.value
    )
    given = bare.replace("//", f"//{head.user}:{head.password}@")
    for step in ("first", "with the password in the environment"):
        if step != "first":
            nobody.setenv("MLFLOW_TRACKING_USERNAME", head.user)
            nobody.setenv("MLFLOW_TRACKING_PASSWORD", head.password)
            given = bare
        assert sync(run, given) == 1
        assert holding(copied.path, head.password) == []
        shown = CliRunner().invoke(main, ["ui", "--mlflow-uri", given, "--out", str(copied.path.parent)])
        assert shown.exit_code == 0
        assert head.password not in shown.output
        assert shown.output.startswith("the MLflow server is at http://")
    assert run.ledger().uri == bare
    client = MlflowClient(bare)
    experiment = client.get_experiment_by_name("wmlsearch")
    assert experiment is not None
    (kept,) = client.search_runs([experiment.experiment_id])  # the same store under both addresses: nothing twice
    assert kept.data.tags["wmlsearch.key"] == run.record().key


# ---------------------------------------------------------------------------------------------------- what else listens


def test_pages_on_another_address_come_with_a_warning(copied: SearchDir) -> None:
    out = copied.path.parent
    (out / "mlflow.db").touch()
    command = [sys.executable, "-m", "wmlsearch", "ui", "--out", str(out), "--host", "0.0.0.0", "--port", "5700"]  # noqa: S104 - what is warned of
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == (
            "warning: on 0.0.0.0, anyone who can reach this machine can read, change and delete all runs, images and "
            "models, without a password or encryption; safer: leave out --host and use `ssh -L` from the other machine "
            "(docs/security.md)\n"
        )
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--host example.org",
            "--host must be an IPv4 address of this machine, such as 127.0.0.1, but got 'example.org'",
        ),
        ("--host 192.0.2.77", "--host 192.0.2.77: not an address of this machine; leave it out to use 127.0.0.1"),
        (
            "--host 0.0.0.0 --cluster c.yaml",
            "--host 0.0.0.0: a tunnel to a cluster listens on 127.0.0.1 only; leave out --host or --cluster",
        ),
        (
            "--mlflow-uri http://localhost:5000 --cluster c.yaml",
            "--mlflow-uri: with --cluster, the UI is that of the head's MLflow; leave out one of them",
        ),
    ],
)
def test_refused_hosts_and_addresses(words: str, message: str, copied: SearchDir) -> None:
    (copied.path.parent / "mlflow.db").touch()
    result = CliRunner().invoke(main, ["ui", "--out", str(copied.path.parent), *words.split()])
    assert result.exit_code == 2
    assert result.stderr == f"wmlsearch: {message}\n"


# ------------------------------------------------------------------------------------------------------ rules of `ruff`


def test_security_rules_are_enabled_with_few_exceptions() -> None:
    """`make lint` refuses pickle, eval, YAML without a safe loader and torch.load without weights_only."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in rules["select"]
    assert not [rule for rule in rules["ignore"] if rule.startswith("S") and rule[1:].isdigit()]
    assert set(rules["per-file-ignores"]) == {"tests/*"}
    excused = [
        (path.name, rule)
        for path in sorted((ROOT / "wmlsearch").rglob("*.py"))
        for line in path.read_text().splitlines()
        if (found := re.search(r"# noqa: ([A-Z0-9, ]+)", line))
        for rule in re.findall(r"S\d+", found[1])
        if rule not in ("S603", "S607")  # a program of our own is run, without a shell
    ]
    why = (
        "where NVIDIA's daemon listens, which is only looked at; folders for Ray's session, made by mkdtemp; the "
        "command line that the user gave to --on-end; this interpreter, which runs it; a subclass of the SafeLoader"
    )
    assert excused == [
        ("throughput.py", "S108"),
        ("scratch.py", "S108"),
        ("user_command.py", "S602"),
        ("user_command.py", "S606"),
        ("yaml_files.py", "S506"),
    ], why
