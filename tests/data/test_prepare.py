"""The whole of `prepare` on tiny cohorts: what is written, sealed, refused, and that nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nifti_files import voxels
from paths import REAL
from PIL import Image

from wmlsearch.data.cutting import cut, restore
from wmlsearch.data.manifest import Manifest, fingerprint
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.sources import survey
from wmlsearch.errors import InputError

SHAPE = (24, 28, 10)
FAST: dict[str, Any] = {"size": 32, "plane": "axial", "jobs": 1}


def volume(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid with a lesion at a place of its own; the first and last slices show next to nothing."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    rng = np.random.default_rng(seed)
    inside = (grid**2).sum(axis=0) < 0.8
    place = rng.uniform(-0.3, 0.3, (3, 1, 1, 1))
    lesion = ((grid - place) ** 2).sum(axis=0) < 0.06
    image = np.where(inside, 100 + rng.normal(0, 12, SHAPE), 0) + 80 * lesion
    return image.astype(np.float32), lesion.astype(np.uint8)


def cohort(root: Path, patients: int = 5, sessions: tuple[str, ...] = ("",)) -> Path:
    for p in range(1, patients + 1):
        for s, session in enumerate(sessions):
            image, mask = volume(10 * p + s)
            where = Path(f"sub-{p:02}", session)
            for folder, name, data in ((where / "anat", "x_FLAIR", image), ("derivatives/l" / where, "x_mask", mask)):
                (root / folder).mkdir(parents=True)
                nib.Nifti1Image(data, np.diag([-1, 1, 1, 1])).to_filename(root / folder / f"{name}.nii.gz")
    return root


def pictures(root: Path, patients: int = 4, slices: int = 5) -> Path:
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for p in range(patients):
        image, mask = volume(p)
        for k in range(slices):
            name = f"Zoë {p}_{k}.png"
            Image.fromarray(image[:, :, 3 + k].clip(0, 255).astype(np.uint8)).save(root / "images" / name)
            Image.fromarray(mask[:, :, 3 + k] * 255).save(root / "masks" / name)
    return root


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Manifest]:
    root = tmp_path_factory.mktemp("prepared")
    raw = cohort(root / "raw", 5, ("ses-0", "ses-12"))
    return raw, root / "out", prepare(raw, root / "out", PrepareOptions(**FAST))


def test_what_is_written(prepared: tuple[Path, Path, Manifest]) -> None:
    raw, out, manifest = prepared
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    test = manifest.certificate.patients["test"]
    originals = [f"sealed/originals/sub-{p}/ses-{t}/anat/x_FLAIR.nii.gz" for p in test for t in (0, 12)]
    originals += [f"sealed/originals/derivatives/l/sub-{p}/ses-{t}/x_mask.nii.gz" for p in test for t in (0, 12)]
    plain = ["contact_sheet.png", "description.html", "images.npy", "manifest.json", "masks.npy"]
    plain += [f"sealed/{name}" for name in ("images.npy", "manifest.json", "masks.npy", "seal.jsonl")]
    assert names == sorted(plain + originals)
    for name in originals:
        assert (out / name).read_bytes() == (raw / name.removeprefix("sealed/originals/")).read_bytes()
    assert (out / "sealed/seal.jsonl").read_bytes() == b""
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.size[0] >= 480
    assert str(raw.parent) not in (out / "manifest.json").read_text()
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "raw"]


def test_rows_describe_the_arrays(prepared: tuple[Path, Path, Manifest]) -> None:
    _, out, manifest = prepared
    images, masks = (np.load(out / name, mmap_mode="r") for name in ("images.npy", "masks.npy"))
    assert images.shape == masks.shape == (len(manifest.slices), 32, 32)
    assert images.dtype == masks.dtype == np.uint8
    assert set(np.unique(masks)) == {0, 1}
    assert [int(mask.sum()) for mask in masks] == [row.lesion_pixels for row in manifest.slices]
    assert len({row.checksum for row in manifest.slices if row.kept}) == sum(row.kept for row in manifest.slices)
    for row in manifest.slices:
        geometry = manifest.volumes[row.volume]
        assert (geometry.patient, geometry.timepoint, geometry.source) == (row.patient, row.timepoint, row.source)
        assert manifest.certificate.patients[row.split]
        assert row.patient in manifest.certificate.patients[row.split]


def test_the_test_patients_are_in_the_sealed_folder_alone(prepared: tuple[Path, Path, Manifest]) -> None:
    _, out, manifest = prepared
    sealed = Manifest.read(out / "sealed")
    sealed.verify(out / "sealed")
    patients = {split: set(names) for split, names in manifest.certificate.patients.items()}
    assert {len(names) for names in patients.values()} == {1, 2}
    assert len(set().union(*patients.values())) == 5
    assert {row.patient for row in sealed.slices} == patients["test"] == {v.patient for v in sealed.volumes}
    assert {row.patient for row in manifest.slices} == patients["train"] | patients["val"]
    assert {v.patient for v in manifest.volumes} == patients["train"] | patients["val"]
    assert {row.split for row in sealed.slices} == {"test"}
    assert "test" not in {row.split for row in manifest.slices}


def test_what_may_be_validated_or_tested_keeps_all_slices(
    prepared: tuple[Path, Path, Manifest], tmp_path: Path
) -> None:
    manifest = prepared[2]
    alone = prepare(prepared[0], tmp_path / "out", PrepareOptions(**FAST, folds=1))
    assert alone.folds == ()
    assert all(alone.slices[i].kept for i in alone.indices("train", kept_only=False))
    assert len(alone.indices("val", kept_only=False)) == 2 * 10
    every, kept = manifest.indices("val", kept_only=False), manifest.indices("val", kept_only=True)
    assert len(every) == 2 * 10 > len(kept) > 0
    assert len(manifest.indices("train", kept_only=False)) == 4 * 10, "a run of another fold validates on them"
    assert manifest.counts["train"].kept == len(manifest.indices("train", kept_only=True)) == 4 * 8
    assert set(kept) < set(every)
    assert [manifest.slices[i].index for i in every] == [*range(10), *range(10)]
    counts = manifest.counts
    assert {s: c.timepoints for s, c in counts.items()} == {"train": 4, "val": 2, "test": 4}
    assert counts["test"].slices == 40
    assert counts["val"].kept == len(kept)
    share = sum(manifest.slices[i].lesion_pixels for i in kept) / (len(kept) * 32 * 32)
    assert counts["val"].lesion_share == pytest.approx(share)


def test_stored_masks_go_back_onto_the_input(prepared: tuple[Path, Path, Manifest]) -> None:
    raw, out, manifest = prepared
    rows = manifest.indices("val", kept_only=False)[:10]
    geometry = manifest.volumes[manifest.slices[rows[0]].volume]
    truth = voxels(raw / geometry.masks[0])
    assert np.array_equal(restore(np.load(out / "masks.npy")[rows], geometry), truth)


def test_manifest_round_trip_and_damage(prepared: tuple[Path, Path, Manifest], tmp_path: Path) -> None:
    _, out, manifest = prepared
    assert Manifest.read(out) == manifest
    manifest.verify(out)
    assert manifest.fingerprint == fingerprint(manifest.slices, manifest.certificate)
    for name in ("images.npy", "masks.npy", "manifest.json"):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    data = bytearray((tmp_path / "masks.npy").read_bytes())
    data[-1] ^= 1
    (tmp_path / "masks.npy").write_bytes(data)
    with pytest.raises(InputError) as error:
        Manifest.read(tmp_path).verify(tmp_path)
    assert error.value.faults == (
        "masks.npy: is damaged, its checksum is not the manifest's; make it again with `wmlsearch prepare`",
    )
    text = (tmp_path / "manifest.json").read_text()
    for bad, words in {
        text[:500]: "is damaged",
        text.replace('"size": 32', '"size": "32"', 1): r"is damaged \(size: '32' is not of type int\)",
        text.replace('"fit"', '"fat"', 1): "missing or unknown fields: fat, fit",
        text.replace(
            '"format": 4', '"format": 1'
        ): "format must be 2, 3 or 4, but is 1; make it again with `wmlsearch prepare`",
        "[]": "is damaged",
    }.items():
        (tmp_path / "manifest.json").write_text(bad)
        with pytest.raises(InputError, match=words):
            Manifest.read(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"not a prepared data set, manifest\.json is missing; make it again"):
        Manifest.read(tmp_path)
    with pytest.raises(InputError, match="no such folder; make it with `wmlsearch prepare RAW "):
        Manifest.read(tmp_path / "nowhere")


def test_two_processes_write_the_same_and_another_seed_does_not(
    prepared: tuple[Path, Path, Manifest], tmp_path: Path
) -> None:
    raw, out, manifest = prepared
    calls: list[tuple[str, int, int]] = []
    again = prepare(raw, tmp_path / "a", PrepareOptions(**{**FAST, "jobs": 2}), lambda *call: calls.append(call))
    assert again == manifest
    assert (tmp_path / "a/manifest.json").read_bytes() == (out / "manifest.json").read_bytes()
    assert calls == [(stage, n, 10) for stage in ("reading", "cutting") for n in range(11)]
    assert prepare(raw, tmp_path / "b", PrepareOptions(**FAST, seed=1)).fingerprint != manifest.fingerprint


def test_fixed_patients_and_those_left_out(prepared: tuple[Path, Path, Manifest], tmp_path: Path) -> None:
    options = PrepareOptions(**FAST, train_patients=("sub-01",), val_patients=("02",), test_patients=("03",))
    manifest = prepare(prepared[0], tmp_path / "out", options)
    assert manifest.certificate.patients == {"train": ("01",), "val": ("02",), "test": ("03",)}
    assert manifest.certificate.left_out == ("04", "05")
    assert {v.patient for v in manifest.volumes} == {"01", "02"}


@pytest.mark.parametrize("keep", ["all", "brain", "lesion"])
def test_keep(tmp_path: Path, keep: str) -> None:
    raw = cohort(tmp_path / "raw", 3)
    manifest = prepare(raw, tmp_path / "out", PrepareOptions(**FAST, keep=keep))
    source = next(s for s in survey(raw).check().sources if s.patient in manifest.certificate.patients["train"])
    annotated = np.flatnonzero(voxels(source.mask[0]).any(axis=(0, 1))).tolist()
    wanted = {"all": list(range(10)), "brain": list(range(1, 9)), "lesion": annotated}[keep]
    assert [manifest.slices[i].index for i in manifest.indices("train", kept_only=True)] == wanted


def test_paper_protocol_and_image_level_split(tmp_path: Path) -> None:
    raw = cohort(tmp_path / "raw", 3)
    manifest = prepare(raw, tmp_path / "out", PrepareOptions(size=32, protocol="paper"))
    assert (manifest.folds, manifest.fold_count) == ((), 1)
    assert (manifest.plane, manifest.axis, manifest.keep, manifest.protocol) == ("sagittal", 0, "lesion", "paper")
    assert manifest.optimistic
    assert manifest.split_level == "image"
    assert manifest.certificate.note == "image-level split: optimistic"
    counts = {split: c.slices for split, c in manifest.counts.items()}
    n = sum(counts.values())
    assert counts["test"] == -(-3 * n // 10)
    assert counts["val"] == max(1, (n - counts["test"]) // 10)
    assert all(row.kept and row.lesion_pixels for row in manifest.slices)
    assert not (tmp_path / "out/sealed/originals").exists()
    others = {(row.source, row.index) for row in manifest.slices}
    sealed = {(row.source, row.index) for row in Manifest.read(tmp_path / "out/sealed").slices}
    assert not others & sealed
    assert len(others | sealed) == n


def test_pictures_by_patient(tmp_path: Path) -> None:
    raw = pictures(tmp_path / "raw")
    options = PrepareOptions(size=32, jobs=1, patient_pattern=r"^(Zoë \d)_", test_patients=("Zoë 3",))
    manifest = prepare(raw, tmp_path / "out", options)
    assert manifest.plane == "image"
    assert manifest.axis is None
    assert manifest.spacing_mm is None
    assert manifest.certificate.patients["test"] == ("Zoë 3",)
    assert (tmp_path / "out/sealed/originals/images/Zoë 3_0.png").is_file()
    row = manifest.slices[1]
    with Image.open(raw / row.source) as image:
        picture = np.asarray(image)
    top, left = manifest.volumes[row.volume].window
    stored = np.load(tmp_path / "out/images.npy")[1]
    assert np.array_equal(stored[-top : 24 - top, -left : 28 - left], picture)


def test_pictures_without_patients_are_split_by_image(tmp_path: Path) -> None:
    raw = pictures(tmp_path / "raw")
    with pytest.raises(InputError) as error:
        prepare(raw, tmp_path / "out", PrepareOptions(size=32))
    assert str(error.value).startswith(
        "a split by patient needs each image's patient; give --patient-pattern REGEX (its group is the patient in the "
        "file name, such as '^(p[0-9]+)_'), fill the table's patient column, or split by image\n"
        "  - images/Zoë 0_0.png: no patient\n"
    )
    manifest = prepare(raw, tmp_path / "out", PrepareOptions(size=32, jobs=1, split="image", allow_leakage=True))
    assert {s: c.slices for s, c in manifest.counts.items()} == {"train": 13, "val": 1, "test": 6}
    assert manifest.certificate.patients == {"train": (), "val": (), "test": ()}
    assert manifest.optimistic


def test_lesion_pixels_that_are_cut_off_are_counted(tmp_path: Path) -> None:
    raw = cohort(tmp_path / "raw", 3)
    for path in raw.rglob("*_mask.nii.gz"):
        mask = voxels(path)
        mask[2:4, 14, 5] = 1  # at the edge of the head
        nib.Nifti1Image(mask, np.diag([-1, 1, 1, 1])).to_filename(path)
    manifest = prepare(raw, tmp_path / "out", PrepareOptions(**{**FAST, "size": 16}))
    total = sum(int(voxels(s.mask[0]).sum()) for s in survey(raw).check().sources)
    lost = sum(c.lost_lesion_pixels for c in manifest.counts.values())
    assert lost == 6
    assert sum(c.lesion_pixels for c in manifest.counts.values()) + lost == total
    assert manifest.warnings[0].startswith(f"the window cuts off {lost} of {total} lesion pixels (")
    lost_of_each = "01 4.3 %, 02 4.3 %, 03 4.3 %"
    assert manifest.warnings[0].endswith(f"): {lost_of_each}; take --size 32, which loses none, or --fit resize")
    assert all(v.lost_lesion_pixels == 2 for v in manifest.volumes)
    assert not prepare(raw, tmp_path / "fits", PrepareOptions(**{**FAST, "size": 16}, fit="resize")).warnings


def test_volumes_of_different_spacing_meet_at_the_median(tmp_path: Path) -> None:
    raw = cohort(tmp_path / "raw", 3)
    for path in raw.rglob("*.nii.gz"):
        if "sub-02" in str(path):
            nib.Nifti1Image(voxels(path), np.diag([-0.5, 0.5, 1, 1])).to_filename(path)
    manifest = prepare(raw, tmp_path / "out", PrepareOptions(**FAST, val_patients=("02",), test_patients=("03",)))
    assert manifest.spacing_mm == 1.0
    by_patient = {v.patient: v for v in manifest.volumes}
    assert by_patient["01"].scale == (1, 1)
    assert by_patient["02"].scale == (0.5, 0.5)


# -- faults


def test_faults_of_all_files_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    raw = cohort(tmp_path / "raw", 5)
    flair, mask = "sub-{}/anat/x_FLAIR.nii.gz", "derivatives/l/sub-{}/x_mask.nii.gz"
    (raw / flair.format("01")).write_bytes(b"")
    nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).to_filename(raw / mask.format("02"))
    nib.Nifti1Image(np.zeros(SHAPE, np.float32), np.diag([-1, 1, 1, 1])).to_filename(raw / flair.format("03"))
    with pytest.raises(InputError) as error:
        prepare(raw, tmp_path / "out", PrepareOptions(**FAST))
    first, *rest = error.value.faults
    assert error.value.headline == f"{raw}: 3 faults, nothing was written"
    assert first.startswith("sub-01/anat/x_FLAIR.nii.gz: cannot be read (")
    assert rest == [
        "derivatives/l/sub-02/x_mask.nii.gz: shape must be that of sub-02/anat/x_FLAIR.nii.gz, (24, 28, 10), "
        "but is (4, 4, 4); resample the mask",
        "sub-03/anat/x_FLAIR.nii.gz: the FLAIR is empty, every voxel is 0; leave it out or replace it",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_likely_mistakes(prepared: tuple[Path, Path, Manifest], tmp_path: Path) -> None:
    raw, out, _ = prepared
    with pytest.raises(InputError) as error:
        prepare(raw, out, PrepareOptions(**FAST))
    assert str(error.value) == f"{out}: exists already and is not an empty folder; name another OUT or remove it"
    with pytest.raises(InputError) as error:
        prepare(cohort(tmp_path / "two", 2), tmp_path / "out", PrepareOptions(**FAST))
    assert str(error.value) == (
        "too few patients for a split: train, validation and test need at least 1 each, 3 together, "
        "but got 2 (01, 02); add patients"
    )
    with pytest.raises(InputError) as error:
        prepare(raw, tmp_path / "out", PrepareOptions(**FAST, test_patients=("1",)))
    assert error.value.faults == (
        "--test-patients: no patient '1' in the data; did you mean '01'? the data have 01, 02, 03, 04, 05",
    )
    with pytest.raises(InputError, match=r"--plane native needs thick slices"):
        prepare(raw, tmp_path / "out", PrepareOptions(plane="native"))
    for path in (tmp_path / "two").rglob("*_mask.nii.gz"):
        nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.diag([-1, 1, 1, 1])).to_filename(path)
    options = PrepareOptions(**FAST, split="image", allow_leakage=True)
    with pytest.raises(InputError, match="no mask has a lesion, so there is nothing to learn"):
        prepare(tmp_path / "two", tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_options_are_checked_at_birth() -> None:
    with pytest.raises(InputError) as error:
        PrepareOptions(split="image")
    assert str(error.value) == (
        "the options do not fit together\n"
        "  - --split image puts slices of one patient into train and test, so results look better than they are "
        "(leakage); split by patient, or add --allow-leakage to do it and have it marked everywhere"
    )
    with pytest.raises(InputError) as error:
        PrepareOptions(plane="front", size=7, protocol="paper", keep="all", mask_threshold=float("nan"), jobs=0)
    assert error.value.faults == (
        "--protocol paper means --plane sagittal, but got --plane front; drop one",
        "--protocol paper means --keep lesion, but got --keep all; drop one",
        "--plane must be one of sagittal, coronal, axial, native, but got 'front'",
        "--size must be a whole number from 16 to 4096, but got 7",
        "--jobs must be a whole number from 1 to 1024, but got 0",
        "--mask-threshold must be a finite number, but got nan",
    )
    paper = PrepareOptions(protocol="paper")
    assert (paper.plane, paper.keep, paper.split, paper.allow_leakage) == ("sagittal", "lesion", "image", True)
    assert PrepareOptions().keep == "brain"
    assert PrepareOptions().split == "patient"


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError])
def test_nothing_is_left_when_it_is_stopped(
    prepared: tuple[Path, Path, Manifest], tmp_path: Path, failure: type[BaseException] | BaseException
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("cutting", 4):
            assert list((tmp_path / "deep/er").iterdir())  # something was there
            raise failure

    wanted = OSError if isinstance(failure, OSError) else failure
    with pytest.raises(wanted) as error:
        prepare(prepared[0], tmp_path / "deep/er/out", PrepareOptions(**FAST), stop)
    assert list(tmp_path.iterdir()) == []
    if wanted is OSError:
        assert str(error.value).endswith(f"No space left on device; nothing was left there: '{tmp_path}/deep/er/out'")


def test_an_empty_out_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "o u't é").mkdir()
    manifest = prepare(cohort(tmp_path / "raw é", 3), tmp_path / "o u't é", PrepareOptions(**FAST))
    assert Manifest.read(tmp_path / "o u't é") == manifest


@pytest.mark.skipif(not REAL.is_dir(), reason="the real volumes (shared/data/ms-flair) are not beside this repository")
def test_real_volumes(tmp_path: Path) -> None:
    options = PrepareOptions(plane="axial", train_patients=("19",), val_patients=("26",), test_patients=("07",))
    manifest = prepare(REAL, tmp_path / "out", options)
    sealed = Manifest.read(tmp_path / "out/sealed")
    rows = [*manifest.slices, *sealed.slices]
    lesions = {
        p: tuple(
            sum(value for value in values)
            for values in zip(*((r.lesion_pixels, r.lesion_pixels > 0, r.lesion_pixels >= 10)
                                for r in rows if r.patient == p), strict=True)
        )
        for p in ("07", "19", "26")
    }  # fmt: skip
    assert lesions == {"07": (1300, 74, 48), "19": (49769, 87, 85), "26": (8227, 54, 45)}  # as its README says
    assert manifest.spacing_mm == 1.0
    assert not manifest.warnings
    source = next(s for s in survey(REAL).check().sources if s.patient == "07")
    geometry = sealed.volumes[0]
    truth = voxels(source.mask[0])
    assert np.array_equal(restore(cut(source, geometry).masks, geometry), truth)
