"""What `wmlsearch evaluate` refuses, it refuses before the sealed test is opened: its ledger has no line of that."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from click.testing import CliRunner

from wmlsearch.cli import main
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.sealed_test import openings
from wmlsearch.runs.folders import SearchDir


def refused(search: SearchDir, *words: object) -> str:
    """What `wmlsearch evaluate` says to these words, which are wrong."""
    given = ["evaluate", *words, "--out", search.path.parent]
    result = CliRunner().invoke(main, [str(word) for word in given], prog_name="wmlsearch")
    assert result.exit_code == 2, result.output
    return result.stderr.removeprefix("wmlsearch: ")


def test_what_can_not_be_evaluated(searched: SearchDir) -> None:
    before = openings(Path(searched.record().data_path))  # by other tests of the same data
    assert refused(searched, "s") == (
        "s: has no baseline yet (state: completed); go on with it by `wmlsearch tune --resume s`, or name a single "
        "training\n"
    )
    assert openings(Path(searched.record().data_path)) == before


def test_a_store_that_can_be_none(searched: SearchDir) -> None:
    before, run = openings(Path(searched.record().data_path)), searched.final("trial-0000", 0)
    assert "htp://x: MLflow has no store of the kind 'htp'" in refused(searched, run.path, "--mlflow-uri", "htp://x")
    assert openings(Path(searched.record().data_path)) == before


@pytest.mark.parametrize(
    ("options", "are"),
    [
        (PrepareOptions(size=48, fit="resize"), "48 pixels wide (native, fit resize)"),
        (PrepareOptions(size=32, fit="crop"), "32 pixels wide (native, fit crop)"),
        (PrepareOptions(size=32, fit="resize", plane="coronal"), "32 pixels wide (coronal, fit resize)"),
    ],
)
def test_slices_that_are_cut_otherwise(
    options: PrepareOptions, are: str, searched: SearchDir, raw: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    prepare(raw, data, dataclasses.replace(options, split="image", allow_leakage=True, jobs=1))
    assert refused(searched, searched.final("trial-0000", 0).path, "--data", data) == (
        f"{data}: its test slices are {are}, but the models were trained on 32 (native, fit resize); prepare it with "
        "the same options\n"
    )
    assert openings(data) == []
