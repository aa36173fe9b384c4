"""The verdict of an evaluation: champion against baseline in the primary endpoint and the secondary ones."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from wmlsearch.runs.evaluation import SLICES, VOLUMES, Comparison, EndpointComparison, Evaluation, Scope, Verdict
from wmlsearch.verdict.statistics import holm, outcome, paired
from wmlsearch.verdict.wording import verdict_sentence

PRIMARY = "dice"
_OVERLAP = ("precision", "recall", "lesion_precision", "lesion_recall", "lesion_f1")
SECONDARY: dict[Scope, tuple[str, ...]] = {
    VOLUMES: (*_OVERLAP, "hd95_mm", "volume_error_abs_ml"),
    SLICES: (*_OVERLAP, "hd95_px"),
}


def judge(evaluation: Evaluation, baseline: str, champion: str, words: Mapping[str, str], seed: int) -> Verdict:
    """Return the verdict on two roles of an evaluation.

    The primary endpoint is the Dice of each unit at the networks' own thresholds, averaged over a model's seeds and
    paired over units. The p of the secondary endpoints are corrected for their number (Holm).

    Args:
        words: each role as the verdict's sentence names it.
        seed: of the resampling.
    """
    scope, unit = evaluation.scope, evaluation.unit
    primary = _compare(evaluation, baseline, champion, PRIMARY, seed)
    secondary = {name: _compare(evaluation, baseline, champion, name, seed) for name in SECONDARY[scope]}
    corrected = holm([comparison.p for comparison in secondary.values()])
    optimistic = evaluation.data.optimistic
    return Verdict(
        outcome=outcome(primary, unit),
        sentence=verdict_sentence(primary, words[champion], words[baseline], unit=unit, optimistic=optimistic),
        scope=scope,
        unit=unit,
        primary=EndpointComparison.model_validate({"metric": PRIMARY, **primary.as_json()}),
        secondary=[
            EndpointComparison.model_validate({"metric": name, **comparison.as_json(), "p_holm": p})
            for (name, comparison), p in zip(secondary.items(), corrected, strict=True)
        ],
    )


def unit_means(evaluation: Evaluation, role: str, metric: str) -> dict[str, float | None]:
    """Return a metric of each unit in the primary scope, averaged over the role's seeds.

    Seeds in which the metric is undefined are left out; None where it is undefined in all.
    """
    values: dict[str, list[float]] = {}
    for member in evaluation.models[role].members:
        for row in member.scope(evaluation.scope).units:
            numbers = values.setdefault(row.unit, [])
            if (value := row.value(metric)) is not None:
                numbers.append(value)
    return {unit: statistics.fmean(numbers) if numbers else None for unit, numbers in values.items()}


def _compare(evaluation: Evaluation, baseline: str, champion: str, metric: str, seed: int) -> Comparison:
    means, champion_means = (unit_means(evaluation, role, metric) for role in (baseline, champion))
    return paired(list(means.values()), [champion_means[unit] for unit in means], seed)
