"""Evaluations made of Dice scores, for tests of the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wmlsearch.runs.evaluation import (
    VOLUMES,
    EvaluatedData,
    Evaluation,
    ModelScores,
    NetworkScores,
    ScopeScores,
    UnitScores,
)
from wmlsearch.runs.names import BASELINE, CHAMPION
from wmlsearch.verdict.scores import pooled, score

ONE = np.ones((1, 1, 1))
SICK, HEALTHY = score(ONE, ONE, (1, 1, 1)), score(ONE, ONE * 0, (1, 1, 1))


def network(
    name: str, dices: Sequence[float | None], fold: int | None = None, seed: int = 0, **more: Any
) -> NetworkScores:
    """A network with a Dice for each patient p0, p1, ...; None: a patient without lesions.

    `more` are other scores of a unit, one for each patient.
    """
    units = []
    for number, dice in enumerate(dices):
        scores = (HEALTHY if dice is None else SICK).as_json()
        others = {metric: values[number] for metric, values in more.items()}
        units.append(UnitScores.model_validate({**scores, "unit": f"p{number}", "dice": dice, **others}))
    scope = ScopeScores(pooled=pooled([SICK]), pooled_half=pooled([SICK]), units=units, rows=[])
    return NetworkScores(name=name, seed=seed, threshold=0.5, fold=fold, volumes=scope)


def networks(scores: Sequence[Sequence[float | None]], folds: Sequence[int] | None = None) -> list[NetworkScores]:
    """Networks with seeds 0, 1, ..., each with a row of Dice scores."""
    return [
        network(f"run{number}", row, None if folds is None else folds[number], number)
        for number, row in enumerate(scores)
    ]


def evaluation_of(
    members: Mapping[str, Sequence[NetworkScores]],
    ensembles: Mapping[str, NetworkScores] | None = None,
    unit: Any = "patients",
    optimistic: bool = False,
) -> Evaluation:
    """An evaluation of two roles, not yet judged."""
    return Evaluation(
        opened=1.0,
        data=EvaluatedData(path="p", fingerprint="f", optimistic=optimistic),
        unit=unit,
        scope=VOLUMES,
        models={
            role: ModelScores(members=list(members[role]), ensemble=(ensembles or {}).get(role))
            for role in (BASELINE, CHAMPION)
        },
    )
