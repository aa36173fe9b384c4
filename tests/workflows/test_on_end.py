"""`--on-end`: the command gets the search as JSON, and neither its failure nor its hanging changes anything."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from records import search_record

from wmlsearch.runs.folders import SearchDir
from wmlsearch.workflows import on_end
from wmlsearch.workflows.on_end import CommandAtEnd, run_on_end


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    search = SearchDir.create(tmp_path / "s", search_record())
    search.set_status("interrupted", "stopped by SIGTERM")
    return search


def said_by(search: SearchDir, command: str) -> list[str]:
    lines: list[str] = []
    run_on_end(search, command, lines.append)
    return lines


def test_the_command_reads_the_summary(search: SearchDir, tmp_path: Path) -> None:
    assert said_by(search, f"cat > '{tmp_path}/in.json'; echo sent") == ["sent"]
    summary = json.loads((tmp_path / "in.json").read_text())
    assert (summary["name"], summary["state"], summary["reason"]) == ("s", "interrupted", "stopped by SIGTERM")
    assert summary["resume"] == f"wmlsearch tune --resume s --out {tmp_path}"


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("exit 3", "exit status 3"),
        ("kill -9 $$", "ended by signal 9"),
        ("no-such-program-of-wmlsearch", "exit status 127"),
        ("sleep 100", "it was ended after 0.5 s"),
        ("trap '' TERM; sleep 100", "it was ended after 0.5 s"),
    ],
)
def test_a_failure_is_said(command: str, problem: str, search: SearchDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_end, "LIMIT_S", 0.5)
    before = (search.path / "status.json").read_text()
    line = said_by(search, command)[-1]
    assert line == f"warning: the command of --on-end failed ({problem}); the search and its result are not affected"
    assert (search.path / "status.json").read_text() == before


def test_a_command_that_never_reads_does_not_block(search: SearchDir) -> None:
    assert said_by(search, "exec 0<&-; true") == []


def test_what_it_leaves_in_the_background_goes_on(search: SearchDir, tmp_path: Path) -> None:
    began = time.monotonic()
    assert said_by(search, f"(sleep 1; echo x > '{tmp_path}/later') &") == []
    assert time.monotonic() - began < 1
    time.sleep(1.5)
    assert (tmp_path / "later").exists()


def test_ctrl_c_ends_the_command_alone(search: SearchDir) -> None:
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    (line,) = said_by(search, "sleep 100")
    assert "failed (stopped by Ctrl-C)" in line
    assert time.monotonic() - began < 10


def test_a_damaged_folder_is_said(search: SearchDir) -> None:
    search.file("record").write_text("{")
    (line,) = said_by(search, "cat")
    assert line.startswith("warning: the command of --on-end failed (InputError: ")


def test_it_runs_once_and_only_after_the_search_has_begun(search: SearchDir) -> None:
    lines: list[str] = []
    with CommandAtEnd(search, "echo x", lines.append):
        pass  # refused before it began: the folder is another search's
    assert lines == []
    with contextlib.suppress(RuntimeError), CommandAtEnd(search, "echo x", lines.append) as at_end:
        at_end.begun = True
        at_end.run()
        raise RuntimeError
    assert lines == ["x"]
