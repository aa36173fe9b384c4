"""A matrix of real MLflow servers: databases, path prefixes, proxies, logins, certificates, places of files, versions.

What is refused ends with what to change, and never costs more than the copy in MLflow.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import basic, free_port, front, mlflow_server, own_certificate, postgres, postgres_missing
from test_experiments import add_trial, held, make_search

from wmlsearch.errors import InputError
from wmlsearch.runs.folders import SearchDir
from wmlsearch.tracking.client import connect, connected
from wmlsearch.tracking.mirror import LAST_ATTEMPTS, Mirror
from wmlsearch.tracking.model_registry import fetch, register
from wmlsearch.tracking.problems import OLDEST_SERVER, PROBLEM_FILE
from wmlsearch.tracking.sync import sync
from wmlsearch.tracking.uri import check_uri

PASSWORD = "p/w:s3cret@"  # noqa: S105
AWS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
# What the oldest supported server needs: MLflow itself is installed without its other dependencies.
OLD_MLFLOW = "mlflow==2.3.2"
OLD_NEEDS = (
    "alembic<2", "click<9", "cloudpickle<3", "databricks-cli<1", "entrypoints<1", "Flask<3", "gitpython<4",
    "gunicorn<21", "importlib-metadata<7", "numpy<2", "packaging<24", "pandas<3", "protobuf<5", "pytz<2024", "pyyaml<7",
    "querystring-parser<2", "requests<3", "setuptools<80", "sqlalchemy<2.1", "sqlparse<1", "werkzeug<3",
)  # fmt: skip


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    """A search with one trial and a split certificate, which is a file to store."""
    made = make_search(tmp_path / "runs", "s", experiment="chosen")
    record = {**made.record().as_json(), "certificate": {"level": "patient", "note": None}}
    made.file("record").write_text(json.dumps(record))
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The pinned server, which stores files itself."""
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder, f"sqlite:///{folder}/m.db", "--artifacts-destination", str(folder / "files")) as uri:
        yield uri


@pytest.fixture(scope="module")
def databases() -> Iterator[Callable[[str], str]]:
    if missing := postgres_missing():
        pytest.skip(missing)
    # Not below pytest's folder: PostgreSQL can run as another user, who must get there.
    with tempfile.TemporaryDirectory(prefix="wml-postgres-") as folder:
        Path(folder).chmod(0o755)
        with postgres(Path(folder) / "server", "s3cret") as database:
            yield database


def files(uri: str, search: SearchDir) -> list[str]:
    """Return the names of the files that MLflow has of a search's run, and check that they can be read."""
    run_id = search.ledger().run_id
    with connected(uri) as client:  # some tests set a proxy
        names = [entry.path for entry in client.list_artifacts(run_id)]
        assert json.loads(Path(client.download_artifacts(run_id, "split_certificate.json")).read_text())["level"]
    return names


def check_complete(uri: str, search: SearchDir, location: str = "") -> None:
    """Check that metrics, files and a registered model get to a server, from a search and from a second sync."""
    mirror = Mirror(search, uri)
    for run in search.all_runs():
        mirror.notify(run)
    assert mirror.close(120) == ""
    assert sync(search, uri) == 2
    client = connect(uri)
    assert "s" in held(uri)["chosen"]
    row = client.get_metric_history(search.trial(0).ledger().run_id, "val_dice_patients_best")
    assert [point.value for point in row] == [0.5]
    assert files(uri, search) == ["split_certificate.json"]
    assert client.get_run(search.ledger().run_id).info.artifact_uri.startswith(location)
    exported = search.path / "exported"
    exported.mkdir()
    (exported / "model.json").write_text("{}")
    version = register(client, search.ledger().run_id or "", exported, "champion")
    assert (fetch(f"models:/wml-unet/{version}", uri, search.path / "a") / "model.json").read_text() == "{}"
    assert (fetch("models:/wml-unet@champion", uri, search.path / "b") / "model.json").read_text() == "{}"
    assert not (search.path / PROBLEM_FILE).exists()


def problem_of(search: SearchDir, uri: str) -> str:
    with pytest.raises(InputError) as refused:
        sync(search, uri)
    return str(refused.value)


# ----------------------------------------------------------------------------------------------- databases and versions


def test_postgresql_without_a_server(databases: Callable[[str], str], search: SearchDir) -> None:
    """Files go beside the run folders, not into a folder below the current one."""
    uri = databases("direct")
    check_complete(uri, search, (search.path.parent / "mlflow-artifacts").as_uri())
    assert "s3cret" not in search.file("ledger").read_text()
    wrong, lacking = uri.replace("s3cret", "guess"), f"{uri}_typo"
    message = problem_of(search, wrong)
    assert 'password authentication failed for user "wml"; check user and password of the URI' in message
    assert "guess" not in message
    assert 'database "direct_typo" does not exist; create it: createdb direct_typo)' in problem_of(search, lacking)


