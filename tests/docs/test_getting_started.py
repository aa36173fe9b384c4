"""The commands of docs/getting-started.md run, one after another, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "getting-started.md").read_text(encoding="utf-8")
COMMANDS = re.findall(
    r"^\$ wmlsearch (.+)$", PAGE.split("## The same, step by step")[1].split("\n## ")[0], re.MULTILINE
)


@pytest.mark.slow
def test_the_commands_of_the_getting_started_page_run(tmp_path: Path) -> None:
    assert [command.split()[0] for command in COMMANDS] == [
        "phantom", "prepare", "plan", "tune", "status", "report", "predict", "ui",
    ]  # fmt: skip
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    }
    environment["PYTHONPATH"] = str(REPOSITORY)
    for command in COMMANDS[:-1]:  # `ui` serves until Ctrl-C; tests/tracking/test_ui_views.py opens it
        words = [sys.executable, "-m", "wmlsearch", *command.split()]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"wmlsearch {command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "prepared" / "contact_sheet.png").is_file()
    assert (tmp_path / "runs" / "first" / "report" / "index.html").is_file()
    champion = json.loads((tmp_path / "runs" / "first" / "selection.json").read_text())["champion"]
    assert (tmp_path / "runs" / "first" / "test.json").is_file() == (champion != "paper")
    assert (tmp_path / "predicted" / "lesions.csv").is_file()
