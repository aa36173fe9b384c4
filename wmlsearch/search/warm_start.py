"""Trials of earlier searches from which a study learns (`--warm-start`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from wmlsearch.config import RunSettings
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.objectives import objective_values
from wmlsearch.runs.schema import GOOD, EarlierTrial, EpochRow, RunRecord, SearchRecord
from wmlsearch.runs.wording import plural
from wmlsearch.search.optuna_study import study_values
from wmlsearch.space import SearchSpace


class EarlierTrials(NamedTuple):
    """What a study learns from earlier searches."""

    taken: list[EarlierTrial]
    left_out: Counter[str]  # number of the other trials, by reason


def select_earlier_trials(
    searches: Sequence[SearchDir], space: SearchSpace, settings: RunSettings, fingerprint: str
) -> EarlierTrials:
    """Return the finished and stopped trials of earlier searches, and how many were left out, by reason.

    Args:
        searches: The earlier searches.
        space: A trial must lie in it.
        settings: A trial must have had as many epochs, since schedules depend on their number.
        fingerprint: A trial must have trained on this data set.
    """
    taken: list[EarlierTrial] = []
    left_out: Counter[str] = Counter()
    for search in searches:
        record = search.record()
        for run in search.trials():
            state, rows, trial = run.state, run.rows(), run.record()
            if reason := _reason_to_leave_out(record, trial, state, rows, space, settings, fingerprint):
                left_out[reason] += 1
                continue
            values, final = study_values(rows, settings)
            optional = {"final": final} if final is not None else {}
            taken.append(
                EarlierTrial(search=str(search.path), config=trial.config, state=state, values=values, **optional)
            )
    return EarlierTrials(taken, left_out)


def _reason_to_leave_out(
    search: SearchRecord,
    trial: RunRecord,
    state: str,
    rows: Sequence[EpochRow],
    space: SearchSpace,
    settings: RunSettings,
    fingerprint: str,
) -> str:
    """Return why a trial is left out, or ""."""
    if search.data.fingerprint != fingerprint:
        return "other data"
    if search.settings.epochs != settings.epochs:
        return f"{plural(search.settings.epochs, 'epoch')} instead of {settings.epochs}"
    if trial.parent is not None:
        return "children of population based training"
    if state not in GOOD or not rows:
        return state.replace("_", " ")
    if space.mismatches(trial.config):
        return "outside the space"
    if any(settings.objective not in row.metrics for row in rows):
        return f"of a version without {settings.objective}"
    if settings.objectives and state == "stopped":
        return "stopped before its end"
    if settings.objectives and objective_values(rows, settings.objectives) is None:
        return "without a value of each objective"
    return ""
