"""Prepared slices as batches: each once, the right ones for each split, damaged data refused, augmentation."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmlsearch.data.augmentation import (
    BOUNDS,
    Augmentation,
    Intensities,
    Kind,
    bias_fields,
    gaussian_blur,
    gaussian_noise,
)
from wmlsearch.data.manifest import IMAGES, MASKS, Manifest
from wmlsearch.data.slices import PreparedData, batches, batches_with_share
from wmlsearch.errors import InputError

MAKE_AGAIN = "make it again with `wmlsearch prepare`"


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(prepared, tmp_path / "prepared")


@settings(max_examples=80, deadline=None)
@given(slices=st.integers(1, 300), batch_size=st.integers(1, 320), seed=st.integers(0, 1000))
def test_batches_hold_each_slice_once_in_even_parts(slices: int, batch_size: int, seed: int) -> None:
    parts = batches(slices, batch_size, torch.Generator().manual_seed(seed))
    assert sorted(torch.cat(parts).tolist()) == list(range(slices))
    sizes = [len(part) for part in parts]
    assert len(sizes) == math.ceil(slices / batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_batches_depend_on_the_generator_alone() -> None:
    def order(seed: int) -> list[int]:
        return torch.cat(batches(50, 7, torch.Generator().manual_seed(seed))).tolist()

    torch.manual_seed(1)
    first = order(3)
    torch.manual_seed(2)
    assert order(3) == first
    assert order(4) != first


def test_splits_hold_their_own_patients_and_no_test_patient(data: PreparedData) -> None:
    patients = data.manifest.certificate.patients
    assert data.train.patient_names == patients["train"]
    assert data.val.patient_names == patients["val"] == ("04",)
    assert len(patients["test"]) == 3
    sources = data.manifest.slices
    assert not {row.patient for row in sources} & set(patients["test"])
    assert len(data.train.images) == len(data.val.images) == len(sources)
    for split, slices in (("train", data.train), ("val", data.val)):
        for position, row in enumerate(slices.rows.tolist()):
            assert sources[row].split == split
            assert slices.patient_names[int(slices.patients[position])] == sources[row].patient
    assert not set(data.train.rows.tolist()) & set(data.val.rows.tolist())


def test_training_sees_the_kept_slices_and_validation_all(copy: Path) -> None:
    manifest = Manifest.read(copy)
    rows = tuple(dataclasses.replace(row, kept=number % 3 != 0) for number, row in enumerate(manifest.slices))
    dataclasses.replace(manifest, slices=rows).write(copy)
    data = PreparedData.open(copy)
    assert data.train.rows.tolist() == [k for k, row in enumerate(rows) if row.split == "train" and k % 3]
    assert data.val.rows.tolist() == [k for k, row in enumerate(rows) if row.split == "val"]
    assert len(data.train) < len(manifest.indices("train", kept_only=False))


def test_each_fold_is_validated_by_runs_that_train_on_the_others(copy: Path) -> None:
    manifest = Manifest.read(copy)
    first, second, *others = manifest.certificate.patients["train"]
    folds = (("04",), (first, *others), (second,))
    changed = dataclasses.replace(manifest.certificate, folds=folds)
    dataclasses.replace(manifest, certificate=changed).write(copy)
    data = PreparedData.open(copy)
    assert (data.fold, data.manifest.fold_count) == (0, 3)
    for fold, names in enumerate(folds):
        part = data.with_fold(fold)
        assert part.fold == fold
        assert part.val.patient_names == tuple(sorted(names))
        assert part.train.patient_names == tuple(sorted({"04", first, second, *others} - set(names)))
        assert sorted([*part.train.rows.tolist(), *part.val.rows.tolist()]) == list(range(len(manifest.slices)))
        assert part.train.images is data.train.images, "no second copy"
    assert PreparedData.open(copy, fold=5).val.patient_names == (second,), "5 modulo 3 folds"
    assert data.with_fold(3) is data


def test_folds_that_are_not_the_patients_of_train_and_val_are_refused(copy: Path) -> None:
    manifest = Manifest.read(copy)
    train = manifest.certificate.patients["train"]
    for folds in (("04",), train[1:]), (train, ("04",)), (("04",), train, train[:1]):
        changed = dataclasses.replace(manifest.certificate, folds=folds)
        dataclasses.replace(manifest, certificate=changed).write(copy)
        with pytest.raises(InputError, match="the folds are not the patients of train and val"):
            Manifest.read(copy)


def test_a_batch_is_the_stored_slices(data: PreparedData, prepared: Path) -> None:
    images, masks = np.load(prepared / IMAGES), np.load(prepared / MASKS)
    positions = torch.tensor([5, 0, 7, 5])
    for slices in (data.train, data.val):
        x, y = slices.batch(positions)
        assert x.shape == y.shape == (4, 1, 32, 32)
        assert x.dtype == y.dtype == torch.float32
        rows = slices.rows[positions].numpy()
        assert np.array_equal(x[:, 0].numpy(), images[rows].astype(np.float32) / 255)
        assert np.array_equal(y[:, 0].numpy(), masks[rows].astype(np.float32))
        assert set(y.unique().tolist()) <= {0.0, 1.0}
        assert 0 <= x.min() < x.max() <= 1


def test_the_arrays_are_mapped_and_never_written(prepared: Path) -> None:
    before = (prepared / IMAGES).read_bytes()
    data = PreparedData.open(prepared)
    assert data.train.images.data_ptr() == data.val.images.data_ptr()
    for name, array in ((IMAGES, data.train.images), (MASKS, data.train.masks)):
        mapped = []
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.endswith(str((prepared / name).resolve())):
                low, high = (int(address, 16) for address in line.split()[0].split("-"))
                mapped.append(low <= array.data_ptr() < high)
        assert any(mapped), name
    data.train.images[0] = 77
    assert (prepared / IMAGES).read_bytes() == before


@pytest.mark.parametrize("name", [IMAGES, MASKS])
def test_a_file_that_is_too_short_is_refused(copy: Path, name: str) -> None:
    path = copy / name
    whole = path.read_bytes()
    for size in (len(whole) - 1, 200, 50, 3, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError) as caught:
            PreparedData.open(copy)
        assert str(caught.value).startswith(f"{path}: cannot be read (")
        assert str(caught.value).endswith(f"); {MAKE_AGAIN}")
    path.unlink()
    with pytest.raises(InputError) as caught:
        PreparedData.open(copy)
    missing = f"[Errno 2] No such file or directory: '{path}'"
    assert str(caught.value) == f"{path}: cannot be read ({missing}); {MAKE_AGAIN}"


def test_an_array_of_another_kind_is_refused(copy: Path) -> None:
    count = len(Manifest.read(copy).slices)
    start = f"the manifest says ({count}, 32, 32) uint8, but it holds"
    for array in (np.zeros((3, 32, 32), np.uint8), np.zeros((count, 32, 32), np.float32)):
        np.save(copy / MASKS, array)
        with pytest.raises(InputError) as caught:
            PreparedData.open(copy)
        assert str(caught.value) == f"{copy / MASKS}: {start} {array.shape} {array.dtype}; {MAKE_AGAIN}"
    np.save(copy / MASKS, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(InputError, match=r"masks.npy: cannot be read \("):
        PreparedData.open(copy)
    with open(copy / MASKS, "wb") as file:
        np.savez(file, np.zeros(3))
    with pytest.raises(InputError, match=r"masks.npy: cannot be read \("):
        PreparedData.open(copy)


def test_no_folder_and_another_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        PreparedData.open(tmp_path / "none")
    where = tmp_path / "none"
    assert str(caught.value) == f"{where}: no such folder; make it with `wmlsearch prepare RAW {where}`"
    with pytest.raises(InputError) as caught:
        PreparedData.open(tmp_path)
    assert str(caught.value) == f"{tmp_path}: not a prepared data set, manifest.json is missing; {MAKE_AGAIN}"


# ------------------------------------------------------------------------------------------------- share of lesions


@pytest.mark.parametrize("share", [0.1, 0.33, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("batch_size", [1, 5, 7, 23])
def test_batches_have_their_share_of_slices_with_lesions(share: float, batch_size: int) -> None:
    with_lesion = torch.arange(23) % 4 == 0  # 6 of 23
    drawn = batches_with_share(with_lesion, batch_size, share, torch.Generator().manual_seed(1))
    plain = batches(23, batch_size, torch.Generator().manual_seed(1))
    assert [len(batch) for batch in drawn] == [len(batch) for batch in plain], "epochs keep their length"
    for batch in drawn:
        assert abs(with_lesion[batch].sum().item() - share * len(batch)) <= 1
    order = torch.cat(drawn)
    assert with_lesion[order].sum().item() == math.floor(share * 23 + 0.5)
    for kind in (with_lesion, ~with_lesion):  # without replacement: no slice a second time before each had its first
        times = torch.bincount(order, minlength=23)[kind]
        assert times.max() - times.min() <= 1


def test_order_with_a_share_comes_from_the_generator_alone() -> None:
    with_lesion = torch.arange(40) < 10

    def order(seed: int) -> Tensor:
        return torch.cat(batches_with_share(with_lesion, 8, 0.5, torch.Generator().manual_seed(seed)))

    assert torch.equal(order(1), order(1))
    assert not torch.equal(order(1), order(2))
    mixed = batches_with_share(with_lesion, 8, 0.5, torch.Generator().manual_seed(1))
    halves = [with_lesion[batch][::2].sum().item() for batch in mixed]
    assert set(halves) != {4}, "ranks that take every other position get lesions too"
    assert 0 < sum(halves) < 20


def test_slices_with_lesions_are_those_of_the_masks(prepared: Path) -> None:
    data = PreparedData.open(prepared)
    wanted = data.train.masks[data.train.rows].flatten(1).any(1)
    assert torch.equal(data.training_slices_with_lesions(), wanted)
    assert 0 < wanted.sum() < len(wanted)


# ---------------------------------------------------------------------------------------------------- augmentation


def pair(slices: int = 4, size: int = 24) -> tuple[Tensor, Tensor]:
    """Images with something to see in them, and the mask of what is bright."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(slices, 1, 6, 6, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return images, (images > 0.5).float()


