"""Lesions outside the window: told for each patient, the sealed ones too; lesion loads are those of whole scans."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from nifti_files import cohort, voxels

from wmlsearch.cli import main
from wmlsearch.data.contact_sheet import TILE, WARNING, Tile, _arrange
from wmlsearch.data.description import DataDescription, ScanDescription, describe
from wmlsearch.data.geometry import size_that_holds
from wmlsearch.data.manifest import MANIFEST, Manifest
from wmlsearch.data.prepare import PrepareOptions, prepare

# The heads are 18 x 18 pixels, so a window of 16 x 16 leaves a margin of 1 pixel outside.
INSIDE = {"p1": 10, "p2": 20, "p3": 30, "p4": 40}
OUTSIDE = {"p1": 5, "p2": 0, "p3": 2, "p4": 10}  # lesion voxels in the margin


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = cohort(tmp_path_factory.mktemp("cut_off") / "raw", INSIDE)
    for name, count in OUTSIDE.items():
        path = table.with_name(f"{name}_mask.nii.gz")
        mask = voxels(path)
        mask[3, 5 : 5 + count, 3] = 1
        nib.Nifti1Image(mask, np.diag([2, 2, 3, 1])).to_filename(path)
    return table


@pytest.fixture(scope="module")
def cut(raw: Path) -> Path:
    out = raw.parent.parent / "cut"
    prepare(raw, out, PrepareOptions(size=16, jobs=1, test_patients=("p4",), val_patients=("p3",)))
    return out


def scans_of(description: DataDescription) -> dict[str, ScanDescription]:
    return {patient.patient: scan for patient in description.patients for scan in patient.scans}


def test_loads_are_those_of_the_whole_scans(cut: Path) -> None:
    description = describe(cut)
    scans = scans_of(description)
    assert {name: scan.lesion_ml for name, scan in scans.items()} == {"p1": 0.18, "p2": 0.24, "p3": 0.384, "p4": 0.6}
    assert {name: scan.lesion_ml_in_window for name, scan in scans.items()} == {
        "p1": 0.12, "p2": 0.24, "p3": 0.36, "p4": 0.48
    }  # fmt: skip
    assert {name: scan.lost_lesion_pixels for name, scan in scans.items()} == OUTSIDE
    loads = description.loads["train"]
    assert (loads.smallest, loads.median, loads.largest) == (0.18, 0.21, 0.24)
    assert Manifest.read(cut).fold_loads() == pytest.approx([0.384, 0.24, 0.18])


def test_each_patient_has_the_warning_and_the_sealed_ones_too(cut: Path) -> None:
    scans = scans_of(describe(cut))
    assert scans["p2"].warnings == ()
    assert scans["p1"].warnings == (
        "p1_image.nii.gz: the window of 16 x 16 pixels cuts off 5 of 15 lesion pixels (33 %); "
        "--size 32 would lose none",
    )
    assert "cuts off 10 of 50 lesion pixels (20 %)" in scans["p4"].warnings[0]
    assert "cuts off 2 of 32 lesion pixels (6.2 %)" in scans["p3"].warnings[0]
    (line,) = Manifest.read(cut).warnings
    assert line == (
        "the window cuts off 17 of 117 lesion pixels (15 %): p1 33 %, p4 20 %, p3 6.2 %; "
        "take --size 32, which loses none, or --fit resize"
    )


def test_the_advised_size_loses_none(raw: Path, tmp_path: Path) -> None:
    assert prepare(raw, tmp_path / "out", PrepareOptions(size=32, jobs=1)).warnings == ()


def test_text_and_page_show_both_loads(cut: Path) -> None:
    output = CliRunner().invoke(main, ["describe", str(cut)]).output
    assert "0.18 ml (0.12 in the window)" in output
    assert "val: 1 patient, 0 without lesions; lesions 0.384 to 0.384 ml" in output
    assert "0.24 ml\n" in output, "nothing of p2 is cut off"
    page = (cut / "description.html").read_text()
    assert "cuts off 10 of 50 lesion pixels" in page
    assert '<td class="number">0.6</td><td class="number">0.48</td>' in page


def test_json_has_no_noise_in_its_last_digits(cut: Path) -> None:
    numbers: list[float] = []
    text = CliRunner().invoke(main, ["describe", str(cut), "--json"]).stdout
    json.loads(text, parse_float=lambda digits: numbers.append(len(digits)))
    assert numbers
    assert max(numbers) <= len("0.123456")


def test_a_resampled_scan_has_the_load_of_its_mask(raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "out", PrepareOptions(size=32, jobs=1, fit="resize"))
    scans = scans_of(describe(tmp_path / "out"))
    assert {name: scan.lesion_ml for name, scan in scans.items()} == {"p1": 0.18, "p2": 0.24, "p3": 0.384, "p4": 0.6}


def test_a_scan_in_several_splits_counts_once(raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "out", PrepareOptions(size=16, jobs=1, split="image", allow_leakage=True))
    description = describe(tmp_path / "out")
    scans = scans_of(description)
    assert any(", " in patient.split for patient in description.patients)
    assert {name: scan.lesion_ml for name, scan in scans.items()} == {"p1": 0.18, "p2": 0.24, "p3": 0.384, "p4": 0.6}
    assert {name: scan.lost_lesion_pixels for name, scan in scans.items()} == OUTSIDE
    assert [row.volume for row in Manifest.read(tmp_path / "out").findings].count("p1") == 1


def test_lesions_outside_a_head_that_is_shown_whole(raw: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "raw"
    shutil.copytree(raw.parent, wrong)
    mask = voxels(wrong / "p1_mask.nii.gz")
    mask[0, 5:8, 3] = 1
    nib.Nifti1Image(mask, np.diag([2, 2, 3, 1])).to_filename(wrong / "p1_mask.nii.gz")
    manifest = prepare(wrong / raw.name, tmp_path / "out", PrepareOptions(size=32, jobs=1, fit="resize"))
    (line,) = (line for line in manifest.warnings if "cuts off" in line)
    assert line.endswith("they lie outside the head, which --fit resize shows whole: check the masks")
    assert "--size" not in line, "a bigger window would show the same"


def test_data_of_an_older_version(cut: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(cut, old)
    record = json.loads((old / MANIFEST).read_text())
    for volume in record["volumes"]:
        del volume["lesion_voxels"]
        volume["findings"] = []
    for counts in record["counts"].values():
        del counts["size_needed"]
    record["test_findings"] = []
    (old / MANIFEST).write_text(json.dumps(record))
    assert scans_of(describe(old))["p1"].lesion_ml == 0.18, "from the pixels inside and outside the window"
    (line,) = Manifest.read(old).warnings
    assert line == (
        "the window cuts off 17 of 117 lesion pixels (15 %): p1 5 px, p3 2 px; "
        "take a bigger --size than 16, or --fit resize"
    )


@pytest.mark.parametrize("size", [16, 17, 18, 30, 96])
@pytest.mark.parametrize("centre", [50.0, 50.5, 51.0, 51.5])
@pytest.mark.parametrize("beyond", [1, 2, 7, 8, 9, 40])
def test_a_size_that_holds_a_box(cut: Path, size: int, centre: float, beyond: int) -> None:
    def window(edge: int) -> range:
        start = round(centre - edge / 2)  # as `place_window` does
        return range(start, start + edge)

    now = window(size)
    geometry = replace(Manifest.read(cut).volumes[0], window=(now.start, now.start), size=size)
    inside = (now.start, now.stop)
    for rows in ((now.start - beyond, now.stop), (now.start, now.stop + beyond)):
        for box in (rows + inside, inside + rows):  # up, down, to the left and right
            needed = size_that_holds((box[0], box[2], box[1], box[3]), geometry)
            assert needed % 16 == 0
            assert window(needed).start <= rows[0]
            assert rows[1] <= window(needed).stop
            assert needed < size + 2 * (beyond + 1) + 16, "not larger than it must be"


def test_a_warning_on_the_contact_sheet_covers_no_part_of_a_slice() -> None:
    white = np.full((32, 32), 255, np.uint8)
    nothing = np.zeros_like(white)
    tiles = [Tile("a", white, nothing, "dark")] + [Tile("b", white, nothing)] * 8
    sheet = np.asarray(_arrange(tiles, ""))
    assert (sheet == 255).all(axis=2).sum() == 9 * TILE * TILE
    assert (sheet == WARNING).all(axis=2).any()