def test_server_on_postgresql_with_a_prefix_and_files_of_the_client(
    databases: Callable[[str], str], search: SearchDir, tmp_path: Path
) -> None:
    """`--static-prefix /mlflow --no-serve-artifacts`: clients write into the folder themselves."""
    shared = tmp_path / "shared"
    options = ("--static-prefix", "/mlflow", "--no-serve-artifacts", "--default-artifact-root", str(shared))
    with mlflow_server(tmp_path / "server", databases("served"), *options, prefix="/mlflow") as uri:
        check_complete(uri, search, str(shared))
        bare = uri.removesuffix("/mlflow")
        assert "a path prefix of the server (--static-prefix, a reverse proxy) belongs to --mlflow-uri" in problem_of(
            search, bare
        )


def test_driver_of_a_database_is_missing() -> None:
    with pytest.raises(InputError) as refused:
        check_uri("mysql+pymysql://me:secret@host/db")
    assert str(refused.value) == (
        "mysql+pymysql://me:***@host/db: the Python driver of this database cannot be imported (No module named "
        "'pymysql'); install it where wmlsearch runs: pip install pymysql"
    )


def test_postgresql_without_psycopg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r"install it where wmlsearch runs: pip install 'psycopg\[binary\]'"):
        check_uri("postgresql+psycopg://me:secret@host/db")


@pytest.fixture(scope="session")
def old_python() -> str:
    """Return the Python of an environment with the oldest supported server, which is made once and kept in a cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wmlsearch-tests"
    folder = cache / OLD_MLFLOW.replace("==", "-")
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return str(python)
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    try:
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [*pip, *OLD_NEEDS],
            [*pip, "--no-deps", OLD_MLFLOW],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"{OLD_MLFLOW} cannot be installed: {error}")
    (folder / "complete").touch()
    return str(python)


def test_the_oldest_supported_server(old_python: str, search: SearchDir, tmp_path: Path) -> None:
    assert OLD_MLFLOW.startswith(f"mlflow=={OLDEST_SERVER}.")
    folder = tmp_path / "server"
    options = ("--artifacts-destination", str(tmp_path / "files"))
    with mlflow_server(folder, f"sqlite:///{folder}/m.db", *options, python=old_python) as uri:
        check_complete(uri, search, "mlflow-artifacts:")


# ------------------------------------------------------------------------------------------ what stands before a server


def test_the_pinned_server(server: str, search: SearchDir) -> None:
    check_complete(server, search, "mlflow-artifacts:")


def test_behind_a_reverse_proxy_under_a_path(server: str, search: SearchDir) -> None:
    with front(server, prefix="/mlflow") as proxy:
        sync(search, f"{proxy.uri}/mlflow")
        assert files(f"{proxy.uri}/mlflow/", search) == ["split_certificate.json"]
        message = problem_of(search, proxy.uri)
    assert "404 Not Found nginx" in message, "the page's text, without its HTML"
    assert "belongs to --mlflow-uri, such as https://HOST/mlflow" in message


def test_logins(server: str, search: SearchDir, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    with front(server, authorization=basic("me", "pw")) as proxy:
        assert "a login is needed" in problem_of(search, proxy.uri)
        assert (
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (run folders keep no password), or "
            "MLFLOW_TRACKING_TOKEN" in problem_of(search, proxy.uri)
        )
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pw")
        assert sync(search, proxy.uri) == 2
        assert files(proxy.uri, search) == ["split_certificate.json"]
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    with front(server, authorization="Bearer t0ken") as proxy:
        assert sync(search, proxy.uri) == 2


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_https_with_an_own_ca(server: str, search: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH", raising=False)
    certificate, key = own_certificate(tmp_path)
    with front(server, tls=(certificate, key)) as proxy:
        uri = proxy.uri.replace("http://", "https://")
        assert "name its file: MLFLOW_TRACKING_SERVER_CERT_PATH=/PATH/ca.pem" in problem_of(search, uri)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        assert sync(search, uri) == 2
        assert files(uri, search) == ["split_certificate.json"]
    assert "the server speaks no https there: write http://" in problem_of(search, server.replace("http:", "https:"))


def test_proxies_of_the_environment(server: str, search: SearchDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of this machine is never asked for through a proxy, which would ask its own machine."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with front("http://127.0.0.1:9") as proxy:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.uri)
        assert sync(search, server) == 2
        assert files(server, search) == ["split_certificate.json"]
        assert sync(search, server.replace("127.0.0.1", "localhost")) == 2
        assert proxy.requests == []
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{free_port()}")
    message = problem_of(search, "https://mlflow.hospital.invalid")
    assert "to go there directly, add mlflow.hospital.invalid to NO_PROXY" in message


# -------------------------------------------------------------------------------------------------- places of files


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server with the bucket `wml`; what a client needs to reach it is in the environment."""
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://{host}:{port}")
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket="wml")
    yield f"http://{host}:{port}"
    moto.stop()


