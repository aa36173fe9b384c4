"""`tune --continue`: the same command begins a search, goes on with it, and does nothing when it is completed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from records import run_record, search_record

from wmlsearch.cli import main
from wmlsearch.cluster.run_copies import CopyWriter
from wmlsearch.config import RunSettings
from wmlsearch.data.manifest import MANIFEST
from wmlsearch.errors import InputError
from wmlsearch.runs.files import write_json
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.schema import TrialShape
from wmlsearch.space import SearchSpace
from wmlsearch.space.yaml_files import read_yaml
from wmlsearch.workflows.fitted_space import space_for_data
from wmlsearch.workflows.search_plan import ResumeRequest

SETTINGS = RunSettings(trials=4, epochs=7, seed=3, baseline=False)


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SearchDir:
    """An interrupted search `s` in `runs`, the default folder."""
    monkeypatch.chdir(tmp_path)
    record = search_record().model_copy(
        update={"settings": SETTINGS, "shape": TrialShape(workers_per_trial=1, gpus_per_worker=None)}
    )
    made = SearchDir.create(Path("runs/s"), record)
    made.set_status("interrupted", "stopped by SIGTERM")
    return made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What `tune` would do, instead of doing it."""
    made: list[tuple[str, Any]] = []

    def resume(search: SearchDir, *_: Any) -> None:
        made.append(("resume", search.name))
        raise SystemExit(0)

    def start(*, name: str, **_: Any) -> None:
        made.append(("start", name))
        raise SystemExit(0)

    monkeypatch.setattr(ResumeRequest, "of", resume)
    monkeypatch.setattr("wmlsearch.cli.tune._start", start)
    return made


def tune(*words: str) -> Result:
    return CliRunner().invoke(main, ["tune", "--continue", *words])


def test_a_search_that_has_not_begun_begins(search: SearchDir, calls: list[Any]) -> None:
    assert tune("--name", "other").exit_code == 0
    assert calls == [("start", "other")]


def test_a_search_that_was_stopped_goes_on(search: SearchDir, calls: list[Any]) -> None:
    same = ("--epochs", "7", "--seed", "3", "--no-baseline", "--workers-per-trial", "1", "--trials", "4")
    assert tune("--name", "s", *same).exit_code == 0
    assert tune("--name", "s", "--trials", "9").exit_code == 0, "a budget may change"
    assert calls == [("resume", "s"), ("resume", "s")]


@pytest.mark.parametrize("words", [("--continue", "--name", "s"), ("--resume", "s")])
def test_a_search_of_a_machine_that_was_lost_goes_on(
    words: tuple[str, ...], search: SearchDir, calls: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "storage" / "s").mkdir(parents=True)
    CopyWriter(search, str(tmp_path / "storage"), "a", "process 7 on node3", lambda: None).copy_all()
    shutil.rmtree(search.path)
    done = CliRunner().invoke(main, ["tune", *words, "--storage", str(tmp_path / "storage")])
    assert calls == [("resume", "s")]
    assert done.output.startswith(f"s is restored from {tmp_path}/storage: process 7 on node3 wrote it last, at ")
    assert search.state == "interrupted"
    shutil.rmtree(search.path)
    refused = tune("--name", "s", "--storage", str(tmp_path / "storage"), "--epochs", "8")
    assert "--epochs was 7 when it began, but is 8 now" in refused.output