def fixed(mirror: float = 1, angle: float = 0, scale: float = 1, shift: tuple[float, float] = (0, 0)) -> Augmentation:
    def four(value: float) -> Tensor:
        return torch.full((4,), float(value))

    return Augmentation(four(mirror), four(angle), four(scale), torch.tensor([shift] * 4, dtype=torch.float32))


@pytest.mark.parametrize("kind", list(BOUNDS))
def test_chance_comes_from_the_generator_alone(kind: Kind) -> None:
    def drawn(seed: int) -> Augmentation:
        return Augmentation.draw(kind, 40, torch.Generator().manual_seed(seed))

    torch.manual_seed(1)
    first = drawn(5)
    torch.manual_seed(2)
    for one, other in zip(drawn(5).tensors(), first.tensors(), strict=True):
        assert torch.equal(one, other)
    assert (first.intensities is None) == (kind in ("flip", "affine"))
    assert not torch.equal(drawn(6).mirror, first.mirror)
    picked = first[torch.tensor([7, 3])]
    assert torch.equal(picked.shift, first.shift[[7, 3]])
    assert torch.equal(picked.mirror, first.mirror[[7, 3]])
    for one, other in zip(picked.tensors(), first.tensors(), strict=True):
        assert torch.equal(one, other[[7, 3]])


