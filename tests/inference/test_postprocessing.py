"""What a model does beside its threshold, and when it is switched on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.inference import postprocessing_choice
from wmlsearch.inference.ensemble import out_of_fold_threshold
from wmlsearch.inference.export import export_model, load_exported
from wmlsearch.inference.postprocessing import NO_POSTPROCESSING, Postprocessing, without_small_lesions
from wmlsearch.inference.postprocessing_choice import choose_postprocessing, is_gain
from wmlsearch.inference.preprocessing import Preprocessing
from wmlsearch.inference.trained_model import TrainedModel
from wmlsearch.model.unet import UNet
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.schema import SearchRecord

MIRRORED = Postprocessing(mirror_averaging=True)


def model(axis: int | None = 2, slices: Any = 1, postprocessing: Postprocessing = NO_POSTPROCESSING) -> TrainedModel:
    torch.manual_seed(0)
    config = TrialConfig(depth=1, base_channels=4, dropout=0.0, input_slices=slices)
    plane = "image" if axis is None else ("sagittal", "coronal", "axial")[axis]
    preprocessing = Preprocessing(plane, axis, 16, "resize", None if axis is None else 1.0)
    unet = UNet.of(config).eval()
    return TrainedModel(unet, config, 0.5, preprocessing, postprocessing=postprocessing)


def test_small_lesions_are_removed_by_their_volume() -> None:
    mask = np.zeros((6, 6, 6), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = 1  # touch at a corner: one lesion of 2 voxels, 4 mm3
    mask[4, 4, 4] = 1  # 2 mm3
    assert without_small_lesions(mask, 2.0, 0.002).sum() == 3
    assert np.argwhere(without_small_lesions(mask, 2.1, 0.002)).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert without_small_lesions(mask, 4.1, 0.002).sum() == 0
    assert without_small_lesions(mask > 0, 2.1, 0.002).dtype == bool
    assert Postprocessing(smallest_lesion_mm3=100.0).finish(mask, None) is mask, "pictures have no mm3"
    assert NO_POSTPROCESSING.finish(mask, 0.002) is mask


@pytest.mark.parametrize("axis", [1, 2])
def test_mirror_averaging_mirrors_the_columns_of_coronal_and_axial_slices(axis: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16), np.uint8)
    plain, averaged = model(axis), model(axis, postprocessing=MIRRORED)
    mirrored = plain.probabilities(images[:, :, ::-1])[:, :, ::-1]
    assert np.allclose(averaged.probabilities(images), (plain.probabilities(images) + mirrored) / 2, atol=1e-6)
    assert np.allclose(
        averaged.probabilities(images[:, :, ::-1])[:, :, ::-1], averaged.probabilities(images), atol=1e-6
    )


def test_mirror_averaging_of_sagittal_slices_turns_the_order_of_the_scan() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16), np.uint8)
    plain, averaged = model(0, 3), model(0, 3, MIRRORED)
    mirrored = plain.probabilities(images[::-1])[::-1]
    assert np.allclose(averaged.probabilities(images), (plain.probabilities(images) + mirrored) / 2, atol=1e-6)
    single, picture = model(0, 1, MIRRORED), model(None, 1, MIRRORED)
    assert not single.can_mirror
    assert not picture.can_mirror
    assert np.array_equal(single.probabilities(images), model(0, 1).probabilities(images))


def test_a_gain_is_more_than_chance() -> None:
    assert is_gain([0.02, 0.03, 0.02, 0.04, 0.03, 0.02])
    assert is_gain([0.01] * 5)
    assert not is_gain([0.01] * 4), "too few patients"
    assert not is_gain([0.0] * 8)
    assert not is_gain([0.2, -0.1, 0.1, -0.05, 0.02, 0.0])
    rng = np.random.default_rng(0)
    switched_on = sum(is_gain(list(rng.normal(0, 0.05, 8))) for _ in range(4000)) / 4000
    assert switched_on == pytest.approx(0.05 / postprocessing_choice.TESTS, abs=0.004)


def test_nothing_is_switched_on_without_a_gain(searched: SearchDir, prepared: Path) -> None:
    """One validation patient says nothing about the next one: the threshold is what it is without a choice."""
    models, data = [TrainedModel.from_run(run) for run in searched.finals()], PreparedData.open(prepared)
    assert choose_postprocessing(models, data) == (out_of_fold_threshold(models, data), NO_POSTPROCESSING)


def test_what_helps_is_switched_on(searched: SearchDir, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirror averaging first, then the lesion size with the largest mean gain among those that help."""
    models, data = [TrainedModel.from_run(run) for run in searched.finals()], PreparedData.open(prepared)
    asked: list[list[float]] = []

    def gain(differences: list[float]) -> bool:
        asked.append(differences)
        return True

    monkeypatch.setattr(postprocessing_choice, "is_gain", gain)
    scores = [{"04": value} for value in (0.5, 0.6, 0.8, 0.7)]
    monkeypatch.setattr(postprocessing_choice, "_dice_by_size", lambda *_: scores)
    threshold, chosen = choose_postprocessing(models, data)
    assert chosen == Postprocessing(mirror_averaging=True, smallest_lesion_mm3=7.0)
    mirrored = [replace(one, postprocessing=MIRRORED) for one in models]
    assert threshold == out_of_fold_threshold(mirrored, data)
    assert [len(differences) for differences in asked] == [1, 1, 1, 1]
    assert [differences[0] for differences in asked[1:]] == pytest.approx([0.1, 0.3, 0.2])


def test_dice_without_small_lesions_by_hand(searched: SearchDir, prepared: Path) -> None:
    """On the validation patient, compared with the masks themselves."""
    run = next(iter(searched.finals()))
    trained, data = TrainedModel.from_run(run), PreparedData.open(prepared)
    by_size = postprocessing_choice._dice_by_size([trained], data, trained.threshold, postprocessing_choice.HERE)
    (positions,) = data.val.by_volume()
    rows = data.val.rows[positions]
    geometry = data.manifest.volumes[data.manifest.slices[int(rows[0])].volume]
    mask = trained.probabilities(data.val.images[rows].numpy()) >= trained.threshold
    truth = data.val.masks[rows].numpy() == 1
    assert geometry.pixel_ml is not None
    for size, scores in zip((0.0, *postprocessing_choice.SIZES_MM3), by_size, strict=True):
        lesion = without_small_lesions(mask, size, geometry.pixel_ml)
        assert scores == {"04": pytest.approx(2 * (lesion & truth).sum() / (lesion.sum() + truth.sum()))}


def test_an_export_has_a_higher_format_only_with_postprocessing(tmp_path: Path) -> None:
    for name, chosen, number in (("plain", NO_POSTPROCESSING, 1), ("more", Postprocessing(True, 7.0), 2)):
        export_model([model(postprocessing=chosen)], tmp_path / name)
        about = json.loads((tmp_path / name / "model.json").read_text())
        assert (about["format"], "postprocessing" in about) == (number, number == 2)
        assert load_exported(tmp_path / name).members[0].postprocessing == chosen


def test_a_search_of_an_older_version_has_no_postprocessing(searched: SearchDir) -> None:
    about = searched.record().as_json()
    settings = {name: value for name, value in about["settings"].items() if name != "postprocessing"}
    assert SearchRecord.model_validate({**about, "settings": settings}).settings.postprocessing == "none"
    assert RunSettings().postprocessing == "auto"
