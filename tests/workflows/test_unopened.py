"""`wmlsearch evaluate` refuses before it opens the sealed test: the ledger gets no line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from wmlsearch.cli import main
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.sealed_test import openings
from wmlsearch.runs.folders import SearchDir


def refused(search: SearchDir, *words: object) -> str:
    """Return the error message of `wmlsearch evaluate` with these arguments."""
    given = ["evaluate", *words, "--out", search.path.parent]
    result = CliRunner().invoke(main, [str(word) for word in given], prog_name="wmlsearch")
    assert result.exit_code == 2, result.output
    return result.stderr.removeprefix("wmlsearch: ")


def test_a_search_without_a_baseline(searched: SearchDir) -> None:
    before = openings(Path(searched.record().data_path))  # other tests open the same data
    assert refused(searched, "s") == (
        "s: has no baseline yet (state: completed); finish the search with "
        f"`wmlsearch tune --resume s --out {searched.path.parent}`, or name a single run\n"
    )
    assert openings(Path(searched.record().data_path)) == before


@pytest.mark.parametrize(
    ("settings", "option"), [({"baseline": False}, "--no-baseline"), ({"confirm_top": 0}, "--confirm-top 0")]
)
def test_a_search_that_was_not_to_have_a_champion(
    settings: dict[str, object], option: str, searched: SearchDir, tmp_path: Path
) -> None:
    shutil.copytree(searched.path, tmp_path / "runs" / "s")
    search = SearchDir(tmp_path / "runs" / "s")
    record = search.record().as_json()
    record["settings"].update(settings)
    search.file("record").write_text(json.dumps(record))
    text = refused(search, "s")
    reason = f"s: was searched with {option}, so it has no champion to compare with the baseline; name a single run"
    assert text.startswith(reason)
    assert f"`wmlsearch evaluate {search.path}/trials/0" in text


def test_an_mlflow_uri_of_unknown_kind(searched: SearchDir) -> None:
    before, run = openings(Path(searched.record().data_path)), searched.judgement_run("trial-0000", 0)
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
def test_data_prepared_with_other_options(
    options: PrepareOptions, are: str, searched: SearchDir, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    raw = write_phantom(tmp_path / "raw", patients=4, timepoints=1, shape=(48, 48, 12), seed=7)
    prepare(raw, data, dataclasses.replace(options, split="image", allow_leakage=True, jobs=1))
    assert refused(searched, searched.judgement_run("trial-0000", 0).path, "--data", data) == (
        f"{data}: its test slices are {are}, but the models were trained on 32 (native, fit resize); prepare it with "
        "the same options\n"
    )
    assert openings(data) == []
