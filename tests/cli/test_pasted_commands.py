"""Every command that is printed does, pasted into a shell, what its message says, whatever the folders are called."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from paths import REPOSITORY
from records import search_record

from wmlsearch.cli import main, options
from wmlsearch.config import RunSettings
from wmlsearch.data.manifest import Manifest
from wmlsearch.errors import InputError
from wmlsearch.report.commands import tune_command
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.interrupts import end_by_signal
from wmlsearch.runs.lock import check_not_running
from wmlsearch.workflows.observer import Outcome

FOLDERS = ["my runs", 'it\'s "here"', "-runs", "$(touch x);", "a\\b", "ü"]


@pytest.fixture(params=FOLDERS)
def out(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs with a difficult name, relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = Path(request.param)
    folder.mkdir()
    return folder


def search_in(out: Path, state: str = "running", reason: str = "") -> SearchDir:
    search = SearchDir.create(out / "s", search_record())
    search.set_status(state, reason)
    return search


def commands_in(text: str) -> list[str]:
    """The commands of a message: between backticks, or to the end of the line."""
    return [quoted or plain for quoted, plain in re.findall(r"`(wmlsearch [^`]+)`|(?<!`)(wmlsearch .+)$", text, re.M)]


def paste(text: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Paste a command into a shell where `wmlsearch` is this repository's."""
    program = tmp_path / "bin" / "wmlsearch"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m wmlsearch "$@"\n')
    program.chmod(0o755)
    paths = {"PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        ["bash", "-c", text], capture_output=True, text=True, env={**os.environ, **paths}, cwd=tmp_path
    )


def parsed(text: str, tmp_path: Path) -> dict[str, object]:
    """The values that the command line of a pasted command gives to the verb, without running it."""
    echo = "import json, sys; print(json.dumps(sys.argv[1:]))"
    stub = f"wmlsearch() {{ '{sys.executable}' -c '{echo}' \"$@\"; }}\n"
    words = json.loads(subprocess.run(["bash", "-c", stub + text], capture_output=True, text=True, check=True).stdout)
    verb = main.commands[words[0]]
    return verb.make_context(words[0], words[1:]).params


def test_status_of_a_killed_search_says_how_to_go_on(out: Path, tmp_path: Path) -> None:
    search_in(out)
    result = CliRunner().invoke(main, ["status", "s", "--out", str(out)])
    assert re.search(
        r"^no process has held this folder since \d\d:\d\d \(it died, or the folder is a copy\), 0 of \d+ trials; "
        r"continue with wmlsearch tune",
        result.stdout,
        re.M,
    )
    (text,) = commands_in(result.stdout)
    assert SearchDir(Path(parsed(text, tmp_path)["out"]) / str(parsed(text, tmp_path)["resume"])).exists()
    done = paste(text, tmp_path)
    assert "lacks shape and data_path, so this search cannot be resumed" in done.stderr, done  # it found the folder


def test_status_json(out: Path, tmp_path: Path) -> None:
    search_in(out, "interrupted", "stopped by SIGHUP, as a closed terminal sends it")
    done = paste(f"wmlsearch status s --json --out '{out}'" if "'" not in str(out) else "true", tmp_path)
    if done.stdout:
        summary = json.loads(done.stdout)
        assert (summary["state"], summary["process"]) == ("interrupted", "ended")
        assert parsed(summary["resume"], tmp_path)["resume"] == "s"


def test_the_end_of_a_search(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = search_in(out, "interrupted", "stopped by Ctrl-C")
    options.show_next_steps(Outcome(search, end_by_signal(signal.SIGINT), "it is away"), "http://h/?a=b&c=d e")
    resume, sync = commands_in(capsys.readouterr().out)
    for text in (resume, sync):
        values = parsed(text, tmp_path)
        assert (values["out"], values["mlflow_uri"]) == (Path(out), "http://h/?a=b&c=d e")
    options.show_next_steps(Outcome(search, None, ""), None)
    (ui,) = commands_in(capsys.readouterr().out)
    assert parsed(ui, tmp_path)["out"] == Path(out), "the folder of the search, whatever --out was"


CHANGED: dict[str, Any] = {  # a value of each setting that is not the default
    "epochs": 9, "seed": 4, "precision": "float32", "objective": "val_dice", "trials": 31, "max_hours": 1.5,
    "max_gpu_hours": 2.5, "max_epochs_total": 700, "target_dice": 0.75, "max_checkpoint_gb": 3.5, "sampler": "tpe",
    "scheduler": "hyperband", "experience": False, "portfolio": 0, "grace_epochs": 2, "reduction_factor": 5,
    "trial_timeout": 60.5, "baseline": False, "confirm_top": 4, "confirm_seeds": 3, "final_runs": 6,
    "postprocessing": "none", "forecast": False,
}  # fmt: skip


def test_the_command_of_a_search_has_all_its_settings(tmp_path: Path) -> None:
    # `objectives` sets others; `workers_per_trial` is in the shape of the trials
    assert CHANGED.keys() == RunSettings.model_fields.keys() - {"objectives", "workers_per_trial"}
    settings = RunSettings.from_mapping(CHANGED)
    defaults = RunSettings()
    assert all(getattr(settings, name) != getattr(defaults, name) for name in CHANGED)
    given = parsed(tune_command(search_record().model_copy(update={"settings": settings})), tmp_path)
    values = {name: given[name] if name in given else not given[f"no_{name}"] for name in CHANGED}
    assert values == CHANGED


def test_refusals_name_the_folder(out: Path, tmp_path: Path) -> None:
    search = search_in(out)
    with search.locked(), pytest.raises(InputError) as running:
        check_not_running(search.path)
    with pytest.raises(InputError) as missing:
        Manifest.read(out / "no data")
    (status,), (prepare,) = commands_in(str(running.value)), commands_in(str(missing.value))
    assert Path(str(parsed(status, tmp_path)["name"])) == search.path
    assert Path(str(parsed(prepare, tmp_path)["out"])) == out / "no data"


def test_no_message_builds_a_command_by_hand() -> None:
    """A command with a value in it is quoted by `runs.wording.command`."""
    verbs = "|".join(name for name in main.list_commands(click.Context(main)))
    by_hand = re.compile(rf"wmlsearch (?:{verbs})\b[^`\"]*\{{")
    lines = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for path in (REPOSITORY / "wmlsearch").rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if by_hand.search(line) and path.name != "phantom.py"  # it writes a README with numbers only
    ]
    assert not lines


def test_stop_of_a_killed_search_says_how_to_go_on(out: Path, tmp_path: Path) -> None:
    search_in(out)
    result = CliRunner().invoke(main, ["stop", "s", "--out", str(out)])
    assert result.exit_code == 2
    assert "no process has held this folder since" in result.stderr
    (text,) = commands_in(result.stderr)
    assert parsed(text, tmp_path)["resume"] == "s"
