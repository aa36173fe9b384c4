"""Successive halving by what trials will become (`--scheduler predictive`).

As ASHA, but a rung compares predicted results instead of values: when a trial reaches it, the outcome model predicts
the final rank of this trial and of all that reached the rung before, from their hyperparameters and their curves up to
there. It continues if its prediction is among the best third (1 / `reduction_factor`). A trial that ended by itself is
compared with, but not stopped. From two ninths of the epochs on, values say more than predictions from other tasks
(benchmarks/README.md), so later rungs compare values as ASHA does.

Without recorded trainings the model knows too little. Then no rung is before two ninths of the epochs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from wmlsearch.config import RunSettings
from wmlsearch.search.experience import recorded_tasks
from wmlsearch.search.outcome_model import (
    BEST,
    ENOUGH_CURVES,
    OutcomeModel,
    TrainedCurve,
    best_so_far,
    chance_among_best,
)
from wmlsearch.search.rungs import BLIND_SHARE, first_rung, rung_epochs
from wmlsearch.space import SearchSpace

# Trials that one is compared with by predictions. Of more, as many are taken at equal distances: a prediction for each
# of 10,000 would hold up the search for a third of a second at each report.
MOST_COMPARED = 300


class PredictiveHalving:
    """Decides at rungs whether trials go on. The same reports in the same order give the same decisions.

    Args:
        settings: The settings of the search.
        space: Its space.
        values_of: Returns the hyperparameters of a trial by name.
        tasks: Recorded trainings of each task. None: those that ship with the package, if the settings allow.
    """

    def __init__(
        self,
        settings: RunSettings,
        space: SearchSpace,
        values_of: Callable[[int], Mapping[str, Any]],
        tasks: Sequence[Sequence[TrainedCurve]] | None = None,
    ) -> None:
        self._settings, self._values_of = settings, values_of
        if tasks is None:
            tasks = recorded_tasks() if settings.experience else ()
        self._model = OutcomeModel(space, tasks, settings.epochs)
        self._knows_enough = self._model.curves >= ENOUGH_CURVES
        # with fewer recorded trainings than enough, it does as without any
        self.first = first_rung(settings.model_copy(update={"experience": self._knows_enough}))
        self._rungs = set(rung_epochs(settings.epochs, self.first, settings.reduction_factor))
        self._values: dict[int, Mapping[str, Any]] = {}  # hyperparameters, by trial
        self._curves: dict[int, list[float]] = defaultdict(list)  # the objective after each epoch, by trial
        self._reached: dict[int, list[int]] = defaultdict(list)  # the trials that reached a rung, by its epoch
        self._reasons: dict[int, str] = {}  # why a trial is stopped

    def report(self, number: int, epoch: int, value: float, ended: bool = False) -> bool:
        """Add a trial's objective after an epoch, and return whether the trial is to be stopped.

        Args:
            number: The trial.
            epoch: From 1, without gaps.
            value: The objective.
            ended: Whether the training ended by itself with this epoch.
        """
        self._curves[number].append(value)
        if epoch not in self._rungs:
            return False
        earlier = list(self._reached[epoch])
        self._reached[epoch].append(number)
        self._values[number] = self._values_of(number)
        if ended or not earlier:
            return False
        factor = self._settings.reduction_factor
        if self._knows_enough and epoch < BLIND_SHARE * self._settings.epochs:
            trials = [*earlier[:: -(-len(earlier) // MOST_COMPARED)], number]
            curves = [self._curves[trial][:epoch] for trial in trials]
            expected = self._model.predict([self._values[trial] for trial in trials], curves)
            # Of few trials, being one of three says nothing.
            best = min(BEST, max(1, len(trials) // factor))
            chance = chance_among_best(expected, len(trials) - 1, best)
            scores = expected.mean(axis=0)
            of_what = f"the best {best}" if best > 1 else "being the best"
            reason = f"{100 * chance:.0f} % chance of {of_what}, predicted at epoch {epoch}"
        else:
            curves = [self._curves[trial][:epoch] for trial in (*earlier, number)]
            scores, reason = best_so_far(curves)[:, -1], f"behind the best of its rung at epoch {epoch}"
        stop = bool(scores[-1] < np.quantile(scores[:-1], 1 - 1 / factor))
        if stop:
            self._reasons[number] = reason
        return stop

    def stop_reason(self, number: int) -> str:
        """Return why a trial is stopped."""
        return self._reasons[number]
