"""What `optuna_patches` relies on in Optuna: a new version that changes it fails here."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import Trial, TrialState

from wmlsearch.search import optuna_patches
from wmlsearch.search.optuna_patches import (
    TRIAL_NUMBER,
    add_running_trial,
    journal_files,
    journal_storage,
    open_trial,
    read_sampler_state,
    restore_study_state,
    restore_trial_state,
)
from wmlsearch.search.samplers.optuna_samplers import STARTUP_TRIALS, make_sampler


def new_study(journal: Path) -> optuna.Study:
    return optuna.create_study(study_name="s", storage=journal_storage(journal), load_if_exists=True)


def running(study: optuna.Study, number: int = 0) -> Trial:
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0, 1)},
        user_attrs={TRIAL_NUMBER: number},
    )
    return add_running_trial(study, template)


def test_a_running_trial_is_one_line_and_can_be_continued(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    study = new_study(journal)
    lines = len(journal.read_text().splitlines())
    trial = running(study, 7)
    assert len(journal.read_text().splitlines()) == lines + 1
    trial.report(0.25, 1)
    again = new_study(journal)
    study_of_other = open_trial(again, again.get_trials(deepcopy=False)[0])
    assert (study_of_other.number, study_of_other.params) == (0, {"x": 0.5})
    study_of_other.report(0.5, 2)
    again.tell(study_of_other, state=TrialState.PRUNED)
    (ended,) = new_study(journal).trials
    assert (ended.state, ended.intermediate_values, ended.user_attrs) == (
        TrialState.PRUNED, {1: 0.25, 2: 0.5}, {TRIAL_NUMBER: 7},
    )  # fmt: skip


def test_optuna_reads_the_journal_as_its_own(tmp_path: Path) -> None:
    """One JSON object per line, as Optuna's backend writes it."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    running(new_study(ours))
    other = optuna.create_study(study_name="s", storage=optuna.storages.JournalStorage(JournalFileBackend(str(theirs))))
    running(other)

    def shape(journal: Path) -> list[list[str]]:
        return [sorted(json.loads(line)) for line in journal.read_text().splitlines()]

    assert shape(ours) == shape(theirs)


def test_a_line_is_written_without_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, calls = new_study(tmp_path / "journal"), []
    monkeypatch.setattr(os, "fsync", calls.append)
    running(study)
    assert calls == []


def test_the_lock_is_a_symbolic_link_beside_the_journal(tmp_path: Path) -> None:
    """The lock that a killed process leaves is removed by its name."""
    journal, file = journal_files(tmp_path / "journal")
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    assert file.is_symlink()
    file.unlink()
    began = time.monotonic()
    assert lock.acquire()
    assert time.monotonic() - began < 5
    lock.release()
    assert not file.is_symlink()


def test_the_state_of_samplers_is_read_and_restored(tmp_path: Path) -> None:
    """cmaes stores its state in trials, qmc its position in the study."""
    for kind in ("cmaes", "qmc"):
        journal = tmp_path / kind
        study = new_study(journal)
        for number in range(STARTUP_TRIALS + 4):
            study.sampler = make_sampler(kind, number, 0)
            trial = study.ask()
            trial.set_user_attr(TRIAL_NUMBER, number)
            study.tell(trial, trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1))
        of_study, of_trials = read_sampler_state(journal, "s")
        assert any(key.startswith("qmc:") for key in of_study) == (kind == "qmc")
        stored = {key.partition(":")[0] for state in of_trials.values() for key in state}
        assert stored == ({"cma"} if kind == "cmaes" else set())
        copy = new_study(tmp_path / f"{kind}-copy")
        restore_study_state(copy, of_study)
        trial = running(copy, STARTUP_TRIALS + 3)
        restore_trial_state(trial, of_trials[STARTUP_TRIALS + 3])
        restored = read_sampler_state(tmp_path / f"{kind}-copy", "s")
        assert restored == (of_study, {STARTUP_TRIALS + 3: of_trials[STARTUP_TRIALS + 3]})


@pytest.mark.parametrize("line", ["null", "[]", '{"op_code": 99}', '{"op_code": 4}', "{", '{"op_code": 0}'])
def test_a_damaged_journal_holds_nothing(line: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    running(new_study(journal))
    journal.write_text(f"{journal.read_text()}{line}\n{line}\n")
    assert read_sampler_state(journal, "s")[0] == {}
    assert read_sampler_state(tmp_path / "none", "s") == ({}, {})


def test_the_backend_has_the_method_that_is_replaced() -> None:
    assert "append_logs" in vars(JournalFileBackend)
    assert "append_logs" in vars(optuna_patches._Journal)
