"""Messages of MLflow's problems: one line with the real reason at its end and what to change; the rest in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from wmlsearch.tracking.problems import MAX_TEXT, why, why_no_files

URI = "https://me:secret@mlflow.example.org"


def test_a_long_error_loses_its_middle_and_is_kept_in_a_file(tmp_path: Path) -> None:
    log = tmp_path / "mlflow-problem.txt"
    text = f"cannot store, {'middle ' * 200}of {URI}: disk quota exceeded"
    told = why(ValueError(text), URI, log)
    line, _, where = told.partition("; ")
    assert line.startswith("ValueError: cannot store, middle")
    assert " ... " in line
    assert line.endswith("of https://me:***@mlflow.example.org: disk quota exceeded")
    assert len(line) <= MAX_TEXT
    assert where == f"the whole text is in {log}"
    assert "middle " * 200 in log.read_text()
    assert "secret" not in log.read_text()


def test_a_file_that_cannot_be_written_is_not_named(tmp_path: Path) -> None:
    told = why(ValueError("x" * 1000 + " the end"), URI, tmp_path / "missing" / "log.txt")
    assert told.endswith("x the end")


def test_a_short_error_needs_no_file(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert why(ValueError("short\n  text"), URI, log) == "ValueError: short text"
    assert not log.exists()


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("HTTPSConnectionPool: Max retries exceeded (Caused by ProxyError('Unable to connect to proxy'))",
         "to go there directly, add mlflow.example.org to NO_PROXY"),
        ("(Caused by SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify "
         "failed: self-signed certificate')))", "MLFLOW_TRACKING_SERVER_CERT_PATH=/PATH/ca.pem"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] Hostname mismatch, certificate is not valid for 'b'", "write that name in"),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", "write http://"),
        ("failed with error code 401 != 200. Response body: 'Unauthorized'", "or MLFLOW_TRACKING_TOKEN"),
        ("PERMISSION_DENIED: Permission denied", "ask for the permission EDIT, give an --experiment of your own"),
        ("Invalid Host header - possible DNS rebinding attack detected (403)", "--allowed-hosts mlflow.example.org"),
        ("API request to endpoint /api/2.0/mlflow/registered-models/alias failed with error code 404 != 200",
         "this server is older than MLflow 2.3"),
        ("failed with error code 404 != 200. Response body: 'Not Found'", "belongs to --mlflow-uri"),
        ("Failed to establish a new connection: [Errno 111] Connection refused", "check that the server runs"),
        ("NameResolutionError: Failed to resolve 'mlflow.example.org'", "check the name of the host"),
        ("Max retries exceeded (Caused by ResponseError('too many 503 error responses'))", "it may be starting"),
        ("API request to endpoint /api failed with error code 500 != 200. Response body: 'x'", "its log says why"),
        ("Read timed out. (read timeout=10)", "MLFLOW_HTTP_REQUEST_TIMEOUT=60 waits longer"),
        ("Can't locate revision identified by 'abc'", "belongs to a newer MLflow than the one installed here"),
        ('FATAL: database "mlflow" does not exist', "create it: createdb mlflow"),
    ],
)  # fmt: skip
def test_what_to_change(text: str, advice: str) -> None:
    assert advice in why(RuntimeError(text), URI)


def test_a_missing_package_is_named_wherever_the_error_comes_from() -> None:
    error = RuntimeError("cannot log artifacts")
    error.__cause__ = ModuleNotFoundError("No module named 'google'", name="google.cloud")
    assert why_no_files(error, URI, "gs://bucket/x").endswith("pip install google-cloud-storage")


@pytest.mark.parametrize(
    ("location", "text", "advice"),
    [
        ("s3://b/x", "An error occurred (NoSuchBucket)", "create the bucket of s3://b/x"),
        ("s3://b/x", "An error occurred (AccessDenied) when calling PutObject", "(of S3: s3:PutObject)"),
        ("s3://b/x", "An error occurred (InvalidAccessKeyId)", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("s3://b/x", "Could not connect to the endpoint URL", "set MLFLOW_S3_ENDPOINT_URL"),
        ("s3://b/x", "something else", "check that s3://b/x can be written from this machine"),
        ("file:///srv/files", "Permission denied", "make /srv/files writable on this machine, or let the server take"),
        ("mlflow-artifacts:/1/2", "error code 500", "its log says why it could not; check its --artifacts-destination"),
    ],
)
def test_places_of_files(location: str, text: str, advice: str) -> None:
    assert advice in why_no_files(RuntimeError(text), URI, location)


def test_web_pages_and_links_are_left_out() -> None:
    page = "Response body: '<!doctype html><html><style>p {x}</style><h1>404 Not Found</h1><p>nginx &amp; co</p>'"
    assert "Response body: ' 404 Not Found nginx & co '" in why(RuntimeError(page), URI)
    text = "no such table: runs\n(Background on this error at: https://sqlalche.me/e/20/e3q8)"
    assert why(RuntimeError(text), URI) == "RuntimeError: no such table: runs"
