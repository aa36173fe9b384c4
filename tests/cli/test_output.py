"""A command goes on when its terminal is closed or the reader of its pipe has ended."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

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
