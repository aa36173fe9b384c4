"""Commands that are printed can be pasted into a shell."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from wmlsearch.runs.wording import command, run_words

ECHO = "wmlsearch() { python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' \"$@\"; }\n"


def pasted(text: str) -> list[str]:
    """The arguments that `wmlsearch` gets when `text` is pasted into a shell."""
    done = subprocess.run(["bash", "-c", ECHO + text], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("out", ["my runs", "it's", 'a "b"', "$HOME", "a;b", "-x", "ü&ß", "a\nb", "/abs/o ut", "~"])
def test_a_command_gets_the_words_that_were_meant(out: str) -> None:
    meant = f"./{out}" if out.startswith("-") else out
    text = command("tune", "--resume", *run_words(Path(out) / "s"))
    assert pasted(text) == ["tune", "--resume", "s", "--out", meant]


def test_names_of_run_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("status", *run_words(Path("runs/s"))) == "wmlsearch status s"
    assert command("predict", *run_words(Path("other/s"), "--runs")) == "wmlsearch predict s --runs other"
    assert command("status", *run_words(Path("runs/-s"))) == "wmlsearch status ./-s"
    monkeypatch.chdir(tmp_path)
    assert command("status", *run_words(Path())) == f"wmlsearch status {tmp_path.name} --out {tmp_path.parent}"
