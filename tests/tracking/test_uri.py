"""Spellings of the URI of an MLflow store. tests/bad_input has those that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from wmlsearch.cli import main
from wmlsearch.tracking.uri import usual_form


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
