"""Which run folder a search goes on with: the one on this machine, or the copy in its storage."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from records import run_record, search_record

import wmlsearch
from wmlsearch.cluster.run_copies import CopyWriter, read_mark
from wmlsearch.cluster.storage import Storage
from wmlsearch.cluster.transfer import fingerprint_of, upload_data
from wmlsearch.data.manifest import Manifest
from wmlsearch.errors import InputError
from wmlsearch.runs.folders import RunDir, SearchDir, list_runs
from wmlsearch.runs.schema import MlflowLedger
from wmlsearch.workflows.placement import Placement
from wmlsearch.workflows.search_plan import ResumeRequest
from wmlsearch.workflows.stored_search import StoredSearch, search_to_resume, stored_search


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    return SearchDir.create(tmp_path / "runs" / "s", search_record(name="s"))


def copy(search: SearchDir, storage: Path, session: str = "first") -> None:
    (storage / "s").mkdir(parents=True, exist_ok=True)
    CopyWriter(search, str(storage), session, "process 7 on node3", lambda: None).copy_all()


def test_a_folder_that_is_gone_is_restored(search: SearchDir, tmp_path: Path) -> None:
    RunDir.create(search.trial(0).path, run_record(name="trial-0000"))
    search.set_ledger(MlflowLedger(uri="http://mlflow", run_id="1", made=True))
    copy(search, tmp_path / "storage")
    shutil.rmtree(search.path)
    said: list[str] = []
    with search_to_resume("s", tmp_path / "runs", str(tmp_path / "storage"), said.append):
        assert search.trial(0).record().key
    (text,) = said
    assert text.startswith(f"s is restored from {tmp_path}/storage: process 7 on node3 wrote it last, at ")
    assert search.ledger() == MlflowLedger(uri="http://mlflow", run_id="1", made=False)
    with search_to_resume("s", tmp_path / "runs", str(tmp_path / "storage"), pytest.fail):
        pass  # it is here now


@pytest.mark.parametrize("by_path", [False, True])
def test_python_restores_a_search_too(
    by_path: bool, search: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(search, tmp_path / "storage")
    shutil.rmtree(search.path)
    monkeypatch.setattr("wmlsearch.api.searches.nothing_left", lambda folder, *_: f"nothing left of {folder.name}")
    said: list[str] = []
    name, storage = search.path if by_path else "s", str(tmp_path / "storage")
    resumed = wmlsearch.resume(name, out=tmp_path / "runs", storage=storage, say=said.append)
    assert (resumed.path, resumed.state) == (search.path, "gone")
    assert said[0].startswith(f"s is restored from {tmp_path}/storage: ")
    assert said[1:] == ["nothing left of s"]


def test_the_newer_one_of_folder_and_copy(search: SearchDir, tmp_path: Path) -> None:
    """The folder stays if it wrote the copy; it is moved aside if the search went on elsewhere."""
    storage = tmp_path / "storage"
    copy(search, storage)
    RunDir.create(search.trial(0).path, run_record(name="trial-0000"))  # after the last copy
    with search_to_resume("s", tmp_path / "runs", str(storage), pytest.fail):
        assert search.trial(0).exists()
    elsewhere = SearchDir(tmp_path / "head" / "s")
    with search_to_resume("s", tmp_path / "head", str(storage), lambda _: None):
        RunDir.create(elsewhere.trial(1).path, run_record(name="trial-0001"))
        copy(elsewhere, storage, "second")
    said: list[str] = []
    with search_to_resume("s", tmp_path / "runs", str(storage), said.append):
        assert [run.name for run in search.trials()] == ["0001"]
        mark = read_mark(search)
        assert mark is not None
        assert (mark.session, mark.sequence) == ("second", 1)
    (aside,) = (tmp_path / "runs").glob("s-before-*")
    assert [run.name for run in SearchDir(aside).trials()] == ["0000"]
    assert said[0] == f"s went on elsewhere since its folder was written here, which is now {aside}"


def test_the_folder_that_the_shell_is_in(search: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--resume .` asks for the lease of the search, and goes on with its newer copy."""
    storage = str(tmp_path / "storage")
    copy(search, tmp_path / "storage")
    elsewhere = SearchDir(tmp_path / "head" / "s")
    monkeypatch.chdir(search.path)
    with search_to_resume("s", tmp_path / "head", storage, lambda _: None):
        copy(elsewhere, tmp_path / "storage", "second")
        with (
            pytest.raises(InputError, match=r"storage/s: process .* runs s and renews its lease; end it there"),
            search_to_resume(".", tmp_path / "runs", storage, pytest.fail),
        ):
            pass
    with search_to_resume(".", tmp_path / "runs", storage, lambda _: None) as stored:
        assert Path.cwd().name.startswith("s-before-")
        assert stored.search == search
        mark = read_mark(search)
        assert mark is not None
        assert mark.session == "second"
    assert [path.name for path in (tmp_path / "storage").iterdir()] == ["s"]


