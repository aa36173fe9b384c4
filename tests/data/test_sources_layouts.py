"""One command prepares each layout that people have: on a small phantom, and on real volumes where they are there.

The same volumes are laid out in each way, so the prepared lesions must be the same.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from paths import REAL

from wmlsearch.cli import main
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.sources import survey

Volumes = dict[str, tuple[Path, Path]]  # image and mask of each patient
Layout = Callable[[Path, Volumes], list[str]]  # writes it below a folder, and returns the words after `prepare`


def put(target: Path, source: Path) -> str:
    """Make `target` a link to a file, and return its path."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)
    return str(target)


def bids(root: Path, volumes: Volumes, mask: str = "label-lesion_mask") -> Path:
    for patient, (image, lesions) in volumes.items():
        put(root / f"sub-{patient}/anat/sub-{patient}_FLAIR.nii.gz", image)
        put(root / f"derivatives/lesions/sub-{patient}/anat/sub-{patient}_{mask}.nii.gz", lesions)
    return root


def datalad(root: Path, volumes: Volumes) -> list[str]:
    """Links into the git-annex of the data set above."""
    raw = bids(root / "super/rawdata", volumes)
    for number, path in enumerate(sorted(raw.rglob("*.nii.gz"))):
        key = f"MD5E-s{path.stat().st_size}--{number:032x}.nii.gz"
        store = root / "super/.git/annex/objects" / f"{number:02d}" / "Xk" / key / key
        store.parent.mkdir(parents=True)
        shutil.copyfile(path, store)
        path.unlink()
        path.symlink_to(os.path.relpath(store, path.parent))
    return [str(raw)]


def nnunet(root: Path, volumes: Volumes) -> list[str]:
    """Two channels, of which the second is the FLAIR; patients and time points in the names of the cases."""
    folder = root / "Dataset007_MS"
    for patient, (image, lesions) in volumes.items():
        put(folder / f"imagesTr/{patient}_t1_0000.nii.gz", lesions)
        put(folder / f"imagesTr/{patient}_t1_0001.nii.gz", image)
        put(folder / f"labelsTr/{patient}_t1.nii.gz", lesions)
    channels = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0, "lesion": 1}}
    (folder / "dataset.json").write_text(json.dumps(channels | {"file_ending": ".nii.gz"}))
    return [str(folder), "--patient-pattern", "^(?P<patient>[0-9]+)_(?P<timepoint>t[0-9])$"]


def decathlon(root: Path, volumes: Volumes) -> list[str]:
    rows = []
    for patient, (image, lesions) in volumes.items():
        put(root / f"task/imagesTr/{patient}.nii.gz", image)
        put(root / f"task/labelsTr/{patient}.nii.gz", lesions)
        rows.append({"image": f"./imagesTr/{patient}.nii.gz", "label": f"./labelsTr/{patient}.nii.gz", "fold": 0})
    (root / "task/datalist.json").write_text(json.dumps({"modality": {"0": "FLAIR"}, "training": rows}))
    return [str(root / "task/datalist.json")]


def derivatives_and_raters(root: Path, volumes: Volumes) -> list[str]:
    """fMRIPrep and HD-BET beside two raters; the second rater's masks, and all others, are images and would show."""
    raw = bids(root / "bids", volumes, "desc-rater1_label-lesion_mask")
    for patient, (image, _) in volumes.items():
        name = f"sub-{patient}/anat/sub-{patient}"
        for folder, kind in OTHER_PIPELINES:
            put(raw / f"derivatives/{folder}/{name}_{kind}.nii.gz", image)
    return [str(raw), "--mask-select", "desc=rater1"]


def absolute_table(root: Path, volumes: Volumes) -> list[str]:
    rows = [f"{patient},1,{image},{lesions}" for patient, (image, lesions) in volumes.items()]
    (root / "cohort.csv").write_text("\n".join(["patient,timepoint,image,mask", *rows]) + "\n")
    return [str(root / "cohort.csv")]


def absolute_list(root: Path, volumes: Volumes) -> list[str]:
    rows = [{"patient": patient, "image": str(image), "label": str(mask)} for patient, (image, mask) in volumes.items()]
    (root / "list.json").write_text(json.dumps({"training": rows}))
    return [str(root / "list.json")]


