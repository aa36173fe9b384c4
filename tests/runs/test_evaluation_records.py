"""Records of an evaluation keep the form of their files, and refuse what is not of that form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wmlsearch.errors import InputError
from wmlsearch.runs.evaluation import SLICES, VOLUMES, EvaluationMetrics, Gallery, NetworkScores
from wmlsearch.runs.folders import SearchDir

EARLIER = Path(__file__).with_name("evaluation-of-0.1.json")  # written by version 0.1, then shortened


def test_an_earlier_evaluation_is_read_and_written_as_it_was(tmp_path: Path) -> None:
    search = SearchDir(tmp_path)
    assert search.evaluation() is None
    (tmp_path / "test.json").write_text(EARLIER.read_text())
    evaluation = search.evaluation()
    assert evaluation is not None
    assert (evaluation.unit, evaluation.scope, evaluation.scopes) == ("patients", VOLUMES, (VOLUMES, SLICES))
    champion = evaluation.models["champion"].members[0]
    assert (champion.name, champion.seed, champion.threshold) == ("trial-0003-seed0", 0, champion.threshold)
    row, unit = champion.scope(VOLUMES).rows[0], champion.scope(VOLUMES).units[0]
    assert (row.patient, unit.unit, row.value("dice"), row.index) == ("03", "03", unit.dice, None)
    assert evaluation.verdict is not None
    assert evaluation.verdict.outcome == "not shown: too few patients"
    search.set_evaluation(evaluation)
    written = json.loads((tmp_path / "test.json").read_text())
    assert json.dumps(written) == json.dumps(json.loads(EARLIER.read_text())), "with the same order of names"


def test_fields_of_a_newer_version_are_kept(tmp_path: Path) -> None:
    search = SearchDir(tmp_path)
    (tmp_path / "test.json").write_text('{"opened": 1.5, "metrics": {"test_dice": 0.5}, "newer": [1]}')
    metrics = search.evaluation_metrics()
    assert metrics == EvaluationMetrics.model_validate({"opened": 1.5, "metrics": {"test_dice": 0.5}, "newer": [1]})
    assert metrics is not None
    search.set_evaluation(metrics)
    assert json.loads((tmp_path / "test.json").read_text())["newer"] == [1]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"unit": "people"}, "unit must"),
        ({"scope": ...}, "scope is missing"),
        ({"opened": "now"}, "opened must be a valid number, but got 'now'"),
        ({"models": {"baseline": {"members": [], "ensemble": None}}}, "models.baseline.members must have at least 1"),
    ],
)
def test_a_damaged_evaluation_is_refused(change: dict[str, Any], fault: str, tmp_path: Path) -> None:
    values = {**json.loads(EARLIER.read_text()), **change}
    (tmp_path / "test.json").write_text(json.dumps({k: value for k, value in values.items() if value is not ...}))
    fault_of_file = "was written by an earlier version or is damaged"
    with pytest.raises(InputError) as error:
        SearchDir(tmp_path).evaluation()
    assert str(error.value).startswith(f"{tmp_path / 'test.json'}: {fault_of_file}; restore it from a copy")
    assert fault in str(error.value)


def test_a_network_has_scores_only_where_it_was_scored() -> None:
    evaluation = json.loads(EARLIER.read_text())
    network = evaluation["models"]["baseline"]["members"][0]
    del network[VOLUMES]
    scores = NetworkScores.model_validate(network)
    assert scores.scopes == (SLICES,)
    with pytest.raises(ValueError, match="paper-seed1: has no scores of whole volumes"):
        scores.scope(VOLUMES)


def test_the_gallery_comes_back(tmp_path: Path) -> None:
    search, slices = SearchDir(tmp_path), np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    assert search.gallery() is None
    search.set_gallery(Gallery(("p0", "p1"), slices, slices % 2, {"baseline": slices % 2, "champion": slices // 4}))
    gallery = search.gallery()
    assert gallery is not None
    assert (gallery.units, list(gallery.predictions)) == (("p0", "p1"), ["baseline", "champion"])
    assert (gallery.images == slices).all()
    assert (gallery.predictions["champion"] == slices // 4).all()
