"""The journal file of a search's Optuna study, in Optuna's own format. It is written when a trial begins and ends.

optuna-dashboard and `optuna.load_study` read it. `tests/search/test_study_journal.py` checks what this relies on.
"""

from __future__ import annotations

import json
from bisect import insort
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from wmlsearch.errors import InputError
from wmlsearch.runs.files import append, cut_torn_line, read_lines, write_bytes

TRIAL_NUMBER = "trial"  # user attribute of a study's trial: the search's own number of it
ORIGIN = "origin"  # user attribute of a trial of the portfolio: `runs.schema.EXPERIENCE`
# Prefixes of the system attributes in which CMA-ES keeps its state, and TPE what it has drawn for a running trial: it
# counts values there that a condition has switched off.
_SAMPLER_STATE = ("cma:", "x_for_tell", "tpe:")
# What Optuna raises for a damaged journal, depending on the content of the line.
_DAMAGED_JOURNAL = (InputError, LookupError, ValueError, TypeError, AttributeError, AssertionError, RecursionError)


class StudyJournal(BaseJournalBackend):
    """Keeps what one `JournalStorage` of this process records, and writes it to a file when it is told to.

    Optuna's own backend waits for the disk after each call, about 20 times a trial. A run folder has what is lost when
    the process dies. Lines that another process appends, as optuna-dashboard does for notes, stay in the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unread: list[dict[str, Any]] = []  # that the storage has not applied
        self._first = 0  # the number of its first
        self._unwritten: list[str] = []

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        del self._unread[: log_number_from - self._first]
        self._first = log_number_from
        return list(self._unread)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = [json.dumps(log, separators=(",", ":")) for log in logs]
        self._unread += [json.loads(line) for line in lines]  # as a reader of the file gets them
        self._unwritten += lines

    def write(self) -> None:
        """Append what was recorded since the last time to the file. Raises OSError; then the next call writes it."""
        lock = JournalFileSymlinkLock(str(self._path))
        lock.acquire()
        try:
            append(self._path, self._take())
        finally:
            lock.release()
        self._unwritten.clear()

    def replace_file(self) -> None:
        """Make a file of what was recorded since the last time, in place of one that exists. Raises OSError."""
        write_bytes(self._path, self._take())
        self._unwritten.clear()

    def _take(self) -> bytes:
        return "".join(f"{line}\n" for line in self._unwritten).encode()


class StudyStorage(JournalStorage):
    """A journal storage that finds the waiting and the ended trials of its one study without a look at all of them.

    `Study.ask` and samplers ask for these at each trial, and Optuna's own storage goes through the whole study.
    """

    def __init__(self, journal: StudyJournal) -> None:
        super().__init__(journal)
        self._open: dict[int, None] = {}  # ids of trials that have not ended, in their order
        self._ended: dict[frozenset[TrialState], list[FrozenTrial]] = {}  # by states that were asked for, by number

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        self._note(trial_id)
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        changed = super().set_trial_state_values(trial_id, state, values)
        self._note(trial_id)
        return changed

    def _note(self, trial_id: int) -> None:
        trial = self.get_trial(trial_id)
        if not trial.state.is_finished():
            self._open[trial_id] = None
            return
        self._open.pop(trial_id, None)
        for states, trials in self._ended.items():
            if trial.state in states:
                insort(trials, trial, key=lambda other: other.number)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if states is None or deepcopy:
            return super().get_all_trials(study_id, deepcopy, states)
        wanted = frozenset(state for state in TrialState if state in states)
        if not any(state.is_finished() for state in wanted):
            trials = [self.get_trial(trial_id) for trial_id in self._open]
            return [trial for trial in trials if trial.state in wanted]
        if not all(state.is_finished() for state in wanted):
            return super().get_all_trials(study_id, deepcopy, states)
        if wanted not in self._ended:
            self._ended[wanted] = super().get_all_trials(study_id, deepcopy, states)
        return list(self._ended[wanted])


class _Recorded(BaseJournalBackend):
    """Lines of a journal that another process wrote, to read only."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        self._lines = lines

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return self._lines[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise RuntimeError("an earlier journal is not written to")


def remove_lock(path: Path) -> None:
    """Remove the lock of a journal, which blocks others for 30 seconds if its process was killed."""
    Path(f"{path}.lock").unlink(missing_ok=True)


class NewStudy(NamedTuple):
    """A study without trials, and what samplers stored in trials of the journal before it."""

    study: optuna.Study
    sampler_states: dict[int, dict[str, Any]]  # by the search's number of the trial


def create_study(
    journal: StudyJournal, name: str, directions: Sequence[Literal["minimize", "maximize"]], earlier: Path
) -> NewStudy:
    """Return a new study without trials, and the state that samplers stored in trials of an `earlier` journal.

    The study has what samplers and optuna-dashboard stored in the study: qmc its position in the sequence, the
    dashboard its notes. cmaes and tpe store a state in trials; it is returned by the search's number of the trial. An
    earlier journal that is missing or damaged, or whose process died before the study existed, has nothing.
    """
    storage = StudyStorage(journal)
    states: dict[int, dict[str, Any]] = {}
    try:
        lines = _read(earlier)
        states = _sampler_states(lines, name)
        of_study = [
            line for line in lines if {"study_name", "system_attr", "user_attr"} & {*line} and "trial_id" not in line
        ]
        optuna.copy_study(from_study_name=name, from_storage=JournalStorage(_Recorded(of_study)), to_storage=storage)
    except _DAMAGED_JOURNAL:
        pass
    study = optuna.create_study(study_name=name, storage=storage, directions=list(directions), load_if_exists=True)
    return NewStudy(study, states)


def _read(journal: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal. Raises InputError if one is damaged."""
    if journal.exists():
        cut_torn_line(journal)
    return read_lines(journal)


def _sampler_states(lines: list[dict[str, Any]], name: str) -> dict[int, dict[str, Any]]:
    study = optuna.load_study(study_name=name, storage=JournalStorage(_Recorded(lines)))
    return {
        trial.user_attrs[TRIAL_NUMBER]: {
            key: value for key, value in trial.system_attrs.items() if key.startswith(_SAMPLER_STATE)
        }
        for trial in study.get_trials(deepcopy=False)
        if TRIAL_NUMBER in trial.user_attrs
    }
