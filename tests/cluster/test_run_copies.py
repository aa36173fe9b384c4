"""The copy of a search's run folder in a storage: a folder, and an object store (moto)."""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from object_store import s3_storage
from records import run_record, search_record

from wmlsearch.cluster import run_copies
from wmlsearch.cluster.run_copies import (
    CopyWriter,
    LeaseLost,
    Piece,
    copy_is_newer,
    copy_of,
    fetch_search,
    pack,
    read_index,
    searches,
    unpack,
)
from wmlsearch.cluster.storage import Storage
from wmlsearch.errors import InputError
from wmlsearch.runs.checks import validate_folder
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.schema import GOOD, EpochRow


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A storage with the folder of a search `s`, as a search makes it at its start."""
    if request.param == "s3":
        with s3_storage() as location:
            yield location
    else:
        (tmp_path / "storage" / "s").mkdir(parents=True)
        yield str(tmp_path / "storage")


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    return SearchDir.create(tmp_path / "runs" / "s", search_record(name="s"))


def writer(search: SearchDir, storage: str, session: str = "a") -> CopyWriter:
    return CopyWriter(search, storage, session, f"process 1 on {session}", lambda: None)


def trial(search: SearchDir, number: int, epochs: int = 0) -> RunDir:
    run = RunDir.create(search.trial(number).path, run_record(name=f"trial-{number:04d}"))
    for epoch in range(1, epochs + 1):
        report(run, epoch)
    return run


def report(run: RunDir, epoch: int) -> None:
    run.append(EpochRow(epoch, 100.0 + epoch, None, {"val_dice": epoch / 10}))


def content(search: SearchDir) -> dict[str, bytes]:
    """Return the files of a run folder but hidden ones, by path."""
    files = [path for path in search.path.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(search.path)): path.read_bytes() for path in files}


def fetched(storage: str, target: Path) -> dict[str, bytes]:
    copy = fetch_search(storage, "s", target)
    validate_folder(copy)
    return content(copy)


def test_a_copy_follows_the_run_folder(storage: str, search: SearchDir, tmp_path: Path) -> None:
    copies, runs = writer(search, storage), [trial(search, 0, 2), trial(search, 1)]
    search.journal.write_bytes(b'{"op": 1}\n')
    copies.copy([])
    assert fetched(storage, tmp_path / "first") == content(search)
    report(runs[1], 1)
    runs[0].set_status("completed")
    search.journal.write_bytes(search.journal.read_bytes() + b'{"op": 2}\n{"to')
    (search.path / "best.bin").write_bytes(os.urandom(run_copies.LARGE_BYTES))
    copies.copy([run.path for run in runs])
    copies.copy([])
    whole = {**content(search), "study.journal": b'{"op": 1}\n{"op": 2}\n'}
    assert fetched(storage, tmp_path / "second") == whole, "a torn last line is not copied"
    (search.path / "best.bin").unlink()
    runs[1].remove()
    copies.copy_all()
    assert fetched(storage, tmp_path / "third").keys() == whole.keys() - {
        "best.bin", *(f"trials/0001/{name}" for name in ("config.json", "metrics.jsonl", "status.json"))
    }  # fmt: skip
    assert searches(storage)[0].writer == "process 1 on a"


def test_lines_that_are_removed_again(search: SearchDir, tmp_path: Path) -> None:
    """A trial whose checkpoint has fewer epochs than its folder, or none: see `RunDir.reconcile`."""
    (tmp_path / "storage" / "s").mkdir(parents=True)
    storage, copies, run = str(tmp_path / "storage"), writer(search, str(tmp_path / "storage")), trial(search, 0, 3)
    copies.copy_all()
    for kept in (2, 0):
        run.reconcile(run.rows()[:kept])
        copies.copy([run.path])
        assert fetched(storage, tmp_path / f"with-{kept}") == content(search)
    for epoch in (1, 2):
        report(run, epoch)
        copies.copy([run.path])
    assert fetched(storage, tmp_path / "again") == content(search)
    run.file("metrics").write_bytes(b"")  # the same file, cut
    copies.copy([run.path])
    report(run, 1)
    copies.copy([run.path])
    assert fetched(storage, tmp_path / "cut") == content(search)


def test_what_has_not_changed_is_not_sent_again(
    storage: str, search: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1000 trials in few packs; one more epoch in one small pack; nothing in none."""
    for number in range(100):
        trial(search, number, 3)
    copies = writer(search, storage)
    copies.copy_all()
    sent: list[int] = []
    write = copies.place.write
    monkeypatch.setattr(copies.place, "write", lambda name, data: (sent.append(len(data)), write(name, data)))
    copies.copy_all()
    assert sent == []
    monkeypatch.setattr(run_copies, "PACK_BYTES", 0)  # the next piece closes the pack
    report(search.trial(7), 4)
    copies.copy([search.trial(7).path])
    sent.clear()
    report(search.trial(7), 5)
    copies.copy([search.trial(7).path])
    index = read_index(storage, "s")
    assert index is not None
    assert (len(sent), sum(sent) - len(index.model_dump_json())) == (2, pytest.approx(200, abs=150))
    assert fetched(storage, tmp_path / "copy") == content(search)


