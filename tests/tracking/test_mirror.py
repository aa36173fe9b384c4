"""The process that copies run folders to MLflow while a search runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wmlsearch.runs.environment import variables_set
from wmlsearch.tracking import mirror


@pytest.mark.parametrize("of_user", [None, "theirs"])
def test_its_temporary_files_are_where_the_users_are(
    of_user: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a search's own temporary files is removed with its Ray, before the last files are sent."""
    monkeypatch.delenv("TMPDIR", raising=False)
    if of_user:
        monkeypatch.setenv("TMPDIR", str(tmp_path / of_user))
    with variables_set({"TMPDIR": str(tmp_path / "of the search")}):
        environment = mirror._environment()
        assert os.environ["TMPDIR"] == str(tmp_path / "of the search")
    assert environment.get("TMPDIR") == (str(tmp_path / of_user) if of_user else None)
