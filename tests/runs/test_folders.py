"""Run folders: complete lines, atomic files, one owner, names, and how folders are found."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import pytest
from records import epoch_row, run_record, search_record

from wmlsearch.errors import InputError
from wmlsearch.runs import folders
from wmlsearch.runs.files import (
    StorageError,
    append_line,
    atomic_folder,
    read_lines,
    retry_while_unavailable,
    write_bytes,
    write_json,
)
from wmlsearch.runs.folders import (
    RunDir,
    SearchDir,
    check_name,
    check_new,
    find_run,
    find_search,
    list_runs,
    mark_dead_runs,
)
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.runs.names import trial_name
from wmlsearch.runs.schema import MlflowLedger, RunStatus


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    return str(caught.value)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_lines_are_read_as_written(lines: Path) -> None:
    assert read_lines(lines) == []
    rows = [{"epoch": n, "val_dice": None if n == 1 else n / 3, "who": "Zoë\n"} for n in range(1, 4)]
    for row in rows:
        append_line(lines, row)
    assert read_lines(lines) == rows
    assert lines.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("torn", [b'{"epoch": 2', b"{", b'{"epoch": 2}', b"\x00" * 100])
def test_a_torn_last_line_is_left_out_and_cut(lines: Path, torn: bytes) -> None:
    append_line(lines, {"epoch": 1})
    whole = lines.read_bytes()
    lines.write_bytes(whole + torn)
    assert read_lines(lines) == [{"epoch": 1}]
    append_line(lines, {"epoch": 2})
    assert lines.read_bytes() == whole + b'{"epoch": 2}\n'


def test_a_file_of_one_torn_line(lines: Path) -> None:
    lines.write_bytes(b'{"epo')
    assert read_lines(lines) == []
    append_line(lines, {"epoch": 1})
    assert read_lines(lines) == [{"epoch": 1}]


def test_a_damaged_line_in_the_middle_is_refused(lines: Path) -> None:
    lines.write_bytes(b'{"epoch": 1}\n{"epo\n{"epoch": 3}\n')
    assert refusal(lambda: read_lines(lines)).startswith(f"{lines}: line 2 is damaged (")
    lines.write_bytes(b'{"epoch": 1}\n\xff\xfe\n')
    assert refusal(lambda: read_lines(lines)).startswith(f"{lines}: line 2 is damaged (")


FILL = """
import resource, signal, sys
from pathlib import Path
from wmlsearch.runs.files import append_line, read_lines
path = Path(sys.argv[1])
append_line(path, {"epoch": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = path.stat().st_size + 10
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    append_line(path, {"epoch": 2, "text": "x" * 100})
except OSError as error:
    print("refused:", error)
"""


def test_a_full_disk_leaves_no_half_line(lines: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FILL, str(lines)], capture_output=True, text=True, check=True)
    assert done.stdout == f"refused: [Errno 27] File too large: '{lines}'\n"
    assert lines.read_bytes() == b'{"epoch": 1}\n'
    append_line(lines, {"epoch": 2})
    assert read_lines(lines) == [{"epoch": 1}, {"epoch": 2}]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_refuses_nan_and_infinity(lines: Path, tmp_path: Path, value: float) -> None:
    append_line(lines, {"epoch": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_line(lines, {"epoch": 2, "val_dice": value})
    assert read_lines(lines) == [{"epoch": 1}]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "status.json", {"value": value})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_reconcile_adds_and_removes_lines(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "r", run_record({"name": "r"}))
    rows = [epoch_row({"epoch": n}) for n in range(1, 5)]
    for row in rows[:2]:
        run.append(row)
    run.reconcile(rows)  # the checkpoint has more epochs
    assert run.rows() == rows
    run.reconcile(rows[:1])  # the checkpoint has fewer epochs
    assert run.rows() == rows[:1]
    (run.path / "metrics.jsonl").write_bytes(b'{"epoch": 1, "time": 0.0, "ended": null}\n{"ep')
    run.append(epoch_row({"epoch": 2}))
    run.reconcile(rows[:2])
    assert run.rows() == rows[:2]
    run.reconcile([])
    assert run.rows() == []


def test_a_file_is_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    write_json(path, {"state": "old"})
    seen: list[str] = []

    def broken(aside: Path, target: Path) -> None:
        seen.append(Path(aside).read_text())  # complete before it takes the name
        assert json.loads(path.read_text()) == {"state": "old"}
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(folders.os, "replace", broken)
        with pytest.raises(OSError, match="no"):
            write_json(path, {"state": "new"})
    assert [json.loads(text) for text in seen] == [{"state": "new"}]
    assert json.loads(path.read_text()) == {"state": "old"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]
    write_json(path, {"state": "new"})
    assert json.loads(path.read_text()) == {"state": "new"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]


def test_damaged_json_is_refused(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "r", run_record({"name": "r"}))
    path = run.path / "config.json"
    path.write_text("{")
    assert refusal(run.record).startswith(f"{path}: cannot be read (")
    path.write_text("[1]")
    assert refusal(run.record) == f"{path}: must hold a JSON object, but holds a list"
    path.unlink()
    assert refusal(run.record).startswith(f"{path}: cannot be read (")


def test_the_status_keeps_its_start(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "r", run_record({"name": "r", "kind": "train"}))
    begun = run.status()
    assert begun.state == "running"
    assert begun.ended is None
    run.set_status("diverged", "because")
    assert run.status() == RunStatus(
        state="diverged", reason="because", started=begun.started, ended=run.status().ended
    )
    assert (run.status().ended or 0) >= begun.started
    about = run.record()
    assert (about.name, about.kind, len(about.key)) == ("r", "train", 32)
    assert RunDir.create(tmp_path / "s", run_record()).record().key != about.key
    assert run.ledger() == MlflowLedger()
    run.set_ledger(MlflowLedger(rows=3))
    assert run.ledger() == MlflowLedger(rows=3)


def test_a_search_and_its_runs(tmp_path: Path) -> None:
    search = SearchDir.create(tmp_path / "s", search_record({"name": "s"}))
    assert search.trials() == search.finals() == []
    for number in (10, 2):
        RunDir.create(search.trial(number).path, run_record())
    RunDir.create(search.final("paper", 3).path, run_record())
    search.trial(4).path.mkdir()  # nothing in it: not a run
    assert [run.name for run in search.trials()] == ["0002", "0010"]
    assert [run.name for run in search.finals()] == ["paper-seed3"]


def test_runs_keep_their_order_beyond_trial_9999(tmp_path: Path) -> None:
    search = SearchDir.create(tmp_path / "s", search_record({"name": "s"}))
    for number in (10_000, 9_999, 1_000):
        RunDir.create(search.trial(number).path, run_record())
        RunDir.create(search.judgement_run(trial_name(number), 0).path, run_record())
    assert [int(run.name) for run in search.trials()] == [1_000, 9_999, 10_000]
    assert [run.name for run in search.finals()] == ["trial-1000-run0", "trial-9999-run0", "trial-10000-run0"]
    assert [entry.path for entry in leaderboard(search).trials] == [str(run.path) for run in search.trials()]


OWN = """
import sys
from pathlib import Path
from wmlsearch.config import InputError
from wmlsearch.runs.folders import SearchDir
try:
    with SearchDir(Path(sys.argv[1])).locked():
        print("locked", flush=True)
        sys.stdin.read()
except InputError as error:
    print(error)
"""


def test_one_owner_at_a_time_and_a_killed_one_releases(tmp_path: Path) -> None:
    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", OWN, str(tmp_path / "s")]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def first_line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().strip()

    search = SearchDir(tmp_path / "s")
    first = start()
    try:
        assert first_line(first) == "locked"
        expected = (
            f"{search.path}: this search is running already (process {first.pid} on {os.uname().nodename}); "
            f"follow it with `wmlsearch status {search.path}`, or choose another --name"
        )
        second = start()
        assert first_line(second) == expected
        second.communicate(timeout=30)
        assert refusal(lambda: search.locked().__enter__()) == expected
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=30)
    with search.locked():
        assert f"process {os.getpid()} on" in (search.path / "owner").read_text()
        assert f"(process {os.getpid()} on" in refusal(lambda: SearchDir(tmp_path / "s").locked().__enter__())
    with search.locked():  # released at the end of the block
        check_new(search.path)  # a folder with the owner's file alone is no run


def test_whether_a_search_runs_is_asked_with_a_shared_lock_of_a_file_open_for_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def flock(file: TextIO, operation: int) -> None:
        asked.append((file.mode, operation))

    search = SearchDir.create(tmp_path / "s", search_record())
    (search.path / "owner").touch()
    monkeypatch.setattr(fcntl, "flock", flock)
    assert not search.is_running()
    assert asked == [("r", fcntl.LOCK_SH | fcntl.LOCK_NB)], "all that NFS grants such a file"


def test_running_without_an_owner_becomes_interrupted(tmp_path: Path) -> None:
    search = SearchDir.create(tmp_path / "s", search_record())
    final = RunDir.create(search.final("paper", 0).path, run_record())
    done = RunDir.create(search.trial(0).path, run_record())
    done.set_status("completed")
    with search.locked():
        mark_dead_runs(search)
        assert (search.state, final.state) == ("running", "running"), "its process runs"
    mark_dead_runs(search)
    assert [run.status().reason for run in (search, final)] == ["its process died"] * 2
    assert (search.state, final.state, done.state) == ("interrupted", "interrupted", "completed")


@pytest.mark.parametrize("name", ["a", "search-20261123-201512", "v1.2_x", "0", "a" * 100])
def test_valid_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "-a", "_a", "a b", "ä", "a\n", "a\x00", "a" * 101])
def test_invalid_names(name: str) -> None:
    assert refusal(lambda: check_name(name)) == (
        f"--name {name!r}: letters, digits, '.', '_' and '-' only, at most 100, not starting with a sign"
    )


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    check_new(tmp_path / "absent")
    check_new(tmp_path)
    run = RunDir.create(tmp_path / "r", run_record())
    run.set_status("completed")
    assert refusal(lambda: check_new(run.path)) == (
        f"{run.path}: there is a run of this name already (state: completed), and nothing is overwritten; "
        "choose another --name, or delete the folder"
    )
    with pytest.raises(InputError, match="there is a run of this name already"):
        SearchDir.create(run.path, search_record())
    search = SearchDir.create(tmp_path / "s", search_record())
    assert f"continue it (`wmlsearch tune --resume s --out {tmp_path}`), choose" in refusal(
        lambda: check_new(search.path)
    )
    search.set_status("completed")
    assert f"add trials to it (`wmlsearch tune --resume s --out {tmp_path} --trials MORE`), choose" in refusal(
        lambda: check_new(search.path)
    )
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    assert refusal(lambda: check_new(other)) == f"{other}: is not empty and not a run; choose another --name or --out"


def test_find_by_name_by_path_and_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "runs"
    assert refusal(lambda: find_run(None, out)) == (
        f"{out}: has no search or run; start one with `wmlsearch tune`, or give --out"
    )
    assert (
        refusal(lambda: find_run("x", out))
        == f"x: no search or run of this name in {out} (it has: none), and not a path to one"
    )
    clock = iter(range(100))
    monkeypatch.setattr(folders.time, "time", lambda: float(next(clock)))
    search = SearchDir.create(out / "zebra", search_record())
    run = RunDir.create(out / "apple", run_record())
    trial = RunDir.create(search.trial(0).path, run_record())
    (out / "phantom").mkdir()  # no run
    (out / "mlflow.db").touch()
    SearchDir.create(out / ".zebra.12.partial", search_record())  # that is being copied
    assert list_runs(out) == [run, search]
    assert find_run(None, out) == run  # the latest
    (config := run.file("record")).write_text(json.dumps({**json.loads(config.read_text()), "settings": {}}))
    assert find_run(None, out) == run, "a record that is not valid is the latest one still"
    assert find_run("zebra", out) == search
    assert isinstance(find_run("zebra", out), SearchDir)
    assert find_run("apple", out) == run
    assert find_run(str(search.path), tmp_path / "elsewhere") == search
    assert find_run("zebra/trials/0000", out) == trial
    monkeypatch.chdir(out)
    assert find_run("zebra", tmp_path).path == Path("zebra")
    for inside, name in ((search.path, "."), (search.path / "trials", ".."), (out, "zebra/trials/..")):
        monkeypatch.chdir(inside)
        assert find_run(name, out) == search, "the path that it stands for, which ends in the name of the search"
    monkeypatch.chdir(tmp_path)
    assert refusal(lambda: find_run("zebr", out)) == (
        f"zebr: no search or run of this name in {out} (it has: zebra, apple), and not a path to one"
    )


def test_the_latest_search_is_no_training(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "t", run_record())
    assert refusal(lambda: find_search(None, tmp_path)) == (
        f"{tmp_path}: has no search; start one with `wmlsearch tune`, or give --out"
    )
    searches = [SearchDir.create(tmp_path / name, search_record(created=time)) for name, time in (("b", 2), ("a", 1))]
    assert find_run(None, tmp_path) == run, "which is later than both"
    assert find_search(None, tmp_path) == searches[0]
    assert refusal(lambda: find_search("t", tmp_path)) == (f"{run.path}: is a training, not a search; name a search")


def test_rows_hold_anything_plain(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "r", run_record())
    row: dict[str, Any] = {"epoch": 1, "val_dice": 0.1 + 0.2, "ended": None, "big": 2**60}
    run.append(epoch_row(row))
    assert run.rows() == [epoch_row(row)]  # floats come back bit for bit


def test_a_storage_that_is_away_is_waited_for_and_a_full_one_is_not(tmp_path: Path) -> None:
    answers = [OSError(errno.ESTALE, "Stale file handle"), FileNotFoundError(errno.ENOENT, "No such file"), "there"]

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert retry_while_unavailable(ask, tmp_path) == "there"
    answers[:] = [OSError(errno.ENOSPC, "No space left on device"), "never asked"]
    with pytest.raises(StorageError, match=rf"^\[Errno 28\] No space left on device: '{tmp_path}'$"):
        retry_while_unavailable(ask, tmp_path)
    assert answers == ["never asked"]
    with pytest.raises(StorageError, match=r"^\[Errno 2\] No such file or directory, for 0 s: '.*/gone/last.pt'$"):
        retry_while_unavailable(lambda: write_bytes(tmp_path / "gone" / "last.pt", b"x"), tmp_path, patience_s=0)


def test_clocks_that_are_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir.create(tmp_path / "r", run_record())
    started = run.status().started
    monkeypatch.setattr(folders.time, "time", lambda: started - 3600)
    run.set_status("completed")
    assert run.status().ended == started


def test_a_name_whose_search_runs_is_refused_with_its_owner(tmp_path: Path) -> None:
    search = SearchDir(tmp_path / "s")
    with search.locked():
        SearchDir.create(search.path, search_record())
        assert refusal(lambda: check_new(search.path)).startswith(
            f"{search.path}: this search is running already (process {os.getpid()} on "
        )
    assert "there is a run of this name already (state: running)" in refusal(lambda: check_new(search.path))


def test_folders_of_other_users_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `lost+found` of a file system. Tests may run as root, who can read all folders."""
    made = SearchDir.create(tmp_path / "s", search_record(name="s"))
    (tmp_path / "lost+found").mkdir()
    is_file = Path.is_file

    def is_file_if_readable(path: Path) -> bool:
        if path.parent.name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", is_file_if_readable)
    assert list_runs(tmp_path) == [made]


def test_an_empty_folder_is_filled_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the working directory, or a mount. A second process that was slower leaves the first one's files."""
    out, link = tmp_path / "out", tmp_path / "link"
    out.mkdir()
    link.symlink_to("out")
    inode = out.stat().st_ino
    failing = atomic_folder(link)
    failing.__enter__().mkdir()
    assert not failing.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert list(out.iterdir()) == []
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with atomic_folder(link) as first:
        first.mkdir()
        (first / "a").write_text("1")
        monkeypatch.setattr(os, "getpid", lambda: 2)
        slower = atomic_folder(out)
        second = slower.__enter__()
        second.mkdir()
        (second / "a").write_text("2")
    with pytest.raises(InputError, match="another process has filled this folder"):
        slower.__exit__(None, None, None)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("a", "1")]
    assert out.stat().st_ino == inode
