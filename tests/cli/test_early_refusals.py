"""What cannot run is refused before work is done: no phantom is made, and nothing is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from wmlsearch.cli import main

IMPOSSIBLE = {
    "tune --workers-per-trial 4096": "does not fit on the machines",
    "tune --gpus-per-worker 4096": "does not fit on the machines",
    "tune --workers-per-trial 0": "--workers-per-trial must be a whole number from 1",
    "tune --cluster no.yaml": "no.yaml: no such cluster file",
    "tune --max-epochs-total 3": "--max-epochs-total 3: no epochs are left for trials",
    "tune --ray-address 127.0.0.1:9": "127.0.0.1:9: no Ray cluster answers there",
    "tune --storage /dev/null/x": "/dev/null/x",
    "train paper --workers 4096": "does not fit on the machines",
    "train paper --ray-address 127.0.0.1:9": "127.0.0.1:9: no Ray cluster answers there",
    "train paper --workers 0 --storage s3://bucket --gpus-per-worker 0.5": (
        "--workers 0 trains in this process, without Ray, so --gpus-per-worker and --storage cannot be given with it; "
        "leave them out, or give --workers 1"
    ),
    "train paper --workers 0 --ray-address 127.0.0.1:9": "so --ray-address cannot be given with it; leave it out, or",
}


@pytest.mark.parametrize("words", IMPOSSIBLE)
def test_before_the_phantom_is_made(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "wmlsearch.workflows.builtin_phantom.ensure_builtin_phantom", lambda *_: pytest.fail("a phantom was made")
    )
    result = CliRunner().invoke(main, words.split())
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert IMPOSSIBLE[words] in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("cluster", "times"), [([], 0), (["--cluster", "no.yaml"], 1)])
def test_settings_are_validated_once(
    cluster: list[str], times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the request of the search, which a search on a cluster gets only there."""
    calls: list[object] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wmlsearch.workflows.epochs.settings_before_data", lambda values, _: calls.append(values))
    result = CliRunner().invoke(main, ["tune", "quick", "--data", "nowhere", *cluster])
    assert ("no.yaml: no such" if cluster else "nowhere: no such folder") in result.stderr
    assert len(calls) == times


def test_ctrl_c_before_the_folder_is_made_says_that_nothing_was_begun(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt("stopped by Ctrl-C")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wmlsearch.workflows.tune.tune", interrupted)
    result = CliRunner().invoke(main, ["tune", "quick", "--data", str(prepared), "--epochs", "2", "--name", "s"])
    assert result.exit_code == 130
    assert result.stdout.endswith("nothing was started: runs/s does not exist yet, so there is nothing to resume\n")
    assert "stopped by Ctrl-C" in result.stderr
