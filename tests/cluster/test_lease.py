"""The lease of a search in its storage, and the process that copies the run folder of the search that holds it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from object_store import s3_storage
from processes import wait_for
from records import run_record, search_record

from wmlsearch.cluster import copier as copier_module
from wmlsearch.cluster import lease as lease_module
from wmlsearch.cluster.copier import RunFolderCopier
from wmlsearch.cluster.lease import Lease, holder
from wmlsearch.cluster.run_copies import fetch_search, searches
from wmlsearch.cluster.storage import Storage
from wmlsearch.errors import InputError
from wmlsearch.runs.files import StorageError
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.lock import note_taken_over
from wmlsearch.runs.process import Process


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "s3":
        with s3_storage() as location:
            yield location
    else:
        yield str(tmp_path / "storage")


@contextlib.contextmanager
def leased(location: str, name: str, say: Callable[[str], None]) -> Iterator[Lease]:
    """Hold the lease of a search for the block."""
    lease = Lease.take(location, name, say)
    try:
        yield lease
    finally:
        lease.release()


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_S", 0.1)
    monkeypatch.setattr(lease_module, "SETTLE_S", 0.1)
    monkeypatch.setattr(lease_module, "EXPIRES_S", 1.0)
    monkeypatch.setattr(copier_module, "EVERY_S", 0.05)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Process:
    """A process of another machine, as which the next lease is taken."""
    process = replace(Process.of_this_one(), host="node7", space="another boot", machine="another")
    monkeypatch.setattr(lease_module.Process, "of_this_one", lambda: process)
    return process


def test_a_second_head_is_refused_while_the_first_one_renews(storage: str, elsewhere: Process) -> None:
    messages: list[str] = []
    with leased(storage, "s", messages.append):
        with pytest.raises(InputError, match=rf"^{'s3:' if 's3' in storage else '/'}.*: {elsewhere} runs s and renews"):
            Lease.take(storage, "s", messages.append)
        assert [text.partition("; ")[2] for text in messages] == [
            "watching its lease for up to 1 s, after which the search continues here"
        ]
    with leased(storage, "s", messages.append):  # it was given back, so nobody waits
        assert len(messages) == 1


HOLD = """
import dataclasses, sys
from wmlsearch.cluster import lease
lease.RENEW_S = lease.SETTLE_S = 0.1
if sys.argv[2:]:
    process = dataclasses.replace(lease.Process.of_this_one(), host=sys.argv[2], space="x", machine="x")
    lease.Process.of_this_one = lambda: process
held = lease.Lease.take(sys.argv[1], "s", print)
held.on_loss(lambda other: print(f"lost to {other}", flush=True))
print("taken", flush=True)
sys.stdin.read()
held.release()
"""


@contextlib.contextmanager
def another_head(storage: str, *host: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lease of the search `s`, by its word on another machine if `host` is given."""
    command = [sys.executable, "-c", HOLD, storage, *host]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert line_of(process) == "taken\n"
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_lease_that_is_not_renewed_is_taken_over(storage: str) -> None:
    """The first head stands still; when it goes on, it sees that it has lost the lease, and gives nothing back."""
    with another_head(storage, "node7") as first:
        first.send_signal(signal.SIGSTOP)
        second = Lease.take(storage, "s", print)
        first.send_signal(signal.SIGCONT)
        assert line_of(first) == f"lost to {second.process}\n"
        first.communicate("", timeout=60)
        assert first.returncode == 0
    place = Storage(storage).below("s")
    assert holder(place, second.token) == ""
    # Perhaps not at once: moto's server frees the old object before it has the new one, which S3 never does.
    wait_for(lambda: holder(place, "that of the first") == str(second.process))
    second.release()
    assert second.lost_to == ""


def test_who_hears_late_of_a_loss(tmp_path: Path) -> None:
    lost: list[str] = []
    with leased(str(tmp_path), "s", print) as lease:
        lease.lose_to("process 9 on node7")
        lease.on_loss(lost.append)
    assert lost == ["process 9 on node7"]


def test_a_lease_of_a_dead_process_of_this_machine_is_taken_at_once(tmp_path: Path) -> None:
    with another_head(str(tmp_path)) as process:
        with pytest.raises(InputError, match=rf": process {process.pid} on \S+ runs s and renews its lease; "):
            Lease.take(str(tmp_path), "s", pytest.fail)
        process.kill()
        process.wait()
        Lease.take(str(tmp_path), "s", pytest.fail).release()


