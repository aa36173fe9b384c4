"""Folds in `prepare`: what it stores, says and refuses. `test_deal.py` has who is in which."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from nifti_files import cohort

from wmlsearch.cli import main
from wmlsearch.data.manifest import Manifest, fingerprint
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData
from wmlsearch.errors import InputError
from wmlsearch.workflows.prepare import prepared_lines

FAST: dict[str, Any] = {"size": 32, "plane": "axial", "jobs": 1}


def printed(out: Path, manifest: Manifest) -> str:
    return "\n".join(prepared_lines(manifest, out))


def test_prepare_deals_by_lesion_load(tmp_path: Path) -> None:
    # 50 and 40 voxels open the folds, 30 joins 40, 20 joins 50: a + d and b + c, loads of 0.6 and 0.48 ml, 0.36, 0.24.
    raw = cohort(tmp_path / "raw", {"a": 50, "b": 40, "c": 30, "d": 20, "t": 10})
    out = tmp_path / "out"
    manifest = prepare(raw, out, PrepareOptions(**FAST, test_patients=("t",), folds=2))
    assert set(manifest.folds) == {("a", "d"), ("b", "c")}
    assert manifest.certificate.patients["val"] == manifest.folds[0]
    assert manifest.certificate.patients["train"] == manifest.folds[1]
    assert manifest.fold_loads() == pytest.approx([0.42, 0.42]), "by hand: (0.6 + 0.24) / 2"
    assert (
        "train and val are 2 folds of 2 patients each; val is the first fold; their mean lesion loads are 0.42, "
        "0.42 ml" in printed(out, manifest)
    )
    assert "30 slices compared: no duplicates across splits and folds" in printed(out, manifest)
    assert Manifest.read(out) == manifest
    assert Manifest.read(out / "sealed").folds == manifest.folds
    manifest.verify(out)
    assert {name: (count.slices, count.kept) for name, count in manifest.counts.items()} == {
        "train": (12, 10), "val": (12, 10), "test": (6, 5),
    }  # fmt: skip
    for fold in 0, 1:
        data = PreparedData.open(out, fold=fold)
        assert data.val.patient_names == manifest.folds[fold]
        assert data.train.patient_names == manifest.folds[1 - fold]
        assert (len(data.train), len(data.val)) == (10, 12), "the empty slice is validated and not trained on"


def test_the_fingerprint_tells_folds_apart(tmp_path: Path) -> None:
    raw = cohort(tmp_path / "raw", {"a": 50, "b": 40, "c": 30, "t": 10})
    given: dict[str, Any] = {**FAST, "test_patients": ("t",), "val_patients": ("a",)}
    two, three = (prepare(raw, tmp_path / str(n), PrepareOptions(**given, folds=n)) for n in (2, 3))
    assert (two.folds, {*three.folds[1:]}) == ((("a",), ("b", "c")), {("b",), ("c",)})
    assert two.slices == three.slices, "the same rows, the same split"
    assert two.fingerprint != three.fingerprint
    assert fingerprint(two.slices, three.certificate) == three.fingerprint
    one = prepare(raw, tmp_path / "1", PrepareOptions(**given, folds=1))
    assert (one.folds, one.fold_count) == ((), 1)


def test_on_the_command_line(tmp_path: Path) -> None:
    raw = cohort(tmp_path / "raw", {"a": 50, "b": 40, "c": 30, "t": 10})
    words = ["prepare", str(raw), str(tmp_path / "out"), "--size", "32", "--plane", "axial", "--test-patients", "t"]
    result = CliRunner().invoke(main, [*words, "--folds", "4"], prog_name="wmlsearch")
    assert result.exit_code == 2
    assert result.stderr == (
        "wmlsearch: --folds 4: each fold needs a patient with a lesion, which makes 3 folds of 3 training and "
        "validation patients; give --folds 3\n"
    )
    result = CliRunner().invoke(main, [*words, "--val-patients", "b", "--folds", "2"], prog_name="wmlsearch")
    assert result.exit_code == 0, result.output
    assert Manifest.read(tmp_path / "out").folds == (("b",), ("a", "c"))
    assert "train and val are 2 folds of 1, 2 patients; val is the first fold" in result.output


def test_three_patients_make_two_folds_of_one(tmp_path: Path) -> None:
    raw = cohort(tmp_path / "raw", {"a": 50, "b": 40, "c": 30})
    manifest = prepare(raw, tmp_path / "out", PrepareOptions(**FAST))
    assert sorted(len(fold) for fold in manifest.folds) == [1, 1]


def test_training_patients_by_name_leave_one_validation_set(tmp_path: Path) -> None:
    raw = cohort(tmp_path / "raw", {"a": 50, "b": 40, "c": 30})
    manifest = prepare(raw, tmp_path / "out", PrepareOptions(**FAST, train_patients=("a",)))
    assert manifest.folds == ()
    for other in {"train_patients": ("a",)}, {"split": "image", "allow_leakage": True}:
        with pytest.raises(InputError, match=r"--folds 2: .* (there is|has) one validation set; drop one of them"):
            PrepareOptions(**FAST, **other, folds=2)
    with pytest.raises(InputError, match="--folds must be a whole number from 1 to 100, but got 0"):
        PrepareOptions(**FAST, folds=0)


@pytest.mark.parametrize("column", ["site", "Scanner"])
def test_a_table_names_the_site(tmp_path: Path, column: str) -> None:
    # As in test_sites_are_spread_evenly, with voxels for ml.
    loads = {"a1": 40, "a2": 30, "a3": 20, "b1": 14, "b2": 12, "b3": 10, "b4": 8}
    sites = {name: f",hospital {name[0]}" for name in loads}
    raw = cohort(tmp_path / "raw", {**loads, "t": 5}, f",{column}", {**sites, "t": ","})
    given: dict[str, Any] = {**FAST, "test_patients": ("t",), "folds": 4}
    expected = {("a1", "b4"), ("a2", "b3"), ("a3", "b2"), ("b1",)}
    assert set(prepare(raw, tmp_path / "out", PrepareOptions(**given)).folds) == expected
    who = PrepareOptions(**given, pseudonyms=tmp_path / "who.json")
    hidden = prepare(raw, tmp_path / "hidden", who)
    names = {pseudonym: name for name, pseudonym in pseudonyms(tmp_path / "who.json").items()}
    assert {tuple(sorted(names[pseudonym] for pseudonym in fold)) for fold in hidden.folds} == expected
    assert "hospital" not in (tmp_path / "hidden/manifest.json").read_text()


def pseudonyms(path: Path) -> dict[str, str]:
    table: dict[str, dict[str, str]] = json.loads(path.read_text())
    return table["pseudonyms"]


# ------------------------------------------------------------------------------------------------------- the guard


def test_a_copy_in_another_fold_is_refused_or_counted(tmp_path: Path) -> None:
    raw = cohort(tmp_path / "raw", {"a": 50, "b": 40, "c": 30, "t": 10})
    shutil.copyfile(raw.parent / "b_image.nii.gz", raw.parent / "c_image.nii.gz")
    given: dict[str, Any] = {**FAST, "test_patients": ("t",), "val_patients": ("a",)}
    with pytest.raises(InputError) as error:
        prepare(raw, tmp_path / "out", PrepareOptions(**given, folds=3))
    assert error.value.headline.startswith("folds or splits share slices, so results would look better than they are;")
    (line,) = error.value.faults
    assert line.startswith("patient ")
    assert "5 equal; " in line, "of six slices one is empty"
    assert {"'b' (fold 1)" in line, "'b' (fold 2)" in line} == {True, False}
    manifest = prepare(raw, tmp_path / "out", PrepareOptions(**given, folds=3, allow_leakage=True))
    none = {"equal": 0, "near": 0, "mirrored": 0}
    assert manifest.certificate.duplicates == {"fold/fold": none | {"equal": 5}, "fold/test": none}
    assert (manifest.optimistic, manifest.certificate.note) == (True, "duplicates across splits: optimistic")
    assert "24 slices compared: duplicates across splits and folds: 5 equal of one fold in another" in printed(
        tmp_path / "out", manifest
    )
    assert not prepare(raw, tmp_path / "two", PrepareOptions(**given, folds=2)).optimistic, "b and c are in one fold"


def test_a_copy_of_a_sealed_patient_is_refused(tmp_path: Path) -> None:
    raw = cohort(tmp_path / "raw", {"a": 50, "b": 40, "c": 30, "t": 10})
    shutil.copyfile(raw.parent / "b_image.nii.gz", raw.parent / "t_image.nii.gz")
    with pytest.raises(InputError, match=r"patient 't' \(test\) and patient 'b' \(fold \d\): 5 equal"):
        prepare(raw, tmp_path / "out", PrepareOptions(**FAST, test_patients=("t",)))


def test_two_spellings_of_a_name_in_different_folds_are_refused(tmp_path: Path) -> None:
    raw = cohort(tmp_path / "raw", {"p1": 50, "P01": 40, "c": 30, "t": 10})
    given: dict[str, Any] = {**FAST, "test_patients": ("t",), "val_patients": ("c",)}
    with pytest.raises(InputError) as error:
        prepare(raw, tmp_path / "out", PrepareOptions(**given, folds=3))
    assert "(fold 1, " in str(error.value)
    assert "(fold 2, " in str(error.value)
    assert "names that are likely one patient's" in str(error.value)
    prepare(raw, tmp_path / "out", PrepareOptions(**given, folds=2))
    with pytest.raises(InputError, match=r"'P01' \(train or val, P01_image.nii.gz\) and 'p1' \(test, p1_image"):
        prepare(raw, tmp_path / "out2", PrepareOptions(**FAST, test_patients=("p1",)))
