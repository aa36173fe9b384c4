"""The maximum number of epochs where none is given: as many steps as the paper's training had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from wmlsearch.cli import main, options
from wmlsearch.data.manifest import Manifest
from wmlsearch.errors import InputError
from wmlsearch.workflows.epochs import default_epochs


class Reached(InputError):
    """Raised instead of the work."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the epochs that the verbs ask for, and end them there."""
    import wmlsearch.workflows.forecast
    import wmlsearch.workflows.train
    import wmlsearch.workflows.tune

    epochs: list[int] = []

    def stop(*arguments: Any) -> None:
        request = next(argument for argument in arguments if hasattr(argument, "settings"))
        epochs.append(request.settings.epochs)
        raise Reached("far enough")

    monkeypatch.setattr(wmlsearch.workflows.tune, "tune", stop)
    monkeypatch.setattr(wmlsearch.workflows.train, "train", stop)
    monkeypatch.setattr(wmlsearch.workflows.forecast, "forecast_search", stop)
    return epochs


@pytest.mark.parametrize(
    "words", [["tune", "quick"], ["train", "paper", "--workers", "0"], ["plan", "quick"]], ids=lambda words: words[0]
)
def test_the_data_decide_the_epochs(
    words: Sequence[str], asked: list[int], prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    slices = len(Manifest.read(prepared).indices("train", kept_only=True))
    line = (
        f"epochs: at most 200, the most by default, since the paper trained 11,160 steps and an epoch of {slices} "
        f"slices has {-(-slices // 5)} (--epochs changes it)\n"
    )
    ended = CliRunner().invoke(main, [*words, "--data", str(prepared)], prog_name="wmlsearch")
    assert ended.stderr == "wmlsearch: far enough\n", ended.output
    assert line in ended.stdout
    given = CliRunner().invoke(main, [*words, "--data", str(prepared), "--epochs", "7"], prog_name="wmlsearch")
    assert "epochs: at most" not in given.stdout
    assert asked == [200, 7]


@pytest.mark.parametrize(
    ("slices", "epochs", "reason"),
    [
        (312, 178, "at most 178, since the paper trained 11,160 steps and an epoch of 312 slices has 63"),
        (
            3098,
            18,
            "at most 18, as in the paper, since the paper trained 11,160 steps and an epoch of 3098 slices has 620",
        ),
    ],
)
def test_the_reason_is_printed(
    slices: int, epochs: int, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stub:
        def indices(self, split: str, kept_only: bool) -> range:
            assert (split, kept_only) == ("train", True)
            return range(slices)

    monkeypatch.setattr(Manifest, "read", lambda _folder: Stub())
    assert default_epochs(Path("prepared"), options.say) == epochs
    assert capsys.readouterr().out == f"epochs: {reason} (--epochs changes it)\n"


def test_settings_are_refused_before_the_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(main, ["tune", "quick", "--trials", "0", "--data", "nowhere"], prog_name="wmlsearch")
    assert "--trials must be greater than or equal to 1, but got 0" in ended.stderr
