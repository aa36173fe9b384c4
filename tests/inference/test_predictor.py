"""Predictions from files equal those from prepared slices, on the grid and in the orientation of the input."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from records import run_record

from wmlsearch.config import TrialConfig
from wmlsearch.data.cutting import restore
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.sources import Source
from wmlsearch.errors import InputError
from wmlsearch.inference.predictor import predict
from wmlsearch.inference.preprocessing import Preprocessing, slicing_geometry
from wmlsearch.inference.trained_model import TrainedModel, build_unet
from wmlsearch.model.checkpoint import load_checkpoint
from wmlsearch.model.unet import UNet
from wmlsearch.runs.folders import RunDir, SearchDir


@pytest.fixture(scope="module")
def models(searched: SearchDir) -> list[TrainedModel]:
    return [TrainedModel.from_run(run) for run in searched.finals()]


@pytest.fixture(scope="module")
def flair(prepared: Path) -> Path:
    """The original image of a test patient."""
    return next((prepared / "sealed" / "originals").rglob("*_FLAIR.nii*"))


def source(path: Path) -> Source:
    return Source("", "", path.parent, (path,))


def turned(path: Path, codes: str, to: Path, edges: tuple[float, float, float] | None = None) -> Path:
    """The image with another order of its axes and other voxel sizes."""
    image: Any = nib.load(path)
    if edges is not None:
        image = nib.Nifti1Image(np.asarray(image.dataobj), np.diag([*edges, 1.0]))
    image.as_reoriented(change(nib.aff2axcodes(image.affine), codes)).to_filename(to / f"{codes}.nii.gz")
    return to / f"{codes}.nii.gz"


def change(old: Any, new: Any) -> np.ndarray:
    return nib.orientations.ornt_transform(nib.orientations.axcodes2ornt(old), nib.orientations.axcodes2ornt(new))


# -- what a run folder says


def test_run_folder_records_the_preprocessing(searched: SearchDir, prepared: Path) -> None:
    model, manifest = TrainedModel.from_run(searched.judgement_run("trial-0000", 1)), Manifest.read(prepared)
    wanted = Preprocessing(manifest.plane, manifest.axis, manifest.size, manifest.fit, manifest.spacing_mm)
    assert model.preprocessing == wanted
    assert (model.name, model.seed, model.config.depth) == ("trial-0000-run1", 1, 2)
    best = load_checkpoint(searched.judgement_run("trial-0000", 1).best)
    assert model.threshold == best["threshold"]


def test_a_model_of_an_older_version_keeps_its_threshold(searched: SearchDir, tmp_path: Path) -> None:
    """It was the best one for the pooled Dice."""
    best = load_checkpoint(searched.trial(0).best)
    del best["threshold"], best["config"]["norm_momentum"]
    torch.save({**best, "report": {**best["report"], "val_threshold": 0.123}}, tmp_path / "best.pt")
    assert TrainedModel.load(tmp_path / "best.pt").threshold == 0.123


def test_unusable_run_folders_are_refused(searched: SearchDir, tmp_path: Path) -> None:
    about = searched.trial(0).record()
    old = RunDir.create(
        tmp_path / "old", run_record({**about.as_json(), "data": {"size": 32, "plane": "axial", "spacing_mm": 1.0}})
    )
    with pytest.raises(InputError) as error:
        TrainedModel.from_run(old)
    assert str(error.value) == (
        f"{old.path}: has no weights (best.pt); only a search's best trials and its judgement runs keep theirs, choose "
        "one of them"
    )
    old.best.write_bytes(searched.trial(0).best.read_bytes())
    with pytest.raises(InputError) as error:
        TrainedModel.from_run(old)
    assert str(error.value) == (
        f"{old.path}/config.json: does not say how its data were prepared (axis, fit missing), so no image can be "
        "prepared in the same way; train it again with this version"
    )


def test_preprocessing_is_validated_strictly() -> None:
    good = Preprocessing("native", 2, 64, "crop", 0.9)
    assert Preprocessing.of({**asdict(good), "more": 1}, "here") == good
    values = {"plane": "axial", "axis": 0, "size": True, "fit": "pad", "spacing_mm": float("nan")}
    with pytest.raises(InputError) as error:
        Preprocessing.of(values, "here")
    assert str(error.value) == (
        "here: its preprocessing is not valid; export or train the model again\n"
        "  - axis must be 2 with plane axial, but got 0\n"
        "  - size must be a whole number from 16 to 4096, but got True\n"
        "  - fit must be crop or resize, but got 'pad'\n"
        "  - spacing_mm must be a number above 0, but got nan"
    )
    with pytest.raises(InputError, match=r"spacing_mm must be null for 2-D pictures, but got 1.0"):
        Preprocessing.of({**asdict(good), "plane": "image", "axis": None, "spacing_mm": 1.0}, "here")


def test_weights_of_another_network_are_refused_before_allocation() -> None:
    tensors = UNet(2, 4).state_dict()
    huge = TrialConfig(depth=8, base_channels=512)  # would take terabytes
    with pytest.raises(InputError, match=r"w.pt: the weights do not fit the configuration\n  - .* is missing"):
        build_unet(huge, tensors, "w.pt")
    tensors["head.weight"], tensors["odd"] = tensors["head.weight"].double(), torch.zeros(1)
    tensors["head.bias"] = torch.full((1,), torch.nan)
    with pytest.raises(InputError) as error:
        build_unet(TrialConfig(depth=2, base_channels=4), tensors, "w.pt")
    assert str(error.value) == (
        "w.pt: the weights do not fit the configuration\n"
        "  - odd is not part of the network\n"
        "  - head.weight must be [1, 4, 1, 1] float32, but is [1, 4, 1, 1] float64\n"
        "  - head.bias has values that are not finite"
    )


# -- the grid


def test_prediction_from_files_equals_prediction_from_prepared_slices(
    models: list[TrainedModel], prepared: Path
) -> None:
    sealed = Manifest.read(prepared / "sealed")
    images = np.load(prepared / "sealed" / "images.npy")
    lesion = 0
    for number, geometry in enumerate(sealed.volumes):
        rows = [i for i, row in enumerate(sealed.slices) if row.volume == number]
        prediction = predict(models[:1], source(prepared / "sealed" / "originals" / geometry.source))
        assert np.array_equal(prediction.probabilities, restore(models[0].probabilities(images[rows]), geometry))
        assert prediction.probabilities.shape == prediction.mask.shape == geometry.shape
        assert (prediction.probabilities.dtype, prediction.mask.dtype) == (np.float32, np.uint8)
        assert np.array_equal(prediction.mask, prediction.probabilities >= np.float32(models[0].threshold))
        assert prediction.voxel_mm == geometry.voxel_mm
        lesion += int(prediction.mask.sum())
    assert lesion > 0


@pytest.mark.parametrize("codes", ["LAS", "LPS", "PIR", "SLA"])
def test_prediction_follows_the_orientation(
    models: list[TrainedModel], flair: Path, tmp_path: Path, codes: str
) -> None:
    upright, other = turned(flair, "RAS", tmp_path), turned(flair, codes, tmp_path)
    wanted, prediction = predict(models[:1], source(upright)), predict(models[:1], source(other))
    turn = change("RAS", codes)
    assert np.array_equal(prediction.mask, nib.orientations.apply_orientation(wanted.mask, turn))
    assert np.array_equal(prediction.probabilities, nib.orientations.apply_orientation(wanted.probabilities, turn))
    assert prediction.geometry.orientation == codes


class Bright(torch.nn.Module):
    """A model that segments bright pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Conv2d(1, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 12 * (images - 0.6)  # of the range from black to the brightest


def sampled(path: Path, edge: float) -> Path:
    """Write the same head with two lesions, 192 x 160 x 60 mm, on a grid with pixels of `edge` mm."""
    shape, edges = (round(192 / edge), round(160 / edge), 12), np.array([edge, edge, 5.0])
    x, y, z = np.meshgrid(*((np.arange(n) + 0.5) * e for n, e in zip(shape, edges, strict=True)), indexing="ij")
    inside = ((x - 96) / 80) ** 2 + ((y - 80) / 70) ** 2 + ((z - 30) / 40) ** 2 < 1
    volume = 100.0 * inside
    for centre, radius in (((70, 60, 30), 14), ((120, 100, 25), 9)):
        far = sum((axis - c) ** 2 for axis, c in zip((x, y, z), centre, strict=True))
        volume += 150 * np.exp(-far / radius**2)
    nib.Nifti1Image(volume.astype(np.float32), np.diag([*edges, 1])).to_filename(path)
    return path


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_prediction_at_another_resolution(models: list[TrainedModel], tmp_path: Path, fit: str) -> None:
    """Slices are resampled to the pixel size of training, so the lesion volume does not depend on the grid."""
    model = replace(models[0], unet=Bright(), preprocessing=Preprocessing("native", 2, 128, fit, 1.6), threshold=0.5)
    millilitres = []
    for edge in (0.8, 1.6, 2.0):
        prediction = predict([model], source(sampled(tmp_path / f"{edge}.nii.gz", edge)))
        assert prediction.mask.shape == (round(192 / edge), round(160 / edge), 12)
        assert prediction.geometry.spacing_mm == pytest.approx(1.6 if fit == "crop" else 160 * 1.04 / 128, rel=0.02)
        millilitres.append(prediction.mask.sum() * edge**2 * 5 / 1000)
    assert 3 < millilitres[0] < 30
    assert millilitres == pytest.approx([millilitres[0]] * 3, rel=0.05)


def test_several_models_are_averaged(models: list[TrainedModel], flair: Path) -> None:
    one, two = (predict([model], source(flair)) for model in models)
    both = predict(models, source(flair))
    assert np.allclose(both.probabilities, (one.probabilities + two.probabilities) / 2, atol=1e-6)
    assert not np.array_equal(one.probabilities, two.probabilities)
    assert both.threshold == pytest.approx((models[0].threshold + models[1].threshold) / 2)
    given = predict(models, source(flair), threshold=0.9)
    assert np.array_equal(given.mask, both.probabilities >= np.float32(0.9))
    again = predict(models, source(flair), geometry=both.geometry)
    assert np.array_equal(again.probabilities, both.probabilities)
    assert models[0].preprocessing is not None
    other = replace(models[1], preprocessing=replace(models[0].preprocessing, size=64))
    with pytest.raises(InputError, match="only be used together if their training data were prepared in the same way"):
        predict([models[0], other], source(flair))


# -- what is refused


def test_images_that_cannot_be_prepared_like_the_training_data(
    models: list[TrainedModel], flair: Path, tmp_path: Path
) -> None:
    volumes, pictures = Preprocessing("native", 2, 32, "crop", 1.0), Preprocessing("image", None, 32, "crop", None)
    Image.fromarray(np.eye(40, dtype=np.uint8) * 200).save(tmp_path / "p.png")
    small = turned(flair, "RAS", tmp_path, (0.05, 0.05, 3.0))
    for path, preprocessing, text in (
        (tmp_path / "p.png", volumes, "is a picture, but the model was trained on volumes; choose another model"),
        (flair, pictures, "is a volume, but the model was trained on pictures; choose another model"),
        (
            small,
            volumes,
            "in-plane voxel edges must be within a factor of 8 of the 1 mm that the model was trained on, but are "
            "0.05 x 0.05 mm; check the header's units",
        ),
    ):
        with pytest.raises(InputError) as error:
            slicing_geometry(source(path), preprocessing)
        assert str(error.value) == f"{path.name}: {text}"
    assert (
        slicing_geometry(source(small), replace(volumes, fit="resize")).shape == nib.load(small).shape
    )  # needs no spacing
    image: Any = nib.load(flair)
    data = image.get_fdata(dtype=np.float32)
    data[tuple(n // 2 for n in data.shape)] = np.nan
    nib.Nifti1Image(data, image.affine).to_filename(tmp_path / "nan.nii.gz")
    with pytest.raises(InputError, match=r"nan.nii.gz: every voxel must be a finite number, but 1 inside"):
        predict(models, source(tmp_path / "nan.nii.gz"))


def test_an_image_with_nan_around_the_head_is_predicted_as_if_it_were_background(
    models: list[TrainedModel], flair: Path, tmp_path: Path
) -> None:
    image: Any = nib.load(flair)
    data = image.get_fdata(dtype=np.float32)
    data[:4], data[-4:] = 0, 0
    nib.Nifti1Image(data, image.affine).to_filename(tmp_path / "zero.nii.gz")
    data[:4], data[-4:] = np.nan, np.nan
    nib.Nifti1Image(data, image.affine).to_filename(tmp_path / "nan.nii.gz")
    masked, plain = (predict(models[:1], source(tmp_path / f"{name}.nii.gz")) for name in ("nan", "zero"))
    assert np.array_equal(masked.probabilities, plain.probabilities)
    assert [one.kind for one in masked.geometry.findings] == ["filled"]


def test_a_mask_beside_the_image_is_never_opened(models: list[TrainedModel], flair: Path, tmp_path: Path) -> None:
    (tmp_path / "mask.nii.gz").write_bytes(b"not an image")
    with_mask = replace(source(flair), mask=(tmp_path / "mask.nii.gz",))
    wanted = predict(models[:1], source(flair))
    assert np.array_equal(predict(models[:1], with_mask).mask, wanted.mask)