OTHER_PIPELINES = [
    ("lesions", "desc-rater2_label-lesion_mask"),
    ("fmriprep", "desc-brain_mask"),
    ("fmriprep", "dseg"),
    ("fmriprep", "space-MNI152NLin2009cAsym_label-GM_probseg"),
    ("fmriprep", "desc-preproc_FLAIR"),
    ("hdbet", "FLAIR_mask"),
    ("hdbet", "desc-brain_mask"),
]
LAYOUTS = [datalad, nnunet, decathlon, derivatives_and_raters, absolute_table]


def volumes_of(raw: Path) -> Volumes:
    return {
        source.patient: (source.image[0].resolve(), source.mask[0].resolve()) for source in survey(raw).check().sources
    }


@pytest.fixture
def phantom(raw: Path) -> Volumes:
    """Four patients of the tests' phantom."""
    return dict(list(volumes_of(raw).items())[:4])


def run(*words: str) -> str:
    result = CliRunner().invoke(main, list(words), prog_name="wmlsearch")
    assert result.exit_code == 0, result.output
    return result.output


def lesions(out: Path) -> Counter[str]:
    """Return the lesion pixels of each patient, in all splits."""
    counts: Counter[str] = Counter()
    for folder in (out, out / "sealed"):
        for row in Manifest.read(folder).slices:
            counts[row.patient] += row.lesion_pixels
    return counts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_phantom_in_each_layout(tmp_path: Path, phantom: Volumes, layout: Layout) -> None:
    reference = ["prepare", str(bids(tmp_path / "plain", phantom)), str(tmp_path / "reference"), "--size", "48"]
    run(*reference, "--jobs", "1")
    raw, *chosen = layout(tmp_path, phantom)
    before = sorted(tmp_path.rglob("*"))
    shown = run("prepare", "--dry-run", raw, *chosen)
    assert "taken: 4 scans of 4 patients" in shown
    assert sorted(tmp_path.rglob("*")) == before  # nothing was written
    run("prepare", raw, str(tmp_path / "out"), *chosen, "--size", "48", "--jobs", "1")
    assert lesions(tmp_path / "out") == lesions(tmp_path / "reference")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real volumes (shared/data/ms-flair) are not beside this repository")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_real_volumes_in_each_layout(tmp_path: Path, layout: Layout) -> None:
    raw, *chosen = layout(tmp_path, volumes_of(REAL))
    split = ["--train-patients", "19", "--val-patients", "26", "--test-patients", "07"]
    run("prepare", raw, str(tmp_path / "out"), *chosen, "--plane", "axial", *split)
    assert lesions(tmp_path / "out") == {"07": 1300, "19": 49769, "26": 8227}  # as the README of the data says


def test_what_a_dry_run_shows(tmp_path: Path, phantom: Volumes) -> None:
    raw, *_ = derivatives_and_raters(tmp_path, phantom)
    result = CliRunner().invoke(main, ["prepare", raw, "--dry-run"], prog_name="wmlsearch")
    assert result.exit_code == 2  # as prepare would: two raters
    assert f"{raw} is read as a BIDS folder (sub-*/)" in result.stdout
    assert (
        "not used: derivatives/hdbet/sub-01/anat/sub-01_FLAIR_mask.nii.gz (the masks of derivatives/hdbet"
        in result.stdout
    )
    assert "choose with --mask-select desc=rater1 or --mask-select desc=rater2" in result.stderr
    assert "found so far: 0 scans; nothing is taken before the faults at the end are corrected" in result.stdout


@pytest.mark.parametrize("layout", [absolute_table, absolute_list])
def test_a_dry_run_shows_absolute_paths_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Layout
) -> None:
    """Also where the table is named without a folder, since Python may take all paths for paths below `.`."""
    volumes = {str(i): (tmp_path / f"{i}.nii", tmp_path / f"{i}m.nii") for i in range(4)}
    for path in (path for files in volumes.values() for path in files):
        path.touch()
    (tmp_path / "lists").mkdir()
    raw, *_ = layout(tmp_path / "lists", volumes)
    monkeypatch.chdir(tmp_path / "lists")
    command = ["prepare", "--dry-run", Path(raw).name]
    shown = "".join(run(*command).split())  # long paths are folded
    assert all(f"{image}{mask}" in shown for image, mask in volumes.values())
    volumes["2"][0].unlink()
    gone = CliRunner().invoke(main, command, prog_name="wmlsearch")
    assert f"  - {volumes['2'][0]}: no such file" in gone.stderr


