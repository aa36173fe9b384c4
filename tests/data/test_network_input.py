"""What a network sees of a slice: its neighbours in the same scan, and grey values scaled within the head."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wmlsearch.config import TrialConfig
from wmlsearch.data.examine import examine
from wmlsearch.data.head_detection import find_head
from wmlsearch.data.head_grey import slice_head_grey
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.network_input import scale_grey_values, stack_positions
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.data.slices import PreparedData
from wmlsearch.data.sources import Source
from wmlsearch.errors import InputError
from wmlsearch.model.checks import check_trainable

ZSCORE = TrialConfig(intensity="zscore")
THREE = TrialConfig(depth=2, base_channels=4, input_slices=3)


def test_the_edge_of_a_scan_repeats() -> None:
    assert stack_positions(4, 1).tolist() == [[0], [1], [2], [3]]
    assert stack_positions(4, 3).tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]
    assert stack_positions(2, 5).tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]


@pytest.mark.parametrize("channels", [3, 5])
def test_channels_are_the_neighbours_in_the_same_volume(data: PreparedData, channels: int) -> None:
    manifest, half = data.manifest, channels // 2
    stacked = data.with_input_of(TrialConfig(input_slices=channels))
    for slices in (stacked.train, stacked.val):
        assert slices.channels is not None
        batch, masks = slices.batch(torch.arange(len(slices)))
        assert batch.shape[1:] == (channels, manifest.size, manifest.size)
        assert torch.equal(batch[:, half], slices.images[slices.rows].float() / 255)
        assert torch.equal(masks[:, 0], slices.masks[slices.rows].float())
        for position, row in enumerate(slices.rows.tolist()):
            this, last = manifest.slices[row], manifest.volumes[manifest.slices[row].volume].slices - 1
            around = [manifest.slices[other] for other in slices.channels[position].tolist()]
            assert {other.volume for other in around} == {this.volume}
            wanted = [min(max(this.index + step, 0), last) for step in range(-half, half + 1)]
            assert [other.index for other in around] == wanted
    assert stacked.with_input_of(TrialConfig()).train.channels is None


def test_a_neighbour_that_is_not_stored_is_replaced_towards_the_slice(prepared: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(Path(shutil.copytree(prepared, tmp_path / "copy")))
    numbers = [row.index for row in manifest.slices if row.volume == 0]
    rows = [row for row in manifest.slices if row.volume == 0 and row.index not in (numbers[2], numbers[5])]
    fewer = dataclasses.replace(manifest, slices=tuple(rows))
    place = {row.index - numbers[0]: number for number, row in enumerate(rows)}
    assert fewer.neighbours([place[0], place[3], place[6]], 5).tolist() == [
        [place[0], place[0], place[0], place[1], place[1]],
        [place[1], place[3], place[3], place[4], place[4]],
        [place[4], place[6], place[6], place[7], place[8]],
    ]
    assert fewer.neighbours([], 3).shape == (0, 3)
    assert fewer.lacks_neighbours([place[3]], 3)
    assert not fewer.lacks_neighbours([place[0], place[8]], 3)
    assert fewer.lacks_neighbours([place[0]], 5)


def test_data_whose_neighbours_tell_too_much_are_refused(raw: Path, prepared: Path, tmp_path: Path) -> None:
    def fault(**options: object) -> str:
        folder = tmp_path / "-".join(map(str, options.values()))
        prepare(raw, folder, PrepareOptions(**{"size": 32, "fit": "resize", "jobs": 1, **options}))  # type: ignore[arg-type]
        data = PreparedData.open(folder)
        check_trainable(TrialConfig(depth=2), data)
        with pytest.raises(InputError) as caught:
            check_trainable(THREE, data)
        (line,) = caught.value.faults
        return line

    check_trainable(THREE, PreparedData.open(prepared))
    assert fault(split="image", allow_leakage=True) == (
        "input_slices=3 needs a split by patient, but the data are split by image, so a neighbour of a training slice "
        "may be a test slice: use `input_slices` 1, or prepare with --split patient"
    )
    assert fault(keep="lesion", folds=1) == (
        "input_slices=3 needs the neighbours of training slices, but --keep lesion left out those without lesions, so "
        "a missing neighbour would tell where lesions end: use `input_slices` 1, or prepare with --keep brain"
    )
    folds = tmp_path / "folds"  # all slices of development patients are stored
    prepare(raw, folds, PrepareOptions(size=32, fit="resize", jobs=1, keep="lesion", folds=2))
    check_trainable(THREE, PreparedData.open(folds))
    pictures = dataclasses.replace(PreparedData.open(prepared).manifest, axis=None)
    with pytest.raises(InputError, match="input_slices=3 needs volumes, but the data are 2-D pictures: use"):
        check_trainable(THREE, dataclasses.replace(PreparedData.open(prepared), manifest=pictures))


def test_the_images_of_all_slices_are_those_of_the_volume(prepared: Path) -> None:
    """The channels of prepared validation slices are those that prediction makes of a whole volume."""
    data = PreparedData.open(prepared).with_input_of(THREE)
    for positions in data.val.by_volume():
        images = data.val.images[data.val.rows[positions]]
        batch, _ = data.val.batch(positions)
        assert np.array_equal(batch.numpy(), images[stack_positions(len(images), 3)].float().numpy() / np.float32(255))


# -------------------------------------------------------------------------------------------------------- grey values


def test_z_scores_are_those_of_the_head_of_each_volume(prepared: Path) -> None:
    """Mean 0 and standard deviation 1 in the head's pixels, up to the smoothing and 8-bit steps of prepared slices."""
    data = PreparedData.open(prepared).with_input_of(ZSCORE)
    for slices in (data.train, data.val):
        for positions in slices.by_volume():
            batch, _ = slices.batch(positions)
            images = slices.images[slices.rows[positions]]
            first = data.manifest.slices[int(slices.rows[positions[0]])]
            ((mean, deviation),) = data.manifest.volumes[first.volume].head_grey
            assert torch.allclose(batch[:, 0], (images.float() - mean) / deviation, atol=1e-6)
            inside = batch[:, 0][torch.from_numpy(find_head(images.numpy()).pixels)]
            assert abs(float(inside.mean())) < 0.2
            assert float(inside.std()) == pytest.approx(1, abs=0.2)
    assert data.with_input_of(TrialConfig()).train.head_grey is None


