"""Copies of slices and patients under two names are refused or counted, whatever was done to them; honest data pass."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from paths import REAL
from PIL import Image

from wmlsearch.data.cutting import cut
from wmlsearch.data.leakage import LeakageGuard
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slice_similarity import correlations, near_matches, perceptual_hashes, slice_signatures
from wmlsearch.data.slice_writer import VolumeTask
from wmlsearch.data.sources import survey
from wmlsearch.errors import InputError
from wmlsearch.workflows.prepare import prepared_lines

NAMED: dict[str, Any] = {"train_patients": ("01", "02"), "val_patients": ("03",), "test_patients": ("04",)}
NIFTI: dict[str, Any] = {"size": 96, "plane": "axial", "jobs": 1, "keep": "all", **NAMED}
PICTURES: dict[str, Any] = {"size": 96, "jobs": 1, "patient_pattern": r"^(\d+)_", **NAMED}
NONE = {"equal": 0, "near": 0, "mirrored": 0}
HEADLINE = (
    "splits share slices, so results would look better than they are; give copies and follow-up scans of a patient the "
    "same patient id, or leave one out (--allow-leakage counts duplicates instead, and marks all results as optimistic)"
)


@pytest.fixture(scope="module")
def honest(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("honest") / "prepared"
    prepare(raw, out, PrepareOptions(**NIFTI))
    return out


def flair(raw: Path, patient: str) -> Path:
    return next((raw / f"sub-{patient}").rglob("*_FLAIR.nii.gz"))


def lesions(raw: Path, patient: str) -> Path:
    return next((raw / "derivatives").rglob(f"sub-{patient}/**/*_mask.nii.gz"))


def voxels(path: Path) -> np.ndarray:
    image: Any = nib.load(path)
    return np.array(image.dataobj[...], np.float32)


def save(path: Path, data: np.ndarray) -> None:
    nib.Nifti1Image(data, nib.load(path).affine).to_filename(path)


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def pictures(honest: Path, root: Path) -> Path:
    """The prepared slices as PNG, named by patient and slice."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
        for folder in (honest, honest / "sealed"):
            for row, picture in zip(Manifest.read(folder).slices, np.load(folder / f"{kind}.npy"), strict=True):
                grey = picture if kind == "images" else picture * 255
                Image.fromarray(grey).save(root / kind / f"{row.patient}_{row.index}.png")
    return root


