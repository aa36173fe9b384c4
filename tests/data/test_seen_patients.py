"""Test patients that a model has seen are refused, however they are prepared or stored; an equal id alone is not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nifti_files import cohort, voxels
from paths import REPOSITORY
from PIL import Image

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.manifest import IMAGES, MANIFEST, SEALED, Manifest
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.sealed_test import openings
from wmlsearch.data.seen_patients import check_unseen
from wmlsearch.data.slices import PreparedData
from wmlsearch.errors import InputError
from wmlsearch.runs.schema import FolderRecord
from wmlsearch.workflows.provenance import certificate_record, data_record, run_record

OLD = REPOSITORY / "tests/old_files/prepared"
TRAINED: dict[str, Any] = {"size": 32, "plane": "axial", "jobs": 1}
OTHERWISE = [
    {"size": 32, "plane": "axial"},
    {"size": 48, "plane": "sagittal"},
    {"size": 64, "plane": "coronal", "fit": "resize"},
]


def record_of(data: Path) -> FolderRecord:
    """What a training on these data records."""
    prepared = PreparedData.open(data)
    record = run_record("r", "train", TrialConfig(), RunSettings(), data_record(data, prepared))
    return record.model_copy(update={"data_path": str(data), "certificate": certificate_record(prepared.manifest)})


@pytest.fixture
def training(tmp_path: Path) -> FolderRecord:
    """A model trained on a and b, and tested on t."""
    raw = cohort(tmp_path / "raw", {"a": 50, "b": 40, "t": 30})
    prepare(raw, tmp_path / "trained", PrepareOptions(**TRAINED, test_patients=("t",)))
    return record_of(tmp_path / "trained")


def other_data(tmp_path: Path, change: Callable[[Path], None], options: dict[str, Any] | None = None) -> Path:
    """Prepared data with a sealed patient x, who has the image of a with a change; nobody has seen the others."""
    raw = cohort(tmp_path / "raw2", {"p": 20, "q": 20, "r": 20, "s": 20, "v": 20, "w": 20, "x": 50})
    for name in "pqrsvw":  # not those of the training
        image = voxels(raw.parent / f"{name}_image.nii.gz")
        save(raw.parent / f"{name}_image.nii.gz", image[:, ::-1, ::-1] ** 1.5)
    for kind in "image", "mask":
        shutil.copyfile(tmp_path / f"raw/a_{kind}.nii.gz", raw.parent / f"x_{kind}.nii.gz")
    change(raw.parent / "x_image.nii.gz")
    prepare(raw, tmp_path / "data", PrepareOptions(**(TRAINED | (options or {})), test_patients=("x", "w")))
    return tmp_path / "data"


def save(path: Path, array: np.ndarray, mm: tuple[float, ...] = (2, 2, 3)) -> None:
    nib.Nifti1Image(array, np.diag([*mm, 1])).to_filename(path)


def nothing(path: Path) -> None:
    """Leave the image as it is."""


def stored_otherwise(path: Path) -> None:
    """Store the same voxels in another order, as another type and with another header."""
    for file in path, path.with_name("x_mask.nii.gz"):
        image: Any = nib.load(file)
        turned = image.as_reoriented(nib.orientations.axcodes2ornt("PLS"))
        plain: Any = nib.Nifti1Image(np.asarray(turned.dataobj, np.float64), turned.affine)
        plain.header["descrip"] = b"copy"
        plain.to_filename(file)


def refused(training: FolderRecord, data: Path) -> tuple[str, ...]:
    before = openings(data)
    with pytest.raises(InputError) as error:
        check_unseen(training, data)
    assert error.value.headline == (
        f"{data}: some of its test patients are training or validation patients of {training.data_path}, so the test "
        "would be meaningless; prepare it without them"
    )
    assert openings(data) == before, "the sealed test is not opened"
    return error.value.faults


@pytest.mark.parametrize("options", OTHERWISE, ids=lambda options: options["plane"])
@pytest.mark.parametrize("change", [nothing, stored_otherwise])
def test_the_same_voxels(
    training: FolderRecord, tmp_path: Path, change: Callable[[Path], None], options: dict[str, Any]
) -> None:
    data = other_data(tmp_path, change, options)
    same = "patient 'x' (x_image.nii.gz): the same image as that of patient 'a' (a_image.nii.gz)"
    assert refused(training, data) == (same,)


def brighter(path: Path) -> None:
    save(path, voxels(path) * 3)


def mirrored(path: Path) -> None:
    save(path, voxels(path)[::-1])


def one_slice(path: Path) -> None:
    image = voxels(path)
    image[:, :, [1, 2, 4, 5]] = np.random.default_rng(99).permuted(image[:, :, [1, 2, 4, 5]])
    save(path, image)


@pytest.mark.parametrize("options", OTHERWISE, ids=lambda options: options["plane"])
@pytest.mark.parametrize(
    ("change", "kind"), [(brighter, "5 equal"), (mirrored, "5 nearly equal when mirrored"), (one_slice, "1 ")]
)
def test_changed_copies_by_their_slices(
    training: FolderRecord, tmp_path: Path, change: Callable[[Path], None], kind: str, options: dict[str, Any]
) -> None:
    (line,) = refused(training, other_data(tmp_path, change, options))
    assert line.startswith("patient 'x' (test) and patient 'a' (fold "), line
    assert f"): {kind}" in line


def test_others_pass_and_an_equal_id_is_a_warning(training: FolderRecord, tmp_path: Path) -> None:
    raw = cohort(tmp_path / "raw2", dict.fromkeys("uvwxyab", 20))
    options = PrepareOptions(**TRAINED, test_patients=("a", "x"))
    prepare(raw, tmp_path / "data", options)
    for name in "uvw":  # have the images of a, b and t, but are not sealed
        assert name not in Manifest.read(tmp_path / "data/sealed").certificate.patients["test"]
    assert check_unseen(training, tmp_path / "data") == [
        "warning: test patients a have the ids of training or validation patients; make sure that they are other people"
    ]


def test_the_own_sealed_patient_prepared_again_passes(training: FolderRecord, tmp_path: Path) -> None:
    again = PrepareOptions(size=48, plane="axial", jobs=1, test_patients=("t",))
    prepare(tmp_path / "raw/cohort.csv", tmp_path / "again", again)
    assert check_unseen(training, tmp_path / "again") == []


def test_training_data_that_are_gone(training: FolderRecord, tmp_path: Path) -> None:
    data = other_data(tmp_path, nothing)
    prepare(tmp_path / "raw2/cohort.csv", tmp_path / "unseen", PrepareOptions(**TRAINED, test_patients=("w",)))
    shutil.rmtree(tmp_path / "trained")
    line = "patient 'x' (x_image.nii.gz): the same image as that of a training or validation patient"
    assert refused(training, data) == (line,)
    gone = (
        f"warning: {tmp_path}/trained does not hold the training data any more, so whether the test patients were seen"
    )
    assert check_unseen(training, tmp_path / "unseen") == [
        f"{gone} in training is checked by checksums of whole images only"
    ]
    shutil.copytree(tmp_path / "unseen", tmp_path / "trained")  # another data set under the same name
    assert refused(training, data) == (line,)
    old = training.model_copy(update={"certificate": None})
    assert check_unseen(old, data) == [f"{gone} in training is checked by patient ids only"]


def test_damaged_training_data_are_no_reason_to_refuse(training: FolderRecord, tmp_path: Path) -> None:
    data = other_data(tmp_path, brighter)
    (tmp_path / "trained" / IMAGES).write_bytes(b"")
    (warning,) = check_unseen(training, data)
    assert "does not hold the training data any more" in warning


def test_pictures(tmp_path: Path) -> None:
    """Pictures are compared as they are stored, since they are not cut anew."""
    for root, names in (("raw", "abt"), ("raw2", "uvwa")):
        for number, name in enumerate(names):
            for kind in "images", "masks":
                (tmp_path / root / kind).mkdir(parents=True, exist_ok=True)
                grey = np.random.default_rng([ord(name), 1]).integers(60, 250, (20, 20), np.uint8)
                mask = np.zeros_like(grey)
                mask[8:12, 8:12] = 255
                shown = np.pad(grey if kind == "images" else mask, 4 + 2 * number)
                Image.fromarray(shown).save(tmp_path / root / kind / f"{name}_1.png")
    given: dict[str, Any] = {"jobs": 1, "patient_pattern": "^(.)_"}
    prepare(tmp_path / "raw", tmp_path / "trained", PrepareOptions(size=32, **given, test_patients=("t",)))
    prepare(tmp_path / "raw2", tmp_path / "data", PrepareOptions(size=48, **given, test_patients=("a",)))
    (line,) = refused(record_of(tmp_path / "trained"), tmp_path / "data")
    assert re.sub(r"fold \d", "fold", line) == (
        "patient 'a' (test) and patient 'a' (fold): 1 equal; images/a_1.png and images/a_1.png"
    )


# ------------------------------------------------------------------------------------------------------- old data


def as_format_2(folder: Path) -> None:
    """Take from the manifests what was not in them before there were folds."""
    for path in (folder / MANIFEST, folder / SEALED / MANIFEST):
        fields = json.loads(path.read_text())
        del fields["certificate"]["folds"]
        for volume in fields["volumes"]:
            del volume["voxels_sha256"]
        path.write_text(json.dumps(fields | {"format": 2}))


def test_training_data_of_format_2(tmp_path: Path) -> None:
    raw = cohort(tmp_path / "raw", {"a": 50, "b": 40, "t": 30})
    prepare(raw, tmp_path / "trained", PrepareOptions(**TRAINED, test_patients=("t",), folds=1))
    as_format_2(tmp_path / "trained")
    record = record_of(tmp_path / "trained")
    assert record.certificate is not None
    assert record.certificate.voxels_sha256 == []
    (line,) = refused(record, other_data(tmp_path, stored_otherwise, OTHERWISE[1]))
    assert line.startswith("patient 'x' (test) and patient 'a' (")
    assert "): 5 equal; x_image.nii.gz slice " in line


def test_committed_data_of_format_2(tmp_path: Path) -> None:
    """The sealed patients of old data, which another model has been trained on."""
    raw = OLD / "sealed/originals"
    prepare(raw, tmp_path / "trained", PrepareOptions(size=48, plane="sagittal", jobs=1, test_patients=("03",)))
    lines = refused(record_of(tmp_path / "trained"), OLD)
    file = "sub-{0}/ses-1/anat/sub-{0}_ses-1_FLAIR.nii.gz"
    assert lines == tuple(
        f"patient '{name}' ({file.format(name)}): the same image as that of patient '{name}' ({file.format(name)})"
        for name in ("05", "08", "10")
    )
    assert check_unseen(record_of(OLD), tmp_path / "trained") == []
