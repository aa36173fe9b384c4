"""Run folders and prepared data of an earlier version (commit 80fae99) are read and resumed.

`tests/old_files` holds a finished search and one that was killed with `kill -9`, both of the prepared phantom beside
them. Weights of the baseline network (8 MB each) and the report are not included.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import wmlsearch
from wmlsearch.cli import main
from wmlsearch.config import VALUES_BEFORE, TrialConfig
from wmlsearch.data.sealed_test import check_sealed_test
from wmlsearch.data.slices import PreparedData
from wmlsearch.errors import InputError
from wmlsearch.inference.export import load_exported
from wmlsearch.runs.checks import open_search
from wmlsearch.runs.evaluation import VOLUMES
from wmlsearch.runs.folders import RecordDir, SearchDir
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.runs.schema import SpaceRecord
from wmlsearch.verdict.champion import read_candidates
from wmlsearch.workflows.remaining_work import judged_by_older_version

OLD = Path(__file__).resolve().parents[1] / "old_files"
KEY = "89d74c787bf745fd9b57541885d02c21"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a copy of the old run folders and prepared data."""
    shutil.copytree(OLD / "prepared", tmp_path / "prepared")
    for name in ("finished", "killed"):
        shutil.copytree(OLD / name, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> str:
    result = CliRunner().invoke(main, list(words), prog_name="wmlsearch")
    assert result.exit_code == 0, result.output
    return result.output


def holds(written: Any, old: Any) -> bool:
    """Return whether a JSON value holds all of an old one. Settings and hyperparameters that came later are added."""
    if not isinstance(old, dict):
        return bool(written == old)
    return all(name in written and holds(written[name], value) for name, value in old.items())


def test_every_record_is_read_and_written_as_it_was() -> None:
    search = SearchDir(OLD / "finished")
    folders: list[RecordDir] = [search, *search.all_runs()]
    assert len(folders) == 1 + 4 + 4 + 2
    for folder in folders:
        for what, record in (("record", folder.record()), ("status", folder.status()), ("ledger", folder.ledger())):
            assert holds(record.as_json(), json.loads(folder.file(what).read_text()))
    assert holds(search.usage().as_json(), json.loads(search.file("usage").read_text()))
    forecast, evaluation = search.forecast(), search.evaluation()
    assert forecast is not None
    assert forecast.as_json() == json.loads(search.file("forecast").read_text())
    assert evaluation is not None
    assert evaluation.as_json() == json.loads(search.evaluation_file().read_text())
    lines = (search.trial(0).path / "metrics.jsonl").read_text().splitlines()
    assert [row.as_json() for row in search.trial(0).rows()] == [json.loads(line) for line in lines]


def test_what_a_file_does_not_name_means_what_it_meant_when_it_was_written() -> None:
    """Also after the baseline has changed: here a value that differs stands for the old one."""
    record = SearchDir(OLD / "finished").record()
    assert record.space.defaults == VALUES_BEFORE
    config = SearchDir(OLD / "finished").trial(0).record().config
    assert {name: getattr(config, name) for name in VALUES_BEFORE} == VALUES_BEFORE
    before = {**TrialConfig().model_dump(), "up_kernel": 3, "norm_momentum": 0.02}
    space = SpaceRecord(source="s", values={"depth": {"choices": [2, 3]}, "norm_momentum": 0.03}, defaults=before)
    assert dict(space.space().fixed) == {"up_kernel": 3, "norm_momentum": 0.03}
    assert space.space().config({"depth": 2}).up_kernel == 3
    # A search that began before a name existed, but after its defaults were written down.
    del before["flip_axis"]
    space = SpaceRecord(source="s", values={"augment": {"choices": ["flip", "affine"]}}, defaults=before)
    assert space.space().config({"augment": "flip"}).flip_axis == "columns"


def test_a_finished_search() -> None:
    search = open_search("finished", OLD)
    record = search.record()
    assert (record.key, record.kind, record.settings.trials, record.data.size) == (KEY, "search", 4, 32)
    assert record.settings.first_trials == 0, "none came from experience then"
    assert record.certificate is not None
    assert record.certificate.units == {"train": 7, "val": 1, "test": 4}
    board = leaderboard(search)
    assert [(entry.name, entry.epochs) for entry in board.trials] == [
        ("trial-0000", 4), ("trial-0003", 4), ("trial-0002", 4), ("trial-0001", 4),
    ]  # fmt: skip
    assert board.trials[0].value == pytest.approx(0.009756, abs=1e-6)
    assert board.trials[1].config["loss"] == search.trial(3).record().config.loss == "bce_dice"
    assert [(candidate.name, candidate.complete) for candidate in read_candidates(search)] == [
        ("paper", True), ("trial-0003", True),
    ]  # fmt: skip
    assert {(run.run.name, run.seed, run.fold) for one in read_candidates(search) for run in one.selection} == {
        ("paper-seed0", 0, 0), ("paper-seed1", 1, 0), ("trial-0003-seed0", 0, 0), ("trial-0003-seed1", 1, 0),
    }  # fmt: skip
    assert judged_by_older_version(search), "so a resumed search trains and judges nothing again"
    assert search.usage().final_seconds == pytest.approx(89.822, abs=1e-3)
    ledger = search.trial(0).ledger()
    assert (ledger.rows, ledger.params, ledger.state, ledger.files) == (4, True, "completed", ["certificate"])


@pytest.mark.parametrize("objective", ["val_recall", "val_loss"])
def test_a_search_by_an_objective_that_a_new_search_cannot_have(old: Path, objective: str) -> None:
    """In Python it was any text: `val_recall` worked, and `val_loss` was maximized."""
    for file in (*old.glob("runs/finished/**/config.json"), old / "runs/finished/search.json"):
        values = json.loads(file.read_text())
        values["settings"]["objective"] = objective
        file.write_text(json.dumps(values))
    board = leaderboard(open_search("finished", old / "runs"))
    assert board.objective == objective
    assert len(board.trials) == 4
    assert "finished" in run("status", "finished")
    with pytest.raises(InputError, match=f"objective must be .* but got {objective!r}"):
        wmlsearch.tune("quick", objective=objective)


def test_its_evaluation_and_models() -> None:
    search = SearchDir(OLD / "finished")
    evaluation = search.evaluation()
    assert evaluation is not None
    assert evaluation.verdict is not None
    assert evaluation.verdict.outcome == "not shown: too few patients"
    assert evaluation.names == {"baseline": "paper", "champion": "trial-0003"}
    assert [len(model.members) for model in evaluation.models.values()] == [2, 2]
    champion = evaluation.models["champion"].members[0]
    assert (champion.name, len(champion.scope(VOLUMES).units)) == ("trial-0003-seed0", 4)
    metrics = search.model("champion").evaluation_metrics()
    assert metrics is not None
    assert metrics.opened == evaluation.opened
    exported = load_exported(search.model("champion").export)
    assert [member.name for member in exported.members] == ["trial-0003-seed0", "trial-0003-seed1"]


def test_the_prepared_data() -> None:
    data = PreparedData.open(OLD / "prepared")
    data.manifest.verify(OLD / "prepared")
    assert (data.manifest.format, data.manifest.folds, data.manifest.fold_count) == (2, (), 1)
    assert data.val.patient_names == ("06",)
    assert data.with_fold(3) is data, "each run has the one validation set"
    assert check_sealed_test(OLD / "prepared").folds == ()
    assert data.manifest.fingerprint == SearchDir(OLD / "finished").record().data.fingerprint


def test_status_and_report(old: Path) -> None:
    output = run("status", "finished")
    assert "finished: completed, 4 of 4 trials on prepared" in output
    assert "trial-0003" in output
    status = run("status", "killed")
    assert re.search(r"killed: no process has held this folder since .* a copy\), 6 of 60 trials on\s+prepared", status)
    assert "continue with wmlsearch tune --resume killed" in status
    run("report", "finished")
    page = (old / "runs" / "finished" / "report" / "index.html").read_text()
    assert KEY not in page
    assert "trial-0003" in page


@pytest.mark.slow
def test_a_killed_search_is_resumed_to_its_end(old: Path) -> None:
    search = SearchDir(old / "runs" / "killed")
    before = {run.name: run.rows() for run in search.trials()}
    assert [len(rows) for rows in before.values()] == [8, 8, 8, 8, 6, 0]
    output = run("tune", "--resume", "killed", "--trials", "6", "--data", "prepared")
    assert "from their last checkpoints" in output or "from its last checkpoint" in output
    assert [(run.state, run.status().reason) for run in search.trials()] == [("completed", "")] * 6
    assert [len(run.rows()) for run in search.trials()] == [8] * 6
    for run_ in search.trials():
        assert run_.rows()[: len(before[run_.name])] == before[run_.name], "the old epochs stay"
    assert (search.state, search.record().settings.trials) == ("completed", 6)
