"""The record of whole searches on the hard phantom: what is read from a search, and what the table says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.search_quality.searches import SPACE, Ended, read, table
from wmlsearch import Search
from wmlsearch.runs.evaluation import ConfigurationClaim, EndpointComparison, Verdict
from wmlsearch.runs.folders import SearchDir
from wmlsearch.space import SearchSpace

CLAIM = ConfigurationClaim(
    outcome="better", sentence="", runs=5, patients=24, baseline=0.2, champion=0.3, difference=0.1, se=0.02, df=7.0,
    low=0.05, high=0.15, p=0.01, run_sd=0.01, patient_sd=0.05, residual_sd=0.01, detectable=0.06,
)  # fmt: skip
PRIMARY = EndpointComparison(
    metric="dice", pairs=24, left_out=0, baseline=0.2, champion=0.3, difference=0.1, low=0.05, high=0.15, p=0.01
)
VERDICT = Verdict.model_validate(
    {
        "verdict": "better", "sentence": "", "scope": "whole volumes", "unit": "patients", "primary": PRIMARY,
        "secondary": [], "configuration": CLAIM,
    }
)  # fmt: skip
BETTER = Ended(1, 12, {"learning_rate": 0.00312}, "better", 0.2, 0.3, 0.1, 0.05, 0.15, 0.06, 0.5, 0.01)


def test_reads_champion_and_claim_of_a_search(searched: SearchDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Search, "verdict", property(lambda _: VERDICT))
    ended = read(3, searched.path)
    champion = {
        "depth": 2, "base_channels": 4, "norm": "instance", "dropout": 0.0, "loss": "bce_dice", "learning_rate": 1e-2,
    }  # fmt: skip
    epochs = searched.record().settings.epochs
    wanted = replace(BETTER, repetition=3, epochs=epochs, champion=champion)
    assert replace(ended, hours=wanted.hours) == wanted
    assert 0 < ended.hours < 1


def test_a_search_without_a_champion_is_an_error(searched: SearchDir, tmp_path: Path) -> None:
    folder = shutil.copytree(searched.path, tmp_path / "search")
    SearchDir(folder).file("selection").unlink()
    with pytest.raises(RuntimeError, match="completed, without a champion"):
        read(1, folder)


def test_the_table_counts_what_is_better() -> None:
    same = replace(BETTER, repetition=2, champion={}, outcome="the baseline is the champion", difference=None)
    longer = replace(BETTER, epochs=24, run_sd=None)
    lines = table([longer, same, BETTER]).splitlines()
    assert lines[-2:] == ['"better" with 12 epochs: 1 of 2', '"better" with 24 epochs: 1 of 1']
    assert "+0.100 [+0.050, +0.150]" in lines[2]
    assert "learning_rate 0.0031" in lines[2]
    assert "the baseline is the champion" in lines[3]


def test_the_space_is_the_default_one_with_smaller_networks() -> None:
    small, default = (SearchSpace.read(space).to_mapping() for space in (SPACE, Path("unet")))
    for values in (small, default):
        del values["depth"], values["base_channels"]
    assert small == default