def test_a_folder_stays_where_the_newer_copy_cannot_be_read(search: SearchDir, tmp_path: Path) -> None:
    storage, elsewhere = tmp_path / "storage", SearchDir(tmp_path / "head" / "s")
    copy(search, storage)
    with search_to_resume("s", tmp_path / "head", str(storage), lambda _: None):
        copy(elsewhere, storage, "second")
    for path in (storage / "s" / "run-folder").glob("*.pack"):
        path.write_bytes(b"damaged")
    with (
        pytest.raises(InputError, match="is damaged"),
        search_to_resume("s", tmp_path / "runs", str(storage), pytest.fail),
    ):
        pass
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["s"]
    assert search.exists()


def test_a_process_that_is_killed_while_it_reads_the_copy_leaves_the_folder(
    search: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--continue` goes on with it; without a folder it would begin a new search."""
    storage, elsewhere = tmp_path / "storage", SearchDir(tmp_path / "head" / "s")
    copy(search, storage)
    with search_to_resume("s", tmp_path / "head", str(storage), lambda _: None):
        RunDir.create(elsewhere.trial(1).path, run_record(name="trial-0001"))
        copy(elsewhere, storage, "second")
    download, seen = Storage.read, []

    def look(place: Storage, name: str) -> bytes | None:
        if name.endswith(".pack"):
            seen.append(sorted(run.path for run in list_runs(tmp_path / "runs")))
        return download(place, name)

    killed = tmp_path / "runs" / ".s.newer" / "s"
    RunDir.create(killed / "trials" / "0007", run_record(name="trial-0007"))
    monkeypatch.setattr(Storage, "read", look)
    with search_to_resume("s", tmp_path / "runs", str(storage), lambda _: None):
        assert [run.name for run in search.trials()] == ["0001"]
    assert seen
    assert all(runs == [search.path] for runs in seen)
    assert not killed.parent.exists()


def test_the_recorded_storage_is_asked(search: SearchDir, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    search.change_settings(search.record().settings, str(storage))
    copy(search, storage)
    elsewhere = SearchDir(tmp_path / "head" / "s")
    with search_to_resume("s", tmp_path / "head", str(storage), lambda _: None):
        copy(elsewhere, storage, "second")
    with search_to_resume("s", tmp_path / "runs", None, lambda _: None) as stored:
        assert stored.storage == str(storage)
    assert len(list((tmp_path / "runs").glob("s-before-*"))) == 1


def test_a_different_search_of_the_name_is_refused(search: SearchDir, tmp_path: Path) -> None:
    other = SearchDir.create(tmp_path / "others" / "s", search_record(name="s"))
    copy(other, tmp_path / "storage")
    message = f"^{search.path}: is a different search than s in {tmp_path}/storage; give another --storage, or move"
    with (
        pytest.raises(InputError, match=message),
        search_to_resume("s", tmp_path / "runs", str(tmp_path / "storage"), print),
    ):
        pass
    with pytest.raises(InputError) as error:
        Placement(storage=str(tmp_path / "storage")).check_storage_unused(SearchDir(tmp_path / "new" / "s"))
    assert str(error.value) == (
        f"--storage: {tmp_path}/storage has a search s already (state: running), and nothing is overwritten; "
        f"continue it (`wmlsearch tune --resume s --out {tmp_path}/new --storage {tmp_path}/storage`), choose another "
        f"--name, or delete {tmp_path}/storage/s/run-folder"
    )


def test_a_new_machine_gets_the_prepared_data_from_the_storage(
    search: SearchDir, prepared: Path, tmp_path: Path
) -> None:
    """The search was started with `--cluster` by the address of a dashboard, which sent them there."""
    fingerprint, storage = fingerprint_of(prepared), str(tmp_path / "storage")
    record = search_record(
        name="s",
        data={"fingerprint": fingerprint},
        data_path="/head/data",
        shape={"workers_per_trial": 1, "gpus_per_worker": None},
    )
    copy(search, tmp_path / "storage")
    said: list[str] = []

    def data_of(given: str | None) -> Path:
        with search_to_resume("s", tmp_path / "runs", given, said.append) as stored:
            return ResumeRequest.of(search, record, record.settings, stored=stored).data

    missing = "/head/data: the prepared data of s are not there (any more, or on this machine)"
    with pytest.raises(InputError) as nowhere:
        data_of(None)
    assert str(nowhere.value) == f"{missing}; name their folder with --data"
    with pytest.raises(InputError) as not_there:
        data_of(storage)
    assert str(not_there.value).startswith(f"{missing}, and {storage} has no copy of them; bring the folder here and ")
    upload_data(storage, prepared, fingerprint)
    target = tmp_path / "runs" / f"data-{fingerprint[:12]}"
    assert [data_of(storage), data_of(None)] == [target, target]
    assert said == [f"fetching the prepared data of s from {storage} into {target} ..."]
    Manifest.read(target).verify(target)
    (tmp_path / "storage" / ".data" / fingerprint / "masks.npy").write_bytes(b"torn")
    shutil.rmtree(target)
    with pytest.raises(InputError, match=r"masks\.npy: is damaged"):
        data_of(storage)
    assert not target.exists()


def test_a_folder_without_storage_or_copy_stays(search: SearchDir, tmp_path: Path) -> None:
    for storage in (None, str(tmp_path / "empty")):
        with search_to_resume("s", tmp_path / "runs", storage, pytest.fail):
            pass
    assert search.exists()
    for storage, message in (
        (None, f"missing: no search or run of this name in {tmp_path}/runs (it has: s), and not a path to one"),
        (
            f"{tmp_path}/empty",
            f"missing: no search of this name in {tmp_path}/runs, and no copy of one in {tmp_path}/empty",
        ),
    ):
        with pytest.raises(InputError) as error, search_to_resume("missing", tmp_path / "runs", storage, print):
            pass
        assert str(error.value) == message


def test_a_shared_folder_of_runs_that_is_the_storage_needs_no_copy(search: SearchDir, tmp_path: Path) -> None:
    """The checkpoints are in the run folders then, and their lock is enough."""
    with stored_search(str(tmp_path / "runs"), search, pytest.fail) as stored:
        stored.begin(search)
        done: list[str] = []
        stored.when_copied(lambda: done.append("at once"))
        assert done == ["at once"]
        stored.finish(search)
        stored.complete(search)
    assert sorted(path.name for path in search.path.iterdir()) == ["search.json", "status.json"]


def test_a_search_that_runs_is_refused_at_once(search: SearchDir, tmp_path: Path) -> None:
    command = (
        "import sys, time; from pathlib import Path; from wmlsearch.runs.lock import folder_lock\n"
        "with folder_lock(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", command, str(search.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with (
            pytest.raises(InputError, match="this search is running already"),
            search_to_resume("s", tmp_path / "runs", str(tmp_path / "storage"), pytest.fail),
        ):
            pass
        process.kill()


def test_what_the_storage_lacks_of_a_complete_search_is_sent(search: SearchDir, tmp_path: Path) -> None:
    search.set_status("completed")
    marks = []
    for _ in range(2):
        stored = StoredSearch(str(tmp_path / "storage"), search, pytest.fail)
        stored.complete(search)
        stored.release()
        marks.append(read_mark(search))
    assert marks[0] == marks[1] is not None, "it was sent once"
