"""The journal file of a study, and what it relies on in Optuna: a new version that changes that fails here."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState

from wmlsearch.search import study_journal
from wmlsearch.search.samplers.forest import STARTUP_TRIALS
from wmlsearch.search.samplers.optuna_samplers import make_sampler
from wmlsearch.search.study_journal import TRIAL_NUMBER, StudyJournal, create_study, remove_lock


def made(path: Path, earlier: Path | None = None) -> tuple[StudyJournal, optuna.Study, dict[int, dict[str, Any]]]:
    journal = StudyJournal(path)
    study, states = create_study(journal, "s", ["maximize"], earlier or path.with_name("none"))
    return journal, study, states


def trial(study: optuna.Study, number: int = 0) -> optuna.Trial:
    study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs={TRIAL_NUMBER: number}))
    asked = study.ask()
    asked.suggest_float("x", 0, 1)
    asked.suggest_float("y", 0, 1)
    return asked


def loaded(path: Path) -> optuna.Study:
    """Return the study as another process reads it."""
    return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path))))


def shape(trials: list[optuna.trial.FrozenTrial]) -> list[Any]:
    return [(t.state, t.params, t.values, t.intermediate_values, t.user_attrs, t.distributions) for t in trials]


def test_optuna_reads_what_is_written_and_only_that(tmp_path: Path) -> None:
    journal, study, _ = made(tmp_path / "journal")
    first = trial(study, 7)
    first.report(0.25, 1)
    journal.replace_file()
    assert shape(loaded(tmp_path / "journal").trials) == shape(study.trials)
    first.report(0.5, 2)
    study.tell(first, state=TrialState.PRUNED)
    (behind,) = loaded(tmp_path / "journal").trials
    assert (behind.state, behind.intermediate_values) == (TrialState.RUNNING, {1: 0.25})
    journal.write()
    (ended,) = loaded(tmp_path / "journal").trials
    assert (ended.state, ended.intermediate_values, ended.user_attrs) == (
        TrialState.PRUNED, {1: 0.25, 2: 0.5}, {TRIAL_NUMBER: 7},
    )  # fmt: skip
    assert shape(loaded(tmp_path / "journal").trials) == shape(study.trials)


def test_the_disk_is_met_once_for_many_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, study, _ = made(tmp_path / "journal")
    journal.replace_file()
    appended: list[Path] = []
    monkeypatch.setattr(study_journal, "append", lambda path, _lines: appended.append(path))
    first = trial(study)
    for epoch in range(20):
        first.report(0.5, epoch)
    assert appended == []
    journal.write()
    assert appended == [tmp_path / "journal"]


def test_what_a_full_disk_refused_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, study, _ = made(tmp_path / "journal")
    journal.replace_file()
    trial(study)

    def full(_path: Path, _lines: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(study_journal, "append", full)
        with pytest.raises(OSError, match="No space left"):
            journal.write()
    assert loaded(tmp_path / "journal").trials == []
    journal.write()
    assert shape(loaded(tmp_path / "journal").trials) == shape(study.trials)


def test_notes_of_another_process_stay(tmp_path: Path) -> None:
    """optuna-dashboard writes them into the study's attributes, while the search runs."""
    path = tmp_path / "journal"
    journal, study, _ = made(path)
    journal.replace_file()
    other = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    other.set_study_system_attr(other.get_study_id_from_name("s"), "dashboard:note", "look at 3")
    trial(study)
    journal.write()
    assert len(loaded(path).trials) == 1
    again, resumed, _ = made(path, earlier=path)
    assert resumed.trials == []
    again.replace_file()
    other = JournalStorage(JournalFileBackend(str(path)))
    notes = other.get_study_system_attrs(other.get_study_id_from_name("s"))
    assert notes == {"dashboard:note": "look at 3"}


def test_the_lock_of_a_killed_process_is_removed_by_its_name(tmp_path: Path) -> None:
    lock = JournalFileSymlinkLock(str(tmp_path / "journal"))
    lock.acquire()
    assert (tmp_path / "journal.lock").is_symlink()
    remove_lock(tmp_path / "journal")
    began = time.monotonic()
    assert lock.acquire()
    assert time.monotonic() - began < 5
    lock.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["cmaes", "qmc", "tpe"])
def test_the_state_of_samplers_is_read_and_restored(kind: str, tmp_path: Path) -> None:
    """cmaes and tpe store it in trials, qmc in the study."""
    path, number = tmp_path / "journal", STARTUP_TRIALS + 3
    journal, study, _ = made(path)
    for at in range(number + 1):
        study.sampler = make_sampler(kind, at, 0)
        asked = trial(study, at)
        if at < number:
            study.tell(asked, asked.params["x"] + asked.params["y"])
    journal.replace_file()
    _, copy, states = made(tmp_path / "copy", earlier=path)
    keys = {key.partition(":")[0] for state in states.values() for key in state}
    assert keys == {"cmaes": {"cma"}, "tpe": {"tpe"}, "qmc": set()}[kind]
    for earlier in study.trials:
        copy.add_trial(earlier)
    nexts = []
    for each in (study, copy):
        each.sampler = make_sampler(kind, number + 1, 0)
        nexts.append(trial(each, number + 1).params)
    assert nexts[0] == nexts[1]


@pytest.mark.parametrize("line", ["null", "[]", '{"op_code": 99}', '{"op_code": 4}', "{", '{"op_code": 0}'])
def test_a_damaged_journal_holds_nothing(line: str, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal, study, _ = made(path)
    trial(study)
    journal.replace_file()
    path.write_text(f"{path.read_text()}{line}\n{line}\n")
    _, anew, states = made(tmp_path / "new", earlier=path)
    assert (anew.trials, states) == ([], {})


def test_waiting_and_ended_trials_are_those_of_optunas_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked for at each trial, and found without a look at all trials."""
    _, study, _ = made(tmp_path / "journal")
    rng = np.random.default_rng(0)
    asked = [(TrialState.WAITING,), (TrialState.COMPLETE, TrialState.PRUNED), (TrialState.RUNNING, TrialState.FAIL)]
    ends = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    running: list[optuna.Trial] = []
    for number in range(40):
        running.append(trial(study, number))
        study.add_trial(optuna.create_trial(state=ends[number % 3], value=0.5 if number % 3 == 0 else None))
        if len(running) > 3:
            state = ends[int(rng.integers(3))]
            one = running.pop(int(rng.integers(len(running))))
            study.tell(one, 0.5 if state is TrialState.COMPLETE else None, state=state)
        everything = study.get_trials(deepcopy=False)
        for states in asked:
            found = study.get_trials(deepcopy=False, states=states)
            assert [t.number for t in found] == [t.number for t in everything if t.state in states]
            assert all(one is everything[one.number] for one in found)
    study.add_trial(optuna.create_trial(state=TrialState.WAITING))
    looks: list[object] = []
    own = JournalStorage.get_all_trials
    monkeypatch.setattr(
        JournalStorage, "get_all_trials", lambda *args, **named: looks.append(args) or own(*args, **named)
    )
    assert [t.number for t in study.get_trials(deepcopy=False, states=(TrialState.WAITING,))] == [80]
    assert len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))) > 40
    assert looks == []
