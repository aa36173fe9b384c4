"""The words of the verdict state its numbers and what they rest on."""

from __future__ import annotations

from wmlsearch.runs.evaluation import Comparison
from wmlsearch.runs.schema import SplitCertificate
from wmlsearch.verdict.statistics import paired
from wmlsearch.verdict.wording import leakage_note, mean_sd, openings_note, verdict_sentence

CHAMPION, BASELINE = "The champion configuration (trial-0007)", "the baseline configuration"


def compared(pairs: int, low: float, high: float, p: float, left_out: int = 0) -> Comparison:
    mean = (low + high) / 2
    return Comparison(
        pairs=pairs, left_out=left_out, baseline=0.63, champion=0.63 + mean, difference=mean, low=low, high=high, p=p
    )


def test_the_verdict_in_a_sentence() -> None:
    assert verdict_sentence(compared(9, 0.03, 0.12, 0.00391), CHAMPION, BASELINE) == (
        "The champion configuration (trial-0007) is better than the baseline configuration on 9 sealed test patients: "
        "mean Dice per patient 0.705 against 0.630, difference +0.075 (95 % interval 0.030 to 0.120, p = 0.00391)."
    )
    assert verdict_sentence(compared(9, -0.12, -0.03, 0.0117, left_out=2), CHAMPION, BASELINE) == (
        "The champion configuration (trial-0007) is worse than the baseline configuration on 9 sealed test patients: "
        "mean Dice per patient 0.555 against 0.630, difference -0.075 (95 % interval -0.120 to -0.030, p = 0.0117). "
        "2 patients without Dice for both are left out."
    )
    shown = compared(200, -0.02, 0.04, 0.5, left_out=1)
    assert verdict_sentence(shown, CHAMPION, BASELINE, "images", optimistic=True) == (
        "The champion configuration (trial-0007) is not shown to be better or worse than the baseline configuration on "
        "200 sealed test images: mean Dice per image 0.640 against 0.630, difference +0.010 (95 % interval -0.020 to "
        "0.040, p = 0.5). 1 image without Dice for both is left out. Warning: the split is optimistic, because "
        "slices of one patient can be on both sides."
    )
    few = paired([0.5, 0.6, 0.7], [0.6, 0.7, 0.9], seed=0)
    assert verdict_sentence(few, CHAMPION, BASELINE) == (
        "The champion configuration (trial-0007) is not shown to be better or worse than the baseline configuration: "
        "3 sealed test patients are too few, because a paired test of fewer than 6 cannot reach p < 0.05. Mean Dice "
        "per patient 0.733 against 0.600, difference +0.133 (p = 0.25)."
    )
    assert verdict_sentence(paired([0.5], [0.6], seed=0), CHAMPION, BASELINE) == (
        "The champion configuration (trial-0007) is not shown to be better or worse than the baseline configuration: "
        "1 sealed test patient is too few, because a paired test of fewer than 6 cannot reach p < 0.05. Mean Dice per "
        "patient 0.600 against 0.500, difference +0.100."
    )
    assert verdict_sentence(paired([None], [0.6], seed=0), CHAMPION, BASELINE) == (
        "The champion configuration (trial-0007) cannot be compared with the baseline configuration: no sealed test "
        "patient has Dice for both. 1 patient without Dice for both is left out."
    )


def test_how_often_the_test_was_opened() -> None:
    assert openings_note(0) == "The sealed test was opened for the first time."
    assert openings_note(1) == (
        "The sealed test had been opened once before. Each opening makes its result less reliable."
    )
    assert "3 times before" in openings_note(3)


def test_leakage_and_means() -> None:
    clean = SplitCertificate(compared=480, duplicates={"train/test": {"identical": 0}})
    assert leakage_note(clean) == "480 slices compared: no duplicates across splits"
    leaky = SplitCertificate(
        compared=480, duplicates={"train/test": {"identical": 2, "near": 0}, "val/test": {"near": 1}}
    )
    assert leakage_note(leaky) == (
        "480 slices compared: duplicates across splits: 2 identical of test in train; 1 near of test in val"
    )
    assert (mean_sd([None]), mean_sd([0.5, None]), mean_sd([0.5, 0.7])) == ("-", "0.5000", "0.6000 ± 0.1414")
