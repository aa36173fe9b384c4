"""What `plan` says of the difference that a search could find."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from evaluations import evaluation_of, networks
from records import search_record

from wmlsearch.config import RunSettings
from wmlsearch.data.manifest import Manifest
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.names import BASELINE, CHAMPION
from wmlsearch.verdict.comparison import judge
from wmlsearch.verdict.power import ASSUMED, detectable
from wmlsearch.workflows.expected_power import expected_power


@pytest.fixture
def manifest(prepared: Path) -> Manifest:
    """Data with nine test patients."""
    manifest = Manifest.read(prepared)
    test = dataclasses.replace(manifest.counts["test"], patients=9)
    return dataclasses.replace(manifest, counts={**manifest.counts, "test": test})


def add_search(out: Path, name: str, fingerprint: str, spread: float) -> None:
    """Add a search with a verdict, whose run means are `spread` apart and whose patients are all alike."""
    data = {"name": "d", "fingerprint": fingerprint, "optimistic": False}
    search = SearchDir.create(out / name, search_record({"name": name, "data": data}))
    scores = [[0.5 + number * spread] * 9 for number in range(2)]
    evaluation = evaluation_of({BASELINE: networks(scores), CHAMPION: networks(scores)})
    verdict = judge(evaluation, BASELINE, CHAMPION, "trial-0001", 0)
    search.set_evaluation(evaluation.with_verdict({BASELINE: "paper", CHAMPION: "trial-0001"}, [], verdict))


def _folds(manifest: Manifest) -> list[int]:
    return [run % manifest.fold_count for run in range(5)]


def test_without_earlier_searches_the_spread_is_assumed(manifest: Manifest, tmp_path: Path) -> None:
    smallest = detectable(ASSUMED.run, ASSUMED.patient, ASSUMED.residual, _folds(manifest), 9)
    text = expected_power(RunSettings(), manifest, tmp_path / "none")
    assert text == (
        f"5 + 5 trainings and 9 test patients find a difference of {smallest:.3f} in Dice per patient with 80 % "
        "probability, if all of them have lesions and its standard deviation is 0.030 between trainings and 0.040 "
        "between patients (assumed, as no earlier search on these data has a verdict)"
    )


def test_earlier_searches_on_the_same_data_say_how_much_results_vary(manifest: Manifest, tmp_path: Path) -> None:
    """Two runs that are 0.02 apart have a standard deviation of 0.02 / sqrt(2), and those 0.04 apart twice as much.

    The root mean square of 0.01414 and 0.02828 is 0.02236. Patients do not differ, nor is there a residual.
    """
    add_search(tmp_path, "a", manifest.fingerprint, 0.02)
    add_search(tmp_path, "b", manifest.fingerprint, 0.04)
    add_search(tmp_path, "c", "of other data", 0.3)
    add_search(tmp_path, "equal", manifest.fingerprint, 0.0)  # a search that learned nothing
    shutil.copytree(tmp_path / "a", tmp_path / "backup of a")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "search.json").write_text("damaged")
    text = expected_power(RunSettings(), manifest, tmp_path)
    assert f"a difference of {detectable(0.02236, 0, 0, _folds(manifest), 9):.3f} in" in text
    assert "0.022 between trainings and 0.000 between patients (as in 2 earlier searches on these data)" in text


@pytest.mark.parametrize("settings", [RunSettings(baseline=False), RunSettings(confirm_top=0), RunSettings(trials=1)])
def test_a_search_without_a_comparison_has_nothing_to_find(settings: RunSettings, manifest: Manifest) -> None:
    assert expected_power(settings, manifest, Path("none")) == ""


def test_too_few_trainings_or_patients_and_images_without_patients(manifest: Manifest, tmp_path: Path) -> None:
    few = dataclasses.replace(manifest.counts["test"], patients=5)
    small = dataclasses.replace(manifest, counts={**manifest.counts, "test": few})
    needed = "cannot show any difference: at least 2 trainings and 6 patients are needed"
    assert expected_power(RunSettings(), small, tmp_path) == f"5 + 5 trainings and 5 test patients {needed}"
    single = expected_power(RunSettings(final_runs=1), manifest, tmp_path)
    assert single == f"1 + 1 trainings and 9 test patients {needed}"
    by_image = dataclasses.replace(manifest, split_level="image")
    assert "9 test patients find a difference" in expected_power(RunSettings(), by_image, tmp_path), "they are known"
    unknown = dataclasses.replace(manifest.counts["test"], patients=0)
    images = dataclasses.replace(by_image, counts={**manifest.counts, "test": unknown})
    assert expected_power(RunSettings(), images, tmp_path).startswith("none, because the patients")