def test_what_is_drawn_lies_in_its_bounds() -> None:
    flip = Augmentation.draw("flip", 2000, torch.Generator().manual_seed(0))
    assert set(flip.mirror.tolist()) == {-1.0, 1.0}
    assert abs(flip.mirror.mean().item()) < 0.1
    assert (flip.angle.abs().max(), flip.shift.abs().max()) == (0, 0)
    assert set(flip.scale.tolist()) == {1.0}
    affine = Augmentation.draw("affine", 2000, torch.Generator().manual_seed(0))
    assert 14 < math.degrees(affine.angle.abs().max().item()) <= 15
    assert 0.9 <= affine.scale.min().item() < 0.91
    assert 1.09 < affine.scale.max().item() <= 1.1
    assert 0.098 < affine.shift.abs().max().item() <= 0.1  # of half the image: 5 % of all of it


def test_identity_changes_nothing() -> None:
    images, masks = pair()
    x, y = fixed().apply(images, masks)
    assert torch.allclose(x, images, atol=1e-5)
    assert torch.equal(y, masks)


def test_flip_mirrors_image_and_mask_left_to_right() -> None:
    images, masks = pair()
    x, y = fixed(mirror=-1).apply(images, masks)
    assert torch.allclose(x, images.flip(-1), atol=1e-5)
    assert torch.equal(y, masks.flip(-1))