def test_a_storage_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=rf"^--storage {tmp_path}/file: cannot be used \("):
        Lease.take(str(tmp_path / "file"), "s", print)
    with pytest.raises(InputError, match=r"^--storage what://x: cannot be used \("):
        Lease.take("what://x", "s", print)


# --------------------------------------------------------------------------------------------------------- the copier


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    return SearchDir.create(tmp_path / "runs" / "s", search_record(name="s"))


def test_the_copier_follows_a_search(storage: str, search: SearchDir, tmp_path: Path) -> None:
    copied: list[str] = []
    with leased(storage, "s", print) as lease:
        copier = RunFolderCopier(search, lease, copied.append)
        run = RunDir.create(search.trial(0).path, run_record(name="trial-0000"))
        copier.notify(run)
        copier.when_copied(lambda: copied.append(fetch_search(storage, "s", tmp_path / "copy").trial(0).state))
        wait_for(lambda: bool(copied), 60)
        search.set_status("completed")
        assert copier.close() == ""
        assert copier.close(0) == ""
    assert copied == ["running"]
    assert [(each.state, each.complete) for each in searches(storage)] == [("completed", True)]


def test_a_storage_that_is_away_is_said_and_waited_for(
    search: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is unmounted: nothing is made in its place, and all is there when it is back."""
    monkeypatch.setattr(copier_module, "SAY_AFTER_S", 0.0)
    monkeypatch.setattr(copier_module, "MAX_WAIT_S", 0.1)
    said: list[str] = []
    with leased(str(tmp_path / "storage"), "s", print) as lease:
        (tmp_path / "storage").rename(tmp_path / "unmounted")
        copier = RunFolderCopier(search, lease, said.append)
        wait_for(lambda: len(said) == 1, 60)
        assert not (tmp_path / "storage").exists()
        (tmp_path / "unmounted").rename(tmp_path / "storage")
        wait_for(lambda: len(said) == 2, 60)
        copier.when_copied(lambda: said.append("copied"))
        assert copier.close() == ""
    assert said == [
        f"warning: {tmp_path}/storage does not accept the copy of the run folder (No such file or directory); the "
        "search continues, and the missing files are sent when it answers",
        f"{tmp_path}/storage takes the copy of the run folder again",
        "copied",
    ]


def test_a_process_that_dies_is_replaced(search: SearchDir, tmp_path: Path) -> None:
    storage = str(tmp_path / "storage")
    with leased(storage, "s", print) as lease:
        copier = RunFolderCopier(search, lease, print)
        wait_for(lambda: bool(searches(storage)), 60)
        assert copier._process is not None
        os.kill(copier._process.pid, signal.SIGKILL)
        RunDir.create(search.trial(0).path, run_record(name="trial-0000"))
        copier.notify(search.trial(0))
        assert copier.close() == ""
    assert fetch_search(storage, "s", tmp_path / "copy").trial(0).exists()


def test_a_head_that_lost_the_lease_writes_nothing_more(search: SearchDir, tmp_path: Path) -> None:
    storage = str(tmp_path / "storage")
    lease = Lease.take(storage, "s", print)
    with search.locked():
        lease.on_loss(lambda other: note_taken_over(search.path, other, storage))
        copier = RunFolderCopier(search, lease, print)
        wait_for(lambda: bool(searches(storage)), 60)
        file = tmp_path / "storage" / "s" / "lease.json"
        other = {
            **json.loads(file.read_text()),
            "token": "other",
            "process": {"pid": 9, "host": "node7", "started": "", "space": "x"},
        }
        aside = file.with_name("aside")
        aside.write_text(json.dumps(other))
        aside.replace(file)
        wait_for(lambda: bool(lease.lost_to), 60)
        with pytest.raises(
            StorageError, match=f"process 9 on node7 has taken the search over in {storage}, since this"
        ):
            search.set_status("completed")
        (search.path / "status.json").write_text('{"state": "completed"}')
        assert copier.close() == "process 9 on node7 runs the search now"
        lease.release()
    assert json.loads(file.read_text()) == other
    assert searches(storage)[0].state == "running"
