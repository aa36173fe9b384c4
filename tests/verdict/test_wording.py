"""The words beside the verdict; its sentences are tested with `judge`."""

from __future__ import annotations

from wmlsearch.runs.schema import SplitCertificate
from wmlsearch.verdict.wording import leakage_note, mean_sd, openings_note


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
