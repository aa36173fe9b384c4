"""What the report says of the sealed test: pooled scores of each scope, lesions by size, each unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wmlsearch.inference.postprocessing import Postprocessing
from wmlsearch.report.unit_scores import dice_pairs, lesion_sizes, size_unit
from wmlsearch.runs.evaluation import SLICES, Evaluation, NetworkScores, Scope, Scores
from wmlsearch.runs.names import BASELINE, CHAMPION
from wmlsearch.verdict.comparison import unit_means
from wmlsearch.verdict.scores import SIZES
from wmlsearch.verdict.wording import PAPER_TABLE, PAPER_TABLE_NAME, RATIOS, mean_sd, singular

LESION_RATIOS = ("lesion_recall", "lesion_precision", "lesion_f1")


@dataclass(frozen=True)
class MeanCell:
    """A mean over runs with its standard deviation, as text."""

    mean: str
    spread: str = ""  # "" for a single run


@dataclass(frozen=True)
class PooledRow:
    """A row of a scope's table: a model at one threshold."""

    name: str
    threshold: str
    cells: Sequence[MeanCell]  # of `RATIOS`, then of `LESION_RATIOS`
    paper: bool = False  # the paper's Table I


@dataclass(frozen=True)
class ScopeTable:
    """The table of a scope."""

    scope: Scope
    rows: Sequence[PooledRow]


@dataclass(frozen=True)
class SizeRow:
    """How many lesions of one size the models find."""

    size: str  # "10 to 100"
    lesions: int  # of the expert
    cells: Sequence[MeanCell]  # share that is found, for each model


@dataclass(frozen=True)
class UnitRow:
    """The scores of a patient or image, averaged over runs."""

    unit: str
    dice: Sequence[float | None]  # of baseline and champion
    difference: float | None  # champion minus baseline
    sizes: Sequence[float]  # lesion size by the expert, the baseline and the champion, in ml or pixels


@dataclass(frozen=True)
class EvaluationView:
    """The sealed test as the page shows it."""

    unit: str  # "patients" or "images"
    one: str  # "patient" or "image"
    opened_before: int
    champion: str
    runs: int  # networks of each model
    size_unit: str  # "ml" or "pixels"
    scopes: Sequence[ScopeTable]
    sizes: Sequence[SizeRow]
    units: Sequence[UnitRow]
    postprocessing: str  # what the models do beside the threshold; "" where none does anything


def evaluation_view(evaluation: Evaluation) -> EvaluationView:
    """Return the view of a search's evaluation."""
    return EvaluationView(
        unit=evaluation.unit,
        one=singular(evaluation.unit),
        opened_before=evaluation.opened_before,
        champion=evaluation.names[CHAMPION],
        runs=max(len(model.members) for model in evaluation.models.values()),
        size_unit=size_unit(evaluation),
        scopes=[ScopeTable(scope, _pooled_rows(evaluation, scope)) for scope in evaluation.scopes],
        sizes=_size_rows(evaluation),
        units=_unit_rows(evaluation),
        postprocessing=_postprocessing(evaluation),
    )


def _postprocessing(evaluation: Evaluation) -> str:
    chosen = {
        role: Postprocessing(model.members[0].mirror_averaging, model.members[0].smallest_lesion_mm3)
        for role, model in evaluation.models.items()
    }
    if not any(chosen.values()):
        return ""
    words = "; ".join(f"{role}: {postprocessing}" for role, postprocessing in chosen.items())
    return (
        f"Done with the predictions, as chosen after training on patients that a network had not seen: {words}. "
        "Rows at the threshold 0.5 are scored without it, as the paper's."
    )


def _pooled_rows(evaluation: Evaluation, scope: Scope) -> list[PooledRow]:
    """Return two rows for each model, one for its ensemble, and the paper's own in its scope."""
    rows = []
    for role, model in evaluation.models.items():
        name = f"{role} ({evaluation.names[role]})"
        rows.append(PooledRow(name, "own", _ratio_cells(_pooled(model.members, scope))))
        half = [member.scope(scope).pooled_half for member in model.members]
        rows.append(PooledRow(name, evaluation.half_threshold, _ratio_cells(half)))
        if model.ensemble:
            rows.append(PooledRow(f"{role} ensemble", "own", _ratio_cells(_pooled([model.ensemble], scope))))
    if scope == SLICES:
        cells = [MeanCell(f"{mean:.4f}", f"{spread:.4f}") for mean, spread in (PAPER_TABLE[name] for name in RATIOS)]
        rows.append(PooledRow(PAPER_TABLE_NAME, "0.5", [*cells, *[MeanCell("-")] * len(LESION_RATIOS)], paper=True))
    return rows


def _pooled(networks: Sequence[NetworkScores], scope: Scope) -> list[Scores]:
    return [network.scope(scope).pooled for network in networks]


def _ratio_cells(rows: Sequence[Scores]) -> list[MeanCell]:
    return [_mean_cell([row.value(name) for row in rows]) for name in (*RATIOS, *LESION_RATIOS)]


def _mean_cell(values: Sequence[float | None]) -> MeanCell:
    mean, _, spread = mean_sd(values).partition(" ± ")
    return MeanCell(mean, spread)


def _size_rows(evaluation: Evaluation) -> list[SizeRow]:
    """Return the share of the expert's lesions of each size that is found, at the networks' own thresholds."""
    unit = "px" if evaluation.scope == SLICES else "mm3"
    pooled = [_pooled(model.members, evaluation.scope) for model in evaluation.models.values()]
    rows = []
    for name, low, high in SIZES:
        size = f"under {high:g}" if not low else f"{low:g} to {high:g}" if high < math.inf else f"{low:g} and more"
        lesions = pooled[0][0].value(f"lesions_{name}_{unit}") or 0
        cells = [_mean_cell([_found_share(scores, f"{name}_{unit}") for scores in members]) for members in pooled]
        rows.append(SizeRow(size, int(lesions), cells))
    return rows


def _found_share(scores: Scores, size: str) -> float | None:
    lesions, detected = scores.value(f"lesions_{size}"), scores.value(f"found_{size}")
    return detected / lesions if lesions and detected is not None else None


def _unit_rows(evaluation: Evaluation) -> list[UnitRow]:
    dices = [unit_means(evaluation, role, "dice") for role in (BASELINE, CHAMPION)]
    baseline, champion = (lesion_sizes(evaluation, role) for role in (BASELINE, CHAMPION))
    differences = {pair.unit: pair.difference for pair in dice_pairs(evaluation)}
    return [
        UnitRow(
            unit=unit,
            dice=[dice[unit] for dice in dices],
            difference=differences.get(unit),
            sizes=[baseline[unit].expert, baseline[unit].predicted, champion[unit].predicted],
        )
        for unit in sorted(dices[0])
    ]
