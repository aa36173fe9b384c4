"""Successive halving by what trials will become (`--scheduler predictive`).

As ASHA, but a rung compares predicted results instead of values: when a trial reaches it, the outcome model predicts
the final rank of this trial and of all that reached the rung before, from their hyperparameters and their curves up to
there. It continues if its prediction is among the best third (1 / `reduction_factor`). A trial that ended by itself is
compared with, but not stopped. From two ninths of the epochs on, values say more than predictions from other tasks
(benchmarks/README.md), so later rungs compare values as ASHA does.

Trials of the search that train to their end teach the model too, the more of them the more. Without recorded trainings
it knows too little at first: a trial that begins then has no rung before two ninths of the epochs. One that begins when
enough trials have trained to their end has the earlier rungs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.tree import ExtraTreeRegressor

from wmlsearch.config import BLIND_SHARE, RunSettings
from wmlsearch.search.experience import recorded_tasks
from wmlsearch.search.outcome_model import (
    BEST,
    ENOUGH_OWN_CURVES,
    MOST_OWN_CURVES,
    OutcomeModel,
    TrainedCurve,
    best_so_far,
    chance_among_best,
)
from wmlsearch.search.rungs import first_rung, rung_epochs
from wmlsearch.space import SearchSpace

# Trials that one is compared with by predictions. Of more, as many are taken at equal distances: a prediction for each
# of 10,000 would hold up the search for a third of a second at each report.
MOST_COMPARED = 300
REFIT_PART = 8


class PredictiveHalving:
    """Decides at rungs whether trials go on. The same reports in the same order give the same decisions.

    Args:
        settings: The settings of the search.
        space: The search space.
        values_of: Returns the hyperparameters of a trial by name.
        tasks: Recorded trainings of each task. None: those that ship with the package and were drawn at random, if the
            settings allow.
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
            shipped = recorded_tasks() if settings.experience else ()
            tasks = [task.trained for task in shipped if task.drawn]
        self._model = OutcomeModel(space, tasks, settings.epochs)
        # the epochs of the rungs of a trial that begins when the model knows enough, and of one that begins before
        self._early, self._late = (_rungs_if(settings, knows_enough) for knows_enough in (True, False))
        self.rungs: dict[int, Sequence[int]] = {}  # the epochs of the rungs of each trial that has begun
        self._values: dict[int, Mapping[str, Any]] = {}  # hyperparameters, by trial
        self._curves: dict[int, list[float]] = defaultdict(list)  # the objective after each epoch, by trial
        self._reached: dict[int, list[int]] = defaultdict(list)  # the trials that reached a rung, by its epoch
        self._full: list[int] = []  # the trials that trained to their end
        self._own: dict[int, tuple[int, list[ExtraTreeRegressor]]] = {}  # by rung: how many trials taught these trees
        self._reasons: dict[int, str] = {}  # why a trial is stopped

    def report(self, number: int, epoch: int, value: float, ended: bool = False) -> bool:
        """Add a trial's objective after an epoch, and return whether the trial is to be stopped.

        Args:
            number: The trial.
            epoch: From 1, without gaps.
            value: The objective.
            ended: Whether the training ended by itself with this epoch.
        """
        if number not in self.rungs:
            self.rungs[number] = self._early if self._knows_enough else self._late
        self._curves[number].append(value)
        stop = epoch in self._early + self._late and self._at_rung(number, epoch, ended)
        if ended:
            self._values.setdefault(number, self._values_of(number))
            self._full.append(number)
        return stop

    @property
    def _knows_enough(self) -> bool:
        return self._model.knows_other_tasks or len(self._full) >= ENOUGH_OWN_CURVES

    def _at_rung(self, number: int, epoch: int, ended: bool) -> bool:
        """Add a trial to those that have reached a rung, and return whether it is to be stopped there."""
        earlier = list(self._reached[epoch])
        self._reached[epoch].append(number)
        self._values[number] = self._values_of(number)
        if ended or not earlier or epoch not in self.rungs[number]:
            return False
        factor = self._settings.reduction_factor
        early = epoch < BLIND_SHARE * self._settings.epochs
        trees = self._own_trees(epoch) if early else []
        if early and (trees or self._model.knows_other_tasks):
            trials = [*_some(earlier, MOST_COMPARED), number]
            expected = self._model.predict([self._values[trial] for trial in trials], self._seen(trials, epoch), trees)
            # Of few trials, being one of three says nothing.
            best = min(BEST, max(1, len(trials) // factor))
            chance = chance_among_best(expected, len(trials) - 1, best)
            scores = expected.mean(axis=0)
            of_what = f"the best {best}" if best > 1 else "being the best"
            reason = f"{100 * chance:.0f} % chance of {of_what}, predicted at epoch {epoch}"
        else:
            scores = best_so_far(self._seen([*earlier, number], epoch))[:, -1]
            reason = f"behind the best of its rung at epoch {epoch}"
        stop = bool(scores[-1] < np.quantile(scores[:-1], 1 - 1 / factor))
        if stop:
            self._reasons[number] = reason
        return stop

    def _own_trees(self, epoch: int) -> list[ExtraTreeRegressor]:
        """Return the trees for a rung that trials of this search teach.

        They are fitted anew when another eighth of trials has trained to its end, so that a long search is not held up.
        """
        full = [trial for trial in self._full if len(self._curves[trial]) >= epoch]
        taught, trees = self._own.get(epoch, (0, []))
        if len(full) >= max(2, taught + 1, taught + taught // REFIT_PART):
            teachers = _some(full, MOST_OWN_CURVES)
            others = sorted(set(self._reached[epoch]) - set(teachers))
            trees = self._model.fit_own(
                [self._values[trial] for trial in teachers],
                [max(self._curves[trial]) for trial in teachers],
                self._seen([*teachers, *others], epoch),
            )
            self._own[epoch] = len(full), trees
        return trees

    def _seen(self, trials: Sequence[int], epoch: int) -> list[list[float]]:
        """Return the curve of each trial up to an epoch."""
        return [self._curves[trial][:epoch] for trial in trials]

    def stop_reason(self, number: int) -> str:
        """Return why a trial is stopped."""
        return self._reasons[number]


def _rungs_if(settings: RunSettings, knows_enough: bool) -> list[int]:
    """Return the epochs of the rungs of a trial that begins when the model knows enough, or too little."""
    first = first_rung(settings.model_copy(update={"experience": knows_enough}))
    return rung_epochs(settings.epochs, first, settings.reduction_factor)


def _some(trials: Sequence[int], limit: int) -> list[int]:
    """Return trials at equal distances, at most `limit` of them."""
    return list(trials[:: -(-len(trials) // limit)])
