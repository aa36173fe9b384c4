"""Checkpoints in an object store (moto's S3): what is uploaded, listed and deleted, and with how many requests."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyarrow import fs
from records import run_record, search_record

from wmlsearch.runs.files import StorageError
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.search import checkpoints as stored_checkpoints
from wmlsearch.search.checkpoints import (
    CheckpointRetention,
    Checkpoints,
    delete_unknown_runs,
    stored_files,
    stored_snapshots,
)
from wmlsearch.search.object_store import DELETING_THREADS, BackgroundDeletions, ObjectStore, split_location
from wmlsearch.workflows.placement import Placement


class Store:
    """An S3 bucket that counts the requests."""

    def __init__(self, host: str, port: int) -> None:
        self.placement = Placement(
            storage=f"s3://bucket/wml?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
        )
        self.requests: list[str] = []

    def put(self, run: RunDir, *names: str) -> None:
        system, root = fs.FileSystem.from_uri(self.placement.checkpoint_location(run))
        for name in names:
            with system.open_output_stream(f"{root}/{name}") as stream:
                stream.write(name.encode())


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("EC2_METADATA_DISABLED", "true")):
        monkeypatch.setenv(f"AWS_{name}", value)
    address = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=address, region_name="us-east-1").create_bucket(Bucket="bucket")
    store = Store(host, port)
    answer = server._server.app

    def counted(environ: dict[str, str], start_response: object) -> object:
        store.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        return answer(environ, start_response)

    server._server.app = counted
    yield store
    server.stop()


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    return SearchDir.create(tmp_path / "s", search_record({"name": "s"}))


def test_unchanged_weights_are_not_uploaded_again(
    store: Store, search: SearchDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = store.placement.checkpoint_location(search.trial(3))
    checkpoints = Checkpoints(location)
    checkpoints.fetch()
    monkeypatch.setattr(stored_checkpoints, "LATE_S", 0.0)
    with pytest.raises(StorageError, match=f"checkpoint of 1 reported epoch is missing on .*{location.split('?')[0]}"):
        checkpoints.fetch(reported_epochs=1)

    def uploads() -> list[str]:
        store.requests.clear()
        checkpoints.push()
        return sorted({name.rpartition("/")[2] for name in store.requests if name.startswith("PUT") and ".pt" in name})

    checkpoints.last.write_bytes(b"state 1")
    checkpoints.best.write_bytes(b"weights 1")
    assert uploads() == ["best.pt", "last.pt"]
    RunDir(checkpoints.last.parent).last.write_bytes(b"state of epoch 2")
    assert uploads() == ["last.pt"]
    assert uploads() == []
    checkpoints.close()
    checkpoints = Checkpoints(location)  # another process goes on
    checkpoints.fetch(reported_epochs=2)
    assert (checkpoints.last.read_bytes(), checkpoints.best.read_bytes()) == (b"state of epoch 2", b"weights 1")
    assert uploads() == []
    checkpoints.best.write_bytes(b"weights 2 ")
    assert uploads() == ["best.pt"]
    checkpoints.close()


def test_ended_trials_are_deleted_in_the_background(store: Store, search: SearchDir) -> None:
    place = store.placement.checkpoint_location
    for number in range(7):
        store.put(search.trial(number), "last.pt", "best.pt")
    retention = CheckpointRetention(place, lambda _: 0, math.inf, ["val_dice"])
    for number in range(7):
        retention.trial_ended(search.trial(number), [number / 10])
    retention.wait()
    runs = [search.trial(number) for number in range(7)]
    assert [sorted(names) for names in stored_files(search, runs, place).values()] == [[], [], *[["best.pt"]] * 5]


def test_a_resumed_search_asks_the_store_once(store: Store, search: SearchDir) -> None:
    """A killed search has left checkpoints of two ended trials, of thousands."""
    place = store.placement.checkpoint_location
    runs = [search.trial(number) for number in range(3000)]
    store.put(runs[5], "best.pt", "last.pt")
    store.put(runs[7], "last.pt", "epoch-0004.pt")
    store.put(runs[2999], "best.pt")
    store.put(search.trial(3000), "last.pt", "best.pt")  # it has not ended
    retention = CheckpointRetention(place, lambda _: 0, math.inf, ["val_dice"])
    store.requests.clear()
    retention.search_resumed(search, [(run, [int(run.name) / 1e4]) for run in runs])
    retention.wait()
    assert len(store.requests) < 30
    assert sum(request.startswith("GET") for request in store.requests) == 1
    left = ObjectStore(place(search)).files()
    assert {run: sorted(names) for run, names in left.items()} == {
        "trials/0007": ["epoch-0004.pt"],
        "trials/2999": ["best.pt"],
        "trials/3000": ["best.pt", "last.pt"],
    }


def test_snapshots_are_listed_at_once(store: Store, search: SearchDir) -> None:
    for number in (1, 2):
        RunDir.create(search.trial(number).path, run_record())
    store.put(search.trial(1), "epoch-0002.pt", "epoch-0002-best.pt", "epoch-0004.pt", "last.pt")
    store.put(search.trial(2), "epoch-0002-best.pt")
    assert stored_snapshots(search, store.placement.checkpoint_location) == {2: {1, 2}, 4: {1}}


def test_a_store_that_is_gone_delays_the_end_for_a_while_only() -> None:
    deletions = BackgroundDeletions()
    deletions.delete("s3://bucket/s/trials/0001?scheme=http&endpoint_override=127.0.0.1:9&region=us-east-1", "last.pt")
    deletions.wait(patience_s=0.0)  # returns


def test_the_first_file_that_cannot_be_deleted_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Arrow does not know this kind of URI, which is no OSError; the threads go on."""
    deletions = BackgroundDeletions()
    for name in ("last.pt", "best.pt", *(f"epoch-{epoch:04d}.pt" for epoch in range(2 * DELETING_THREADS))):
        deletions.delete("what://me:open-sesame@bucket/s/trials/0001", name)
    with caplog.at_level(logging.WARNING):
        assert deletions.wait()
    assert deletions.wait(0.0)
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told.startswith("warning: what://me:***@bucket/s: a checkpoint that nobody needs was not deleted (")
    assert "open-sesame" not in caplog.text


