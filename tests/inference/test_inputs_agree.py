"""Hyperparameters of the input: training, sealed test, prediction from files and an export see the same."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nifti_files import voxels

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.manifest import LEDGER, ORIGINALS, SEALED, Manifest
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.sealed_test import Opener, openings
from wmlsearch.data.slices import PreparedData
from wmlsearch.data.sources import Source
from wmlsearch.errors import InputError
from wmlsearch.inference.export import export_model, load_exported
from wmlsearch.inference.postprocessing import NO_POSTPROCESSING, Postprocessing
from wmlsearch.inference.predictor import predict
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.training import epochs
from wmlsearch.runs.evaluation import VOLUMES
from wmlsearch.runs.folders import RunDir
from wmlsearch.verdict import evaluation
from wmlsearch.verdict.evaluation import evaluate
from wmlsearch.verdict.scores import score
from wmlsearch.workflows.provenance import data_record, run_record

SMALL = {"depth": 2, "base_channels": 4, "norm": "instance", "loss": "bce_dice", "dropout": 0.0, "learning_rate": 1e-2}
INPUTS: list[dict[str, Any]] = [
    {"input_slices": 3},
    {"intensity": "zscore"},
    {"input_slices": 5, "intensity": "zscore"},
    {"postprocessing": Postprocessing(mirror_averaging=True, smallest_lesion_mm3=1000.0)},
]


@pytest.fixture(scope="module")
def data(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = Path(shutil.copytree(prepared, tmp_path_factory.mktemp("input") / "data"))
    (copy / SEALED / LEDGER).write_text("")
    return copy


@pytest.fixture(scope="module", params=INPUTS, ids=lambda values: "-".join(values))
def model(data: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """A network after an epoch, from its run folder; it finds a tenth of everything."""
    inputs = {name: value for name, value in request.param.items() if name != "postprocessing"}
    prepared, config = PreparedData.open(data), TrialConfig(**{**SMALL, **inputs})
    about = run_record("r", "train", config, RunSettings(epochs=1), data_record(data, prepared))
    run = RunDir.create(tmp_path_factory.mktemp("runs") / "r", about)
    for row in epochs(config, prepared, max_epochs=1, precision="float32", best=run.best):
        run.append(row)
    trained, (first, *_) = TrainedModel.from_run(run), prepared.val.by_volume()
    rows = prepared.val.rows[first]
    volume = prepared.manifest.volumes[prepared.manifest.slices[int(rows[0])].volume]
    likely = trained.probabilities(prepared.val.images[rows].numpy(), volume.head_grey)
    postprocessing = request.param.get("postprocessing", NO_POSTPROCESSING)
    return replace(trained, threshold=float(np.quantile(likely, 0.9)), postprocessing=postprocessing)


def test_validation_and_prediction_agree(model: TrainedModel, data: Path) -> None:
    """The input of a whole volume is the input of its prepared slices."""
    prepared = PreparedData.open(data)
    validation = prepared.with_input_of(model.config).val
    for positions in validation.by_volume():
        batch, _ = validation.batch(positions)
        with torch.inference_mode():
            wanted = torch.sigmoid(model.unet(batch))[:, 0].numpy()
            if model.postprocessing.mirror_averaging:  # of axial slices: the columns
                mirrored = torch.sigmoid(model.unet(batch.flip(3)))[:, 0].flip(2)
                wanted = (wanted + mirrored.numpy()) / 2
        images = validation.images[validation.rows[positions]].numpy()
        volume = prepared.manifest.volumes[prepared.manifest.slices[int(validation.rows[positions[0]])].volume]
        assert np.allclose(model.probabilities(images, volume.head_grey), wanted, atol=1e-6)


def test_a_volume_predicted_through_files_equals_the_sealed_test(
    model: TrainedModel, data: Path, tmp_path: Path
) -> None:
    found, _ = evaluate({"model": [model]}, data, Opener(run="r"))
    export_model([model], tmp_path / "export")
    exported = load_exported(tmp_path / "export").members[0]
    assert (exported.config, exported.postprocessing) == (model.config, model.postprocessing)
    members = found.models["model"].members[0]
    assert Postprocessing(members.mirror_averaging, members.smallest_lesion_mm3) == model.postprocessing
    sealed, lesion = data / SEALED, 0
    rows = found.models["model"].members[0].scope(VOLUMES).rows
    for row, geometry in zip(rows, Manifest.read(sealed).volumes, strict=True):
        source = Source("", "", sealed, (sealed / ORIGINALS / geometry.source,))
        prediction = predict([exported], source)
        assert np.array_equal(prediction.probabilities, predict([model], source).probabilities)
        expert = voxels(sealed / ORIGINALS / geometry.masks[0])
        scores = score(prediction.mask, expert, prediction.voxel_mm)
        assert (row.tp, row.fp, row.fn, row.dice) == (scores.tp, scores.fp, scores.fn, scores.dice)
        lesion += row.tp + row.fp
    assert lesion > 0


def test_z_scores_need_the_grey_values_of_the_head(model: TrainedModel, data: Path) -> None:
    """Single test slices of older data do not have them; whole volumes are measured when they are opened."""
    prepared = PreparedData.open(data)
    images = prepared.val.images[prepared.val.rows].numpy()
    sees_z_scores = model.config.intensity == "zscore"
    with pytest.raises(ValueError, match="needs the grey values") if sees_z_scores else nullcontext():
        model.probabilities(images)
    volumes = tuple(replace(volume, head_grey=()) for volume in prepared.manifest.volumes)
    old = replace(prepared.manifest, volumes=volumes)
    evaluation._check_head_grey(Path("old"), old, [model])
    single = replace(old, split_level="image")
    evaluation._check_head_grey(Path("new"), replace(single, volumes=prepared.manifest.volumes), [model])
    with pytest.raises(InputError) if sees_z_scores else nullcontext() as caught:
        evaluation._check_head_grey(Path("old"), single, [model])
    assert not sees_z_scores or str(caught.value) == (
        "old: r sees z-scores (intensity=zscore), but these data were prepared by an older version, which did not "
        "record the grey values of the head; make it again with `wmlsearch prepare`"
    )


def test_single_slices_are_refused_for_a_model_of_several_only(model: TrainedModel, raw: Path, tmp_path: Path) -> None:
    options = PrepareOptions(size=32, fit="resize", jobs=1, split="image", allow_leakage=True)
    prepare(raw, tmp_path / "images", options)
    if not model.needs_whole_volumes:
        assert evaluate({"model": [model]}, tmp_path / "images", Opener(run="r"))[0].unit == "patients"
        return
    with pytest.raises(InputError) as caught:
        evaluate({"model": [model]}, tmp_path / "images", Opener(run="r"))
    assert str(caught.value) == (
        f"{tmp_path}/images: r needs the whole scan of each slice, but these data are split by image; evaluate it on "
        "volumes that are split by patient"
    )
    assert not openings(tmp_path / "images")