def refused(raw: Path, out: Path, options: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(InputError) as error:
        prepare(raw, out, PrepareOptions(**options))
    assert error.value.headline == HEADLINE
    assert not out.exists()
    return error.value.faults


def counted(raw: Path, out: Path, options: dict[str, Any]) -> Manifest:
    manifest = prepare(raw, out, PrepareOptions(**options, allow_leakage=True))
    assert Manifest.read(out) == manifest
    assert Manifest.read(out / "sealed").certificate == manifest.certificate
    return manifest


# ------------------------------------------------------------------------------------------------- honest data pass


def test_the_certificate_says_what_was_compared(honest: Path) -> None:
    manifest = Manifest.read(honest)
    assert manifest.certificate.compared == 4 * 12
    assert manifest.certificate.duplicates == dict.fromkeys(("train/val", "train/test", "val/test"), NONE)
    assert (manifest.optimistic, manifest.certificate.note) == (False, None)
    assert "48 slices compared: no duplicates across splits" in shown(honest, manifest)


@pytest.mark.parametrize(("plane", "size", "fit"), [("sagittal", 64, "resize"), ("coronal", 32, "crop")])
def test_phantoms_pass(raw: Path, tmp_path: Path, plane: str, size: int, fit: str) -> None:
    manifest = prepare(
        raw, tmp_path / "out", PrepareOptions(plane=plane, size=size, fit=fit, keep="all", jobs=1, seed=3)
    )
    assert manifest.certificate.compared == 8 * 48
    assert not manifest.optimistic


def test_empty_slices_are_no_duplicates(raw: Path, tmp_path: Path) -> None:
    raw = shutil.copytree(raw, tmp_path / "raw")
    for patient in ("01", "03", "04"):
        image = voxels(flair(raw, patient))
        image[:, :, :2] = 0
        save(flair(raw, patient), image)
    assert not prepare(raw, tmp_path / "out", PrepareOptions(**NIFTI)).optimistic


@pytest.mark.skipif(not REAL.is_dir(), reason="the real volumes (shared/data/ms-flair) are not beside this repository")
@pytest.mark.parametrize(("plane", "size", "fit"), [("axial", 64, "crop"), ("sagittal", 128, "resize")])
def test_real_volumes_on_one_grid_pass(tmp_path: Path, plane: str, size: int, fit: str) -> None:
    options = PrepareOptions(plane=plane, size=size, fit=fit, keep="all", jobs=1)
    assert prepare(REAL, tmp_path / "out", options).certificate.compared == 3 * 182


# ------------------------------------------------------------------------------------------------- copies are refused


def test_a_volume_under_another_name(raw: Path, tmp_path: Path) -> None:
    raw = shutil.copytree(raw, tmp_path / "raw")
    shutil.copyfile(flair(raw, "01"), flair(raw, "04"))
    shutil.copyfile(lesions(raw, "01"), lesions(raw, "04"))
    files = [flair(raw, patient).relative_to(raw).as_posix() for patient in ("04", "01")]
    assert refused(raw, tmp_path / "out", NIFTI) == (
        f"patient '04' (test) and patient '01' (train): 12 equal; {files[0]} slice 0 and {files[1]} slice 0 are the "
        "most alike",
    )
    manifest = counted(raw, tmp_path / "out", NIFTI)
    assert manifest.certificate.duplicates["train/test"] == NONE | {"equal": 12}
    assert (manifest.optimistic, manifest.split_level) == (True, "patient")
    assert manifest.certificate.note == "duplicates across splits: optimistic"
    assert "48 slices compared: duplicates across splits: 12 equal of test in train" in shown(
        tmp_path / "out", manifest
    )


@pytest.mark.parametrize("quality", [50, 90])
def test_a_slice_planted_in_a_volume(raw: Path, tmp_path: Path, quality: int) -> None:
    raw = shutil.copytree(raw, tmp_path / "raw")
    other, volume = voxels(flair(raw, "02")), voxels(flair(raw, "03"))
    eight_bit = np.clip(other[:, :, 4] * (255 / other.max()), 0, 255).astype(np.uint8)
    volume[:, :, 6] = np.roll(jpeg(eight_bit, quality), (2, -1), (0, 1)) * (0.7 * volume.max() / 255)
    save(flair(raw, "03"), volume)
    (line,) = refused(raw, tmp_path / "out", NIFTI)
    names = [flair(raw, patient).relative_to(raw).as_posix() for patient in ("03", "02")]
    start = f"patient '03' (val) and patient '02' (train): 1 nearly equal; {names[0]} slice 6 and {names[1]} slice 4, "
    assert line.startswith(f"{start}correlation 0.99")


def test_pictures_planted_among_pictures(honest: Path, tmp_path: Path) -> None:
    raw = pictures(honest, tmp_path / "raw")
    original = np.array(Image.open(raw / "images/01_4.png"))
    Image.fromarray(jpeg(original, 70)).save(raw / "images/04_2.png")
    (line,) = refused(raw, tmp_path / "out", PICTURES)
    start = (
        "patient '04' (test) and patient '01' (train): 1 nearly equal; images/04_2.png and images/01_4.png, correlat"
    )
    assert line.startswith(start)
    Image.fromarray(original).save(raw / "images/03_1.png")
    Image.fromarray(original[:, ::-1]).save(raw / "images/04_3.png")
    assert counted(raw, tmp_path / "out", PICTURES).certificate.duplicates == {
        "train/val": NONE | {"equal": 1},  # the window lies elsewhere
        "train/test": NONE | {"near": 1, "mirrored": 1},
        "val/test": NONE | {"near": 1, "mirrored": 1},
    }


def test_an_image_level_split_counts(honest: Path, tmp_path: Path) -> None:
    raw = pictures(honest, tmp_path / "raw")
    for k in range(12):
        shutil.copyfile(raw / f"images/02_{k}.png", raw / f"images/01_{k}.png")
    manifest = counted(raw, tmp_path / "out", {"size": 96, "jobs": 1, "split": "image", "keep": "all"})
    assert sum(counts["equal"] for counts in manifest.certificate.duplicates.values()) >= 3
    assert manifest.certificate.note == "image-level split: optimistic"


def test_near_duplicates_are_alike_in_hash_and_correlation() -> None:
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)) for _ in range(40)]
    pictures = np.stack([np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC)) for picture in coarse])
    dimmer = (pictures[5:8] * 0.5 + 20).astype(np.uint8)
    assert {row: match.index for row, match in near_matches(pictures, dimmer).items()} == {0: 5, 1: 6, 2: 7}
    assert near_matches(pictures[:20], pictures[20:]) == {}
    apart = np.bitwise_count(perceptual_hashes(pictures[:20]) ^ perceptual_hashes(pictures[20:])).sum(axis=1)
    assert 100 < apart.mean() < 155  # of 255 bits, as chance has it
    a, b = pictures[:1].astype(float), pictures[1:2].astype(float)
    assert correlations(pictures[:1], pictures[1:2])[0][0] == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])


