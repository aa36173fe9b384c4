"""Which of several folders of one search has come furthest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from records import epoch_row, run_record, search_record

from wmlsearch.runs.copied_folders import CopiedRun, by_key
from wmlsearch.runs.folders import RunDir, SearchDir, list_runs


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    made = SearchDir.create(tmp_path / "s", search_record(name="s"))
    RunDir.create(made.trial(0).path, run_record(name="trial-0000"))
    return made


def copy(search: SearchDir, name: str) -> SearchDir:
    return SearchDir(shutil.copytree(search.path, search.path.with_name(name)))


def test_the_folder_with_the_latest_epoch(search: SearchDir) -> None:
    """Neither the times of files nor those of states count: `cp -r` and `sync` change them."""
    before = copy(search, "s-before-20261129-120000")
    search.trial(0).append(epoch_row({"epoch": 1, "time": 2e9}))
    for file in search.path.rglob("*"):
        os.utime(file, (1e9, 1e9))
    before.set_status("interrupted", "its process died")
    assert by_key(list_runs(search.path.parent)) == [CopiedRun(search, (before,))]
    resumed = copy(search, "resumed")
    RunDir.create(resumed.trial(1).path, run_record(name="trial-0001", created=3e9))
    assert by_key(list_runs(search.path.parent)) == [CopiedRun(resumed, (search, before))]


def test_of_equal_folders_the_one_with_the_name_of_the_search(search: SearchDir) -> None:
    others = tuple(copy(search, name) for name in ("a", "z"))
    assert by_key(list_runs(search.path.parent)) == [CopiedRun(search, others)]


def test_other_runs_and_damaged_folders_stand_by_themselves(search: SearchDir) -> None:
    other = SearchDir.create(search.path.with_name("another"), search_record(name="another"))
    torn, lines = copy(search, "torn"), copy(search, "lines")
    torn.file("record").write_text("{")
    lines.trial(0).file("metrics").write_text("damaged\n{}\n")
    assert by_key(list_runs(search.path.parent)) == [
        CopiedRun(other), CopiedRun(search), CopiedRun(lines), CopiedRun(torn),
    ]  # fmt: skip


def test_a_folder_that_a_newer_copy_has_replaced_is_behind(search: SearchDir) -> None:
    """It may have an epoch that was trained after the copy, and was lost with it."""
    before = copy(search, "s-before-20261129-120000")
    before.trial(0).append(epoch_row({"epoch": 1, "time": 2e9}))
    assert by_key(list_runs(search.path.parent)) == [CopiedRun(search, (before,))]
    backup = copy(before, "s-before-lunch")
    assert by_key(list_runs(search.path.parent)) == [CopiedRun(backup, (search, before))]
