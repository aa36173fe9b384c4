"""From files to slices and back: what is found, what is refused, which way up, and that nothing moves."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nifti_files import voxels
from PIL import Image

from wmlsearch.data.cutting import cut, restore
from wmlsearch.data.examine import examine
from wmlsearch.data.geometry import VolumeGeometry, choose_plane, place_window
from wmlsearch.data.labels import MaskRule
from wmlsearch.data.nifti import Extent, read_extent
from wmlsearch.data.sources import Source
from wmlsearch.errors import InputError


def head(shape: tuple[int, int, int]) -> np.ndarray:
    """A bright ellipsoid in the dark with a lesion in its right anterior superior part, in RAS+; the rest is dimmer."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    volume = np.where(((grid / 0.8) ** 2).sum(axis=0) < 1, 100.0, 0.0)
    volume[(((grid - 0.4) / 0.25) ** 2).sum(axis=0) < 1] += 100.0
    return volume.astype(np.float32)


def save(path: Path, data: np.ndarray, edges: tuple[float, ...] = (1, 1, 1), codes: str = "RAS") -> Path:
    """Write a RAS+ volume with its axes stored in another order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, np.diag([*edges, 1.0]))
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(tuple(codes))
    )
    image.as_reoriented(turn).to_filename(path)
    return path


def pair(
    root: Path, shape: tuple[int, int, int] = (30, 36, 24), edges: tuple[float, ...] = (1, 1, 1), codes: str = "RAS"
) -> Source:
    volume = head(shape)
    image = save(root / "flair.nii.gz", volume, edges, codes)
    mask = save(root / "mask.nii.gz", (volume > 150).astype(np.uint8), edges, codes)
    return Source("p", "", root, (image,), (mask,))


def geometry(source: Source, axis: int | None, size: int, fit: str = "crop", mm: float | None = 1.0) -> VolumeGeometry:
    facts, faults = examine(source, axis)
    assert facts is not None, faults
    return place_window(source, facts, size, fit, mm)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


# -- which way up, and back


@pytest.mark.parametrize("codes", ["RAS", "LAS", "LPS", "PIR", "SLA"])
def test_pictures_are_upright_whatever_the_orientation(tmp_path: Path, codes: str) -> None:
    source = pair(tmp_path, codes=codes)
    for axis in range(3):
        masks = cut(source, geometry(source, axis, 40)).masks.any(axis=0)
        ys, xs = np.nonzero(masks)  # the lesion: up is superior or anterior, left is anterior or the patient's right
        assert ys.mean() < 19
        assert xs.mean() < 19


def test_slice_numbers_run_along_the_ras_axis(tmp_path: Path) -> None:
    numbers = []
    for codes in ("RAS", "LPS"):
        facts, _ = examine(pair(tmp_path / codes, codes=codes), 0)
        assert facts is not None
        numbers.append(np.flatnonzero(facts.lesion).tolist())
    assert numbers[0] == numbers[1]
    assert min(numbers[0]) > 14


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "ASL"])
def test_mask_cut_and_restored_is_the_mask(tmp_path: Path, axis: int, codes: str) -> None:
    source = pair(tmp_path, codes=codes)
    where = geometry(source, axis, 40)
    slices = cut(source, where)
    back = restore(slices.masks, where)
    assert slices.lost.sum() == 0
    assert back.dtype == np.uint8
    assert np.array_equal(back, voxels(source.mask[0]))
    likely = restore(slices.masks.astype(np.float32) * 0.25, where)
    assert np.array_equal(likely, back.astype(np.float32) * 0.25)


@pytest.mark.parametrize(("fit", "mm"), [("crop", 0.7), ("crop", 1.3), ("resize", None)])
def test_resampled_masks_come_back_nearly_the_same(tmp_path: Path, fit: str, mm: float | None) -> None:
    source = pair(tmp_path, shape=(60, 72, 10), edges=(0.9, 0.9, 4.0), codes="LPS")
    where = geometry(source, 2, 96, fit, mm)
    assert where.resampled != where.picture
    assert where.orientation == "LPS"
    truth = voxels(source.mask[0])
    back = restore(cut(source, where).masks, where)
    assert back.shape == truth.shape
    assert dice(back > 0, truth > 0) > 0.9


def test_spacings_within_a_hundredth_are_not_resampled(tmp_path: Path) -> None:
    source = pair(tmp_path, edges=(0.995, 1.005, 1.0))
    where = geometry(source, 2, 40)
    assert where.resampled == where.picture == (36, 30)


def test_window_is_centred_on_the_head_and_counts_what_it_loses(tmp_path: Path) -> None:
    volume = np.zeros((60, 60, 8), np.float32)
    volume[30:56, 10:36, 1:7] = 100  # x, y: a square off the centre
    mask = np.zeros(volume.shape, np.uint8)
    mask[50:54, 20:24, 3] = 1
    source = Source("p", "", tmp_path, (save(tmp_path / "i.nii", volume),), (save(tmp_path / "m.nii", mask),))
    facts, _ = examine(source, 2)
    assert facts is not None
    assert facts.box == (24, 4, 50, 30)
    where = place_window(source, facts, 32, "crop", 1.0)
    assert where.window == (21, 1)
    slices = cut(source, where)
    assert slices.lost.sum() == 0
    assert slices.images[4].max() == 255
    assert slices.images[4, 0].max() == 0
    assert facts.head == (0, *[26 * 26] * 6, 0)
    narrow = place_window(source, facts, 22, "crop", 1.0)  # ends 2 pixels inside the square, at the lesion's edge
    assert cut(source, narrow).lost.tolist() == [0, 0, 0, 0, 0, 0, 0, 0]
    narrower = cut(source, place_window(source, facts, 18, "crop", 1.0))
    assert narrower.lost.sum() == 8
    assert narrower.masks.sum() == 8
    wide = cut(source, place_window(source, facts, 100, "crop", 1.0))
    assert wide.masks.sum() == 16
    assert wide.images.shape == (8, 100, 100)


def test_resize_scales_the_head_to_the_window(tmp_path: Path) -> None:
    source = pair(tmp_path, shape=(60, 72, 10))
    where = geometry(source, 2, 128, "resize", None)
    rows = np.flatnonzero((cut(source, where).images > 20).any(axis=(0, 2)))
    assert 0.9 < len(rows) / 128 < 1.0
    assert where.spacing_mm is not None
    assert 0.3 < where.spacing_mm < 0.6
    assert where.scale[0] == pytest.approx(1 / where.spacing_mm, rel=0.01)


@pytest.mark.parametrize("frame", ["black", "white", "white around black", "noise"])
def test_head_is_found_in_black_and_white_borders(tmp_path: Path, frame: str) -> None:
    picture = np.zeros((80, 100), np.uint8)
    picture[:] = {"black": 0, "white": 255, "white around black": 255, "noise": 0}[frame]
    if frame == "white around black":
        picture[6:74, 6:94] = 0
    if frame == "noise":
        picture[:] = np.random.default_rng(0).integers(0, 8, picture.shape)
    picture[20:60, 30:80] = np.random.default_rng(1).integers(90, 160, (40, 50))
    Image.fromarray(picture).save(tmp_path / "a.png")
    facts, faults = examine(Source("", "", tmp_path, (tmp_path / "a.png",)), None)
    assert facts is not None, faults
    assert facts.box == (20, 30, 60, 80)
    assert (facts.low, facts.high) == (0, 255)  # 8-bit pictures keep their values
    assert facts.background == {"white": 255, "noise": pytest.approx(3.5, abs=1)}.get(frame, 0)


def test_eight_bit_pictures_come_back_unchanged_and_are_padded_with_their_background(tmp_path: Path) -> None:
    picture = np.full((30, 40), 255, np.uint8)
    picture[5:25, 10:30] = np.arange(400).reshape(20, 20) % 200
    Image.fromarray(picture).convert("RGB").save(tmp_path / "a.png")
    source = Source("", "", tmp_path, (tmp_path / "a.png",))
    where = geometry(source, None, 64, mm=None)
    image = cut(source, where).images[0]
    top, left = where.window
    assert np.array_equal(image[-top : -top + 30, -left : -left + 40], picture)
    assert image[0].min() == 255
    assert where.spacing_mm is None


def test_intensity_is_scaled_by_robust_percentiles(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volume = head((40, 40, 30)) + rng.normal(0, 5, (40, 40, 30)).astype(np.float32)
    volume[head((40, 40, 30)) == 0] = 0
    volume[20, 20, 15] = 1e6  # one spike
    volume[21, 20, 15] = -50  # interpolation at the brain's edge
    source = Source("p", "", tmp_path, (save(tmp_path / "i.nii", volume),))
    facts, _ = examine(source, 2)
    assert facts is not None
    assert facts.low == 0
    assert 200 < facts.high < 230
    assert cut(source, place_window(source, facts, 48, "crop", 1.0)).images.min() == 0


# -- planes


def test_choice_of_plane() -> None:
    thin, thick, coronal = (Extent(edges, (32, 32, 8)) for edges in ((1.0, 1.0, 1.2), (0.7, 0.7, 4.0), (1.0, 3.0, 1.0)))
    assert choose_plane({"a": thin}, None) == ("sagittal", 0)
    assert choose_plane({"a": thick}, None) == choose_plane({"a": thick}, "native") == ("native", 2)
    assert choose_plane({"a": coronal}, None) == ("native", 1)
    assert choose_plane({"a": thin, "b": thick}, "coronal") == ("coronal", 1)
    with pytest.raises(InputError) as error:
        choose_plane({"a.nii": thin, "b.nii": thick}, "native")
    assert str(error.value) == (
        "--plane native needs thick slices, one voxel edge longer than 1.25 x the next longest; "
        "give --plane sagittal, axial or coronal\n  - a.nii: 1 x 1 x 1.2 mm"
    )
    with pytest.raises(InputError, match="thick and isotropic volumes are mixed"):
        choose_plane({"a.nii": thin, "b.nii": thick}, None)
    with pytest.raises(InputError, match="different planes"):
        choose_plane({"a.nii": coronal, "b.nii": thick}, None)


def test_a_single_slice_is_not_cut_across(tmp_path: Path) -> None:
    """The axis along which there is one voxel is the slicing axis, whatever the voxel edges are."""
    coronal = pair(tmp_path, (24, 1, 20), (4.0, 4.0, 6.0))
    extent = read_extent(coronal)
    assert choose_plane({"a": extent}, None) == choose_plane({"a": extent}, "native") == ("native", 1)
    axial, thin = Extent((1.0, 1.0, 1.0), (32, 32, 1)), Extent((1.0, 1.0, 1.0), (32, 32, 30))
    assert choose_plane({"a": axial, "b": Extent((1.0, 1.0, 5.0), (32, 32, 9))}, None) == ("native", 2)
    assert choose_plane({"a": extent}, "axial") == ("axial", 2)
    with pytest.raises(InputError) as error:
        choose_plane({"a.nii": axial, "b.nii": thin}, None)
    assert error.value.faults == ("a.nii: 1 x 1 x 1 mm (a single slice)", "b.nii: 1 x 1 x 1 mm (isotropic)")


def test_voxel_edges_are_those_of_the_body(tmp_path: Path) -> None:
    path = save(tmp_path / "i.nii", head((12, 10, 8)), (1.0, 2.0, 3.0), "SLA")
    extent = read_extent(Source("p", "", tmp_path, (path,)))
    assert extent.edges == pytest.approx((1, 2, 3))
    assert extent.shape == (12, 10, 8)
    assert extent.voxels == np.prod(nib.load(path).shape)


# -- faults of files


def faults_of(source: Source, axis: int | None = 2, rule: MaskRule | None = None) -> list[str]:
    return examine(source, axis, rule)[1]


def test_mask_of_another_shape(tmp_path: Path) -> None:
    source = pair(tmp_path, (16, 16, 9))
    save(source.mask[0], np.zeros((16, 16, 8), np.uint8))
    text = "mask.nii.gz: shape must be that of flair.nii.gz, (16, 16, 9), but is (16, 16, 8); resample the mask"
    assert faults_of(source) == [text]


def test_mask_of_another_affine(tmp_path: Path) -> None:
    source = pair(tmp_path, (16, 16, 8))
    save(source.mask[0], np.zeros((16, 16, 8), np.uint8), (1, 1, 1.1))
    text = (
        "mask.nii.gz: affine must be that of flair.nii.gz to half a voxel, but the grids lie up to 0.7 voxels apart; "
        "resample the mask onto the image, or copy the image's header to it if it was drawn on this image"
    )
    assert faults_of(source) == [text]


def test_mask_that_is_not_binary(tmp_path: Path) -> None:
    source = pair(tmp_path, (16, 16, 8))
    labels = np.zeros((16, 16, 8), np.float32)
    labels[8, 8] = np.arange(8) / 2
    save(source.mask[0], labels)
    text = (
        "mask.nii.gz: a mask must hold 0 and one other value, but holds 0, 0.5, 1, 1.5, 2, 2.5, ... (8 values); "
        "give --mask-threshold T to take every value above T as lesion"
    )
    assert faults_of(source) == [text]
    facts, faults = examine(source, 2, MaskRule(2))
    assert facts is not None
    assert sum(facts.lesion) == 3
    assert not faults
    save(source.mask[0], np.full((16, 16, 8), 255, np.uint8))
    assert faults_of(source) == ["mask.nii.gz: a mask must have background, but every voxel is 255; replace the mask"]
    save(source.mask[0], (labels > 2.5).astype(np.uint8) * 255)
    assert faults_of(source) == []


def test_bad_values(tmp_path: Path) -> None:
    source = pair(tmp_path, (16, 16, 8))
    volume = head((16, 16, 8))
    volume[3, 4, 5], volume[5, 4, 3] = np.nan, np.inf
    save(source.image[0], volume)
    text = (
        "flair.nii.gz: every voxel must be a finite number, but 2 inside the head are NaN or infinite, such as voxel "
        "(3, 4, 5); make it again without them, or give --nan-background if they are background"
    )
    assert faults_of(source) == [text]
    save(source.image[0], np.full((16, 16, 8), 7.0, np.float32))
    text = "flair.nii.gz: the FLAIR is empty, every voxel is 7; leave it out or replace it"
    assert faults_of(source) == [text]


@pytest.mark.parametrize("damage", ["truncated", "text", "nothing"])
def test_unreadable_files_are_faults_not_tracebacks(tmp_path: Path, damage: str) -> None:
    source = pair(tmp_path)
    for path in (source.image[0], source.mask[0]):
        data = path.read_bytes()
        path.write_bytes({"truncated": data[: len(data) // 2], "text": b"not an image", "nothing": b""}[damage])
    lines = faults_of(source)
    assert [line.split(": cannot be read (")[0] for line in lines] == ["flair.nii.gz", "mask.nii.gz"]
    assert all(line.endswith("); replace the file") and str(tmp_path) not in line for line in lines)


def test_four_dimensions(tmp_path: Path) -> None:
    source = pair(tmp_path, (16, 16, 8))
    nib.Nifti1Image(head((16, 16, 8))[..., None], np.eye(4)).to_filename(source.image[0])
    assert faults_of(source) == []
    nib.Nifti1Image(np.zeros((16, 16, 8, 2), np.float32), np.eye(4)).to_filename(source.image[0])
    text = "flair.nii.gz: must be one 3-D volume, but its shape is (16, 16, 8, 2); extract one volume"
    assert faults_of(source) == [text]


def test_colour_pictures_must_be_grey(tmp_path: Path) -> None:
    colour = np.zeros((8, 8, 3), np.uint8)
    colour[2:5, 2:5, 0] = 200
    Image.fromarray(colour).save(tmp_path / "a.png")
    source = Source("", "", tmp_path, (tmp_path / "a.png",))
    assert faults_of(source, None) == ["a.png: must be grey, but its colour channels differ; convert it to grey"]
    Image.fromarray(colour[..., 0]).convert("P").save(tmp_path / "a.png")
    assert faults_of(source, None) == []
    Image.fromarray(colour[..., 0].astype(np.uint16) * 100).save(tmp_path / "a.png")
    facts, _ = examine(source, None)
    assert facts is not None
    assert facts.high == pytest.approx(20000)
