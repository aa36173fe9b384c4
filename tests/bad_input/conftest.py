"""What the tests of bad input share: the command line in an empty folder, where nothing may be started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from wmlsearch.cli import main

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """`refused("tune", "quick")` types `wmlsearch tune quick`: the message, of a user's fault and nothing but it."""
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
    """Whoever would start or join a Ray fails: what can't be is refused before."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("Ray was asked for")

    monkeypatch.setattr("wmlsearch.cluster.connect.ray.init", forbidden)