def test_out_is_needed_without_dry_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["prepare", str(tmp_path)], prog_name="wmlsearch")
    assert result.exit_code == 2
    assert "Missing argument 'OUT'" in result.output


def test_notes_are_told_with_the_result(tmp_path: Path, phantom: Volumes) -> None:
    raw, *_ = decathlon(tmp_path, phantom)
    output = run("prepare", raw, str(tmp_path / "out"), "--size", "48", "--jobs", "1")
    assert "note: each case is taken as a patient of its own (01, 02, 03 and 1 more)" in output


def test_the_test_part_of_a_layout_is_sealed(tmp_path: Path, phantom: Volumes) -> None:
    for patient, (image, mask) in phantom.items():
        part = "Ts" if patient == "02" else "Tr"
        put(tmp_path / f"raw/images{part}/{patient}_0000.nii.gz", image)
        put(tmp_path / f"raw/labels{part}/{patient}.nii.gz", mask)
    output = run("prepare", str(tmp_path / "raw"), str(tmp_path / "out"), "--size", "48", "--jobs", "1")
    assert "note: the layout's test part is the sealed test: 02" in output
    assert {row.patient for row in Manifest.read(tmp_path / "out/sealed").slices} == {"02"}


def test_labels_that_the_layout_names_need_no_option(tmp_path: Path, phantom: Volumes) -> None:
    """nnU-Net's label `ignore` is ignored: its voxels are 2 in the prepared masks, and no lesion."""
    for patient, (image, mask) in phantom.items():
        put(tmp_path / f"raw/imagesTr/{patient}_0000.nii.gz", image)
        volume = nib.load(mask)
        labels = np.asarray(volume.dataobj).astype(np.uint8)
        labels[20:28, 20:28, 5][labels[20:28, 20:28, 5] == 0] = 2
        (tmp_path / "raw/labelsTr").mkdir(exist_ok=True)
        nib.Nifti1Image(labels, volume.affine).to_filename(tmp_path / f"raw/labelsTr/{patient}.nii.gz")
    description = {"channel_names": {"0": "FLAIR"}, "labels": {"background": 0, "lesion": 1, "ignore": 2}}
    (tmp_path / "raw/dataset.json").write_text(json.dumps(description))
    output = run("prepare", str(tmp_path / "raw"), str(tmp_path / "out"), "--size", "48", "--jobs", "1")
    assert "note: the masks hold the labels 1 lesion, 2 ignore: lesions are 1, the other is ignored" in output
    manifest = Manifest.read(tmp_path / "out")
    assert (manifest.lesion_labels, manifest.ignore_labels) == ((1.0,), (2.0,))
    assert set(np.unique(np.load(tmp_path / "out/masks.npy"))) == {0, 1, 2}


@pytest.mark.parametrize(
    ("names", "patients", "refusal"),
    [
        (("p1", "p2", "p3"), False, "a split by patient needs each image's patient; give --patient-pattern REGEX"),
        (("p1", "p2"), True, "too few patients for a split"),
        (("p1", "P01", "p2", "p3", "p4"), True, "names that are likely one patient's"),
        (("p1", "p2", "p3"), True, ""),
    ],
)
def test_a_dry_run_checks_what_needs_no_image(
    tmp_path: Path, names: tuple[str, ...], patients: bool, refusal: str
) -> None:
    for name in names:
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.nii").touch()
    pattern = ["--patient-pattern", "(.+)"] if patients else []
    command = ["prepare", str(tmp_path), "--dry-run", *pattern, "--test-patients", names[1]]
    result = CliRunner().invoke(main, command[: None if patients else -2], prog_name="wmlsearch")
    assert result.exit_code == (2 if refusal else 0), result.output
    assert refusal in result.stderr
    assert ("nothing was written" in result.stdout) == ("taken: " in result.stdout) == (not refusal)
