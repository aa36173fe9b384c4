"""Temporary folders: nothing is left of them, however their process ends, and those in use stay."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from processes import descendants, kill, wait_for

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
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def start() -> tuple[subprocess.Popen[str], Path]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


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
