"""A surrogate of a task: it answers any configuration and seed with learning curves, as a training would.

    python -m benchmarks.search_quality.surrogate

prints how well the surrogate of each task predicts configurations that it has not seen (five folds): R2, Spearman's and
Kendall's rank correlation of the best objective up to an epoch, and of the sealed Dice at the end.

Extremely randomised trees predict a configuration's mean curves from its hyperparameters (surrogates as in JAHS-Bench
and YAHPO Gym). Without bootstrap and with leaves of one configuration they give a recorded one its own curves.
The noise between seeds is drawn from pairs of trainings of one configuration: the difference between their curves, over
the square root of two, with a random sign, of a pair whose objective ends near the predicted one. So noise is as large
as it was there, and as correlated along the curve and between validation and sealed patients.

A table without sealed patients has the objective of another seed in their place.
"""

from __future__ import annotations

import csv
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from sklearn import config_context
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.model_selection import KFold

from benchmarks.search_quality import sealed_record
from benchmarks.search_quality.sealed_tasks import SEALED_TASKS
from benchmarks.search_quality.tables import HERE, Curves
from benchmarks.verdict.rows import markdown
from wmlsearch.config import TrialConfig
from wmlsearch.search.distributions import search_space
from wmlsearch.search.samplers.forest import encode
from wmlsearch.space import Choices, SearchSpace

TREES = 100
NEAR = 5  # pairs of seeds, of which one gives the noise
FOLDS = 5
FEWEST = 40  # configurations that a surrogate needs: that of the 31 of few.csv predicts no better than their mean
SHOWN = (1, 2, 3, 6)  # epochs, beside the last one


@dataclass(frozen=True)
class Recorded:
    """A configuration with the curves of each of its trainings."""

    values: Mapping[str, Any]
    objective: np.ndarray  # (seeds, epochs)
    sealed: np.ndarray | None  # (seeds, epochs), mean Dice of the sealed patients; None where none are sealed

    @property
    def curves(self) -> np.ndarray:
        """All curves of each training, one after the other, (seeds, epochs or 2 * epochs)."""
        return self.objective if self.sealed is None else np.hstack([self.objective, self.sealed])


@dataclass(frozen=True)
class Answer:
    """The learning curves of a training."""

    objective: np.ndarray  # (epochs,)
    sealed: np.ndarray  # (epochs,)

    def kept(self, epochs: int | None = None) -> float:
        """Return the sealed Dice of the weights that a training keeps: those of its epoch with the highest objective.

        `epochs` are those that were trained; None: all.
        """
        return float(self.sealed[int(np.argmax(self.objective[:epochs]))])


