"""The lock of a run folder on file systems without locks, and on those that grant every lock."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from wmlsearch.config import InputError
from wmlsearch.runs import lock
from wmlsearch.runs.lock import folder_lock, is_running

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
    process = lock._Process.of_this_one()
    path = folder / ".owner-claim"
    path.write_text(json.dumps({**vars(process), **changes}))
    return path


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
    claim = claim_of(tmp_path, host="elsewhere", space="another boot", pid=17)
    os.utime(claim, (10**9, 10**9))
    done = threading.Event()
    alive = threading.Thread(target=lock._touch_until, args=(claim, done))
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
    claim = claim_of(tmp_path, host="elsewhere", space="another boot")
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

    monkeypatch.setattr(lock, "Path", NoProc)
    monkeypatch.setattr(lock.subprocess, "run", run)
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
