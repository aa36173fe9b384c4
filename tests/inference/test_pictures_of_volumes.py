"""Pictures that are slices of a volume are predicted as the sealed test has them: in one window and one grey range."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from wmlsearch import load_model
from wmlsearch.cli import main
from wmlsearch.config import TrialConfig
from wmlsearch.data.cutting import cut, restore
from wmlsearch.data.manifest import IMAGES, SEALED, Manifest
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData
from wmlsearch.data.sources import Source
from wmlsearch.errors import InputError
from wmlsearch.inference.export import ExportedModel, export_model, load_exported
from wmlsearch.inference.inputs import find_images
from wmlsearch.inference.predictor import predict
from wmlsearch.inference.preprocessing import Preprocessing, picture_geometries, slicing_geometry
from wmlsearch.inference.trained_model import TrainedModel, common_preprocessing
from wmlsearch.model.unet import UNet
from wmlsearch.workflows.predict import predict_files
from wmlsearch.workflows.provenance import data_record

SLICES = 3


def write_picture(path: Path, brightness: float, size: int, seed: int = 0, kind: type = np.uint16) -> None:
    """Write a square head of `size` pixels on a black picture of 40 x 40 pixels."""
    picture = np.zeros((40, 40))
    start = 20 - size // 2
    noise = np.random.default_rng(seed).uniform(0.5, 1, (size, size))
    picture[start : start + size, start : start + size] = brightness * noise
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.astype(kind)).save(path)


def write_data(raw: Path, name: str = "sub-{patient:02d}_{place}.png") -> Path:
    """Write pictures of eight patients, and masks; those of a volume differ in brightness and in the head's size."""
    for patient in range(1, 9):
        for place in range(SLICES):
            file = name.format(patient=patient, place=place)
            write_picture(
                raw / "images" / file, 3000 * (place + 1) + 100 * patient, 18 + 6 * place, 10 * patient + place
            )
            mask = np.zeros((40, 40), np.uint8)
            mask[18:22, 18 : 21 + patient % 3] = 255
            (raw / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(raw / "masks" / file)
    return raw


def network(preprocessing: Preprocessing) -> TrainedModel:
    config = TrialConfig(depth=2, base_channels=4, norm="instance")
    torch.manual_seed(0)
    unet = UNet.of(config).eval().to(memory_format=torch.channels_last)
    return TrainedModel(unet, config, 0.5, preprocessing, "net")


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_pictures_are_predicted_as_the_sealed_test_has_them(fit: str, tmp_path: Path) -> None:
    raw, data, out = write_data(tmp_path / "raw"), tmp_path / "data", tmp_path / "found"
    prepare(raw, data, PrepareOptions(size=32, fit=fit, jobs=1))
    record = data_record(data, PreparedData.open(data))
    assert record.scaled_by == "volume"
    export_model([network(Preprocessing.of(record.as_json(), "r"))], tmp_path / "model")
    model = load_exported(tmp_path / "model")
    assert common_preprocessing(model.members).scaled_by == "volume"
    notes: list[str] = []
    rows = predict_files(model, [raw / "images"], out, note=notes.append)
    assert notes == [
        "24 pictures scaled as slices of 8 volumes, by sub- and ses- in their names (sub-01_0.png to sub-01_2.png)"
    ]
    assert not any(finding.kind == "scaled alone" for row in rows for finding in row.findings)
    sealed = Manifest.read(data / SEALED)
    images = np.load(data / SEALED / IMAGES)
    for image, row in zip(images, sealed.slices, strict=True):
        (likely,) = restore(
            model.members[0].probabilities(image[None]),
            replace(sealed.volumes[row.volume], shape=(1, 40, 40)),
        )
        given = np.asarray(Image.open(out / f"{Path(row.source).stem}_probability.tif"))
        assert np.allclose(given, likely, atol=1e-6), row.source
    picture = Source("", "", raw, (raw / sealed.slices[0].source,))
    alone = cut(picture, slicing_geometry(picture, common_preprocessing(model.members))).images
    assert not np.array_equal(alone[0], images[0]), "the first slice of a volume is the darkest and smallest"


def test_each_picture_has_its_own_place_in_the_volume(tmp_path: Path) -> None:
    for place in range(SLICES):
        write_picture(tmp_path / f"sub-1_{place}.tif", 1000.0 * place, 20 + 6 * place)  # the first is empty
    picture = np.asarray(Image.open(tmp_path / "sub-1_1.tif")).astype(np.float32)
    picture[:2] = np.nan
    Image.fromarray(picture).save(tmp_path / "sub-1_1.tif")
    source = find_images([tmp_path]).images[0].volume_source
    preprocessing = Preprocessing("image", None, 24, "crop", None, "volume")
    first, second, third = picture_geometries(source, preprocessing)
    whole = slicing_geometry(source, preprocessing)
    for geometry in (first, second, third):
        assert (geometry.window, geometry.low, geometry.high) == (whole.window, whole.low, whole.high)
    assert [geometry.shape for geometry in (first, second, third)] == [(1, 40, 40)] * 3
    assert (*first.head_grey, *second.head_grey, *third.head_grey) == whole.head_grey
    kinds = [[finding.kind for finding in geometry.findings] for geometry in (first, second, third)]
    assert kinds == [[], ["filled", "outside the window"], ["outside the window"]]


@pytest.mark.parametrize(
    ("scaled_by", "fit", "kind", "subject"),
    [
        ("volume", "crop", np.uint16, "grey values were"),
        ("volume", "crop", np.float32, "grey values were"),
        ("volume", "resize", np.uint16, "grey values and size were"),
        ("volume", "resize", np.uint8, "size was"),
        ("volume", "crop", np.uint8, ""),
        (None, "crop", np.uint16, "grey values were"),
        (None, "crop", np.uint8, ""),
        ("picture", "resize", np.uint16, ""),
    ],
)
def test_a_picture_alone(scaled_by: str | None, fit: str, kind: type, subject: str, tmp_path: Path) -> None:
    write_picture(tmp_path / "sub-1_0.tif", 200, 20, kind=kind)
    (image,) = find_images([tmp_path]).images
    (geometry,) = picture_geometries(image.volume_source, Preprocessing("image", None, 32, fit, None, scaled_by))
    known = "" if scaled_by else ", where that was known"
    text = (
        f"{subject} scaled by this picture alone, but in the training data and the sealed test by all pictures of the "
        f"volume{known}, so the scores of the test may not hold; predict the pictures of a volume together "
        "(docs/predicting.md)"
    )
    assert [(one.text, one.is_warning) for one in geometry.findings] == ([(text, True)] if subject else [])


def test_which_pictures_are_of_one_volume(tmp_path: Path) -> None:
    names = ["sub-1_ses-a_10.png", "sub-1_ses-a_9.png", "sub-1_ses-b_1.png", "p2_x_1.png", "p2_x_2.png", "p2_y_1.png"]
    for name in names:
        write_picture(tmp_path / name, 100, 20)
    write_picture(tmp_path / "other" / "sub-1_ses-a_8.png", 100, 20)

    def volumes(*paths: Path, pattern: str | None = None) -> list[list[str]]:
        images = find_images(paths or [tmp_path], pattern).images
        return [[path.name for path in volume] for volume in dict.fromkeys(image.volume for image in images) if volume]

    together = ["sub-1_ses-a_9.png", "sub-1_ses-a_10.png"]
    assert volumes() == volumes(tmp_path, tmp_path / "other") == [together]
    assert volumes(*(tmp_path / name for name in names)) == [together]
    pattern = "^(?P<patient>sub-[0-9]|p[0-9])_(?P<timepoint>[a-z-]+)"
    assert volumes(pattern=pattern) == [["p2_x_1.png", "p2_x_2.png"], together]
    assert volumes(pattern="^(.+)$") == []
    with pytest.raises(InputError) as caught:
        volumes(pattern="^(p[0-9])_")
    assert len(caught.value.faults) == 3
    assert caught.value.faults[0] == (
        f"{tmp_path / 'sub-1_ses-a_9.png'}: --patient-pattern '^(p[0-9])_' finds no patient in the name 'sub-1_ses-a_9'"
    )
    (tmp_path / "v.nii").write_bytes(b"?")
    with pytest.raises(InputError, match=r"--patient-pattern: finds the slices of a volume, but there is no picture"):
        volumes(tmp_path / "v.nii", pattern="^(.+)$")


def test_pictures_that_were_scaled_one_by_one(tmp_path: Path) -> None:
    raw, data = write_data(tmp_path / "raw", "{patient}{place}.png"), tmp_path / "data"
    prepare(raw, data, PrepareOptions(size=32, split="image", jobs=1, allow_leakage=True))
    record = data_record(data, PreparedData.open(data))
    assert record.scaled_by == "picture"
    model = ExportedModel((network(Preprocessing.of(record.as_json(), "r")),))
    for place in range(SLICES):
        write_picture(tmp_path / "in" / f"sub-1_{place}.png", 1000.0 * (place + 1), 20)
    rows = predict_files(model, [tmp_path / "in"], tmp_path / "found", note=pytest.fail)
    assert [row.findings for row in rows] == [()] * SLICES
    with pytest.raises(InputError, match="--patient-pattern: the model was trained on pictures that were"):
        predict_files(model, [tmp_path / "in"], tmp_path / "again", patient_pattern="^(.+)_")


def test_pictures_alone_are_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    export_model([network(Preprocessing("image", None, 32, "crop", None, "volume"))], Path("model"))
    for place in range(4):
        write_picture(Path("in") / f"p1_{place}.png", 1000.0 * (place + 1), 20)

    def lines(*words: str) -> list[str]:
        result = CliRunner().invoke(main, ["predict", "model", "in", "--json", *words])
        assert result.exit_code == 0, result.output
        answer = json.loads(result.stdout)
        assert [len(image["notes"]) for image in answer["images"]] == [0 if "--patient-pattern" in words else 1] * 4
        return [line for line in result.stderr.splitlines() if line.startswith(("note", "warning"))]

    (line,) = lines("--out", "alone")
    assert line.startswith("warning: in/p1_0.png, in/p1_1.png, in/p1_2.png and 1 more: grey values were scaled by this")
    assert lines("--out", "together", "--patient-pattern", "^(p[0-9])_") == [
        "note: 4 pictures scaled as slices of 1 volume, by --patient-pattern (p1_0.png to p1_3.png)"
    ]


def test_a_picture_and_its_volume_in_python(tmp_path: Path) -> None:
    files = [tmp_path / f"{place}.png" for place in range(SLICES)]
    for place, file in enumerate(files):
        write_picture(file, 1000.0 * (place + 1), 20)
    preprocessing = Preprocessing("image", None, 32, "crop", None, "volume")
    export_model([network(preprocessing)], tmp_path / "model")
    model = load_model(tmp_path / "model")
    together = model.predict(files[1], volume=files)
    assert together.notes == ()
    source = Source("", "", tmp_path, tuple(files))
    expected = predict([network(preprocessing)], source, geometry=slicing_geometry(source, preprocessing))
    assert np.allclose(together.probabilities, expected.probabilities[1], atol=1e-6)
    with pytest.warns(UserWarning, match="1.png: grey values were scaled by this picture alone"):
        assert not np.allclose(model.predict(files[1]).probabilities, expected.probabilities[1], atol=1e-6)
    with pytest.raises(InputError, match="must name all pictures of the volume, but does not name"):
        model.predict(files[1], volume=files[2:])
    (tmp_path / "v.nii").write_bytes(b"?")
    with pytest.raises(InputError, match="a NIfTI file is a whole volume; leave it out"):
        model.predict(tmp_path / "v.nii", volume=[tmp_path / "v.nii"])
    export_model([network(replace(preprocessing, scaled_by="picture"))], tmp_path / "other")
    with pytest.raises(InputError, match="scaled one by one; leave it out"):
        load_model(tmp_path / "other").predict(files[1], volume=files)


def test_slices_of_another_size_are_no_slices_of_the_volume(tmp_path: Path) -> None:
    write_picture(tmp_path / "sub-1_0.png", 1000, 20)
    Image.fromarray(np.eye(30, dtype=np.uint16)).save(tmp_path / "sub-1_1.png")
    model = ExportedModel((network(Preprocessing("image", None, 32, "crop", None, "volume")),))
    with pytest.raises(InputError) as caught:
        predict_files(model, [tmp_path], tmp_path / "found")
    assert caught.value.faults == (
        f"{tmp_path}/sub-1_1.png: shape must be that of sub-1_0.png, (40, 40), but is (30, 30); slices of another size "
        "need another time point",
    )
    pattern = "(?P<patient>sub-1)_(?P<timepoint>.)"
    assert len(predict_files(model, [tmp_path], tmp_path / "found", patient_pattern=pattern)) == 2
