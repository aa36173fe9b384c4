"""A sealed test that was prepared in another plane than the models' gives the scores that it has in the models' own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nifti_files import cohort

from wmlsearch.config import TrialConfig
from wmlsearch.data.manifest import ORIGINALS, SEALED, Manifest
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.sealed_test import Opener, openings
from wmlsearch.errors import InputError
from wmlsearch.inference.preprocessing import Preprocessing
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.unet import UNet
from wmlsearch.runs.evaluation import SLICES, VOLUMES
from wmlsearch.verdict.evaluation import evaluate

BY = Opener(run="r")
OTHER = {"axial": "sagittal", "sagittal": "axial"}


@pytest.fixture(scope="module", params=["brain", "lesion"])
def prepared(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Path]:
    """The same patients, prepared in two planes: 6 axial slices and 24 sagittal ones, some without head or lesion."""
    folder = tmp_path_factory.mktemp("planes")
    table = cohort(folder / "raw", {"a": 12, "b": 20, "c": 31, "d": 42, "e": 50, "f": 64})
    for plane in OTHER:
        prepare(table, folder / plane, PrepareOptions(size=32, plane=plane, keep=request.param, jobs=1))
    return {plane: folder / plane for plane in OTHER}


def untrained(data: Path) -> TrainedModel:
    """A model of these data that finds a tenth of everything."""
    torch.manual_seed(0)
    manifest, config = Manifest.read(data), TrialConfig(depth=2, base_channels=4)
    cut = Preprocessing(manifest.plane, manifest.axis, manifest.size, manifest.fit, manifest.spacing_mm)
    model = TrainedModel(UNet.of(config).eval(), config, 0.5, cut, "m")
    likely = model.probabilities(np.load(data / SEALED / "images.npy"))
    return replace(model, threshold=float(np.quantile(likely, 0.9)))


@pytest.mark.parametrize("plane", OTHER)
def test_both_scopes_and_the_gallery_are_those_of_the_models_plane(plane: str, prepared: dict[str, Path]) -> None:
    model = untrained(prepared[plane])
    (wanted, own_gallery), (found, gallery) = (
        evaluate({"model": [model]}, prepared[one], BY) for one in (plane, OTHER[plane])
    )
    scores = found.models["model"].members[0]
    kept = [(row.patient, row.index) for row in Manifest.read(prepared[plane] / SEALED).slices if row.kept]
    assert [(row.patient, row.index) for row in scores.scope(SLICES).rows] == kept
    assert scores == wanted.models["model"].members[0]
    assert scores.scopes == (VOLUMES, SLICES)
    assert scores.scope(SLICES).pooled.lesions_expert > 0
    assert gallery.units == own_gallery.units
    for name, array in own_gallery.to_arrays().items():
        assert np.array_equal(gallery.to_arrays()[name], array), name
    assert gallery.expert.any()


def test_the_planes_differ_in_what_they_keep(prepared: dict[str, Path]) -> None:
    """So the other tests would see that the slices of one plane are counted in the other."""
    sealed = [Manifest.read(data / SEALED) for data in prepared.values()]
    first, second = ([row.index for row in manifest.slices if row.kept] for manifest in sealed)
    assert first != second
    assert any(not row.kept for manifest in sealed for row in manifest.slices)


@pytest.mark.parametrize("plane", OTHER)
def test_voxels_that_do_not_suit_the_models_plane_keep_the_seal_closed(plane: str, prepared: dict[str, Path]) -> None:
    model, data = untrained(prepared[plane]), prepared[OTHER[plane]]
    assert model.preprocessing is not None
    spacing, before = 9 * (model.preprocessing.spacing_mm or 1.0), openings(data)
    with pytest.raises(InputError) as error:
        evaluate({"model": [replace(model, preprocessing=replace(model.preprocessing, spacing_mm=spacing))]}, data, BY)
    assert error.value.headline == f"{data}: some of its test volumes cannot be cut as the models expect"
    assert error.value.faults == tuple(
        f"{volume.source}: in-plane voxel edges must be within a factor of 8 of the {spacing:.4g} mm that the model "
        f"was trained on, but are {down:.4g} x {across:.4g} mm; check the header's units"
        for volume in Manifest.read(prepared[plane] / SEALED).volumes
        for down, across in [volume.picture_mm or (0, 0)]
    )
    assert openings(data) == before


def test_missing_files_keep_the_seal_closed(prepared: dict[str, Path], tmp_path: Path) -> None:
    data = Path(shutil.copytree(prepared["axial"], tmp_path / "data"))
    before, lost = openings(data), data / SEALED / ORIGINALS / Manifest.read(data / SEALED).volumes[-1].masks[0]
    lost.unlink()
    with pytest.raises(InputError, match="test patients' files are missing") as error:
        evaluate({"model": [untrained(data)]}, data, BY)
    assert error.value.faults == (str(lost),)
    assert openings(data) == before
