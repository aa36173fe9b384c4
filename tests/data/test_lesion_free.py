"""Patients without lesions: named, and warned of where validation or the sealed test has nobody else."""

from __future__ import annotations

from pathlib import Path

from nifti_files import cohort

from wmlsearch.data.manifest import Manifest
from wmlsearch.data.prepare import PrepareOptions, prepare

WITHOUT = {"p5": 0, "p6": 0, "p7": 0}


def about_scores(manifest: Manifest) -> list[str]:
    """The warnings of splits without lesions; the cohort's lesions are as bright as its heads, which is told, too."""
    return [line for line in manifest.warnings if "scores on" in line]


def prepared(folder: Path, lesion_voxels: dict[str, int], **options: tuple[str, ...]) -> Manifest:
    table = cohort(folder / "raw", lesion_voxels)
    return prepare(table, folder / "out", PrepareOptions(size=24, plane="axial", jobs=1, **options))


def test_a_test_without_lesions_is_warned_of(tmp_path: Path) -> None:
    manifest = prepared(tmp_path, {"p1": 10, "p2": 20, "p3": 30, "p4": 40} | WITHOUT, test_patients=("p5", "p6", "p7"))
    assert about_scores(manifest) == [
        "none of the 3 test patients has a lesion, so scores on them only tell of false lesions; name others with "
        "--test-patients",
    ]
    assert manifest.notes == ("3 of 7 volumes: the mask is empty (p5, p6, p7)",)
    assert Manifest.read(tmp_path / "out").warnings == manifest.warnings


def test_validation_without_lesions_is_warned_of(tmp_path: Path) -> None:
    manifest = prepared(
        tmp_path,
        {"p1": 10, "p2": 20, "p3": 30, "p4": 40, "p5": 0},
        train_patients=("p1", "p2", "p3"),
        val_patients=("p5",),
        test_patients=("p4",),
    )
    assert about_scores(manifest) == [
        "the only validation patient has no lesion, so scores on it only tell of false lesions; name others with "
        "--val-patients",
    ]
    assert manifest.notes == ("p5_image.nii.gz: the mask is empty",)


def test_one_lesion_in_the_test_is_enough(tmp_path: Path) -> None:
    manifest = prepared(tmp_path, {"p1": 10, "p2": 20, "p3": 30, "p4": 40} | WITHOUT, test_patients=("p4", "p6", "p7"))
    assert about_scores(manifest) == []