class Surrogate:
    """Equal input gives equal answers.

    Args:
        space: Of the recorded configurations and of the proposals.
        recorded: Recorded configurations. Those with two seeds give the noise.
    """

    def __init__(self, space: SearchSpace, recorded: Sequence[Recorded]) -> None:
        self.space, self.recorded = space, recorded
        self.repeated = [each for each in recorded if len(each.curves) > 1]
        self.epochs = recorded[0].objective.shape[1]
        self._distributions = search_space(space)
        means = np.array([each.curves.mean(axis=0) for each in recorded])
        self._forest = ExtraTreesRegressor(TREES, max_features=0.8, random_state=0)
        self._forest.fit(self._features([each.values for each in recorded]), means)
        self._has_sealed = recorded[0].sealed is not None
        pairs = [each.curves[:2] for each in self.repeated]
        self._noise = np.array([(one - other) / np.sqrt(2) for one, other in pairs])
        self._levels = np.array([self._level(pair.mean(axis=0)) for pair in pairs])

    def _level(self, curves: np.ndarray) -> float:
        return float(curves[: self.epochs].max())

    def _features(self, configurations: Sequence[Mapping[str, Any]]) -> np.ndarray:
        return np.array([encode(self._distributions, values) for values in configurations], dtype=np.float32)

    def mean_curves(self, configurations: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return the predicted mean curves, (configurations, epochs or 2 * epochs)."""
        x = self._features(configurations)
        with config_context(assume_finite=True, skip_parameter_validation=True):
            trees = [tree.tree_.predict(x).reshape(len(x), -1) for tree in self._forest.estimators_]
        mean: np.ndarray = np.mean(trees, axis=0)
        return mean

    def answers(self, configurations: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[list[Answer]]:
        """Return the training of each configuration with each seed."""
        means = self.mean_curves(configurations)
        return [
            [self._answer(values, mean, seed) for seed in seeds]
            for values, mean in zip(configurations, means, strict=True)
        ]

    def answer(self, values: Mapping[str, Any], seed: int) -> Answer:
        """Return the training of a configuration with a seed."""
        return self.answers([values], [seed])[0][0]

    def _answer(self, values: Mapping[str, Any], mean: np.ndarray, seed: int) -> Answer:
        name = zlib.crc32(repr(sorted(values.items())).encode())
        rng = np.random.default_rng((seed, name))
        curves = self._noisy(mean, rng)
        if self._has_sealed:
            return Answer(curves[: self.epochs], curves[self.epochs :])
        return Answer(curves, self._noisy(mean, rng))

    def _noisy(self, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not len(self._noise):
            return mean
        near = np.argsort(abs(self._levels - self._level(mean)), kind="stable")[:NEAR]
        noise = self._noise[rng.choice(near)] * rng.choice((-1.0, 1.0))
        return np.clip(mean + noise, 0.0, 1.0)


@dataclass(frozen=True)
class Benchmark:
    """A task that searches are replayed on: a surrogate for each division of its patients."""

    name: str
    surrogates: tuple[Surrogate, ...]

    @property
    def space(self) -> SearchSpace:
        return self.surrogates[0].space

    @property
    def epochs(self) -> int:
        return self.surrogates[0].epochs

    @property
    def baseline(self) -> Mapping[str, Any]:
        """The hyperparameters of the baseline configuration, or those nearest to it in the space."""
        return nearest_values(self.space, TrialConfig())


def nearest_values(space: SearchSpace, config: TrialConfig) -> dict[str, Any]:
    """Return the values of the searched hyperparameters that are nearest to those of a configuration."""
    whole, values = config.model_dump(), dict[str, Any]()
    for name, dimension in space.dimensions.items():
        if not dimension.active({**space.defaults, **values}):
            continue
        domain, value = dimension.domain, whole[name]
        if value in domain:
            values[name] = value
        elif isinstance(domain, Choices):
            values[name] = min(domain.values, key=lambda choice: abs(float(choice or 0) - float(value or 0)))
        else:
            values[name] = min(max(value, domain.low), domain.high)
    return values


def benchmarks() -> list[Benchmark]:
    """Return the tasks that have enough recorded configurations."""
    phantom = Surrogate(SearchSpace.read(HERE / "space.yaml"), table_configurations("table.csv", "patients.csv"))
    found = [Benchmark("phantom", (phantom,))]
    for name, task in SEALED_TASKS.items():
        recorded = [division_configurations(name, place) for place in range(len(task.divisions))]
        if min(map(len, recorded)) >= FEWEST:
            space = SearchSpace.read(HERE / sealed_record.SPACE)
            found.append(Benchmark(name, tuple(Surrogate(space, each) for each in recorded)))
    return found


def table_configurations(name: str, again: str) -> list[Recorded]:
    """Return the configurations of a table.

    `again` is the table of a later version with a second training of some of them. It had the same seed, but drew other
    random numbers.
    """
    curves = {number: [curve] for number, curve in _curves_by_number(HERE / name).items()}
    values = [curve.values for curve in Curves(HERE / name, SearchSpace.read(HERE / "space.yaml")).all]
    for number, curve in _curves_by_number(HERE / again).items():
        curves[number].append(curve)
    return [Recorded(one, np.array(of_one), None) for one, of_one in zip(values, curves.values(), strict=True)]


def _curves_by_number(path: Path) -> dict[int, list[float]]:
    """Return the pooled Dice of each configuration by epoch, which both tables have; 0 after it has diverged."""
    rows: dict[int, dict[int, float]] = defaultdict(dict)
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows[int(row["number"])][int(row["epoch"])] = float(row["val_dice_best"] or 0)
    epochs = max(max(curve) for curve in rows.values())
    return {number: [curve.get(epoch, 0.0) for epoch in range(1, epochs + 1)] for number, curve in sorted(rows.items())}


def division_configurations(name: str, division: int, path: Path | None = None) -> list[Recorded]:
    """Return the recorded configurations of a task's division. A training that diverged has 0 from there on."""
    by_number: dict[int, list[sealed_record.Training]] = defaultdict(list)
    for training in sealed_record.read(name, path):
        if training.key.division == division:
            by_number[training.key.number].append(training)
    epochs = SEALED_TASKS[name].epochs
    return [
        Recorded(
            trainings[0].values,
            np.array([_padded(each.objective, epochs) for each in trainings]),
            np.array([_padded([float(np.mean(scores)) for scores in each.sealed], epochs) for each in trainings]),
        )
        for trainings in by_number.values()
    ]


def _padded(curve: Sequence[float], epochs: int) -> list[float]:
    return [*curve, *[0.0] * (epochs - len(curve))]


def held_out(surrogate: Surrogate) -> dict[str, tuple[float, float, float]]:
    """Return R2, Spearman's and Kendall's correlation of configurations that a surrogate of the others predicts.

    The keys say of what: the best objective up to an epoch, and the Dice of the weights that a training keeps.
    """
    recorded, epochs = surrogate.recorded, surrogate.epochs
    true = np.array([each.curves.mean(axis=0) for each in recorded])
    predicted = np.empty_like(true)
    for rest, asked in KFold(FOLDS, shuffle=True, random_state=0).split(true):
        of_rest = Surrogate(surrogate.space, [recorded[at] for at in rest])
        predicted[asked] = of_rest.mean_curves([recorded[at].values for at in asked])
    best = [np.maximum.accumulate(curves[:, :epochs], axis=1) for curves in (true, predicted)]
    compared = {
        f"epoch {epoch}": (best[0][:, epoch - 1], best[1][:, epoch - 1])
        for epoch in (*(e for e in SHOWN if e < epochs), epochs)
    }
    if recorded[0].sealed is not None:
        kept = [
            curves[np.arange(len(curves)), epochs + curves[:, :epochs].argmax(axis=1)] for curves in (true, predicted)
        ]
        compared["sealed"] = (kept[0], kept[1])
    return {name: _agreement(*both) for name, both in compared.items()}


def _agreement(true: np.ndarray, predicted: np.ndarray) -> tuple[float, float, float]:
    r2 = 1 - float(((true - predicted) ** 2).sum() / ((true - true.mean()) ** 2).sum())
    return r2, float(stats.spearmanr(true, predicted)[0]), float(stats.kendalltau(true, predicted)[0])


def noise_between_seeds(surrogate: Surrogate) -> float:
    """Return the standard deviation of the best objective between two trainings of a configuration."""
    pairs = [each.objective[:2].max(axis=1) for each in surrogate.repeated]
    return float(np.sqrt(np.mean([(one - other) ** 2 / 2 for one, other in pairs])))


def table(found: Sequence[Benchmark]) -> str:
    """Return the table of how well surrogates predict configurations that they have not seen."""
    rows = []
    for task in found:
        for place, surrogate in enumerate(task.surrogates):
            label = task.name if len(task.surrogates) == 1 else f"{task.name}, patient {place + 1}"
            about = label, len(surrogate.recorded), len(surrogate.repeated), f"{noise_between_seeds(surrogate):.3f}"
            rows += [
                (*about, what, *(f"{number:.2f}" for number in agreement))
                for what, agreement in held_out(surrogate).items()
            ]
    head = ("task", "configurations", "pairs of seeds", "seed noise", "best up to", "R2", "Spearman", "Kendall")
    return markdown(head, rows)


if __name__ == "__main__":
    print(table(benchmarks()))
