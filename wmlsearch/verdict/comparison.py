"""The verdict of an evaluation: champion against baseline, as configurations and as models."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from wmlsearch.runs.evaluation import (
    SLICES,
    VOLUMES,
    ConfigurationClaim,
    EndpointComparison,
    Evaluation,
    LesionFree,
    ModelsClaim,
    NetworkScores,
    Scope,
    Verdict,
)
from wmlsearch.verdict.configuration_claim import CrossedEstimate, count_blocks, estimate
from wmlsearch.verdict.judged_runs import JudgedRuns, judged_runs
from wmlsearch.verdict.models_claim import paired
from wmlsearch.verdict.power import detectable
from wmlsearch.verdict.statistics import (
    MIN_PATIENTS,
    MIN_RUNS,
    NO_VERDICT,
    TOO_FEW_PATIENTS,
    TOO_FEW_RUNS,
    holm,
    outcome,
)
from wmlsearch.verdict.wording import (
    CHOSEN_BY_THESE_RUNS,
    configuration_sentence,
    models_sentence,
    no_verdict_sentence,
    why_no_claim,
)

PRIMARY = "dice"
_OVERLAP = ("precision", "recall", "lesion_precision", "lesion_recall", "lesion_f1")
SECONDARY: dict[Scope, tuple[str, ...]] = {
    VOLUMES: (*_OVERLAP, "hd95_mm", "volume_error_abs_ml"),
    SLICES: (*_OVERLAP, "hd95_px"),
}
# How much, and how many lesions, a model finds in a patient who has none.
LESION_FREE: dict[Scope, tuple[str, ...]] = {VOLUMES: ("volume_ml", "lesions_false"), SLICES: ("fp", "lesions_false")}


def judge(
    evaluation: Evaluation,
    baseline: str,
    champion: str,
    champion_name: str,
    seed: int,
    budget_note: str = "",
    chosen_by_these_runs: bool = False,
) -> Verdict:
    """Return the verdict on two roles of an evaluation.

    Claim (a) compares the configurations, claim (b) the models (see `configuration_claim` and `models_claim`), both in
    the Dice of each patient with lesions, at the networks' own thresholds. The secondary endpoints are compared as in
    claim (a), and their p corrected for their number (Holm). So are, separately, the patients without lesions. Where no
    patient is known, nothing is claimed: images of one patient are alike, and a test would take them for independent.

    Args:
        champion_name: The champion's configuration, "trial-0007".
        seed: Seed of the resampling in claim (b).
        budget_note: A sentence for the verdict if the limit on epochs ended runs, or "".
        chosen_by_these_runs: Whether the champion was chosen by the runs that are compared, as in older versions. Then
            nothing is claimed about the configurations.
    """
    runs = judged_runs(evaluation, baseline, champion)
    may_claim = evaluation.unit == "patients"
    judged = may_claim and not chosen_by_these_runs
    secondary = [_endpoint(evaluation, runs, name, runs.patients, judged) for name in SECONDARY[evaluation.scope]]
    if not may_claim:
        primary = _endpoint(evaluation, runs, PRIMARY, runs.patients, may_claim)
        return Verdict(
            outcome=NO_VERDICT,
            sentence=no_verdict_sentence(primary, champion_name, evaluation.data.optimistic),
            scope=evaluation.scope,
            unit=evaluation.unit,
            primary=primary,
            secondary=secondary,
        )
    claim = _configuration_claim(evaluation, runs, champion_name, budget_note, chosen_by_these_runs)
    return Verdict(
        outcome=claim.outcome,
        sentence=claim.sentence,
        scope=evaluation.scope,
        unit=evaluation.unit,
        primary=EndpointComparison(
            metric=PRIMARY,
            pairs=claim.patients,
            left_out=claim.patients_left_out,
            baseline=claim.baseline,
            champion=claim.champion,
            difference=claim.difference,
            low=claim.low,
            high=claim.high,
            p=claim.p,
        ),
        secondary=_corrected(secondary),
        configuration=claim,
        models=_models_claim(evaluation, baseline, champion, runs.patients, seed),
        lesion_free=_lesion_free(evaluation, runs, judged) if runs.lesion_free else None,
        budget_note=budget_note,
    )


def unit_means(evaluation: Evaluation, role: str, metric: str) -> dict[str, float | None]:
    """Return a metric of each unit in the primary scope, averaged over the role's runs.

    None where it is undefined: Dice, where the expert marked no lesion.
    """
    values: dict[str, list[float]] = {}
    for member in evaluation.models[role].members:
        for row in member.scope(evaluation.scope).units:
            numbers = values.setdefault(row.unit, [])
            if (value := row.value(metric)) is not None:
                numbers.append(value)
    return {unit: statistics.fmean(numbers) if numbers else None for unit, numbers in values.items()}


def _configuration_claim(
    evaluation: Evaluation, runs: JudgedRuns, champion_name: str, budget_note: str, chosen_by_these_runs: bool
) -> ConfigurationClaim:
    baseline, champion = runs.scores(evaluation, PRIMARY, runs.patients)
    means = [_mean(baseline), _mean(champion)]
    crossed = None if chosen_by_these_runs else _crossed(baseline, champion, runs.folds)
    too_few = (
        TOO_FEW_PATIENTS if len(runs.patients) < MIN_PATIENTS else TOO_FEW_RUNS if len(baseline) < MIN_RUNS else ""
    )
    low, high, p, df = _finite(crossed, "low", "high", "p", "df")
    se = float(crossed.se) if crossed else None
    sds = _finite(crossed, "run_sd", "patient_sd", "residual_sd")
    claim = ConfigurationClaim(
        outcome=too_few or outcome(low, high, p),
        sentence="",
        reason=CHOSEN_BY_THESE_RUNS if chosen_by_these_runs else why_no_claim(len(runs.patients), len(baseline), se),
        runs=len(baseline),
        runs_left_out=runs.runs_left_out,
        folds=len(set(runs.folds)),
        folds_as_block=count_blocks(runs.folds) > 1,
        patients=len(runs.patients),
        patients_left_out=len(runs.lesion_free),
        baseline=means[0],
        champion=means[1],
        difference=_difference(means),
        se=se,
        df=df,
        low=low,
        high=high,
        p=p,
        run_sd=sds[0],
        patient_sd=sds[1],
        residual_sd=sds[2],
        detectable=_detectable(sds, runs) if df is not None else None,
    )
    sentence = configuration_sentence(claim, champion_name, evaluation.data.optimistic, budget_note)
    return claim.model_copy(update={"sentence": sentence})


def _detectable(sds: Sequence[float | None], runs: JudgedRuns) -> float:
    run_sd, patient_sd, residual_sd = (sd or 0.0 for sd in sds)
    return detectable(run_sd, patient_sd, residual_sd, runs.folds, len(runs.patients), estimated=True)


def _models_claim(
    evaluation: Evaluation, baseline: str, champion: str, patients: Sequence[str], seed: int
) -> ModelsClaim:
    """Compare ensemble with ensemble; single networks where one side has no ensemble."""
    models = [evaluation.models[role] for role in (baseline, champion)]
    ensembles = [model.ensemble for model in models if model.ensemble is not None]
    if len(ensembles) == len(models):
        networks, counts = ensembles, sorted({len(model.members) for model in models})
        what = f"ensembles of {' and '.join(map(str, counts))} networks"
    else:
        networks, what = [model.members[0] for model in models], "single networks"
    scores = [_dice(network, evaluation.scope, patients) for network in networks]
    comparison = paired(scores[0], scores[1], seed)
    too_few = TOO_FEW_PATIENTS if comparison.pairs < MIN_PATIENTS else ""
    claim = ModelsClaim(
        outcome=too_few or outcome(comparison.low, comparison.high, comparison.p),
        sentence="",
        what=what,
        **comparison.as_json(),
    )
    return claim.model_copy(update={"sentence": models_sentence(claim)})


def _dice(network: NetworkScores, scope: Scope, patients: Sequence[str]) -> list[float | None]:
    units = {row.unit: row.dice for row in network.scope(scope).units}
    return [units[patient] for patient in patients]


def _lesion_free(evaluation: Evaluation, runs: JudgedRuns, judged: bool) -> LesionFree:
    endpoints = [_endpoint(evaluation, runs, name, runs.lesion_free, judged) for name in LESION_FREE[evaluation.scope]]
    return LesionFree(patients=len(runs.lesion_free), endpoints=_corrected(endpoints))


def _endpoint(
    evaluation: Evaluation, runs: JudgedRuns, metric: str, units: Sequence[str], may_claim: bool
) -> EndpointComparison:
    """Compare the configurations in one endpoint; without interval and p where there is too little for a claim."""
    baseline, champion = runs.scores(evaluation, metric, units)
    defined = np.isfinite(baseline).all(axis=0) & np.isfinite(champion).all(axis=0)
    baseline, champion = baseline[:, defined], champion[:, defined]
    means = [_mean(baseline), _mean(champion)]
    low, high, p = _finite(_crossed(baseline, champion, runs.folds) if may_claim else None, "low", "high", "p")
    return EndpointComparison(
        metric=metric,
        pairs=int(defined.sum()),
        left_out=int((~defined).sum()),
        baseline=means[0],
        champion=means[1],
        difference=_difference(means),
        low=low,
        high=high,
        p=p,
    )


def _corrected(endpoints: Sequence[EndpointComparison]) -> list[EndpointComparison]:
    corrected = holm([endpoint.p for endpoint in endpoints])
    return [endpoint.model_copy(update={"p_holm": p}) for endpoint, p in zip(endpoints, corrected, strict=True)]


def _crossed(baseline: np.ndarray, champion: np.ndarray, folds: Sequence[int]) -> CrossedEstimate | None:
    """Return the estimate for scores (runs, patients), None where there are too few for a claim."""
    runs, patients = baseline.shape
    return estimate(baseline, champion, folds) if runs >= MIN_RUNS and patients >= MIN_PATIENTS else None


def _finite(crossed: CrossedEstimate | None, *names: str) -> list[float | None]:
    values = [math.nan if crossed is None else float(getattr(crossed, name)) for name in names]
    return [value if math.isfinite(value) else None for value in values]


def _mean(scores: np.ndarray) -> float | None:
    return float(scores.mean()) if scores.size else None


def _difference(means: Sequence[float | None]) -> float | None:
    baseline, champion = means
    return None if baseline is None or champion is None else champion - baseline
