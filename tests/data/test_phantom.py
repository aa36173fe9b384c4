"""The phantom: the same seed is the same bytes, its lesions are where and as large as lesions are, thresholds fail."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from wmlsearch.data.phantom import PARTICIPANT_COLUMNS, write_phantom
from wmlsearch.data.phantom_anatomy import Head
from wmlsearch.data.phantom_lesions import (
    EASY_LESIONS,
    HARD_LESIONS,
    ML_PER_AXES,
    Lesion,
    LesionLaws,
    draw_lesions,
)
from wmlsearch.data.phantom_scanner import Grid, render_head
from wmlsearch.errors import InputError

SHAPE = (64, 64, 12)  # 3 x 3 x 12 mm
ML = 3 * 3 * 12 / 1000


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def volume(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "raw", patients=3, shape=SHAPE)


@pytest.fixture(scope="module")
def scans(cohort: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`sub-01_ses-1` -> (FLAIR, mask)."""
    scans_by_name = {}
    for path in sorted(cohort.glob("sub-*/ses-*/anat/*_FLAIR.nii.gz")):
        name = path.name.removesuffix("_FLAIR.nii.gz")
        mask = cohort / "derivatives" / "lesions" / path.relative_to(cohort).parent / f"{name}_label-lesion_mask.nii.gz"
        scans_by_name[name] = volume(path), volume(mask) == 1
    return scans_by_name


@pytest.fixture(scope="module")
def brains() -> list[np.ndarray]:
    """By patient, the voxels of which at least half is brain."""
    grid = Grid(SHAPE)
    return [render_head(Head(np.random.default_rng([0, number, 0])), grid)[1] >= 0.5 for number in range(1, 4)]


def test_same_seed_same_bytes_and_a_patient_does_not_depend_on_the_others(tmp_path: Path) -> None:
    small = (32, 32, 8)
    two = files(write_phantom(tmp_path / "two", patients=2, shape=small, seed=3))
    again = files(write_phantom(tmp_path / "again", patients=2, shape=small, seed=3))
    one = files(write_phantom(tmp_path / "one", patients=1, timepoints=1, shape=small, seed=3))
    other = files(write_phantom(tmp_path / "other", patients=1, shape=small, seed=4))
    assert two == again
    first = [name for name in one if name.endswith(".nii.gz")]
    assert len(first) == 2
    assert all(one[name] == two[name] and one[name] != other[name] for name in first if "FLAIR" in name)
    assert all(one[name] == two[name] for name in first)
    assert two["sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz"] != two["sub-02/ses-1/anat/sub-02_ses-1_FLAIR.nii.gz"]


def test_the_easy_cohort_is_that_of_earlier_versions(tmp_path: Path) -> None:
    digest = hashlib.sha256()
    for name, content in files(write_phantom(tmp_path / "raw", patients=2, shape=(32, 32, 8), seed=3)).items():
        digest.update(name.encode() + content)
    assert digest.hexdigest() == "e4b11d97c8cd987d3261e9c17d4a473835a2d0d5dd0216484d02cea2d6e64496"


def test_scanners_and_lesions_of_the_hard_cohort(tmp_path: Path) -> None:
    shape, patients = (32, 32, 8), 6
    hard = write_phantom(tmp_path / "hard", patients=patients, timepoints=1, shape=shape, cohort="hard")
    assert "--seed 0 --cohort hard" in (hard / "README").read_text()
    header, *lines = (hard / "participants.tsv").read_text().splitlines()
    assert header.endswith("\tscanner")
    assert set(json.loads((hard / "participants.json").read_text())) == {"scanner", *PARTICIPANT_COLUMNS}
    brightest: dict[str, list[float]] = {"A": [], "B": [], "C": []}
    for line in lines:
        patient, *_, scanner = line.split("\t")
        image = volume(hard / patient / "ses-1" / "anat" / f"{patient}_ses-1_FLAIR.nii.gz")
        brightest[scanner].append(float(np.quantile(image, 0.9)))
    units = {scanner: np.median(values) for scanner, values in brightest.items() if values}
    assert len(units) >= 2
    assert max(units.values()) > 1.5 * min(units.values()), "scanners differ in intensity"
    easy = write_phantom(tmp_path / "easy", patients=1, timepoints=1, shape=shape)
    assert "--cohort" not in (easy / "README").read_text()
    with pytest.raises(InputError, match="cohort: must be easy or hard, but got 'harder'"):
        write_phantom(tmp_path / "harder", cohort="harder")


