"""Every use of Optuna's private names and files. `tests/search/test_optuna_patches.py` checks what they rely on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial

from wmlsearch.runs.files import append, cut_torn_line

TRIAL_NUMBER = "trial"  # user attribute of a study's trial: the search's own number of it
# Prefixes of the system attributes in which CMA-ES keeps its state, and TPE what it has drawn for a running trial: it
# counts values there that a condition has switched off.
_SAMPLER_STATE = ("cma:", "x_for_tell", "tpe:")
# What Optuna raises for a damaged journal, depending on the content of the line.
_DAMAGED_JOURNAL = (LookupError, ValueError, TypeError, AttributeError, AssertionError, RecursionError)


class _Journal(JournalFileBackend):
    """A journal file without fsync: Optuna waits for the disk at each line, and a run folder has what a power cut
    takes."""

    def __init__(self, path: Path) -> None:
        self._path, self._path_lock = path, JournalFileSymlinkLock(str(path))
        super().__init__(str(path), self._path_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._path_lock.acquire()  # optuna-dashboard may write notes
        try:
            append(self._path, text.encode())
        finally:
            self._path_lock.release()


def journal_storage(path: Path) -> JournalStorage:
    """Return the storage of a journal file, which is created if it does not exist."""
    return JournalStorage(_Journal(path))


def journal_files(path: Path) -> tuple[Path, Path]:
    """Return a journal file and its lock. The lock of a process that was killed blocks others for 30 seconds."""
    return path, Path(f"{path}.lock")


def add_running_trial(study: optuna.Study, template: FrozenTrial) -> Trial:
    """Add a trial in state RUNNING with all its values: one line of the journal, where `enqueue` and `ask` write many.

    `Study.add_trial` returns nothing, so the trial's id would be unknown.
    """
    return Trial(study, study._storage.create_new_trial(study._study_id, template))


def open_trial(study: optuna.Study, trial: FrozenTrial) -> Trial:
    """Return the handle of a trial in state RUNNING that another process began. Optuna hands one out only in `ask`."""
    return Trial(study, trial._trial_id)


def read_sampler_state(journal: Path, study_name: str) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Return what samplers stored in an earlier journal: of the study, and of each trial by the search's number.

    qmc stores the position in its sequence in the study, cmaes and tpe their state in trials. Both are empty where the
    journal is missing or damaged, or its process died before the study existed.
    """
    if not journal.exists():
        return {}, {}
    cut_torn_line(journal)  # Optuna reads a journal with a torn last line, but not once another line follows it
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        study_id = storage.get_study_id_from_name(study_name)
        of_trials = {
            trial.user_attrs[TRIAL_NUMBER]: {
                key: value for key, value in trial.system_attrs.items() if key.startswith(_SAMPLER_STATE)
            }
            for trial in storage.get_all_trials(study_id)
            if TRIAL_NUMBER in trial.user_attrs
        }
        return dict(storage.get_study_system_attrs(study_id)), of_trials
    except _DAMAGED_JOURNAL:
        return {}, {}


def restore_study_state(study: optuna.Study, attributes: Mapping[str, Any]) -> None:
    """Give a study the sampler state of an earlier journal."""
    for key, value in attributes.items():
        study._storage.set_study_system_attr(study._study_id, key, value)


def restore_trial_state(trial: Trial, attributes: Mapping[str, Any]) -> None:
    """Give a trial the sampler state of an earlier journal."""
    for key, value in attributes.items():
        trial.storage.set_trial_system_attr(trial._trial_id, key, value)