def test_the_location_of_a_search_and_of_its_run() -> None:
    assert split_location("s3://b/x/s/trials/0003?region=r") == ("s3://b/x/s?region=r", "trials/0003")
    assert split_location("gs://b/s/final/paper-run0") == ("gs://b/s", "final/paper-run0")


def test_checkpoints_are_deleted_when_the_copy_says_that_they_are_not_needed(store: Store, search: SearchDir) -> None:
    """A search that returns from an older copy of its folder needs what it has not deleted by then."""
    waiting: list[Callable[[], None]] = []
    retention = CheckpointRetention(
        store.placement.checkpoint_location, lambda _: 1, math.inf, ["val_dice"], waiting.append
    )
    run = RunDir.create(search.trial(0).path, run_record({"name": "trial-0000"}))
    store.put(run, "last.pt", "best.pt")
    retention.trial_ended(run, [0.5])
    retention.search_resumed(search, [(run, [0.5])])
    retention.wait()
    stored = stored_files(search, [run], store.placement.checkpoint_location)
    assert stored == {run: {"last.pt", "best.pt"}}
    for action in waiting:
        action()
    retention.wait()
    assert stored_files(search, [run], store.placement.checkpoint_location) == {run: {"best.pt"}}


def test_checkpoints_of_runs_that_a_restored_search_does_not_have(store: Store, search: SearchDir) -> None:
    """Their numbers are given to new trials, which must not go on from them."""
    for run in (search.trial(0), search.final("paper", 0)):
        RunDir.create(run.path, run_record({"name": run.name}))
    runs = [search.trial(0), search.trial(1), search.final("paper", 0), search.final("paper", 1)]
    for run in runs:
        store.put(run, "last.pt", "best.pt")
    store.placement.prepare_storage(search)
    stored = stored_files(search, runs, store.placement.checkpoint_location)
    assert [sorted(stored[run]) for run in runs] == [["best.pt", "last.pt"], [], ["best.pt", "last.pt"], []]
    delete_unknown_runs(store.placement.checkpoint_location(SearchDir(search.path.parent / "new")), search)


def test_a_storage_that_is_the_run_folder_loses_nothing_of_the_user(tmp_path: Path) -> None:
    search = SearchDir(tmp_path / "runs" / "s")
    notes = search.path / "trials" / "notes"
    notes.mkdir(parents=True)
    Placement(storage=str(tmp_path / "runs")).prepare_storage(search)
    assert notes.is_dir()
