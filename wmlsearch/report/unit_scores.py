"""Scores of each unit (patient or image) of the sealed test, as the report's figures and tables show them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from wmlsearch.runs.evaluation import VOLUMES, Evaluation
from wmlsearch.runs.names import BASELINE, CHAMPION
from wmlsearch.verdict.comparison import unit_means


@dataclass(frozen=True)
class DicePair:
    """The Dice of a unit, averaged over runs, with both models."""

    unit: str
    baseline: float
    champion: float

    @property
    def difference(self) -> float:
        """Champion minus baseline."""
        return self.champion - self.baseline


def dice_pairs(evaluation: Evaluation) -> list[DicePair]:
    """Return the units in which both models have a Dice, from the lowest difference to the highest."""
    baseline, champion = (unit_means(evaluation, role, "dice") for role in (BASELINE, CHAMPION))
    pairs = []
    for unit, dice in baseline.items():
        champion_dice = champion[unit]
        if dice is not None and champion_dice is not None:
            pairs.append(DicePair(unit, dice, champion_dice))
    return sorted(pairs, key=lambda pair: (pair.difference, pair.unit))


@dataclass(frozen=True)
class LesionSize:
    """How much lesion a unit has: in ml (mean over time points), or in pixels (sum) where only slices are scored."""

    expert: float
    predicted: float  # mean over the model's runs


def lesion_sizes(evaluation: Evaluation, role: str) -> dict[str, LesionSize]:
    """Return the lesion size of each unit, as the expert marked it and as a model predicts it."""
    in_ml = evaluation.scope == VOLUMES
    expert: dict[str, float] = {}
    predicted: dict[str, list[float]] = {}
    for member in evaluation.models[role].members:
        for row in member.scope(evaluation.scope).units:
            expert[row.unit] = (row.expert_volume_ml or 0.0) if in_ml else row.tp + row.fn
            predicted.setdefault(row.unit, []).append((row.volume_ml or 0.0) if in_ml else row.tp + row.fp)
    return {unit: LesionSize(expert[unit], statistics.fmean(sizes)) for unit, sizes in predicted.items()}


def size_unit(evaluation: Evaluation) -> str:
    """Return the unit of `LesionSize`: "ml" or "pixels"."""
    return "ml" if evaluation.scope == VOLUMES else "pixels"


def gallery_units(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return the units to show, each after its title: "best", "median" and "worst" by the champion's Dice."""
    scores = unit_means(evaluation, CHAMPION, "dice")
    numbers = {unit: dice for unit, dice in scores.items() if dice is not None}
    ranked = sorted(numbers, key=lambda unit: (-numbers[unit], unit))
    titles = ("best", "median", "worst") if len(ranked) > 2 else ("best", "worst")[: len(ranked)]
    places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
    return [(title, ranked[places[title]]) for title in titles]