# ---------------------------------------------------------------------------------------- patients in two splits


def test_a_patient_in_two_parts_of_a_split_by_patient(raw: Path, honest: Path) -> None:
    manifest = Manifest.read(honest)
    source = next(s for s in survey(raw).check().sources if s.patient == "01")
    geometry = next(v for v in manifest.volumes if v.patient == "01")
    guard = LeakageGuard()
    guard.add(VolumeTask(source, geometry, [], [], []), slice_signatures(geometry, cut(source, geometry, []).images))
    two = slice_signatures(geometry, cut(source, geometry, [3, 4]).images)
    guard.add(VolumeTask(source, geometry, [3, 4], ["train", "test"], [True, True]), two)
    with pytest.raises(InputError) as error:
        guard.certify(manifest.certificate, allow_leakage=True)
    assert str(error.value) == (
        f"patient '01' is in train ({geometry.source} slice 3) and in test ({geometry.source} slice 4), "
        "but a split by patient must keep all scans together"
    )


def test_a_follow_up_under_another_spelling(tmp_path: Path, raw: Path) -> None:
    raw = shutil.copytree(raw, tmp_path / "raw")
    table = "patient,timepoint,image,mask\n"
    for name, patient in (("p1", "01"), ("p2", "02"), ("p3", "03"), ("P01 ", "04")):
        files = [path(raw, patient).relative_to(raw).as_posix() for path in (flair, lesions)]
        table += f"{name},0,{files[0]},{files[1]}\n"
    (raw / "table.csv").write_text(table)
    options = NIFTI | {"train_patients": ("p1", "p2"), "val_patients": ("p3",), "test_patients": ("P01",)}
    with pytest.raises(InputError) as error:
        prepare(raw / "table.csv", tmp_path / "out", PrepareOptions(**options))
    files = [flair(raw, patient).relative_to(raw).as_posix() for patient in ("04", "01")]
    assert str(error.value) == (
        "patients in different splits or folds have names that are likely one patient's; give all scans of a patient "
        "the same patient id, or rename one if they are two people\n"
        f"  - patients 'P01' (test, {files[0]}) and 'p1' (train, {files[1]})"
    )
    assert not (tmp_path / "out").exists()


def shown(out: Path, manifest: Manifest) -> list[str]:
    return prepared_lines(manifest, out)
