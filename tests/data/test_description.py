"""`wmlsearch describe`: what is printed of a prepared data set, its JSON, and the page beside the contact sheet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from nifti_files import cohort

from wmlsearch.cli import main
from wmlsearch.data.description import describe
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.sealed_test import openings

LESIONS = {"p1": 10, "p2": 20, "p3": 30, "p4": 40, "p5": 0}
SITES = {name: ",hospital <A>" if name != "p5" else ",B" for name in LESIONS}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("description")
    table = cohort(root / "raw", LESIONS, ",site", SITES)
    prepare(table, root / "out", PrepareOptions(size=32, jobs=1, test_patients=("p4",), val_patients=("p3",)))
    return root / "out"


def test_numbers_by_hand(prepared: Path) -> None:
    description = describe(prepared)
    loads = {patient.patient: patient.lesion_ml for patient in description.patients}
    assert loads == pytest.approx({name: 0.012 * voxels for name, voxels in LESIONS.items()})
    assert {one.patient: one.split for one in description.patients} == {
        "p1": "train", "p2": "train", "p3": "val", "p4": "test", "p5": "train"
    }  # fmt: skip
    train = description.loads["train"]
    assert (train.patients, train.without_lesions) == (3, 1)
    assert (train.smallest, train.median, train.largest) == pytest.approx((0, 0.12, 0.24))
    assert description.scanners == {"hospital <A>": 4, "B": 1}
    assert description.voxel_sizes == {"2 x 2 x 3 mm": 5}
    (scan,) = next(one for one in description.patients if one.patient == "p4").scans
    assert (scan.slices, scan.lesion_pixels, scan.shape) == (6, 40, (24, 24, 6))
    assert openings(prepared) == [], "no test image is read"


def test_the_page_says_the_same(prepared: Path) -> None:
    page = (prepared / "description.html").read_text()
    assert "<h1>out</h1>" in page
    assert "hospital &lt;A&gt;" in page
    assert "hospital <A>" not in page
    assert 'src="contact_sheet.png"' in page
    for warning in describe(prepared).warnings:
        assert warning.split(":")[0] in page


def test_the_command(prepared: Path) -> None:
    result = CliRunner().invoke(main, ["describe", str(prepared)])
    assert result.exit_code == 0, result.output
    assert "train: 3 patients, 1 without lesions; lesions 0 to 0.24 ml, median 0.12" in result.output
    assert "scanners: hospital <A> (4), B (1)" in result.output
    assert "the sealed test was never opened" in result.output
    record = json.loads(CliRunner().invoke(main, ["describe", str(prepared), "--json"]).stdout)
    assert (record["format"], record["kind"], len(record["patients"])) == (1, "data", 5)
    assert record["patients"][0]["scans"][0]["voxel_mm"] == [2.0, 2.0, 3.0]


def test_folds_have_the_numbers_of_train_fold(tmp_path: Path) -> None:
    table = cohort(tmp_path / "raw", LESIONS, ",site", SITES)
    prepare(table, tmp_path / "out", PrepareOptions(size=32, jobs=1, test_patients=("p4",), folds=2))
    folds = {one.patient: one.fold for one in describe(tmp_path / "out").patients}
    assert set(folds.values()) == {None, 0, 1}, "train --fold takes 0 and 1"
    printed = CliRunner().invoke(main, ["describe", str(tmp_path / "out")]).output.splitlines()
    page = (tmp_path / "out" / "description.html").read_text()
    for patient, fold in folds.items():
        if fold is not None:
            (row,) = [line.split() for line in printed if line.startswith(f"{patient} ")]
            assert row[2] == str(fold)
            assert f'<td>{patient}</td><td>{row[1]}</td><td class="number">{fold}</td>' in page


def test_what_is_no_prepared_data_set(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["describe", str(tmp_path)])
    assert result.exit_code == 2
    assert "not a prepared data set, manifest.json is missing" in result.stderr
