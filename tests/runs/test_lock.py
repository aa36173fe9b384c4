"""The lock of a run folder on file systems without locks, and on those that grant every lock."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from records import epoch_row, run_record, search_record

from wmlsearch.errors import InputError
from wmlsearch.runs import file_systems, lock, process
from wmlsearch.runs.files import StorageError
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.lock import check_still_held, folder_lock, is_running
from wmlsearch.runs.process import Process

HOLD = """
import errno, fcntl, os, sys
from pathlib import Path
number = int(sys.argv[2])
def flock(*_):
    if number:
        raise OSError(number, os.strerror(number))
if number >= 0:
    fcntl.flock = flock
from wmlsearch.runs.lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
WORKING, GRANT_ALL = -1, 0
NO_LOCKS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]


def set_flock(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make flock grant everything (0), or fail with this number."""

    def flock(*_: object) -> None:
        if number:
            raise OSError(number, os.strerror(number))

    if number != WORKING:
        monkeypatch.setattr(fcntl, "flock", flock)


def hold(folder: Path, number: int) -> subprocess.Popen[str]:
    """Start a process that holds `folder`, and wait until it does."""
    command = [sys.executable, "-c", HOLD, str(folder), str(number)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught, folder_lock(folder):
        pass
    return str(caught.value)


def claim_of(folder: Path, **changes: object) -> Path:
    """Leave a claim in `folder` as a process does that is killed; `changes` are of what it names."""
    path = folder / ".owner-claim"
    path.touch()
    values = {**Process.of_this_one().as_plain(), "token": "of the other", "inode": path.stat().st_ino, **changes}
    path.write_text(json.dumps(values))
    return path


ELSEWHERE = {"host": "elsewhere", "space": "another-boot pid:[1]", "machine": "another", "pid": 17}


def wait_until_lost(path: Path) -> str:
    """Return the StorageError of a check of `path` that the thread of the lock leads to within 30 s."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            check_still_held(path)
        except StorageError as error:
            return str(error)
        time.sleep(0.02)
    return ""


@pytest.mark.parametrize("number", [WORKING, GRANT_ALL, *NO_LOCKS])
def test_two_processes_are_told_apart(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_flock(number, monkeypatch)
    first = hold(tmp_path, number)
    try:
        assert is_running(tmp_path)
        assert refusal(tmp_path).startswith(
            f"{tmp_path}: this search is running already (process {first.pid} on {socket.gethostname()}); follow it"
        )
        first.kill()
        first.wait()
        assert not is_running(tmp_path)
        caplog.clear()
        with folder_lock(tmp_path):  # at once: this machine knows that the process is dead
            assert is_running(tmp_path)
            assert f"process {os.getpid()} on" in refusal(tmp_path)
        assert not is_running(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["owner"]
        warned = f"{tmp_path}: its file system has no locks ({os.strerror(number)})" if number > 0 else ""
        assert (warned in caplog.text) if warned else not caplog.text
    finally:
        first.kill()
        first.communicate()


def test_a_process_that_ended_but_was_not_waited_for_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_flock(GRANT_ALL, monkeypatch)
    first = hold(tmp_path, GRANT_ALL)
    first.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # a zombie, as below a container's first process
    with folder_lock(tmp_path):
        pass
    first.communicate()


def test_only_one_of_many_gets_a_folder_that_a_dead_process_left(tmp_path: Path) -> None:
    claim_of(tmp_path, started="1")
    command = [sys.executable, "-c", HOLD, str(tmp_path), str(errno.ENOLCK)]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    try:
        deadline = time.monotonic() + 60
        while sum(process.poll() is not None for process in started) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert sum(process.poll() is None for process in started) == 1
    finally:
        answers = [process.communicate("")[0] for process in started]
    assert sorted(answers) == ["", "", "", "held\n"]


def test_another_program_with_the_number_of_a_dead_process_is_not_it(tmp_path: Path) -> None:
    claim_of(tmp_path, started="1")  # this very process id, but started right after the boot
    assert not is_running(tmp_path)
    with folder_lock(tmp_path):
        pass


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "TOUCH_S", 0.1)
    monkeypatch.setattr(lock, "WATCH_S", 1.0)


@pytest.mark.usefixtures("_quick")
def test_a_claim_of_another_machine_is_watched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its touches tell whether its process is alive; the clocks of the machines are not compared."""
    claim = claim_of(tmp_path, **ELSEWHERE)
    os.utime(claim, (10**9, 10**9))
    done = threading.Event()

    def touch() -> None:
        while not done.wait(0.1):
            os.utime(claim)

    alive = threading.Thread(target=touch)
    alive.start()
    try:
        assert "(process 17 on elsewhere)" in refusal(tmp_path)
    finally:
        done.set()
        alive.join()
    with folder_lock(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / "owner").read_text()
    assert f"{tmp_path}: process 17 on elsewhere may still hold it; watching for 1 s" in caplog.text


def test_whether_another_machine_runs_it_is_told_by_the_age_of_its_claim(tmp_path: Path) -> None:
    claim = claim_of(tmp_path, **ELSEWHERE)
    assert is_running(tmp_path)
    before = time.time() - 2 * lock.FRESH_S
    os.utime(claim, (before, before))
    assert not is_running(tmp_path)


@pytest.mark.usefixtures("_quick")
def test_a_torn_claim_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".owner-claim").write_text('{"pid": 12, "ho')
    with folder_lock(tmp_path):
        pass


def test_the_claim_is_touched_while_the_folder_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "TOUCH_S", 0.05)
    with folder_lock(tmp_path):
        os.utime(tmp_path / ".owner-claim", (10**9, 10**9))
        deadline = time.monotonic() + 30
        while (tmp_path / ".owner-claim").stat().st_mtime == 10**9 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (tmp_path / ".owner-claim").stat().st_mtime > 10**9


def test_a_claim_that_cannot_be_written_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else an empty claim would keep everybody out for a minute, though the disk has space again."""
    real = os.open

    def full(path: Path | str, *arguments: int) -> int:
        descriptor = real(path, *arguments)
        if str(path).endswith(".owner-claim"):
            os.dup2(real("/dev/full", os.O_WRONLY), descriptor)
        return descriptor

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(OSError, match=r"No space left on device \(\d+ bytes are needed, .*\.owner-claim"):
            folder_lock(tmp_path).__enter__()
    assert not is_running(tmp_path)
    assert not (tmp_path / ".owner-claim").exists()
    with folder_lock(tmp_path):
        pass


@pytest.mark.usefixtures("_quick")
def test_a_process_that_stood_still_writes_nothing_once_another_has_its_folder(tmp_path: Path) -> None:
    search = SearchDir.create(tmp_path / "s", search_record())
    trial = RunDir.create(search.trial(0).path, run_record())
    before = search.file("status").read_bytes(), trial.file("status").read_bytes()
    with search.locked():
        check_still_held(trial.path)
        (search.path / ".owner-claim").unlink()
        claim = claim_of(search.path, **ELSEWHERE)
        os.utime(claim, (10**9, 10**9))
        assert wait_until_lost(trial.path) == (
            f"{search.path}: process 17 on elsewhere has taken it over, since this process stood still for more than "
            "1 s; this one writes nothing more into it"
        )
        for write in (
            lambda: trial.set_status("completed"),
            lambda: search.set_status("completed"),
            lambda: trial.append(epoch_row({"epoch": 1, "val_dice": 0.5})),
            lambda: search.update_usage(seconds=1.0),
        ):
            with pytest.raises(StorageError, match="process 17 on elsewhere"):
                write()
        check_still_held(tmp_path / "another search")
    assert (search.file("status").read_bytes(), trial.file("status").read_bytes()) == before
    assert claim.stat().st_mtime == 10**9, "neither touched nor removed"
    trial.set_status("completed")  # only while it held the folder


def test_after_standing_still_it_looks_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both threads go on at once, and the one that touches the claim need not be the first."""
    monkeypatch.setattr(lock, "TOUCH_S", 3600.0)
    with folder_lock(tmp_path):
        (tmp_path / ".owner-claim").unlink()
        claim_of(tmp_path, **ELSEWHERE)
        check_still_held(tmp_path)
        now = time.time()
        monkeypatch.setattr(lock.time, "time", lambda: now + 11)
        with pytest.raises(StorageError, match="process 17 on elsewhere"):
            check_still_held(tmp_path)


@pytest.mark.parametrize("owner", ["", "process 17 on elsewhere\n"])
@pytest.mark.usefixtures("_quick")
def test_a_claim_that_is_gone_is_made_again_unless_another_process_held_the_folder(owner: str, tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        if owner:
            (tmp_path / "owner").write_text(owner)  # it has ended, and removed its claim
        (tmp_path / ".owner-claim").unlink()
        if owner:
            assert "process 17 on elsewhere has taken it over" in wait_until_lost(tmp_path)
        else:
            deadline = time.monotonic() + 30
            while not (tmp_path / ".owner-claim").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            check_still_held(tmp_path)
        assert (tmp_path / ".owner-claim").exists() == (not owner)
    assert not (tmp_path / ".owner-claim").exists()


@pytest.mark.usefixtures("_quick")
def test_a_claim_that_cannot_be_read_is_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = claim_of(tmp_path, started="1")
    real = open

    def failing(path: Path | int, *arguments: object, **options: object) -> object:
        if str(path) == str(claim):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return real(path, *arguments, **options)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", failing)
        assert is_running(tmp_path), "it may be"
        assert refusal(tmp_path).startswith(f"{claim}: cannot be read (Stale file handle), so another process may hold")
    assert claim.exists()


@pytest.mark.parametrize("changes", [{}, ELSEWHERE], ids=["of this machine", "of another"])
def test_a_copy_of_a_folder_that_is_held_is_not_held(changes: dict[str, object], tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        pass
    claim_of(tmp_path, **changes)
    assert is_running(tmp_path)
    copy = tmp_path.with_name(f"{tmp_path.name}-copy")
    shutil.copytree(tmp_path, copy)
    assert not is_running(copy)
    began = time.monotonic()
    with folder_lock(copy):
        assert is_running(copy)
    assert time.monotonic() - began < lock.WATCH_S / 2
    assert is_running(tmp_path)


@pytest.mark.parametrize("type_", ["fuse.sshfs", "cifs", "vfat"])
def test_a_file_system_that_numbers_files_anew_makes_no_copies(
    type_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path.with_name(f"{tmp_path.name}-mounts")
    mounts.write_text(
        "1 0 0:1 / / rw - ext4 /dev/sda rw\n"
        f"2 1 0:2 / {tmp_path} rw shared:1 - nfs server:/ rw\n"
        f"3 2 0:3 / {tmp_path} rw - {type_} server:/ rw\n"  # over the second one
    )
    claim_of(tmp_path, inode=1)
    assert not is_running(tmp_path)
    monkeypatch.setattr(file_systems, "_MOUNTS", mounts)
    assert is_running(tmp_path)


@pytest.mark.parametrize("links", [True, False])
def test_a_claim_that_was_moved_by_mistake_replaces_no_other(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    if not links:
        monkeypatch.setattr(os, "link", refused)
    claim, aside = tmp_path / ".owner-claim", tmp_path / ".owner-claim.12345678"
    aside.write_text("moved")
    lock._put_back(aside, claim)
    assert claim.read_text() == "moved"
    claim.write_text("of a third process")
    aside.unlink(missing_ok=True)
    aside.write_text("moved")
    if links:  # between the look for it and the renaming
        monkeypatch.setattr(Path, "exists", lambda _: False)
    lock._put_back(aside, claim)
    assert claim.read_text() == "of a third process"


def test_a_claim_of_this_machine_before_it_was_started_again_is_dead(tmp_path: Path) -> None:
    """Of another machine that was set up as a copy it is not: that has another name."""
    machine = {"machine": "4f", "space": "another-boot pid:[1]"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "_machine_id", lambda: "4f")
        claim_of(tmp_path, **machine)
        assert not is_running(tmp_path)
        claim_of(tmp_path, **machine, host="elsewhere")
        assert is_running(tmp_path)


def test_another_error_is_no_missing_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner").touch()
    set_flock(errno.EIO, monkeypatch)
    assert is_running(tmp_path), "it may be, so it is left alone"
    assert refusal(tmp_path) == (
        f"{tmp_path}: cannot be locked (Input/output error); check that its file system is there (`df`, `ls`), or give "
        "--out on another one"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["owner"]


def test_a_system_without_proc_tells_processes_by_ps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = {os.getpid(): "Sat Nov 28 14:02:11 2026"}

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, started.get(int(command[-1]), "") + "\n")

    class NoProc(type(Path())):  # type: ignore[misc]
        def read_text(self, *arguments: object, **options: object) -> str:
            if str(self).startswith("/proc"):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
            return str(super().read_text(*arguments, **options))

        def exists(self, **_: object) -> bool:
            return not str(self).startswith("/proc")

    monkeypatch.setattr(process, "Path", NoProc)
    monkeypatch.setattr(process.subprocess, "run", run)
    folder = NoProc(tmp_path)
    with folder_lock(folder):
        assert is_running(folder)
        assert f"process {os.getpid()} on" in refusal(folder)
    claim_of(tmp_path, started="Sat Nov 28 09:00:00 2026")
    assert not is_running(folder)


def test_the_warning_reaches_the_terminal(tmp_path: Path) -> None:
    assert lock._log.isEnabledFor(logging.WARNING)
    command = [sys.executable, "-c", HOLD, str(tmp_path), str(errno.ENOSYS)]
    result = subprocess.run(command, input="", capture_output=True, text=True, check=True)
    assert result.stderr.startswith(f"warning: {tmp_path}: its file system has no locks (Function not implemented)")
