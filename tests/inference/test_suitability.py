"""An image that the model's window does not show whole, or that is coarser than its training data, is told of."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import wmlsearch
from wmlsearch.cli import main
from wmlsearch.config import TrialConfig
from wmlsearch.data.geometry import VolumeGeometry
from wmlsearch.data.sources import Source
from wmlsearch.inference.export import export_model
from wmlsearch.inference.preprocessing import Preprocessing, slicing_geometry
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.unet import UNet

NARROW = Preprocessing("native", 2, 16, "crop", 2.0)
# By hand: the head has 20 x 20 pixels in 5 slices, the window 16 x 16, a voxel 2 * 2 * 3 = 12 mm3.
# 5 * (400 - 256) = 720 voxels of 2000 are outside: 36 %, 8.64 ml.
OUTSIDE = (
    "36 % of the head (8.64 ml) lies outside the window of 16 x 16 pixels that the model was trained on, and no lesion "
    "can be found there; prepare the data with --size 32, which holds this head, or with --fit resize, and train again"
)


def head(
    path: Path, rows: int = 20, columns: int = 20, edges: tuple[float, float, float] = (2, 2, 3), codes: str = "RAS"
) -> Path:
    """Write a volume of 40 x 40 x 6 voxels with a block of a head in 5 slices."""
    image = np.zeros((40, 40, 6), np.float32)
    image[8 : 8 + columns, 8 : 8 + rows, 1:] = 100 + np.arange(columns)[:, None, None]
    volume: Any = nib.Nifti1Image(image, np.diag([*edges, 1]))
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    volume.as_reoriented(turn).to_filename(path)
    return path


def geometry(path: Path, preprocessing: Preprocessing) -> VolumeGeometry:
    return slicing_geometry(Source("", "", path.parent, (path,)), preprocessing)


def texts(path: Path, preprocessing: Preprocessing) -> list[str]:
    return [finding.text for finding in geometry(path, preprocessing).findings]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that has learned nothing, of a window that is too small."""
    config = TrialConfig(depth=2, base_channels=4)
    folder = tmp_path_factory.mktemp("model") / "m"
    export_model([TrainedModel(UNet.of(config), config, 0.5, NARROW, "trial-0000")], folder)
    return folder


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SLA", "PIR"])
def test_the_part_outside_is_measured_in_any_orientation(tmp_path: Path, codes: str) -> None:
    (finding,) = geometry(head(tmp_path / "a.nii.gz", codes=codes), NARROW).findings
    assert finding.text == OUTSIDE
    assert finding.is_warning
    assert (finding.value, finding.severity) == ("36 %", 0.36)


def test_the_size_is_that_of_the_models_pixels(tmp_path: Path) -> None:
    (text,) = texts(head(tmp_path / "a.nii.gz"), Preprocessing("axial", 2, 32, "crop", 1.0))
    assert text.startswith("36 % of the head (8.64 ml) lies outside the window of 32 x 32 pixels")
    assert "--size 48," in text, "20 pixels of 2 mm are 40 of 1 mm"


@pytest.mark.parametrize(
    "preprocessing", [Preprocessing("native", 2, 32, "crop", 2.0), Preprocessing("native", 2, 16, "resize", 2.0)]
)
def test_nothing_is_said_of_a_head_that_is_shown_whole(tmp_path: Path, preprocessing: Preprocessing) -> None:
    assert texts(head(tmp_path / "a.nii.gz"), preprocessing) == []


def test_the_advised_size_holds_the_head(tmp_path: Path) -> None:
    for rows, columns in ((16, 17), (18, 30), (31, 16)):
        path = head(tmp_path / f"{rows}.nii.gz", rows, columns)
        (text,) = texts(path, NARROW)
        size = int(text.split("--size ")[1].split(",")[0])
        assert texts(path, Preprocessing("native", 2, size, "crop", 2.0)) == []


def test_a_rim_is_a_note(tmp_path: Path) -> None:
    path = head(tmp_path / "a.nii.gz", 16, 16)
    image: Any = nib.load(path)
    data = np.asarray(image.dataobj).copy()
    data[24, 8:11, 1] = 100  # 3 voxels wider, of 1283
    nib.Nifti1Image(data, image.affine).to_filename(path)
    (finding,) = geometry(path, NARROW).findings
    assert not finding.is_warning
    assert finding.text.startswith("0.23 % of the head (0.036 ml) lies outside")


def test_a_picture(tmp_path: Path) -> None:
    picture = np.zeros((64, 64), np.uint8)
    picture[10:50, 10:50] = 200
    picture[10:50, 20] = 150
    Image.fromarray(picture).save(tmp_path / "a.png")
    (text,) = texts(tmp_path / "a.png", Preprocessing("image", None, 32, "crop", None))
    assert text.startswith("36 % of the head (576 pixels) lies outside")


def test_slices_coarser_than_the_models(tmp_path: Path) -> None:
    path = head(tmp_path / "a.nii.gz", edges=(1, 1, 6))  # cut sagittally: pixels of 6 x 1 mm
    (finding,) = geometry(path, Preprocessing("sagittal", 0, 64, "crop", 1.0)).findings
    assert finding.is_warning
    assert finding.text == (
        "pixels of 6 x 1 mm are interpolated to the 1 mm of the model's sagittal slices; unless its training data were "
        "as coarse, check the masks, or train on data like this image"
    )
    assert texts(path, Preprocessing("axial", 2, 64, "crop", 1.0)) == [], "thick slices are no coarse pixels"
    assert texts(path, Preprocessing("axial", 2, 64, "crop", 0.5)) == [], "a factor of 2 is usual"


def test_the_terminal_the_table_and_the_record_say_so(model: Path, tmp_path: Path) -> None:
    path = head(tmp_path / "a.nii.gz")
    result = CliRunner().invoke(main, ["predict", str(model), str(path), "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output
    assert f"warning: {path}: {OUTSIDE}" in result.stderr.splitlines()
    assert json.loads(result.stdout)["images"][0]["notes"] == [OUTSIDE]
    with (tmp_path / "out" / "lesions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["notes"] == OUTSIDE


def test_python_warns(model: Path, tmp_path: Path) -> None:
    path = head(tmp_path / "a.nii.gz")
    loaded = wmlsearch.load_model(model)
    with pytest.warns(UserWarning, match=r"^a.nii.gz: 36 % of the head") as caught:
        prediction = loaded.predict(path)
    assert prediction.notes == (OUTSIDE.replace("--size 32", "size=32").replace("--fit resize", "fit='resize'"),)
    assert [record.filename for record in caught] == [__file__], "the caller's line is named"
