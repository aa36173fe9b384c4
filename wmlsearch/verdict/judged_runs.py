"""The runs of two configurations that are compared on the sealed test: those of folds that both have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wmlsearch.runs.evaluation import Evaluation, NetworkScores


@dataclass(frozen=True)
class JudgedRuns:
    """The runs of baseline and champion, in pairs of one fold, and the patients that they are scored on."""

    baseline: tuple[NetworkScores, ...]
    champion: tuple[NetworkScores, ...]  # as many, in the order of folds
    patients: tuple[str, ...]  # with lesions
    lesion_free: tuple[str, ...]
    runs_left_out: int  # of both together

    @property
    def folds(self) -> tuple[int, ...]:
        """The fold of each pair of runs."""
        return tuple(run.fold or 0 for run in self.baseline)

    def scores(self, evaluation: Evaluation, metric: str, patients: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return a metric of each run and patient in the primary scope: two arrays (runs, patients).

        NaN where it is undefined.
        """
        baseline, champion = (
            np.reshape(
                np.array([_of_patients(run, evaluation, metric, patients) for run in runs], float),
                (len(runs), len(patients)),
            )
            for runs in (self.baseline, self.champion)
        )
        return baseline, champion


def judged_runs(evaluation: Evaluation, baseline: str, champion: str) -> JudgedRuns:
    """Return the runs of two roles that are compared.

    A fold counts with as many runs as both roles have. Of more, those with the lowest seeds are taken. Runs without a
    fold, from before there were folds, all belong to one.
    """
    by_fold = [_by_fold(evaluation.models[role].members) for role in (baseline, champion)]
    pairs = [
        pair
        for fold in sorted(set(by_fold[0]) & set(by_fold[1]))
        for pair in zip(by_fold[0][fold], by_fold[1][fold], strict=False)
    ]
    count = sum(len(evaluation.models[role].members) for role in (baseline, champion))
    units = evaluation.models[baseline].members[0].scope(evaluation.scope).units
    return JudgedRuns(
        baseline=tuple(one for one, _ in pairs),
        champion=tuple(other for _, other in pairs),
        patients=tuple(row.unit for row in units if row.has_lesions),
        lesion_free=tuple(row.unit for row in units if not row.has_lesions),
        runs_left_out=count - 2 * len(pairs),
    )


def _by_fold(members: Sequence[NetworkScores]) -> dict[int, list[NetworkScores]]:
    folds: dict[int, list[NetworkScores]] = {}
    for member in sorted(members, key=lambda member: (member.seed or 0, member.name)):
        folds.setdefault(member.fold or 0, []).append(member)
    return folds


def _of_patients(
    run: NetworkScores, evaluation: Evaluation, metric: str, patients: Sequence[str]
) -> list[float | None]:
    units = {row.unit: row for row in run.scope(evaluation.scope).units}
    return [units[patient].value(metric) for patient in patients]