@pytest.mark.parametrize("words", [("--continue", "--name", "s"), ("--resume", "s")])
def test_a_completed_search_is_left_alone(
    words: tuple[str, ...], search: SearchDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(SETTINGS.trials):
        RunDir.create(search.trial(number).path, run_record(search.record())).set_status("failed")
    search.set_status("completed")
    search.report.mkdir()
    (search.report / "index.html").touch()
    monkeypatch.setattr("wmlsearch.workflows.remaining_work.is_mirrored", lambda *_: True)
    again = CliRunner().invoke(main, ["tune", *words, "--trials", "4"])
    assert again.output == "s: is completed, so nothing is left to do; its results: runs/s\n"
    assert again.exit_code == 0


def test_with_a_larger_budget_a_completed_search_goes_on(search: SearchDir, calls: list[Any]) -> None:
    search.set_status("completed")
    tune("--name", "s", "--trials", "5")
    assert calls == [("resume", "s")]


def test_a_shipped_space_that_was_fitted_to_the_data_is_the_same(
    search: SearchDir, calls: list[Any], prepared: Path, tmp_path: Path
) -> None:
    """A job's command names `unet` each time, of which its data leave a part."""
    pictures = tmp_path / "pictures"
    shutil.copytree(prepared, pictures)
    about = json.loads((pictures / MANIFEST).read_text(encoding="utf-8"))
    (pictures / MANIFEST).write_text(json.dumps({**about, "axis": None}), encoding="utf-8")
    fitted = space_for_data(SearchSpace.read("unet"), pictures, 1, print)
    assert "input_slices" in fitted.fixed
    record = search.record()
    space = record.space.model_copy(update={"source": "unet", "values": fitted.to_mapping()})
    write_json(search.file("record"), record.model_copy(update={"space": space, "data_path": str(pictures)}).as_json())
    assert tune("unet", "--name", "s").exit_code == 0
    assert calls == [("resume", "s")]
    done = tune("unet", "--name", "s", "--data", str(prepared))
    assert "unet has other ranges than the search space that it began with" in done.output
    assert len(calls) == 1
    assert tune("--name", "s", "--data", str(prepared)).exit_code == 0, "a default that is not named may have changed"
    assert len(calls) == 2


def began_with(search: SearchDir, source: str, values: dict[str, Any], **defaults: Any) -> None:
    """Make it a search that began with this space, when the defaults were these."""
    space = search.record().space
    space = space.model_copy(update={"source": source, "values": values, "defaults": {**space.defaults, **defaults}})
    write_json(search.file("record"), search.record().model_copy(update={"space": space}).as_json())


def test_a_space_under_another_spelling_is_the_same(search: SearchDir, calls: list[Any], tmp_path: Path) -> None:
    Path("s.yaml").write_text("depth: {choices: [3, 4]}\n")
    began_with(search, "s.yaml", SearchSpace.read("s.yaml").to_mapping())
    for spelling in ("s.yaml", "./s.yaml", str(tmp_path / "s.yaml")):
        assert tune(spelling, "--name", "s").exit_code == 0, spelling
    began_with(search, "quick", SearchSpace.read("quick").to_mapping())
    assert tune("quick.yaml", "--name", "s").exit_code == 0
    assert calls == [("resume", "s")] * 4


def test_after_an_upgrade_that_changed_a_default_the_same_command_goes_on(search: SearchDir, calls: list[Any]) -> None:
    Path("s.yaml").write_text("depth: {choices: [3, 4]}\n")
    began_with(search, "s.yaml", {"depth": {"choices": [3, 4]}}, norm_momentum=0.1)
    assert search.record().space.space().fixed == {"norm_momentum": 0.1}
    assert tune("s.yaml", "--name", "s").exit_code == 0
    for line, exit_code in (("norm_momentum: 0.1", 0), ("norm_momentum: 0.01", 2), ("dropout: 0.3", 2)):
        Path("s.yaml").write_text(f"depth: {{choices: [3, 4]}}\n{line}\n")
        assert tune("s.yaml", "--name", "s").exit_code == exit_code, line
    assert calls == [("resume", "s")] * 2


def test_a_space_that_a_new_search_may_not_have_goes_on(search: SearchDir, calls: list[Any]) -> None:
    lines = (
        "learning_rate: {low: 1e-6, high: 1e-3}",
        "min_learning_rate: {low: 1e-8, high: 1e-7, when: {schedule: cosine}}",
        "schedule: {choices: [plateau, cosine]}",
    )
    Path("s.yaml").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"s\.yaml: not a valid search space"):
        SearchSpace.read("s.yaml")
    began_with(search, "s.yaml", read_yaml(Path("s.yaml")))
    assert tune("s.yaml", "--name", "s").exit_code == 0
    assert calls == [("resume", "s")]


def test_other_settings_are_refused_all_at_once(search: SearchDir, calls: list[Any]) -> None:
    Path("other.yaml").write_text("learning_rate: {low: 1e-5, high: 1e-1, log: true}\n")
    done = tune("other.yaml", "--name", "s", "--epochs", "8", "--seed", "3", "--workers-per-trial", "2")
    assert done.exit_code == 2
    assert "runs/s: cannot be continued with other settings (give another --name for a new search)" in done.output
    assert "--epochs was 7 when it began, but is 8 now" in done.output
    assert "--workers-per-trial was 1 when it began, but is 2 now" in done.output
    assert "other.yaml has other ranges than the search space that it began with" in done.output
    assert "--seed" not in done.output
    assert calls == []


@pytest.mark.parametrize("words", [(), ("--name", "s", "--resume", "s"), ("--name", "s", "--cluster", "c.yaml")])
def test_it_needs_a_name_and_is_for_this_machine(search: SearchDir, calls: list[Any], words: tuple[str, ...]) -> None:
    done = tune(*words)
    assert done.exit_code == 2
    assert "--continue: needs --name, and cannot be combined with --resume or --cluster" in done.output
    assert calls == []