def test_lesions_of_the_hard_cohort_are_small_and_faint() -> None:
    head = Head(np.random.default_rng([0, 1, 0]))

    def drawn(laws: LesionLaws) -> list[Lesion]:
        return draw_lesions(np.random.default_rng([0, 1, 1]), head, 1.0, laws)

    easy, hard = drawn(EASY_LESIONS), drawn(HARD_LESIONS)
    diameters = [
        [2 * float(np.prod(np.linalg.norm(each.axes, axis=1)) ** (1 / 3)) for each in them] for them in (easy, hard)
    ]
    assert min(diameters[1]) < 4 < min(diameters[0])
    assert np.median(diameters[1]) < np.median(diameters[0])
    assert max(each.contrast for each in hard) <= 0.6
    look_alikes = Head(np.random.default_rng([0, 1, 0]))
    look_alikes.add_look_alikes(np.random.default_rng([0, 1, 5]))
    assert len(look_alikes.vessels) > 2 * len(head.vessels)
    assert look_alikes.pial_rim > head.pial_rim


def test_the_files_are_bids(cohort: Path) -> None:
    assert len(list(cohort.rglob("*.nii.gz"))) == 3 * 2 * 2
    image = nib.load(cohort / "sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz")
    mask = nib.load(cohort / "derivatives/lesions/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz")
    assert image.shape == mask.shape == SHAPE
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(image.affine, mask.affine)
    np.testing.assert_allclose(image.header.get_zooms(), (3, 3, 12))
    assert (image.get_data_dtype(), mask.get_data_dtype()) == (np.int16, np.uint8)
    assert set(np.unique(np.asarray(mask.dataobj))) == {0, 1}
    assert json.loads((cohort / "dataset_description.json").read_text())["DatasetType"] == "raw"
    derived = json.loads((cohort / "derivatives/lesions/dataset_description.json").read_text())
    assert derived["GeneratedBy"][0]["Name"] == "wmlsearch phantom"
    columns = json.loads((cohort / "participants.json").read_text())
    assert ["participant_id", *columns] == (cohort / "participants.tsv").read_text().splitlines()[0].split("\t")
    assert "--timepoints 2 --shape" in (cohort / "README").read_text(), "the command that writes the data again"
    rows = (cohort / "participants.tsv").read_text().splitlines()
    assert rows[0].startswith("participant_id\t")
    assert [row.split("\t")[0] for row in rows[1:]] == [f"sub-{number:02d}" for number in range(1, 4)]
    assert [path.name for path in cohort.parent.iterdir()] == ["raw"]  # the temporary folder is gone