def test_a_shift_is_a_share_of_half_the_image() -> None:
    images, masks = pair()
    x, y = fixed(shift=(0.25, 0)).apply(images, masks)  # 3 of 24 pixels, to the left
    assert torch.allclose(x[..., :-3], images[..., 3:], atol=1e-5)
    assert torch.equal(y[..., :-3], masks[..., 3:])
    assert not y[..., -3:].any()  # nothing is invented beyond the border
    _, y = fixed(shift=(0, 0.25)).apply(images, masks)
    assert torch.equal(y[..., :-3, :], masks[..., 3:, :])


def test_scale_and_angle_act_as_said() -> None:
    square = torch.zeros(4, 1, 65, 65)
    square[..., 20:45, 20:45] = 1  # 25 x 25
    _, larger = fixed(scale=1.1).apply(square, square)
    assert larger[0].sum().sqrt().item() == pytest.approx(25 * 1.1, abs=1.1)
    _, turned = fixed(angle=math.pi / 2).apply(square, square)
    assert torch.equal(turned, square)
    corner = torch.zeros(4, 1, 65, 65)
    corner[..., 0:20, 0:20] = 1
    _, turned = fixed(angle=math.pi / 2).apply(corner, corner)
    assert torch.equal(turned, torch.rot90(corner, 1, (-2, -1))) != torch.equal(
        turned, torch.rot90(corner, -1, (-2, -1))
    )


def test_masks_stay_masks_and_move_with_their_images() -> None:
    images, masks = pair(40)
    drawn = Augmentation.draw("affine", 40, torch.Generator().manual_seed(1))
    x, y = drawn.apply(images, masks)
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert x.min() >= images.min() - 1e-6
    assert x.max() <= images.max() + 1e-6
    inner = (..., slice(5, -5), slice(5, -5))  # beyond the border there is no mask
    assert ((x > 0.5).float()[inner] == y[inner]).float().mean() > 0.95
    assert (masks[inner] == y[inner]).float().mean() < 0.9  # it did move


