"""Spellings of the URI of an MLflow store. tests/bad_input has those that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from wmlsearch.cli import main
from wmlsearch.errors import InputError
from wmlsearch.tracking.uri import check_uri, default_uri, sqlite_file, usual_form


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("HTTPS://MLflow.Example.ORG/", "https://mlflow.example.org"),
        ("https://Me:Pass@Host:443/Path/To//", "https://Me:Pass@host:443/Path/To"),
        ("sqlite:////Data/m.db", "sqlite:////Data/m.db"),
        ("postgresql://Me:Pass@Host/Name/", "postgresql://Me:Pass@Host/Name/"),
        ("databricks", "databricks"),
    ],
)
def test_a_server_has_one_form(given: str, expected: str) -> None:
    """Paths, users and passwords know upper and lower case."""
    assert usual_form(given) == expected


def test_ui_knows_a_server_in_upper_case(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["ui", "--out", str(tmp_path), "--mlflow-uri", "HTTP://LocalHost:9/"])
    assert result.exit_code == 2
    assert result.stderr.startswith("wmlsearch: http://localhost:9: MLflow does not answer (")
    assert result.stderr.endswith("check that the server runs, and its host and port)\n")


@pytest.mark.parametrize("name", ["a b", "a+b", "a#b", "ä", "100%", "50%off", "a@b:c", "a&b=c;d"])
def test_a_plain_path_stands_in_the_uri_as_it_is(name: str, tmp_path: Path) -> None:
    """As in the ledgers of older run folders, which name their store."""
    assert default_uri(tmp_path / name) == f"sqlite:///{tmp_path}/{name}/mlflow.db"
    assert sqlite_file(default_uri(tmp_path / name)) == tmp_path / name / "mlflow.db"


@pytest.mark.parametrize("name", ["a%20b", "a?b", "a%20b?c=d%3F", "file:a?b"])
def test_sqlalchemy_opens_the_file_that_was_meant(name: str, tmp_path: Path) -> None:
    engines = pytest.importorskip("sqlalchemy")
    folder = tmp_path / name
    folder.mkdir()
    uri = default_uri(folder)
    check_uri(uri)
    with engines.create_engine(uri).connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()] == [Path(name, "mlflow.db")]
    assert sqlite_file(uri) == folder / "mlflow.db"


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("sqlite:///x.db", Path("x.db")),
        ("sqlite:///x.db?timeout=20", Path("x.db").absolute()),
        ("sqlite:///file:/data/x.db?uri=true&mode=ro", Path("/data/x.db")),
        ("sqlite:///file:/data/x.db", Path("file:/data/x.db")),
        ("sqlite:///", None),
        ("sqlite:///:memory:", None),
        ("sqlite:///:memory:?timeout=20", None),
        ("sqlite:///file::memory:?uri=true", None),
        ("sqlite:///file:x.db?uri=true&mode=memory", None),
        ("postgresql://host/name", None),
        ("http://host", None),
    ],
)
def test_the_file_of_a_store(uri: str, file: Path | None) -> None:
    assert sqlite_file(uri) == file


def test_options_of_sqlite_that_are_not_valid_are_refused() -> None:
    with pytest.raises(InputError, match=r"timeout=soon: is not a valid URL of a SQLite file .* write % as %25"):
        check_uri("sqlite:////data/x.db?timeout=soon")
