"""The words beside the verdict; its sentences are tested with `judge`."""

from __future__ import annotations

import pytest

from wmlsearch.runs.evaluation import EndpointComparison, LesionFree, ModelsClaim
from wmlsearch.runs.schema import SplitCertificate
from wmlsearch.verdict.wording import leakage_note, lesion_free_sentence, mean_sd, models_sentence, openings_note


def test_how_often_the_test_was_opened() -> None:
    assert openings_note(0) == "The sealed test was opened for the first time."
    assert openings_note(1) == (
        "The sealed test had been opened once before. Each opening makes its result less reliable."
    )
    assert "3 times before" in openings_note(3)


@pytest.mark.parametrize(
    ("p", "low", "shown"),
    [
        (0.04964, 0.00021, "0.0002 to 0.040, p = 0.0496"),
        (0.049996, 0.00049, "0.0005 to 0.040, p = 0.049996"),
        (0.05, 0.0, "0.000 to 0.040, p = 0.05"),
        (0.0504, -0.0004, "-0.0004 to 0.040, p = 0.0504"),
        (0.0349, 0.001, "0.001 to 0.040, p = 0.035"),
        (0.0004, 0.02, "0.020 to 0.040, p < 0.001"),
        (0.5, 1e-12, "0.000 to 0.040, p = 0.5"),
    ],
)
def test_rounding_moves_nothing_onto_a_border(p: float, low: float, shown: str) -> None:
    """A p that is below 0.05 is shown below it, and a bound that is not 0 is not shown as 0."""
    claim = ModelsClaim(
        what="ensembles", pairs=8, left_out=0, outcome="x", sentence="", baseline=0.5, champion=0.52, difference=0.02,
        low=low, high=0.04, p=p,
    )  # fmt: skip
    assert f"(95 % interval {shown})" in models_sentence(claim)


@pytest.mark.parametrize(("patients", "why"), [(5, "With fewer than 6 such patients, this"), (6, "This"), (30, "This")])
def test_why_patients_without_lesions_are_not_tested(patients: int, why: str) -> None:
    """Also with one run of each configuration, or where the numbers do not vary, there is no p."""
    endpoint = EndpointComparison(
        metric="lesions_false", pairs=patients, left_out=0, baseline=1.0, champion=2.0, difference=1.0, low=None,
        high=None, p=None,
    )  # fmt: skip
    assert lesion_free_sentence(LesionFree(patients=patients, endpoints=[endpoint])).endswith(
        f"2 with the champion against 1 with the baseline. {why} is not tested."
    )


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