def test_packs_are_made_anew_when_most_of_them_is_out_of_date(
    storage: str, search: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_copies, "PACK_BYTES", 2000)
    monkeypatch.setattr(run_copies, "_WASTE_BYTES", 5000)
    copies, run = writer(search, storage), trial(search, 0)
    large = search.path / "large.bin"
    large.write_bytes(os.urandom(run_copies.LARGE_BYTES))
    for epoch in range(1, 60):
        report(run, epoch)
        run.set_status("running", "x" * 500)
        copies.copy([run.path])
    files = copy_of(storage, "s").names()[0]
    assert len([name for name in files if name.endswith(".pack")]) <= 15
    assert len([name for name in files if name.endswith(".file")]) == 1
    copies.copy_all()
    assert fetched(storage, tmp_path / "copy") == content(search)


def test_a_copy_that_is_cut_anywhere_is_a_whole_search(
    search: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever write to the storage fails, the copy there is a search, and the next pass makes up for it."""
    monkeypatch.setattr(run_copies, "PACK_BYTES", 1500)
    (tmp_path / "storage" / "s").mkdir(parents=True)
    storage, chance = str(tmp_path / "storage"), random.Random(1)  # noqa: S311 - seeded on purpose
    copies, runs = writer(search, storage), [trial(search, number) for number in range(3)]
    copies.copy_all()
    write = copies.place.write

    def unreliable(name: str, data: bytes) -> None:
        if chance.random() < 0.4:
            raise OSError(5, "cut")
        write(name, data)

    monkeypatch.setattr(copies.place, "write", unreliable)
    failures = 0
    for step in range(60):
        run = runs[step % 3]
        if run.state not in GOOD:
            report(run, len(run.rows()) + 1)
        if step > 50:
            run.set_status("completed")
        try:
            copies.copy([each.path for each in runs])
        except OSError:
            failures += 1
        target = tmp_path / f"copy-{step}"
        fetched(storage, target)
        for copied in SearchDir(target).trials():
            original = search.trial(int(copied.name))
            assert copied.rows() == original.rows()[: len(copied.rows())]
            assert copied.state not in GOOD or copied.rows() == original.rows(), "no status without its metrics"
    assert failures > 10
    monkeypatch.setattr(copies.place, "write", write)
    copies.copy_all()
    assert fetched(storage, tmp_path / "copy") == content(search)


def fail_once(copies: CopyWriter, monkeypatch: pytest.MonkeyPatch, method: str, at: int) -> None:
    """Let the storage refuse one write: that of the number `at`, from 1 on."""
    working, calls = getattr(copies.place, method), itertools.count(1)

    def failing(*arguments: object) -> None:
        if next(calls) == at:
            raise OSError(5, "cut")
        working(*arguments)

    monkeypatch.setattr(copies.place, method, failing)


@pytest.mark.parametrize("case", ["new session", "packed anew"])
def test_a_pass_over_all_runs_that_breaks_off_is_made_again(
    case: str, search: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next index would name only the runs that have changed since, and the rest would be deleted."""
    monkeypatch.setattr(run_copies, "PACK_BYTES", 500)
    (tmp_path / "storage" / "s").mkdir(parents=True)
    storage, runs = str(tmp_path / "storage"), [trial(search, number, 3) for number in range(6)]
    copies = writer(search, storage)
    copies.copy_all()
    if case == "new session":
        copies = writer(search, storage, "b")
    fail_once(copies, monkeypatch, "write", 2)
    with monkeypatch.context() as wasteful:
        if case == "packed anew":
            wasteful.setattr(run_copies, "_MOST_WASTE", 0)
            wasteful.setattr(run_copies, "_WASTE_BYTES", 0)
        with pytest.raises(OSError, match="cut"):
            copies.copy([])
    assert fetched(storage, tmp_path / "before") == content(search)
    report(runs[0], 4)
    copies.copy([runs[0].path])
    assert fetched(storage, tmp_path / "after") == content(search)


def test_files_beside_one_that_could_not_be_sent_are_not_forgotten(
    search: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "storage" / "s").mkdir(parents=True)
    storage, copies = str(tmp_path / "storage"), writer(search, str(tmp_path / "storage"))
    copies.copy_all()
    search.set_status("completed")
    (search.path / "report.html").write_bytes(os.urandom(run_copies.LARGE_BYTES))
    fail_once(copies, monkeypatch, "upload", 1)
    with pytest.raises(OSError, match="cut"):
        copies.copy_all(complete=True)
    copies.copy_all(complete=True)
    assert fetched(storage, tmp_path / "copy") == content(search)
    assert searches(storage)[0].state == "completed"


@pytest.mark.parametrize("folder", ["trials", "trials/0000", "."])
def test_a_folder_that_cannot_be_read_does_not_count_as_empty(
    folder: str, search: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the copy would lose its runs, say that it is complete, and let their checkpoints be deleted."""
    (tmp_path / "storage" / "s").mkdir(parents=True)
    storage, copies = str(tmp_path / "storage"), writer(search, str(tmp_path / "storage"))
    runs = [trial(search, number, 2) for number in range(2)]
    copies.copy_all()
    scandir = os.scandir

    def failing(path: str | Path) -> Any:
        if Path(path) == search.path / folder:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return scandir(path)

    with monkeypatch.context() as broken:
        broken.setattr(os, "scandir", failing)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            copies.copy_all(complete=True)
    index = read_index(storage, "s")
    assert index is not None
    assert not index.complete
    assert fetched(storage, tmp_path / "before") == content(search)
    report(runs[0], 3)
    runs[1].remove()
    copies.copy_all(complete=True)
    assert fetched(storage, tmp_path / "after") == content(search)


def test_the_end_of_a_search_is_not_copied_before_its_runs(search: SearchDir, tmp_path: Path) -> None:
    """A search that ends between two notifications: its status waits for the pass with its runs."""
    (tmp_path / "storage" / "s").mkdir(parents=True)
    copies, run = writer(search, str(tmp_path / "storage")), trial(search, 0)
    copies.copy_all()
    run.set_status("completed")  # will be notified after the next pass has begun
    search.set_status("completed")
    copies.copy([])
    assert searches(str(tmp_path / "storage"))[0].state == "running"
    assert copies.is_behind
    copies.copy([run.path])
    assert searches(str(tmp_path / "storage"))[0].state == "completed"
    assert SearchDir(fetch_search(str(tmp_path / "storage"), "s", tmp_path / "copy").path).trial(0).state == "completed"


def test_a_session_without_the_lease_writes_no_index(search: SearchDir, tmp_path: Path) -> None:
    (tmp_path / "storage" / "s").mkdir(parents=True)
    storage = str(tmp_path / "storage")
    writer(search, storage).copy_all()

    def lost() -> None:
        raise LeaseLost("process 2 on b")

    other = CopyWriter(search, storage, "b", "process 1 on a", lost)
    search.set_status("completed")
    with pytest.raises(LeaseLost, match="process 2 on b"):
        other.copy_all()
    assert searches(storage)[0].state == "running"


def test_which_of_folder_and_copy_is_newer(search: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "storage" / "s").mkdir(parents=True)
    storage = str(tmp_path / "storage")

    def newer(folder: SearchDir) -> bool:
        index = read_index(storage, "s")
        assert index is not None
        return copy_is_newer(index, folder)

    first = writer(search, storage, "a")
    first.copy_all()
    assert not newer(search)
    elsewhere = fetch_search(storage, "s", tmp_path / "b" / "s")
    assert not newer(elsewhere), "equal"
    trial(search, 0)
    first.copy_all()
    assert newer(elsewhere), "the search went on where it was"
    assert not newer(search)
    elsewhere = fetch_search(storage, "s", tmp_path / "c" / "s")
    second = writer(elsewhere, storage, "b")

    def cut(*_: object) -> None:
        raise OSError(5, "cut")

    monkeypatch.setattr(second.place, "write", cut)
    with pytest.raises(OSError, match="cut"):
        second.copy_all()
    assert not newer(elsewhere), "it died before it wrote its first copy"
    assert not newer(search)
    third = writer(elsewhere, storage, "c")
    third.copy_all()
    assert newer(search), "the search went on elsewhere"
    assert not newer(elsewhere)


def test_damaged_and_missing_parts(search: SearchDir, tmp_path: Path) -> None:
    (tmp_path / "storage" / "s").mkdir(parents=True)
    storage = str(tmp_path / "storage")
    with pytest.raises(
        InputError, match=f"^--storage: {storage} has no copy of a search s; check the name and the storage$"
    ):
        fetch_search(storage, "s", tmp_path / "copy")
    writer(search, storage).copy_all()
    (packed,) = (tmp_path / "storage" / "s" / run_copies.FOLDER).glob("*.pack")
    data = packed.read_bytes()
    packed.write_bytes(data[:-3])
    with pytest.raises(InputError, match=r"run-folder: is damaged \("):
        fetch_search(storage, "s", tmp_path / "copy")
    packed.write_bytes(pack([Piece("../x", 0, b"")]))
    with pytest.raises(InputError, match=r"run-folder: is damaged \(it names the path ../x\)"):
        fetch_search(storage, "s", tmp_path / "copy")
    packed.unlink()
    with pytest.raises(InputError, match="lacks a part of the copy"):
        fetch_search(storage, "s", tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir() if "copy" in path.name] == []


@pytest.mark.parametrize("outages", [2, 10_000], ids=["for a moment", "for good"])
def test_a_storage_that_stops_to_answer_while_a_copy_is_read(
    outages: int, search: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "storage" / "s").mkdir(parents=True)
    storage, target = str(tmp_path / "storage"), tmp_path / "copy"
    trial(search, 0, 2)
    (search.path / "large.bin").write_bytes(b"x" * run_copies.LARGE_BYTES)
    writer(search, storage).copy_all()
    methods = {"read": Storage.read, "download": Storage.download}
    asked = dict.fromkeys(methods, 0)

    def unstable(name: str) -> Callable[..., Any]:
        def call(place: Storage, file: str, *rest: Any) -> Any:
            asked[name] += file != "index.json"
            if 0 < asked[name] <= outages and file != "index.json":
                raise OSError("curlCode: 7, Couldn't connect to http://me:open-sesame@server")
            return methods[name](place, file, *rest)

        return call

    for name in methods:
        monkeypatch.setattr(Storage, name, unstable(name))
    if outages == 2:
        assert content(fetch_search(storage, "s", target)) == content(search)
        assert asked == {"read": 3, "download": 3}
        return
    monkeypatch.setattr(run_copies, "COPY_PATIENCE_S", 0.3)
    with pytest.raises(InputError) as error:
        fetch_search(storage, "s", target)
    assert str(error.value) == (
        f"--storage: {storage}/s/run-folder could not be read to its end (curlCode: 7, Couldn't connect to "
        f"http://me:***@server, for 0 s), and nothing was written to {target}; run this again when the storage answers"
    )
    assert not target.exists()


def test_a_full_disk_of_this_machine_is_not_the_storages_fault(
    search: SearchDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "storage" / "s").mkdir(parents=True)
    storage = str(tmp_path / "storage")
    (search.path / "large.bin").write_bytes(b"x" * run_copies.LARGE_BYTES)
    writer(search, storage).copy_all()

    def full(_file: object, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("wmlsearch.cluster.storage.write_all", full)
    with pytest.raises(OSError, match=r"No space left on device \(1,048,576 bytes are needed") as error:
        fetch_search(storage, "s", tmp_path / "copy")
    assert str(error.value.filename).endswith("/large.bin")


def test_pieces_survive_a_pack() -> None:
    pieces = [Piece("a\n.json", 0, b"x\ny"), Piece("b", 3, b""), Piece("c", 0, None)]
    assert list(unpack(pack(pieces))) == pieces