def test_where_left_and_right_are_no_columns_mirroring_reverses_the_neighbouring_slices() -> None:
    images, masks = pair()
    stack = torch.cat([images, images / 2, images / 4], dim=1)
    drawn = dataclasses.replace(fixed(), mirror=torch.tensor([-1.0, 1.0, -1.0, 1.0]), mirrors_columns=False)
    x, y = drawn.apply(stack, masks)
    assert torch.equal(y, masks)
    assert torch.allclose(x[::2], stack[::2].flip(1), atol=1e-5)
    assert torch.allclose(x[1::2], stack[1::2], atol=1e-5)
    alone, _ = drawn.apply(images, masks)
    assert torch.allclose(alone, images, atol=1e-5), "a single sagittal slice shows no left and right"
    drawn = Augmentation.draw("affine", 6, torch.Generator().manual_seed(1), mirrors_columns=False)
    columns = Augmentation.draw("affine", 6, torch.Generator().manual_seed(1))
    assert not drawn[torch.tensor([2])].to(torch.device("cpu")).mirrors_columns
    for one, other in zip(drawn.tensors(), columns.tensors(), strict=True):
        assert torch.equal(one, other), "nothing else is drawn differently"


# ------------------------------------------------------------------------------------------------------ grey values


def unchanged(slices: int = 4) -> Intensities:
    zeros, ones = torch.zeros(slices), torch.ones(slices)
    shape, seeds = torch.ones(slices, 9), torch.arange(slices)
    return Intensities(ones, ones, zeros, shape, zeros, zeros, seeds)


def test_strengths_grow_and_stay_in_their_bounds() -> None:
    amounts = []
    for kind in ("light", "medium", "strong"):
        bounds, slices = BOUNDS[kind], 4000
        drawn = Augmentation.draw(kind, slices, torch.Generator().manual_seed(0))
        changes = drawn.intensities
        assert changes is not None
        assert math.degrees(drawn.angle.abs().max().item()) == pytest.approx(bounds.angle_deg, rel=0.01)
        assert (drawn.scale - 1).abs().max().item() == pytest.approx(bounds.scaling, rel=0.01)
        sizes = {
            "gamma": (changes.gamma.log().abs(), math.log(bounds.gamma)),
            "contrast": ((changes.contrast - 1).abs(), bounds.contrast),
            "bias": (changes.bias, bounds.bias),
            "blur": (changes.blur, bounds.blur),
            "noise": (changes.noise, bounds.noise),
        }
        for name, (size, bound) in sizes.items():
            changed = size > 1e-6
            assert changed.float().mean().item() == pytest.approx(bounds.probability, abs=0.03), name
            assert size.min() >= 0, name
            assert size.max().item() == pytest.approx(bound, rel=0.02), name
            assert size[changed].mean().item() == pytest.approx(bound / 2, rel=0.1), name
        for signed in (changes.gamma.log(), changes.contrast - 1):
            assert (signed[signed.abs() > 1e-6] > 0).float().mean().item() == pytest.approx(0.5, abs=0.06)
        assert len(set(changes.noise_seed.tolist())) > 0.99 * slices
        amounts.append([bound for _, bound in sizes.values()])
    assert all(a < b < c for a, b, c in zip(*amounts, strict=True))


def test_nothing_drawn_changes_no_grey_value() -> None:
    images, _ = pair()
    assert torch.allclose(unchanged().apply(images), images, atol=1e-6)
    black = torch.zeros(4, 1, 8, 8)
    assert torch.equal(unchanged().apply(black), black), "a slice of a single grey value"


@pytest.mark.parametrize("factor", [1.0, 40.0])
def test_each_change_equals_its_formula_whatever_the_scale_of_the_grey_values(factor: float) -> None:
    """In a z-score as in [0, 1]: a change is that of the slice's own range."""
    images, _ = pair()
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    grey = (images - low) / (high - low)
    half, mean = torch.full((4,), 0.5), grey.mean((1, 2, 3), keepdim=True)
    field = bias_fields(half, torch.ones(4, 9), 24)
    noise = gaussian_noise(torch.arange(4), 24 * 24).view(4, 1, 24, 24)
    for name, wanted in {
        "gamma": grey.sqrt(),
        "contrast": (0.5 * (grey - mean) + mean).clamp(0, 1),
        "bias": grey * field,
        "blur": gaussian_blur(grey, half),
        "noise": (grey + 0.5 * noise).clamp(0, 1),
    }.items():
        changed = dataclasses.replace(unchanged(), **{name: half}).apply(factor * images - 3)
        assert torch.allclose(changed, factor * (low + (high - low) * wanted) - 3, atol=2e-6 * factor), name


