"""The folder of a search that was fetched from a cluster is not replaced by an older state of the search."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from records import epoch_row, run_record, search_record

from wmlsearch.cluster.fetched import check_replaceable, check_resumable, is_up_to_date, note_fetched, replace
from wmlsearch.cluster.head_job import SearchState
from wmlsearch.cluster.run_copies import CopyWriter
from wmlsearch.errors import InputError
from wmlsearch.runs import folders
from wmlsearch.runs.folders import RunDir, SearchDir, mark_dead_runs

HEAD = "the head"


@pytest.fixture
def head(tmp_path: Path) -> SearchDir:
    """A search that was interrupted on the head, after an epoch."""
    search = SearchDir.create(tmp_path / "head" / "s", search_record(name="s"))
    RunDir.create(search.trial(0).path, run_record(name="trial-0000"))
    train(search, epoch=1)
    return search


@pytest.fixture
def here(head: SearchDir, tmp_path: Path) -> SearchDir:
    """The same, fetched."""
    search = SearchDir(shutil.copytree(head.path, tmp_path / "runs" / "s"))
    note_fetched(search)
    return search


def train(search: SearchDir, epoch: int) -> None:
    """Train for an epoch of 10 s, and end."""
    search.trial(0).append(epoch_row({"epoch": epoch, "time": 2e9 + epoch}))
    search.update_usage(seconds=search.usage().seconds + 10)
    search.set_status("interrupted", "stopped by Ctrl-C")


def fetch(head: SearchDir, here: SearchDir) -> None:
    """Replace the folder here by the one of the head."""
    newer = shutil.copytree(head.path, here.path.with_name(f".{here.name}.partial"), dirs_exist_ok=True)
    replace(here, newer, HEAD)


def refusal(head: SearchDir, here: SearchDir) -> str:
    """Return why the folder here is not replaced. It stays as it is."""
    before = {path: path.read_bytes() for path in here.path.rglob("*") if path.is_file() and path.name != "owner"}
    with pytest.raises(InputError) as error:
        fetch(head, here)
    assert {path: path.read_bytes() for path in before} == before
    return str(error.value)


def test_a_search_that_goes_on_on_the_head_is_fetched_again(head: SearchDir, here: SearchDir) -> None:
    for epoch in (2, 3):
        train(head, epoch)
        mark_dead_runs(here)
        here.set_status("interrupted", "its process died")  # as `sync` corrects a state
        assert not is_up_to_date(here, SearchState.of(head), HEAD)
        fetch(head, here)
        assert is_up_to_date(here, SearchState.of(head), HEAD)
        assert here.trial(0).rows() == head.trial(0).rows()


def test_a_search_that_went_on_here_is_not_replaced(head: SearchDir, here: SearchDir) -> None:
    train(here, epoch=2)
    text = (
        f"{here.path}: the search was trained or evaluated here since it was fetched, and nothing is overwritten; "
        f"resume it here (`wmlsearch tune --resume s --out {here.path.parent}`), or give another --out for what the "
        "head has"
    )
    assert refusal(head, here) == text
    train(head, epoch=2)
    train(head, epoch=3)
    assert refusal(head, here) == text, "the head has more, but not the same"


def test_a_search_that_runs_here_is_not_replaced(head: SearchDir, here: SearchDir) -> None:
    train(head, epoch=2)
    with here.locked():
        assert refusal(head, here) == (
            f"{here.path}: the search runs here, and nothing is overwritten; end it first "
            f"(`wmlsearch stop s --out {here.path.parent}`), or give another --out"
        )
        with pytest.raises(InputError, match="the search runs here"):
            check_resumable(here, None, HEAD, "s3://bucket")


def test_folders_of_older_versions(head: SearchDir, here: SearchDir) -> None:
    """They do not tell how far the search had come when it was fetched."""
    (note,) = here.path.glob(".fetched.json")
    note.unlink()
    train(here, epoch=2)
    assert refusal(head, here) == (
        f"{here.path}: has more of the search (20 s of trainings) than the head (10 s), and nothing is overwritten; "
        f"resume it here (`wmlsearch tune --resume s --out {here.path.parent}`), or give another --out for what the "
        "head has"
    )
    for epoch in (2, 3):
        train(head, epoch)
    fetch(head, here)
    note.unlink()
    assert is_up_to_date(here, SearchState.of(head), HEAD)
    train(here, epoch=4)
    for epoch in (4, 5):
        train(head, epoch)
    with pytest.raises(InputError, match="was trained or evaluated here since it was fetched"):
        check_replaceable(here, SearchState.of(head), HEAD)


def test_an_older_head_that_comes_back(head: SearchDir, here: SearchDir, tmp_path: Path) -> None:
    older = SearchDir(shutil.copytree(head.path, tmp_path / "older" / "s"))
    train(head, epoch=2)
    fetch(head, here)
    assert refusal(older, here).startswith(
        f"{here.path}: has more of the search (20 s of trainings) than the head (10 s)"
    )


def test_a_damaged_search_of_the_head_is_fetched_all_the_same(head: SearchDir, here: SearchDir) -> None:
    train(head, epoch=2)
    head.trial(0).file("metrics").write_text("damaged\n{}\n")
    fetch(head, here)
    assert here.usage().seconds == 20
    assert not list(here.path.glob(".fetched.json"))


def test_an_interrupted_move_is_repeated(head: SearchDir, here: SearchDir, monkeypatch: pytest.MonkeyPatch) -> None:
    train(head, epoch=2)
    moved: list[Path] = []

    def break_off(source: Path, target: Path) -> None:
        if target.name == "status.json":
            raise KeyboardInterrupt
        moved.append(target)
        source.rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(folders.os, "replace", break_off)
        with pytest.raises(KeyboardInterrupt):
            fetch(head, here)
    assert here.file("usage") in moved
    assert not is_up_to_date(here, SearchState.of(head), HEAD)
    fetch(head, here)
    assert is_up_to_date(here, SearchState.of(head), HEAD)


def test_another_search_of_the_name(head: SearchDir, tmp_path: Path) -> None:
    other = SearchDir.create(tmp_path / "runs" / "s", search_record(name="s"))
    assert refusal(head, other) == (
        f"{other.path}: contains a search that differs from the one of the head, and nothing is overwritten; "
        "give another --out"
    )


def test_the_head_goes_on_where_this_machine_left_off_only_with_a_complete_storage(
    head: SearchDir, here: SearchDir, tmp_path: Path
) -> None:
    storage = tmp_path / "storage"
    (storage / "s").mkdir(parents=True)

    def check() -> None:
        check_resumable(here, SearchState.of(head), HEAD, str(storage))

    check()
    train(here, epoch=2)
    with pytest.raises(InputError, match="was trained or evaluated here since it was fetched"):
        check()
    writer = CopyWriter(here, str(storage), "first", "process 7 on laptop", lambda: None)
    writer.copy_all(True)
    with pytest.raises(InputError, match="was trained or evaluated here since it was fetched"):
        check_resumable(here, SearchState.of(head), HEAD, None)
    check()
    for epoch in (2, 3):
        train(head, epoch)
    fetch(head, here)
