"""Fixtures of the tests of bad input: the command line in an empty folder, and no Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from wmlsearch.cli import main

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """`refused("tune", "quick")` runs `wmlsearch tune quick`, which must fail with status 2; returns the message."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "WMLSEARCH_STORAGE"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: object) -> str:
        result = CliRunner().invoke(main, [str(word) for word in words], prog_name="wmlsearch")
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        assert result.stderr.startswith("wmlsearch: ")
        return result.stderr.removeprefix("wmlsearch: ").removesuffix("\n")

    return run


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test that starts or joins a Ray: bad input must be refused before."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("wmlsearch.cluster.connect.ray.init", forbidden)
