"""Predicts how a trial will end from its configuration and its curve so far, by trees that full curves have taught.

Tasks differ in the values that a training reaches, so the model sees ranks only: the rank of a trial among those of its
search that have reached the same epoch, and in training the same of each recorded task. It predicts the rank that the
trial would have at the end among random configurations (learning curve prediction as in Domhan et al. 2015, ranks over
tasks as in Salinas et al. 2020).

Some trees are taught by recorded trainings of other tasks, the others by the trials of the search itself that trained
to their end. The share of the latter grows with their number (a mixture of models of tasks, as in Feurer et al. 2018).
Trials that were stopped do not teach: what they would have become is not known, and each way to guess it that was tried
kept fewer of the best (benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.tree import ExtraTreeRegressor

from wmlsearch.search.distributions import search_space
from wmlsearch.search.samplers.forest import encode
from wmlsearch.search.trees import fit_trees, predict_by_tree
from wmlsearch.space import SearchSpace

TREES = 100
EXPERIENCE_WEIGHT = 3  # recorded trainings weigh as much as so many trials of the search that trained to their end
BEST = 3  # trials among which one is expected to end, or not
# With fewer curves, a trial's own value ranks trials better: benchmarks/README.md
ENOUGH_CURVES = 40  # of other tasks
ENOUGH_OWN_CURVES = 10  # of the search itself
MOST_OWN_CURVES = 300  # that teach: fitting their trees takes about as long as predicting for as many trials


@dataclass(frozen=True)
class TrainedCurve:
    """A training that went to its end.

    Attributes:
        values: The hyperparameters of the training by name.
        curve: The objective after each epoch, larger being better.
        fixed: Hyperparameters that the task did not search and whose value may differ from today's baseline.
        score: Dice on patients other than those that chose the best epoch, if it was recorded.
    """

    values: Mapping[str, Any]
    curve: Sequence[float]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    score: float | None = None

    @property
    def result(self) -> float:
        """How good it was: the score, or else the best value of the curve, which is luckier."""
        return max(self.curve) if self.score is None else self.score


class OutcomeModel:
    """A regression forest for each epoch, fitted when it is needed. Equal input gives equal predictions.

    Args:
        space: The space of the search. Hyperparameters that it does not search are not seen.
        tasks: The recorded trainings of each task. Those of one task have the same number of epochs.
        epochs: Number of epochs of a trial of this search. Recorded curves are compared at the same fraction of their
            length.
    """

    def __init__(self, space: SearchSpace, tasks: Sequence[Sequence[TrainedCurve]], epochs: int) -> None:
        self._space, self._epochs = search_space(space), epochs
        self._tasks = [
            (self._configurations([each.values for each in task]), best_so_far([each.curve for each in task]))
            for task in tasks
            if task
        ]
        self._forests: dict[int, list[ExtraTreeRegressor]] = {}  # by epoch

    @property
    def curves(self) -> int:
        """How many recorded trainings it learns from."""
        return sum(len(curves) for _, curves in self._tasks)

    @property
    def knows_other_tasks(self) -> bool:
        """Whether these are enough to predict."""
        return self.curves >= ENOUGH_CURVES

    def predict(
        self,
        configurations: Sequence[Mapping[str, Any]],
        curves: Sequence[Sequence[float]],
        trees_of_search: Sequence[ExtraTreeRegressor] = (),
    ) -> np.ndarray:
        """Return what each tree expects of trials that have reached the same epoch.

        Args:
            configurations: The hyperparameters of each trial by name.
            curves: The objective of each trial after each epoch so far, (trials, epochs).
            trees_of_search: Trees for this epoch from `fit_own`. Recorded trainings teach the others.

        Returns:
            Ranks at the end from 0 (worst) to 1, (trees, trials).
        """
        best = best_so_far(curves)
        x = np.hstack([self._configurations(configurations), curve_ranks(best, best.shape[1])])
        others = self._forest(best.shape[1])[len(trees_of_search) :] if len(trees_of_search) < TREES else ()
        return predict_by_tree([*trees_of_search, *others], x)

    def fit_own(
        self,
        configurations: Sequence[Mapping[str, Any]],
        final: Sequence[float],
        curves: Sequence[Sequence[float]],
    ) -> list[ExtraTreeRegressor]:
        """Return trees that trials of the search teach, for those that have reached an epoch.

        The more of them, the more trees; all TREES where the recorded trainings are not enough to teach the others.

        Args:
            configurations: The hyperparameters of each trial that trained to its end, by name.
            final: The best value of each of these trials.
            curves: The objective after each epoch up to that one, of these trials and then of all others that have
                reached it: the ranks are among all of them.
        """
        count = len(configurations)
        share = count / (count + EXPERIENCE_WEIGHT) if self.knows_other_tasks else 1.0
        best = best_so_far(curves)
        features = np.hstack([self._configurations(configurations), curve_ranks(best, best.shape[1])[:count]])
        return fit_trees(features, mean_ranks(np.array(final)), range(round(TREES * share)))

    def _configurations(self, configurations: Sequence[Mapping[str, Any]]) -> np.ndarray:
        return np.array([encode(self._space, values) for values in configurations], dtype=np.float32)

    def _forest(self, epoch: int) -> list[ExtraTreeRegressor]:
        if epoch not in self._forests:
            share = epoch / self._epochs
            x = [
                np.hstack([features, curve_ranks(best, max(1, round(share * best.shape[1])))])
                for features, best in self._tasks
            ]
            y = [mean_ranks(best[:, -1]) for _, best in self._tasks]
            self._forests[epoch] = fit_trees(np.vstack(x), np.concatenate(y), range(TREES))
        return self._forests[epoch]


def best_so_far(curves: Sequence[Sequence[float]]) -> np.ndarray:
    """Return the best value up to each epoch, (trials, epochs)."""
    return np.maximum.accumulate(np.array(curves, dtype=float), axis=1)


def curve_ranks(best: np.ndarray, epoch: int) -> np.ndarray:
    """Return the rank of each trial's best value at `epoch` and at half of it, (trials, 2)."""
    return np.stack([mean_ranks(best[:, epoch - 1]), mean_ranks(best[:, (epoch + 1) // 2 - 1])], axis=1)


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value among all, from 0 to 1; equal values have the mean of theirs."""
    ranked: np.ndarray = (rankdata(values) - 0.5) / len(values)
    return ranked


def chance_among_best(expected: np.ndarray, trial: int, best: int = BEST) -> float:
    """Return the share of trees by which a trial ends among the best `best` of these trials.

    Args:
        expected: The result that each tree predicts for each trial, (trees, trials).
        trial: Index of the trial in `expected`.
        best: How many trials count as the best.
    """
    better = (expected > expected[:, trial : trial + 1]).sum(axis=1)
    return float((better < best).mean())
