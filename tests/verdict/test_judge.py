"""The verdict in each case that an evaluation can come to, with numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from evaluations import evaluation_of, network, networks

from wmlsearch.runs.evaluation import ConfigurationClaim, Evaluation, ModelsClaim, Verdict
from wmlsearch.runs.names import BASELINE, CHAMPION
from wmlsearch.verdict.comparison import judge
from wmlsearch.verdict.configuration_claim import estimate
from wmlsearch.verdict.models_claim import paired

PATIENTS = np.array([0.40, 0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80, 0.85])
WOBBLE = np.array([0.01, -0.01, 0.00, 0.02, -0.02, 0.01, 0.00, -0.01, 0.00])
FIVE = np.array([0.02, -0.01, 0.01, 0.00, -0.02])  # of runs


def scores(runs: Any, shift: float = 0.0, patients: Any = PATIENTS) -> list[list[float]]:
    """Dice of runs x patients: each patient's, the run's, and a part of both that turns from run to run."""
    return [list(patients + run + shift + np.roll(WOBBLE, number)[: len(patients)]) for number, run in enumerate(runs)]


def judged(evaluation: Evaluation, **more: Any) -> Verdict:
    return judge(evaluation, BASELINE, CHAMPION, "trial-0007", 0, **more)


def claims(verdict: Verdict) -> tuple[ConfigurationClaim, ModelsClaim]:
    assert verdict.configuration is not None
    assert verdict.models is not None
    return verdict.configuration, verdict.models


def test_both_claims_of_five_runs_and_ensembles() -> None:
    baseline, champion = scores(FIVE), scores(FIVE[::-1], 0.08)
    ensembles = {BASELINE: network("b", list(PATIENTS), seed=0), CHAMPION: network("c", list(PATIENTS + WOBBLE + 0.05))}
    folds = [0, 1, 2, 3, 4]
    verdict = judged(
        evaluation_of({BASELINE: networks(baseline, folds), CHAMPION: networks(champion, folds)}, ensembles)
    )
    claim, models = claims(verdict)
    by_hand = estimate(np.array(baseline), np.array(champion), folds)
    assert claim.difference == pytest.approx(0.08)
    assert (claim.se, claim.df, claim.p) == pytest.approx((float(by_hand.se), float(by_hand.df), float(by_hand.p)))
    assert (claim.runs, claim.folds, claim.patients, claim.runs_left_out, claim.outcome) == (5, 5, 9, 0, "better")
    assert (verdict.outcome, verdict.sentence) == (claim.outcome, claim.sentence)
    primary = verdict.primary
    assert (primary.metric, primary.pairs, primary.difference, primary.low, primary.p) == (
        "dice", 9, claim.difference, claim.low, claim.p,
    )  # fmt: skip
    wanted = paired(list(PATIENTS), list(PATIENTS + WOBBLE + 0.05), 0)
    assert (models.difference, models.low, models.high, models.p) == (
        wanted.difference, wanted.low, wanted.high, wanted.p,
    )  # fmt: skip
    assert models.p == 2 / 2**9, "all nine differences have the same sign"
    assert (models.what, models.outcome) == ("ensembles of 5 networks", "better")
    assert claim.sentence.startswith(
        "Trained again on patients like these, the champion configuration (trial-0007) is better than the baseline "
        "configuration: mean Dice per patient 0.724 against 0.644, difference +0.080 (95 % interval "
    )
    assert claim.sentence.endswith(
        f"from 5 + 5 trainings on 9 sealed test patients. With 5 + 5 trainings and 9 patients, a difference of "
        f"{claim.detectable:.3f} would have been found with 80 % probability."
    )
    assert models.sentence.startswith(
        "The models that you would use (ensembles of 5 networks): the champion's is better than the baseline's: mean "
        "Dice per patient 0.694 against 0.644, difference +0.050 (95 % interval "
    )
    assert "This is about these networks alone" in models.sentence


def test_a_worse_configuration() -> None:
    verdict = judged(evaluation_of({BASELINE: networks(scores(FIVE, 0.08)), CHAMPION: networks(scores(FIVE))}))
    assert verdict.outcome == "worse"
    assert "is worse than the baseline configuration: mean Dice per patient 0.644 against 0.724" in verdict.sentence


def test_not_shown_is_not_equal_and_says_what_could_have_been_found() -> None:
    verdict = judged(evaluation_of({BASELINE: networks(scores(FIVE)), CHAMPION: networks(scores(FIVE[::-1], 0.005))}))
    claim, models = claims(verdict)
    assert (claim.outcome, models.what) == ("not shown", "single networks")
    assert "is not shown to be better or worse than the baseline configuration" in claim.sentence
    remaining = f"This does not mean that they are equal: differences from {claim.low:.3f} to {claim.high:.3f} remain"
    assert remaining in claim.sentence
    assert claim.sentence.endswith("would have been found with 80 % probability.")


def test_runs_vary_so_much_that_only_these_models_differ() -> None:
    """What the verdict of earlier versions called better: the patients agree, but another training could be worse."""
    runs = np.array([0.1, -0.1])
    verdict = judged(
        evaluation_of({BASELINE: networks(scores(runs)), CHAMPION: networks(scores([0.1, 0.0], 0.0))}, None)
    )
    claim, _ = claims(verdict)
    assert claim.difference == pytest.approx(0.05)
    assert paired(np.mean(scores(runs), axis=0), np.mean(scores([0.1, 0.0]), axis=0), 0).p == 2 / 2**9
    # Means of runs: variances 0.02 and 0.005, of runs 0.0125; t = 0.05 / 0.112
    assert claim.outcome == "not shown"
    assert claim.se == pytest.approx(math.sqrt(0.0125), rel=0.01)


def test_runs_that_chose_the_champion_do_not_judge_it() -> None:
    """So it was in older versions. The models are what they are, so claim (b) stands."""
    evaluation = evaluation_of({BASELINE: networks(scores(FIVE)), CHAMPION: networks(scores(FIVE, 0.08))})
    verdict = judge(evaluation, BASELINE, CHAMPION, "trial-0007", 0, chosen_by_these_runs=True)
    claim, models = claims(verdict)
    assert (claim.outcome, claim.low, claim.p, claim.detectable) == ("not shown", None, None, None)
    assert claim.difference == pytest.approx(0.08)
    assert "an older version chose the champion by these runs, so they cannot judge it too" in verdict.sentence
    assert all(endpoint.p is None for endpoint in verdict.secondary)
    assert models.outcome == "better"


def test_lesion_free_patients_are_no_part_of_dice_and_have_endpoints_of_their_own() -> None:
    """Eight patients with lesions (champion +0.03), eight without, in whom only the champion finds lesions."""
    sick = [0.60 + 0.02 * number for number in range(8)]

    def runs(shift: float, false_ml: float) -> list[Any]:
        # Runs differ by 0.01 ml and a lesion, patients by 0.1 ml.
        volumes = [
            [1.0] * 8 + [(false_ml + 0.01 * run + 0.1 * n) * bool(false_ml) for n in range(8)] for run in range(2)
        ]
        return [
            network(
                f"run{run}", [dice + shift + 0.001 * run for dice in sick] + [None] * 8, seed=run,
                volume_ml=volumes[run], lesions_false=[0] * 8 + [round(false_ml) * 3 + run * bool(false_ml)] * 8,
            )
            for run in range(2)
        ]  # fmt: skip

    verdict = judged(evaluation_of({BASELINE: runs(0, 0), CHAMPION: runs(0.03, 2.0)}))
    claim, models = claims(verdict)
    assert (claim.patients, claim.patients_left_out, claim.difference) == (8, 8, pytest.approx(0.03))
    assert (models.pairs, models.difference) == (8, pytest.approx(0.03))
    assert "8 patients without lesions are left out." in claim.sentence
    assert verdict.lesion_free is not None
    volume, lesions = verdict.lesion_free.endpoints
    assert (verdict.lesion_free.patients, volume.metric, lesions.metric) == (8, "volume_ml", "lesions_false")
    # Mean of 2.0 + 0.005 + 0.1 x 3.5 ml; of 6 and 7 lesions.
    assert (volume.baseline, volume.champion, lesions.difference) == (0, pytest.approx(2.355), pytest.approx(6.5))
    assert volume.p is not None
    assert lesions.p is not None
    assert max(volume.p, lesions.p) < 0.05
    low, high = sorted((volume.p, lesions.p))
    assert sorted((volume.p_holm or 0, lesions.p_holm or 0)) == pytest.approx([2 * low, max(2 * low, high)])
    # A patient whose lesions a model misses altogether counts with 0.
    missed = judged(evaluation_of({BASELINE: networks([[0.5] * 8] * 2), CHAMPION: networks([[0.5] * 7 + [0.0]] * 2)}))
    assert (claims(missed)[0].patients, claims(missed)[0].difference) == (8, -0.0625)


def test_few_lesion_free_patients_are_counted_and_not_tested() -> None:
    rows = [[*PATIENTS + run, None] for run in (0.0, 0.01)]
    verdict = judged(evaluation_of({BASELINE: networks(rows), CHAMPION: networks(rows)}))
    assert verdict.lesion_free is not None
    assert verdict.lesion_free.patients == 1
    for endpoint in verdict.lesion_free.endpoints:
        assert (endpoint.pairs, endpoint.difference, endpoint.low, endpoint.p, endpoint.p_holm) == (
            1,
            0,
            None,
            None,
            None,
        )


def test_one_run_of_each_says_nothing_about_the_configurations() -> None:
    verdict = judged(evaluation_of({BASELINE: networks(scores([0])), CHAMPION: networks(scores([0], 0.1))}))
    claim, models = claims(verdict)
    assert (claim.outcome, claim.p, claim.low, claim.se, claim.detectable) == ("not shown: too few runs", *[None] * 4)
    assert claim.difference == pytest.approx(0.1)
    assert claim.sentence == (
        "The champion configuration (trial-0007) is not shown to be better or worse than the baseline configuration: 1 "
        "+ 1 trainings are too few, because the spread between trainings needs at least 2 of each configuration. Mean "
        "Dice per patient 0.744 against 0.644, difference +0.100. With 1 + 1 trainings and 9 patients, no difference "
        "could have been shown."
    )
    assert [endpoint.p for endpoint in verdict.secondary] == [None] * 7
    assert (models.outcome, models.p) == ("better", 2 / 2**9)


def test_fewer_than_six_patients() -> None:
    rows = [row[:5] for row in scores(FIVE)]
    verdict = judged(evaluation_of({BASELINE: networks(rows), CHAMPION: networks([[0.9] * 5] * 5)}))
    claim, models = claims(verdict)
    assert (claim.outcome, claim.low, claim.p) == ("not shown: too few patients", None, None)
    assert (models.outcome, models.low) == ("not shown: too few patients", None)
    assert (
        "5 sealed test patients with lesions are too few, because a test of fewer than 6 in pairs cannot reach p < "
        "0.05. Mean Dice per patient 0.900 against 0.540, difference +0.360."
    ) in claim.sentence
    none = judged(evaluation_of({BASELINE: networks([[None]] * 2), CHAMPION: networks([[None]] * 2)}))
    claim, models = claims(none)
    assert (claim.outcome, claim.patients, claim.baseline, models.pairs) == ("not shown: too few patients", 0, None, 0)
    assert claim.sentence == (
        "The champion configuration (trial-0007) is not shown to be better or worse than the baseline configuration: "
        "no sealed test patient has lesions. 1 patient without lesions is left out. With 2 + 2 trainings and 0 "
        "patients, no difference could have been shown."
    )


def test_only_folds_and_runs_that_both_have_are_compared() -> None:
    """A run failed: the baseline has no fold 3, and one run of fold 0 where the champion has two."""
    baseline = [network(f"paper-run{run}", [0.5] * 8, fold, run) for run, fold in enumerate((0, 1, 2))]
    champion = [
        network(f"trial-run{run}", [0.6 + 0.01 * run] * 8, fold, run) for run, fold in enumerate((2, 1, 0, 0, 3))
    ]
    claim, models = claims(judged(evaluation_of({BASELINE: baseline, CHAMPION: champion})))
    # Of the champion's runs 2 and 3 of fold 0 the one with the lower seed, 2: 0.62 in fold 0, 0.61 in 1, 0.60 in 2.
    assert (claim.runs, claim.folds, claim.runs_left_out, claim.champion) == (3, 3, 2, pytest.approx(0.61))
    assert "2 trainings are left out, because the other configuration has none to match." in claim.sentence
    assert models.what == "single networks"
    apart = {BASELINE: baseline[:1], CHAMPION: champion[4:]}
    claim, _ = claims(judged(evaluation_of(apart)))
    assert (claim.outcome, claim.runs, claim.runs_left_out) == ("not shown: too few runs", 0, 2)
    assert "no fold has a finished training of both." in claim.sentence


def test_data_with_one_fold_match_run_with_run() -> None:
    """Old data have one validation set; old files say nothing of folds."""
    for folds in (None, [0] * 5):
        members = {
            BASELINE: networks(scores(FIVE), folds),
            CHAMPION: networks(scores(FIVE[:4], 0.1), folds and folds[:4]),
        }
        claim, _ = claims(judged(evaluation_of(members)))
        assert (claim.runs, claim.folds, claim.runs_left_out) == (4, 1, 1)
        assert "1 training is left out" in claim.sentence


def test_ensembles_of_unequal_numbers_are_named() -> None:
    ensembles = {BASELINE: network("b", list(PATIENTS)), CHAMPION: network("c", list(PATIENTS))}
    members = {BASELINE: networks(scores(FIVE)), CHAMPION: networks(scores(FIVE[:4]))}
    _, models = claims(judged(evaluation_of(members, ensembles)))
    assert models.what == "ensembles of 4 and 5 networks"
    assert models.outcome == "not shown"
    del ensembles[CHAMPION]
    _, models = claims(judged(evaluation_of(members, ensembles)))
    assert models.what == "single networks", "like with like"


def test_scores_that_are_all_equal_show_nothing() -> None:
    same = [[0.5] * 8] * 3
    for champion in (same, [[0.7] * 8] * 3):
        claim, _ = claims(judged(evaluation_of({BASELINE: networks(same), CHAMPION: networks(champion)})))
        assert (claim.outcome, claim.se, claim.p, claim.low) == ("not shown", 0, None, None)
        assert "the scores do not vary between trainings or patients, so there is nothing to test" in claim.sentence


def test_images_of_unknown_patients_have_numbers_and_no_verdict() -> None:
    members = {BASELINE: networks(scores(FIVE)), CHAMPION: networks(scores(FIVE, 0.2))}
    verdict = judged(evaluation_of(members, unit="images", optimistic=True))
    assert (verdict.outcome, verdict.configuration, verdict.models) == ("no verdict", None, None)
    assert not verdict.has_claims
    assert (verdict.primary.pairs, verdict.primary.difference, verdict.primary.p) == (9, pytest.approx(0.2), None)
    assert [endpoint.p for endpoint in verdict.secondary] == [None] * 7
    assert verdict.sentence == (
        "There is no verdict, because the patients of the test images are not known: images of one patient are alike, "
        "and a test that takes them for independent calls equal configurations different in most cases. Mean Dice per "
        "image 0.844 for the champion configuration (trial-0007) against 0.644 for the baseline configuration, "
        "difference +0.200, on 9 sealed test images. Warning: the split is optimistic, because slices of one patient "
        "can be on both sides."
    )


def test_the_limit_on_epochs_is_part_of_the_verdict() -> None:
    members = {BASELINE: networks(scores(FIVE)), CHAMPION: networks(scores(FIVE, 0.2))}
    note = "The limit of 18 epochs ended 2 of the final runs."
    verdict = judged(evaluation_of(members), budget_note=note)
    assert (verdict.budget_note, note in verdict.sentence) == (note, True)


def test_secondary_endpoints_are_corrected_for_their_number() -> None:
    rng = np.random.default_rng(5)

    def runs(shift: float) -> list[Any]:
        return [
            network(f"run{run}", list(PATIENTS), seed=run, **{
                name: list(rng.normal(0.5 + shift, 0.02, 9)) for name in ("precision", "recall", "hd95_mm")
            })
            for run in range(3)
        ]  # fmt: skip

    verdict = judged(evaluation_of({BASELINE: runs(0), CHAMPION: runs(0.1)}))
    tested = {endpoint.metric: endpoint for endpoint in verdict.secondary if endpoint.p is not None}
    assert set(tested) == {"precision", "recall", "hd95_mm"}, "the others do not vary"
    lowest = min(tested.values(), key=lambda endpoint: endpoint.p or 0)
    assert lowest.p_holm == pytest.approx(3 * (lowest.p or 0))
