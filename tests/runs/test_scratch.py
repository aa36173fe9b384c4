"""Temporary folders: nothing is left of them, however their process ends, and those in use stay."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from processes import descendants, kill, wait_for

from wmlsearch.runs import process, scratch
from wmlsearch.runs.process import Process
from wmlsearch.runs.scratch import remove_abandoned, scratch_folder

HOLDS = """
from wmlsearch.runs.scratch import scratch_folder

with scratch_folder("test") as folder:
    (folder / "session").mkdir()
    (folder / "session" / "log").write_text("x")
    print(folder, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of this test's own."""
    folder = tmp_path / "usual"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def start() -> tuple[subprocess.Popen[str], Path]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def test_it_is_removed_if_a_batch_system_sends_sigterm_to_all_processes(temporary: Path) -> None:
    process, folder = start()
    (remover,) = descendants(process.pid)
    wait_for(lambda: ignores(remover, signal.SIGTERM), 30, "the remover has not begun")
    for pid in (process.pid, remover):
        assert kill(pid, signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    wait_for(lambda: not folder.exists(), 30, "the folder is still there")


def ignores(pid: int, number: int) -> bool:
    """Return whether a process ignores a signal, by its mask in /proc."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(lines["SigIgn"], 16) & 1 << number - 1)


def test_it_is_removed_with_the_block(temporary: Path) -> None:
    before = set(descendants(os.getpid()))  # of other tests of this process
    with scratch_folder("test") as folder:
        assert folder.parent == temporary
        (folder / "file").touch()
        assert len(set(descendants(os.getpid())) - before) == 1
    assert not list(temporary.iterdir())
    assert not set(descendants(os.getpid())) - before


def test_it_is_removed_when_its_process_is_killed() -> None:
    process, folder = start()
    assert folder.exists()
    process.kill()
    process.communicate()
    wait_for(lambda: not folder.exists(), 30)


def test_a_later_command_removes_what_a_reboot_left() -> None:
    process, folder = start()
    kept, other = start()
    (remover,) = descendants(process.pid)
    assert kill(remover)
    process.kill()
    process.communicate()
    assert (folder / "session" / "log").exists()
    remove_abandoned()
    assert not folder.exists()
    assert other.exists()  # its process lives
    kept.communicate("\n")
    assert not other.exists()


def test_what_has_no_owner_stays(temporary: Path) -> None:
    """A folder that is just being made, one of an older version, and files of other programs."""
    for name in ("wmlsearch-ray-new", "wmlsearch-cases"):
        (temporary / name).mkdir()
    (temporary / "wmlsearch-x-damaged").mkdir()
    (temporary / "wmlsearch-x-damaged" / "owner").write_text("no number")
    (temporary / "wmlsearch-x-file").touch()
    remove_abandoned()
    assert len(list(temporary.iterdir())) == 4


def folder_of(parent: Path, **changes: object) -> Path:
    """Leave a folder as a process does that is killed together with its remover; `changes` are of what it names."""
    folder = parent / "wmlsearch-ray-abcdefgh"
    folder.mkdir(parents=True)
    (folder / "owner").write_text(json.dumps({**Process.of_this_one().as_plain(), **changes}))
    return folder


@pytest.mark.parametrize("number", [0, errno.ENOLCK], ids=["all locks are granted", "no locks"])
@pytest.mark.parametrize(
    ("changes", "stays"),
    [
        ({"host": "elsewhere", "space": "another-boot pid:[1]", "pid": 2**22 + 1}, True),  # a node of the cluster
        ({"space": "{boot} pid:[1]", "pid": 2**22 + 1}, True),  # another container of this machine
        ({}, True),
        ({"pid": 2**22 + 1}, False),
        ({"started": "1"}, False),  # its process id is used again
        ({"machine": "4f", "space": "another-boot pid:[1]"}, False),  # before a reboot
    ],
)
def test_only_a_process_that_is_dead_for_sure_leaves_an_abandoned_folder(
    number: int, changes: dict[str, object], stays: bool, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines may share a temporary folder, and the locks of its file system say nothing, or there are none."""

    def flock(*_: object) -> None:
        if number:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(process, "_machine_id", lambda: "4f")
    boot = Process.of_this_one().space.partition(" ")[0]
    folder = folder_of(temporary, **{name: str(value).format(boot=boot) if name == "space" else value
                                     for name, value in changes.items()})  # fmt: skip
    remove_abandoned()
    assert folder.exists() == stays


def test_what_is_left_where_the_usual_folder_did_not_do_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "OTHER_FOLDERS", (str(tmp_path / "missing"), str(tmp_path / "tmp")))
    monkeypatch.setattr(scratch, "SHARED_MEMORY", tmp_path / "shm")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    folders = [folder_of(tmp_path / name, started="1") for name in ("tmp", "shm", "run")]
    remove_abandoned()
    assert [folder for folder in folders if folder.exists()] == []