def test_the_head_is_in_the_picture_and_the_air_is_dark(scans: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    for image, _ in scans.values():
        assert image.min() >= 0
        border = np.concatenate([image[:2].ravel(), image[-2:].ravel(), image[:, :2].ravel(), image[:, -2:].ravel()])
        assert np.median(border) < 0.1 * np.percentile(image, 95)
    scales = [np.percentile(image, 90) for image, _ in scans.values()]
    assert max(scales) > 1.3 * min(scales)  # arbitrary units


def test_every_grid_shows_the_same_head() -> None:
    head = Head(np.random.default_rng([0, 1, 0]))
    fine, coarse = (render_head(head, Grid(shape))[0] for shape in ((64, 64, 16), (32, 32, 8)))
    np.testing.assert_allclose(fine.reshape(32, 2, 32, 2, 8, 2).mean((1, 3, 5)), coarse, atol=0.35)
    assert np.corrcoef(fine.reshape(32, 2, 32, 2, 8, 2).mean((1, 3, 5)).ravel(), coarse.ravel())[0, 1] > 0.98


def test_the_load_is_heavy_tailed() -> None:
    loads = []
    for number in range(1, 17):
        head = Head(np.random.default_rng([0, number, 0]))
        lesions = draw_lesions(np.random.default_rng([0, number, 1]), head, 1.0)
        loads.append(sum(ML_PER_AXES * np.prod(np.linalg.norm(lesion.axes, axis=1)) for lesion in lesions))
        assert 1 <= len(lesions) <= 200
    assert 6 < np.median(loads) < 28
    assert min(loads) < 4
    assert 30 < max(loads) < 60
    assert max(loads) > 2 * np.median(loads) > 6 * min(loads)


def test_larger_lesions_are_fewer_for_the_same_load() -> None:
    head = Head(np.random.default_rng([0, 1, 0]))
    usual, large = (draw_lesions(np.random.default_rng([0, 1, 1]), head, size) for size in (1.0, 2.0))

    def half_axes(lesions: list[Lesion]) -> np.ndarray:
        return np.array([np.linalg.norm(lesion.axes, axis=1) for lesion in lesions])

    assert np.median(half_axes(large)) == pytest.approx(2 * np.median(half_axes(usual)), rel=0.25)
    assert len(large) < len(usual) / 3  # eight times the volume each, on average
    largest = ML_PER_AXES * half_axes(large).prod(axis=1).max()
    loads = [ML_PER_AXES * half_axes(lesions).prod(axis=1).sum() for lesions in (usual, large)]
    assert abs(loads[0] - loads[1]) < largest, "lesions are added until the load is reached"


def test_lesions_are_in_the_brain(scans: dict[str, tuple[np.ndarray, np.ndarray]], brains: list[np.ndarray]) -> None:
    loads = np.array([mask.sum() * ML for _, mask in scans.values()])
    assert loads.min() > 0.1
    assert loads.max() < 75
    for name, (_, mask) in scans.items():
        assert not (mask & ~brains[int(name[4:6]) - 1]).any()


def test_follow_up_keeps_most_of_the_lesions_and_adds_some(scans: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    before = [mask for name, (_, mask) in scans.items() if name.endswith("ses-1")]
    after = [mask for name, (_, mask) in scans.items() if name.endswith("ses-2")]
    kept = sum((a & b).sum() for a, b in zip(before, after, strict=True))
    assert kept > 0.85 * sum(a.sum() for a in before)
    assert sum(b.sum() for b in after) > 1.02 * sum(a.sum() for a in before)
    assert any((a & ~b).any() for a, b in zip(before, after, strict=True))  # some shrink
    assert not np.array_equal(scans["sub-01_ses-1"][0], scans["sub-01_ses-2"][0])


def test_no_threshold_solves_it(scans: dict[str, tuple[np.ndarray, np.ndarray]], brains: list[np.ndarray]) -> None:
    """Even with the brain given, and each scan scaled to its own tissue: bright is not yet a lesion."""
    bright, truth = [], []
    for name, (image, mask) in scans.items():
        brain = brains[int(name[4:6]) - 1]
        bright.append(image[brain] / np.median(image[brain]))
        truth.append(mask[brain])
    values, lesion = np.concatenate(bright), np.concatenate(truth)
    dice = [
        2 * (lesion & (values > level)).sum() / (lesion.sum() + (values > level).sum())
        for level in np.linspace(0.9, 2, 111)
    ]
    assert 0.2 < max(dice) < 0.65
    assert values[lesion].mean() > 1.15 * values[~lesion].mean()  # but it is no guess either


def test_progress_counts_volumes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_phantom(
        tmp_path / "p", patients=1, shape=(32, 32, 8), progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 2), (2, 2)]


def test_all_faults_at_once(tmp_path: Path) -> None:
    out = tmp_path / "taken"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(InputError) as caught:
        write_phantom(out, patients=0, timepoints=-1, shape=(16, 64, 8), seed=-2)
    assert str(caught.value) == (
        "phantom: nothing was written\n"
        "  - patients: must be a whole number from 1 to 9999, but got 0\n"
        "  - timepoints: must be a whole number from 1 to 99, but got -1\n"
        "  - seed: must be a whole number from 0 to 9223372036854775808, but got -2\n"
        "  - shape: must be from 32x32x8 to 512x512x512 voxels, but got 16x64x8\n"
        f"  - {out}: exists already and is not an empty folder; name another OUT or remove it"
    )
    assert (out / "mine.txt").read_text() == "precious"


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "half", patients=1, shape=(32, 32, 8), progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path, patients=1, shape=(32, 32, 8), progress=interrupt)
    assert list(tmp_path.iterdir()) == [], "an empty folder stays empty"


def test_the_working_directory_may_be_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_phantom(Path(), patients=1, timepoints=1, shape=(32, 32, 8)) == Path()
    names = ["README", "dataset_description.json", "derivatives", "participants.json", "participants.tsv", "sub-01"]
    assert sorted(path.name for path in Path().iterdir()) == names


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_is_followed(tmp_path: Path, is_there: bool) -> None:
    if is_there:
        (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    assert write_phantom(tmp_path / "link", patients=1, timepoints=1, shape=(32, 32, 8)) == tmp_path / "link"
    assert (tmp_path / "disk/sub-01").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (write_phantom(tmp_path / "empty", patients=1, timepoints=1, shape=(32, 32, 8)) / "sub-01").is_dir()