def test_grey_values_by_hand() -> None:
    images = torch.tensor([[[[0, 100], [150, 255]]], [[[7, 7], [7, 7]]]], dtype=torch.uint8)
    scaled = scale_grey_values(images, torch.tensor([[100.0, 50.0], [7.0, 0.0]]))
    assert scaled.tolist() == [[[[-2, 0], [1, pytest.approx(3.1)]]], [[[0, 0], [0, 0]]]]
    assert torch.equal(scale_grey_values(images), images.float() / 255)


def test_data_of_older_versions_are_refused(prepared: Path) -> None:
    """They do not record the head's grey values, so training would see others than prediction, which measures them."""
    data = PreparedData.open(prepared)
    old = dataclasses.replace(data, manifest=without_head_grey(data.manifest))
    check_trainable(TrialConfig(depth=2), old)
    with pytest.raises(InputError) as caught:
        check_trainable(TrialConfig(depth=2, intensity="zscore"), old)
    assert caught.value.faults == (
        "intensity=zscore needs the grey values of the head in each volume, which data that were prepared by an older "
        "version do not record: make it again with `wmlsearch prepare`, or use `intensity` range",
    )
    with pytest.raises(ValueError, match="do not record the grey values of the head"):
        old.with_input_of(ZSCORE)


def without_head_grey(manifest: Manifest) -> Manifest:
    volumes = tuple(dataclasses.replace(volume, head_grey=()) for volume in manifest.volumes)
    return dataclasses.replace(manifest, volumes=volumes)


def test_each_picture_has_its_own_head(tmp_path: Path) -> None:
    """A picture is predicted without the others of its patient."""
    greys = np.random.default_rng(0).integers(80, 120, (2, 24, 24))
    paths = tuple(tmp_path / f"{number}.png" for number in range(2))
    for path, grey, factor in zip(paths, greys, (1, 2), strict=True):
        picture = np.zeros((32, 32), np.uint8)
        picture[4:28, 4:28] = grey * factor
        Image.fromarray(picture).save(path)
    both, _ = examine(Source("", "", tmp_path, paths), None)
    assert both is not None
    for grey, factor, path, level in zip(greys, (1, 2), paths, both.head_grey, strict=True):
        assert level == pytest.approx((factor * grey.mean(), factor * grey.std()), abs=1e-3)
        alone, _ = examine(Source("", "", tmp_path, (path,)), None)
        assert alone is not None
        assert alone.head_grey == (level,)


def test_pictures_have_levels_of_their_own(prepared: Path) -> None:
    manifest = PreparedData.open(prepared).manifest
    volume = dataclasses.replace(manifest.volumes[0], head_grey=((1.0, 2.0), (3.0, 4.0)))
    rows = [dataclasses.replace(manifest.slices[0], volume=0, index=index) for index in (1, 0)]
    pictures = dataclasses.replace(manifest, axis=None, volumes=(volume,), slices=tuple(rows))
    assert slice_head_grey(pictures) == [(3.0, 4.0), (1.0, 2.0)]