def test_bias_fields_are_smooth_and_bounded() -> None:
    shape = torch.rand(50, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1
    fields = bias_fields(torch.full((50,), 0.4), shape, 64)
    assert fields.shape == (50, 1, 64, 64)
    assert fields.max().item() <= 1
    assert fields.min().item() >= math.exp(-0.8) - 1e-6
    assert ((fields.amax((1, 2, 3)) - 1).abs() < 1e-5).any(), "1 where the polynomial is largest upwards"
    assert fields.diff(dim=-1).abs().max() < 0.1
    x = torch.linspace(-1, 1, 64)
    slope = torch.zeros(1, 9)
    slope[0, 0] = 1.0  # the first power is that of the columns
    assert torch.allclose(bias_fields(torch.tensor([0.3]), slope, 64)[0, 0], torch.exp(0.3 * (x - 1)).expand(64, 64))
    assert torch.equal(bias_fields(torch.zeros(1), slope, 8), torch.ones(1, 1, 8, 8))


def test_blur_is_a_gaussian() -> None:
    point = torch.zeros(2, 1, 21, 21)
    point[:, :, 10, 10] = 1
    plain, blurred = gaussian_blur(point, torch.tensor([0.0, 1.0]))
    assert torch.equal(plain, point[0])
    taps = torch.exp(-0.5 * torch.arange(-4.0, 5.0) ** 2)
    taps = taps / taps.sum()
    assert torch.allclose(blurred[0, 6:15, 6:15], taps[:, None] * taps[None, :], atol=1e-7)
    flat = gaussian_blur(torch.full((1, 2, 9, 9), 0.7), torch.tensor([1.5]))
    assert torch.allclose(flat, torch.full((1, 2, 9, 9), 0.7)), "nothing is lost at the border"


def test_noise_is_normal_and_follows_from_its_seed_alone() -> None:
    noise = gaussian_noise(torch.tensor([1, 2, 2**32 - 1]), 100_000)
    assert noise.isfinite().all()
    for one in noise:
        assert one.mean().item() == pytest.approx(0, abs=0.02)
        assert one.std().item() == pytest.approx(1, abs=0.02)
        assert (one.abs() < 1).float().mean().item() == pytest.approx(0.6827, abs=0.01)
        assert (one[1:] * one[:-1]).mean().item() == pytest.approx(0, abs=0.02), "neighbours are unrelated"
    assert (noise[0] * noise[1]).mean().item() == pytest.approx(0, abs=0.02), "so are slices"
    assert torch.equal(gaussian_noise(torch.tensor([2]), 100)[0], noise[1, :100])


@pytest.mark.parametrize("kind", ["light", "medium", "strong"])
def test_masks_see_the_movement_alone_and_images_keep_their_range(kind: Kind) -> None:
    images, masks = pair(40)
    drawn = Augmentation.draw(kind, 40, torch.Generator().manual_seed(1))
    x, y = drawn.apply(images, masks)
    moved, moved_masks = dataclasses.replace(drawn, intensities=None).apply(images, masks)
    assert torch.equal(y, moved_masks)
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert (x - moved).abs().amax((1, 2, 3)).count_nonzero() > 10
    assert (x >= moved.amin((1, 2, 3), keepdim=True) - 1e-6).all()
    assert (x <= moved.amax((1, 2, 3), keepdim=True) + 1e-6).all()
    halves = [drawn[torch.arange(k, 40, 2)].apply(images[k::2], masks[k::2])[0] for k in (0, 1)]
    assert all(torch.equal(half, x[k::2]) for k, half in enumerate(halves)), "in whatever batch a slice is"
