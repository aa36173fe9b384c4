"""`--json`: standard output holds one JSON object and nothing else, whatever prints in between."""

from __future__ import annotations

import json
import subprocess
import sys

PRINTS = """
import os, sys, subprocess, click
from dataclasses import dataclass
from pathlib import Path
from wmlsearch.cli import json_output

@dataclass(frozen=True)
class Row:
    value: float
    path: Path
    names: tuple[str, ...]

with json_output.only_json(sys.argv[1] == "json") as show:
    click.echo("a note")
    print("a print")
    sys.stdout.flush()
    os.write(1, b"a library in C\\n")
    subprocess.run(["echo", "a child"])
    show(Row(float("nan"), Path("a"), ("x", "ü")))
print("after")
"""


def test_everything_else_goes_to_standard_error() -> None:
    done = subprocess.run([sys.executable, "-c", PRINTS, "json"], capture_output=True, text=True, check=True)
    text, _, after = done.stdout.rpartition("after")
    assert json.loads(text) == {"value": None, "path": "a", "names": ["x", "ü"]}
    assert after == "\n"
    assert done.stderr.splitlines() == ["a note", "a print", "a library in C", "a child"]


def test_without_json_nothing_is_moved() -> None:
    done = subprocess.run([sys.executable, "-c", PRINTS, "text"], capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines()[:4], done.stderr) == (["a note", "a print", "a library in C", "a child"], "")
