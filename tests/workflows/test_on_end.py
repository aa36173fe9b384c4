"""`--on-end`: the command gets the search as JSON, and neither its failure nor its hanging changes anything."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from records import search_record

from wmlsearch.runs import user_command
from wmlsearch.runs.environment import variables_set
from wmlsearch.runs.folders import SearchDir
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
    monkeypatch.setattr(user_command, "COMMAND_LIMIT_S", 0.5)
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
        raise RuntimeError
    assert lines == ["x"]


REPLACED = """
import os, sys, threading
from pathlib import Path
from wmlsearch.runs.environment import prepare_environment, variables_set
from wmlsearch.runs.folders import SearchDir
from wmlsearch.workflows.on_end import CommandAtEnd

prepare_environment()
search = SearchDir(Path(sys.argv[1]))
with search.locked(), variables_set({"NCCL_SOCKET_IFNAME": "lo", "TMPDIR": "/nowhere"}):  # as for an embedded Ray
    at_end = CommandAtEnd(search, sys.argv[2], print)
    at_end.begun = True
    threading.Thread(target=lambda: at_end.run_instead_of_this_process(143)).start()
    threading.Event().wait()
"""


def test_the_command_takes_the_place_of_a_process_that_must_end(search: SearchDir, tmp_path: Path) -> None:
    """Ray has died, and the main thread waits for it: the folder is free, the environment is the user's."""
    command = f"""cat > '{tmp_path}/in.json'; kill -TERM $PPID; kill -HUP $PPID; sleep 0.2
env > '{tmp_path}/env'; trap > '{tmp_path}/traps'
'{sys.executable}' -c 'import sys; from pathlib import Path; from wmlsearch.runs.folders import SearchDir
with SearchDir(Path(sys.argv[1])).locked(): print("resumed")' '{search.path}'; exit 3"""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MINE": "1"}
    for name in ("NCCL_SOCKET_IFNAME", "TMPDIR", "OMP_NUM_THREADS"):
        variables.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", REPLACED, str(search.path), command],
        env=variables, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stdout == (
        "resumed\nwarning: the command of --on-end failed (exit status 3); the search and its result are not affected\n"
    ), done.stderr
    assert done.returncode == 143
    summary = json.loads((tmp_path / "in.json").read_text())
    assert (summary["reason"], summary["process"]) == ("stopped by SIGTERM", "ended")
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert "MINE" in names
    assert not names & {"NCCL_SOCKET_IFNAME", "TMPDIR", "OMP_NUM_THREADS"}
    assert (tmp_path / "traps").read_text() == "", "the command ignores no signals"


def ended_by(order: user_command.Order, folder: Path) -> subprocess.CompletedProcess[str]:
    """Let a process in a folder end with an order."""
    code = "import json, sys; from wmlsearch.runs.user_command import Order, replace_process\n"
    code += "replace_process(Order(**json.loads(sys.argv[1])))"
    return subprocess.run(
        [sys.executable, "-P", "-c", code, json.dumps(dataclasses.asdict(order))],
        cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "claim", "printed"),
    [
        ("echo ran", "no/such/folder", "ran\n"),
        ("echo ran", ".", "ran\n"),  # a folder: it cannot be removed, as on a file system that has become read-only
        ("printf '\\303\\251'", "claim", "\\xe9\n"),  # of a terminal that cannot show it
        ("echo \udce9 | wc -c", "claim", "2\n"),  # an argument that is no UTF-8
        ("echo \ud800", "claim", "warning: the command of --on-end failed ('utf-8' codec can't encode character"),
    ],
)
def test_what_disturbs_its_process(command: str, claim: str, printed: str, tmp_path: Path) -> None:
    """And the user's folder has files that are called like modules."""
    for name in ("json", "tempfile", "wmlsearch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = ended_by(user_command.Order(command, "", environment, str(tmp_path / claim), 143), tmp_path)
    assert (done.returncode, done.stderr) == (143, "")
    assert done.stdout.startswith(printed)


def test_the_command_has_the_users_environment(search: SearchDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("TMPDIR", "/users")
    with variables_set({"TMPDIR": "/ours", "GLOO_SOCKET_IFNAME": "lo"}), variables_set({"TMPDIR": "/inner"}):
        assert said_by(search, "echo ${GLOO_SOCKET_IFNAME-unset} $TMPDIR") == ["unset /users"]
    assert (os.environ["TMPDIR"], os.environ.get("GLOO_SOCKET_IFNAME")) == ("/users", None)
