"""The processes that do slow work beside a search: the MLflow mirror, the copier of run folders."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from wmlsearch.runs.environment import variables_set
from wmlsearch.runs.helper_process import _environment, start_helper


@pytest.mark.parametrize("of_user", [None, "theirs"])
def test_its_temporary_files_are_where_the_users_are(
    of_user: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a search's own temporary files is removed with its Ray, before the last files are sent."""
    monkeypatch.delenv("TMPDIR", raising=False)
    if of_user:
        monkeypatch.setenv("TMPDIR", str(tmp_path / of_user))
    with variables_set({"TMPDIR": str(tmp_path / "of the search")}):
        environment = _environment()
        assert os.environ["TMPDIR"] == str(tmp_path / "of the search")
    assert environment.get("TMPDIR") == (str(tmp_path / of_user) if of_user else None)


@pytest.mark.parametrize("module", ["wmlsearch.tracking.mirror", "wmlsearch.cluster.copier"])
def test_modules_in_the_users_folder_are_not_its_own(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "wmlsearch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    process = start_helper(module)
    process.communicate("", timeout=60)  # without a first line there is nothing to do
    assert process.returncode == 0
