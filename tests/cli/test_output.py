"""A command goes on when its terminal is closed or the reader of its pipe has ended."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from wmlsearch.cli.json_output import only_json

PRINTS = """
import os, sys
from pathlib import Path
from wmlsearch.cli.output import survives_its_terminal

with survives_its_terminal():
    print("first")
    Path("first").touch()
    input()
    for _ in range(3):
        print("lost")
        print("lost too", file=sys.stderr)
    os.write(1, b"of a library in C")
    Path("end").write_text("reached")
"""


def run_with_output(descriptor: int, close: list[int], folder: Path) -> int:
    """Start PRINTS with this standard output and error, close the other side after its first line, and wait."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTS], stdin=subprocess.PIPE, stdout=descriptor, stderr=descriptor, cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, start_new_session=True, text=True,
    )  # fmt: skip
    assert os.read(close[0], 5) == b"first"
    for one in (descriptor, *close):
        os.close(one)
    process.communicate("\n", timeout=60)
    return process.returncode


def test_a_closed_terminal(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    assert run_with_output(slave, [master], tmp_path) == 0
    assert (tmp_path / "end").read_text() == "reached"


def test_a_pipe_without_a_reader(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    assert run_with_output(writer, [reader], tmp_path) == 0
    assert (tmp_path / "end").read_text() == "reached"


@pytest.mark.parametrize(
    ("arguments", "redirection", "status", "lines"),
    [
        ("--version", ">&-", 0, 0),
        ("--version", "2>&-", 0, 0),
        ("--version", ">&- 2>&-", 0, 0),
        ("--version", ">/dev/full", 1, 1),
        ("tune --help", ">/dev/full", 1, 1),
        ("status nope", ">&-", 2, 1),
        ("status nope", "2>&-", 2, 0),
        ("status nope", "2>/dev/full", 2, 0),
        ("status nope --json", ">&-", 2, 1),
    ],
)
def test_a_closed_or_full_output(arguments: str, redirection: str, status: int, lines: int, tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m wmlsearch {arguments} {redirection}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, len(done.stderr.splitlines())) == (status, lines), done.stderr
    if redirection == ">/dev/full":
        assert done.stderr.startswith("wmlsearch: No space left on device; ")


def test_no_file_gets_the_descriptor_of_a_closed_output(tmp_path: Path) -> None:
    code = (
        "import os; from wmlsearch.cli.output import survives_its_terminal\n"
        "with survives_its_terminal(), open('file', 'w') as file: os.write(1, b'of a library'); print(file.fileno())"
    )
    command = f"'{sys.executable}' -c \"{code}\" >&-"
    subprocess.run(
        ["sh", "-c", command], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, cwd=tmp_path, check=True
    )
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_of_a_child_gets_the_descriptor_of_a_closed_stream(closed: str, tmp_path: Path) -> None:
    child = "import os; fd = os.open('file', os.O_WRONLY | os.O_CREAT); open('number', 'w').write(str(fd))"
    code = (
        "import subprocess, sys; from wmlsearch.cli.output import survives_its_terminal\n"
        f'with survives_its_terminal(): subprocess.run([sys.executable, "-c", {child!r}], check=True)'
    )
    subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert int((tmp_path / "number").read_text()) > 2


def test_json_to_a_closed_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    for requested in (True, False):
        with only_json(requested) as show:
            show({"a": 1})