def test_files_in_s3(server: str, search: SearchDir, s3: str) -> None:
    """The client writes to the bucket itself, as with a server that does not serve artifacts."""
    at(server, search, "s3-good", "s3://wml/mlflow")
    assert sync(search, server) == 2
    assert files(server, search) == ["split_certificate.json"]


def at(uri: str, search: SearchDir, experiment: str, location: str) -> None:
    """Let the search go into a new experiment whose files go to a location."""
    connect(uri).create_experiment(experiment, location)
    record = {**search.record().as_json(), "experiment": experiment}
    search.file("record").write_text(json.dumps(record))


def refusal(server: str, search: SearchDir, experiment: str, location: str, and_sync: bool = True) -> str:
    """Return what the mirror says of an artifact store that refuses; MLflow has all metrics nevertheless.

    `sync` says the same; not tried where this process has what the mirror's process lacks.
    """
    at(server, search, experiment, location)
    mirror = Mirror(search, server)
    for run in search.all_runs():
        mirror.notify(run)
    told = mirror.close(120)
    run_id = search.trial(0).ledger().run_id
    assert run_id is not None, told
    assert connect(server).get_run(run_id).data.metrics["val_dice_patients_best"] == 0.5
    if not and_sync:
        return told
    message = problem_of(search, server)
    assert message.startswith(f"{server}: MLflow has all metrics, but does not take files (")
    assert message.endswith("then run `wmlsearch sync` again")
    assert told.split(";")[-1] in message
    return told


def test_a_missing_bucket(server: str, search: SearchDir, s3: str) -> None:
    told = refusal(server, search, "s3-missing", "s3://no-such-bucket/mlflow")
    assert "create the bucket of s3://no-such-bucket/mlflow" in told


def test_no_credentials(server: str, search: SearchDir, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in AWS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(search.path))
    told = refusal(server, search, "s3-nobody", "s3://wml/nobody", and_sync=False)
    assert "needs a valid AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in told


def test_a_store_that_answers_403(server: str, search: SearchDir, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    with front("http://127.0.0.1:9", authorization="nobody has this", status=403) as forbidding:
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", forbidding.uri)
        told = refusal(server, search, "s3-forbidden", "s3://wml/forbidden", and_sync=False)
    assert "allow writing to s3://wml/forbidden" in told
    assert "(of S3: s3:PutObject), or give another --experiment" in told


def test_boto3_is_missing(server: str, search: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "boto3.py").write_text("raise ModuleNotFoundError(\"No module named 'boto3'\", name='boto3')\n")
    monkeypatch.setenv("PYTHONPATH", str(hidden))  # for the mirror's process
    monkeypatch.setitem(sys.modules, "boto3", None)
    told = refusal(server, search, "s3-no-boto3", "s3://wml/x")
    assert "install it where wmlsearch runs: pip install boto3" in told


def test_a_folder_that_cannot_be_written(server: str, search: SearchDir) -> None:
    told = refusal(server, search, "read-only", "file:///proc/wmlsearch")
    assert "make /proc/wmlsearch" in told
    assert "writable on this machine, or let the server take the files (mlflow server --serve-artifacts" in told


def test_a_server_that_cannot_store_the_files_that_it_serves(search: SearchDir, tmp_path: Path) -> None:
    folder = tmp_path / "server"
    options = ("--artifacts-destination", "/proc/wmlsearch")
    with mlflow_server(folder, f"sqlite:///{folder}/m.db", *options) as uri:
        told = refusal(uri, search, "served", "mlflow-artifacts:/s")
    assert "the server stores the files itself, and its log says why it could not" in told


def test_a_refused_upload_breaks_its_connection(server: str, search: SearchDir) -> None:
    """As MLflow's own server does, which answers before it has read the file. All metrics are sent nevertheless."""
    with front(server, takes_files=False) as proxy:
        told = refusal(proxy.uri, search, "broken", "mlflow-artifacts:/s")
    assert "the server stores the files itself, and its log says why it could not" in told


def test_a_busy_server_at_the_end_of_a_search(server: str, search: SearchDir) -> None:
    """Requests that fail are not the end of the copy; a server that stays away is left alone after some attempts."""
    with front(server) as proxy:
        proxy.failures = LAST_ATTEMPTS - 1
        mirror = Mirror(search, proxy.uri)
        assert mirror.close(120) == ""
        proxy.failures = 1000
        mirror = Mirror(search, proxy.uri)
        mirror.notify(add_trial(search, 1))
        assert "503" in mirror.close(120)
        assert LAST_ATTEMPTS <= 1000 - proxy.failures <= LAST_ATTEMPTS + 1
    assert "s" in held(server)["chosen"]
