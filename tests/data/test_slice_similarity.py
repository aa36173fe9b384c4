"""Checksums, thumbnails and comparisons of slices, against values worked out by hand and direct computations."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from scipy import fft

from wmlsearch.data import slice_similarity
from wmlsearch.data.geometry import VolumeGeometry
from wmlsearch.data.slice_similarity import (
    Match,
    SliceSignature,
    correlations,
    near_matches,
    perceptual_hashes,
    slice_signatures,
)

EDGE = 32


@dataclass(frozen=True)
class _Greys:
    """What `slice_signatures` reads of a geometry."""

    background: float = 0
    low: float = 0
    high: float = 255


def signatures(*slices: np.ndarray, greys: _Greys | None = None) -> list[SliceSignature]:
    return slice_signatures(cast(VolumeGeometry, greys or _Greys()), np.stack(slices).astype(np.uint8))


def canvas(rows: int = 40, columns: int = 40) -> np.ndarray:
    return np.zeros((rows, columns), np.uint8)


def noise(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 250, (rows, columns), np.uint8)


def place(patch: np.ndarray, top: int, left: int, rows: int = 40, columns: int = 40) -> np.ndarray:
    picture = canvas(rows, columns)
    picture[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    return picture


# ----------------------------------------------------------------------------------------------------------- checksums


def test_a_checksum_is_of_the_foreground_wherever_it_lies() -> None:
    patch = noise(12, 20)
    places = [(0, 0), (7, 3), (28, 20), (28, 0), (0, 20)]  # in the corners and between
    checksums = {one.checksum for one in signatures(*(place(patch, *at) for at in places))}
    assert len(checksums) == 1


@pytest.mark.parametrize("edge", [(0, 5), (11, 5), (5, 0), (5, 19)])
def test_each_border_of_the_foreground_counts(edge: tuple[int, int]) -> None:
    patch = noise(12, 20)
    changed = patch.copy()
    changed[edge] ^= 1
    first, second = signatures(place(patch, 7, 3), place(changed, 7, 3))
    assert first.checksum != second.checksum


def test_a_shape_counts() -> None:
    first, second = signatures(place(np.full((6, 20), 9), 7, 3), place(np.full((20, 6), 9), 7, 3))
    assert first.checksum != second.checksum


def test_a_slice_of_few_pixels_is_compared_with_its_place() -> None:
    for pixels, is_equal in ((99, False), (100, True)):
        patch = noise(10, 11).ravel()
        patch[1 : 111 - pixels] = 0  # the corners stay, so the box does too
        first, second = signatures(place(patch.reshape(10, 11), 0, 0), place(patch.reshape(10, 11), 5, 8))
        assert (first.checksum == second.checksum) == is_equal, pixels


def test_a_slice_of_one_grey_has_no_signature() -> None:
    assert signatures(canvas(), canvas() + 7) == [SliceSignature(None, None)] * 2
    assert signatures(canvas()) == [SliceSignature(None, None)]
    assert slice_signatures(cast(VolumeGeometry, _Greys()), np.zeros((0, 40, 40), np.uint8)) == []


@pytest.mark.parametrize(
    ("greys", "background"),
    [
        (_Greys(55, 5, 56), 250),  # (55 - 5) * 255 / (56 - 5)
        (_Greys(60, 0, 51), 255),  # 300, which images do not reach
        (_Greys(-20, 0, 51), 0),  # -100
        (_Greys(7.5, 0, 51), 38),  # 37.5, rounded to even
    ],
)
def test_the_background_is_subtracted(greys: _Greys, background: int) -> None:
    patch = noise(12, 20)
    shown = place(np.abs(patch.astype(int) - background), 7, 3).astype(np.uint8)
    as_stored = np.full((40, 40), background, np.uint8)
    as_stored[7:19, 3:23] = patch
    assert signatures(as_stored, greys=greys)[0].checksum == signatures(shown)[0].checksum


# ---------------------------------------------------------------------------------------------------------- thumbnails


@pytest.mark.parametrize(("pixels", "enough"), [(40, True), (39, False)])
def test_a_tenth_of_the_heads_box_is_enough(pixels: int, enough: bool) -> None:
    """The box is 20 x 20, as one slice fills it."""
    few = canvas()
    few[10:30, 10:30].ravel()[:] = 0
    few[10:12, 10:30] = 200
    few[10, 10 : 10 + 40 - pixels] = 0
    full, second = signatures(place(np.full((20, 20), 200), 10, 10), few)
    assert full.thumbnail is not None
    assert (second.thumbnail is not None) == enough


@pytest.mark.parametrize(("grey", "is_head"), [(20, False), (21, True)])
def test_the_head_begins_above_a_tenth_of_the_brightest(grey: int, is_head: bool) -> None:
    few = canvas()
    few[10:12, 10:30] = 200
    few[10, 10] = grey  # the fortieth pixel
    _, second = signatures(place(np.full((20, 20), 200), 10, 10), few)
    assert (second.thumbnail is not None) == is_head


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """The thumbnail of a slice, however little foreground it has."""
    small = slice_similarity._thumbnail(picture.astype(np.uint8))
    assert small is not None
    return small


def shown(picture: np.ndarray, left: float, top: float, right: float, bottom: float, fill: int = 0) -> np.ndarray:
    """A box of a picture as a thumbnail. The picture is padded by as many whole pixels as the box needs."""
    rows, columns = picture.shape
    pad = max(0, *(int(np.ceil(value)) for value in (-left, -top, right - columns, bottom - rows)))
    padded = Image.fromarray(np.pad(picture, pad, constant_values=fill))
    box = (left + pad, top + pad, right + pad, bottom + pad)
    return np.asarray(padded.resize((EDGE, EDGE), Image.Resampling.BILINEAR, box=box))


def same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two thumbnails differ by rounding only: the place is computed with 24 bits."""
    return int(np.abs(first.astype(int) - second.astype(int)).max()) <= 1


def test_a_square_is_placed_by_its_spread() -> None:
    # Seven pixels from 10 to 16: centre 13.5, variance (49 - 1) / 12 = 4, so 2.2 standard deviations are 4.4.
    picture = place(np.full((7, 7), 200), 10, 12, 30, 50)
    assert same(thumbnail(picture), shown(picture, 15.5 - 4.4, 13.5 - 4.4, 15.5 + 4.4, 13.5 + 4.4))


def test_a_disc_ends_at_two_standard_deviations() -> None:
    rows, columns = np.ogrid[:81, :81]
    picture = np.where((rows - 40) ** 2 + (columns - 40) ** 2 <= 30**2, 200, 0).astype(np.uint8)
    bright = thumbnail(picture)[EDGE // 2] > 100
    assert bright.sum() in (28, 30), "2 of 2.2: 29.1 of 32 pixels, to an even number"


@pytest.mark.parametrize(("rows", "columns"), [(30, 30), (25, 40), (40, 25)])
@pytest.mark.parametrize(("at_row", "at_column"), [("low", "low"), ("low", "high"), ("high", "low"), ("high", "high")])
def test_a_single_pixel_near_the_border(rows: int, columns: int, at_row: str, at_column: str) -> None:
    # It has no spread, so one pixel is taken: the box reaches 2.2 pixels to each side, and 1.7 beyond the picture.
    row, column = (0 if at_row == "low" else rows - 1), (0 if at_column == "low" else columns - 1)
    picture = canvas(rows, columns)
    picture[row, column] = 200
    x, y = column + 0.5, row + 0.5
    assert same(thumbnail(picture), shown(picture, x - 2.2, y - 2.2, x + 2.2, y + 2.2))


@pytest.mark.parametrize("first_column", [1, 2])
@pytest.mark.parametrize("side", ["left", "top", "right", "bottom"])
def test_only_as_much_is_added_as_is_missing(side: str, first_column: int) -> None:
    # The box ends 0.1 or 1.1 pixels inside the picture, so nothing is added, and the outermost pixels show as they are.
    picture = canvas(24, 36)
    turns = ["left", "top", "right", "bottom"].index(side)
    picture[10:17, first_column : first_column + 7] = 200  # centre 4.5 or 5.5, 4.4 to each side
    picture[12:15, 0] = 20  # below 0.15 of 200, so it does not move the box
    x = first_column + 3.5
    expected = shown(picture, x - 4.4, 13.5 - 4.4, x + 4.4, 13.5 + 4.4)
    small = thumbnail(np.ascontiguousarray(np.rot90(picture, -turns)))
    assert same(np.rot90(small, turns), expected)


def test_dark_pixels_do_not_place_it() -> None:
    square = place(np.full((7, 7), 200), 10, 12)
    with_dark = square.copy()
    with_dark[30:35, 30:35] = 28  # the typical brightness is 193, of which 0.15 is 29
    assert same(thumbnail(with_dark), shown(with_dark, 15.5 - 4.4, 13.5 - 4.4, 15.5 + 4.4, 13.5 + 4.4))


def test_two_greys_are_weighted() -> None:
    # Two squares of 7 x 7 beside each other, 200 and 100. The typical brightness is
    # sqrt((200^3 + 100^3) / (200 + 100)) = 173.2, of which 0.15 is 25.98: they weigh 174.02 and 74.02.
    picture = place(np.hstack([np.full((7, 7), 200), np.full((7, 7), 100)]), 10, 12)
    heavy, light = 200 - 0.15 * 30000**0.5, 100 - 0.15 * 30000**0.5
    share = heavy / (heavy + light)
    x = share * 15.5 + (1 - share) * 22.5
    spread = (4 + 49 * share * (1 - share)) ** 0.5  # within each square, and between them
    expected = shown(picture, x - 2.2 * spread, 13.5 - 4.4, x + 2.2 * spread, 13.5 + 4.4)
    assert same(thumbnail(picture), expected)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_what_the_window_cut_off_is_filled_with_the_borders_median(transposed: bool, turned: bool) -> None:
    # The border has 80 pixels: 22 of 10, 22 of 20, 18 of 30 and 18 of 40, so the median is 20.
    picture = np.full((20, 20), 50, np.uint8)
    picture[:, 0], picture[:, -1], picture[0], picture[-1] = 30, 40, 10, 20
    picture = picture.T if transposed else picture
    small = thumbnail(np.ascontiguousarray(picture[::-1, ::-1] if turned else picture))
    assert small[0, 0] == small[-1, -1] == small[0, -1] == small[-1, 0] == 20
    assert small[EDGE // 2, EDGE // 2] == 50


def test_an_even_slice_has_no_thumbnail() -> None:
    assert slice_similarity._thumbnail(np.full((20, 20), 50, np.uint8)) is None


def test_a_thumbnail_has_its_size() -> None:
    (signature,) = signatures(place(noise(20, 20), 10, 10))
    assert signature.thumbnail is not None
    assert (signature.thumbnail.shape, signature.thumbnail.dtype) == ((EDGE, EDGE), np.uint8)


# --------------------------------------------------------------------------------------------------------- comparisons


def random_thumbnails(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, EDGE, EDGE), np.uint8)


def test_hashes_are_the_signs_of_the_low_frequencies() -> None:
    thumbnails = random_thumbnails(9)
    expected = []
    for one in thumbnails:
        levels = fft.dctn(one.astype(float), 2)[:16, :16].ravel()
        bits = levels > np.median(levels[1:])
        bits[0] = False
        expected.append(np.packbits(bits).view(np.uint64))
    hashes = perceptual_hashes(thumbnails)
    assert np.array_equal(hashes, expected)
    assert hashes.shape == (9, 4)
    assert set(np.bitwise_count(hashes).sum(axis=1)) == {127}, "of 255, one is the median itself"


def test_hashes_of_more_than_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    thumbnails = random_thumbnails(11)
    expected = perceptual_hashes(thumbnails)
    monkeypatch.setattr(slice_similarity, "BATCH", 3)
    assert np.array_equal(perceptual_hashes(thumbnails), expected)


def bits(*numbers: int) -> np.ndarray:
    """A hash with these of its 256 bits."""
    flags = np.zeros(256, bool)
    flags[list(numbers)] = True
    return np.packbits(flags).view(np.uint64)


def matches(
    monkeypatch: pytest.MonkeyPatch, hashes: list[np.ndarray], others: list[np.ndarray], alike: Any = None
) -> dict[int, Match]:
    """What `near_matches` makes of these hashes, and of correlations `alike(other, thumbnail)`."""
    numbers = {"first": np.arange(len(hashes)), "others": np.arange(len(others))}
    monkeypatch.setattr(
        slice_similarity, "perceptual_hashes", lambda given: np.stack(hashes if given is numbers["first"] else others)
    )

    def compare(other: np.ndarray, thumbnail: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pairs = [(1.0, 1.0) if alike is None else alike(int(o), int(t)) for o, t in zip(other, thumbnail, strict=True)]
        return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])

    monkeypatch.setattr(slice_similarity, "correlations", compare)
    return near_matches(numbers["first"], numbers["others"])


def test_hashes_may_differ_in_51_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    spread = range(1, 256, 5)  # 51 bits, in all four words
    assert len(spread) == 51
    assert matches(monkeypatch, [bits()], [bits(*spread), bits(*spread, 2)]) == {0: Match(0, 1.0)}


@pytest.mark.parametrize(
    ("correlation", "bright", "is_match"),
    [(0.99, 1, False), (0.9901, 1, True), (1, 0.9, False), (1, 0.9001, True), (0.98, 1, False), (1, 0.89, False)],
)
def test_margins_of_the_correlations(
    monkeypatch: pytest.MonkeyPatch, correlation: float, bright: float, is_match: bool
) -> None:
    found = matches(monkeypatch, [bits()], [bits()], lambda *_: (correlation, bright))
    assert found == ({0: Match(0, correlation)} if is_match else {})


def test_the_most_alike_is_reported_and_the_first_of_equals(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.992, 0.996, 0.994, 0.996]
    assert matches(monkeypatch, [bits()] * 4, [bits()], lambda _, t: (values[t], 1)) == {0: Match(1, 0.996)}


@pytest.mark.parametrize("batch", [1, 3, 7, 500])
def test_matches_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(slice_similarity, "BATCH", batch)
    monkeypatch.setattr(slice_similarity, "HASH_BATCH", batch)
    hashes = [bits(*range(60 * i, 60 * i + 60)) for i in range(4)]  # 120 bits apart
    others = [hashes[i % 4] if i % 3 else bits(*range(0, 240, 2)) for i in range(20)]
    expected = {i: Match(i % 4, 1.0) for i in range(20) if i % 3}
    assert matches(monkeypatch, hashes, others) == expected
    assert matches(monkeypatch, others[1:3] * 5, [others[1]] * 9) == {i: Match(0, 1.0) for i in range(9)}


def test_the_correlation_of_all_and_of_bright_pixels() -> None:
    # The typical brightness of a is sqrt((2 * 200^3 + 100^3 + 80^3) / 580) = 173.8: 100 is bright, 80 is not. That of b
    # is sqrt((240^3 + 110^3 + 160^3 + 255^3 + 0) / 765) = 217.7: its 110 is bright, by 108.8.
    a = np.array([[200, 200, 100, 80, 0]], np.uint8)
    b = np.array([[240, 110, 160, 255, 0]], np.uint8)
    whole, bright = correlations(a, b)
    assert whole[0] == pytest.approx(np.corrcoef(a[0], b[0])[0, 1])
    assert bright[0] == pytest.approx(np.corrcoef(a[0, :3], b[0, :3])[0, 1])
    assert correlations(b, a)[1][0] == pytest.approx(bright[0])


def test_a_pixel_of_just_half_the_typical_brightness_is_not_bright() -> None:
    # sqrt((5 * 60^3 + 180^3) / (5 * 60 + 180)) = 120. One bright pixel has no correlation.
    a = np.array([[60, 60, 60, 60, 60, 180]], np.uint8)
    b = np.array([[200, 190, 180, 170, 160, 150]], np.uint8)  # all bright
    for first, second in ((a, b), (b, a)):
        whole, bright = correlations(first, second)
        assert bright[0] == 0
        assert whole[0] == pytest.approx(np.corrcoef(a[0], b[0])[0, 1])
    brighter = np.where(a == 60, 61, a).astype(np.uint8)
    assert correlations(brighter, b)[1][0] == pytest.approx(np.corrcoef(brighter[0], b[0])[0, 1])


def test_correlations_without_a_pixel_or_a_contrast() -> None:
    apart = np.array([[200, 0, 0], [0, 0, 200]], np.uint8)
    with np.errstate(all="raise"):
        assert correlations(apart[:1], apart[1:])[1][0] == 0, "no pixel is bright in both"
        assert correlations(np.full((1, 3), 7, np.uint8), apart[:1])[0][0] == 0, "one is even"
    little = np.array([[10, 11]], np.uint8)
    assert correlations(little, little)[0][0] == pytest.approx(1)


def test_a_correlation_is_at_most_one() -> None:
    thumbnails = random_thumbnails(200)
    whole, bright = correlations(thumbnails, thumbnails)
    assert min(whole.min(), bright.min()) > 0.999
    assert max(whole.max(), bright.max()) == 1


def test_pairs_are_compared_one_by_one() -> None:
    first, second = random_thumbnails(4, 1), random_thumbnails(4, 2)
    whole, bright = correlations(first, second)
    for i, (a, b) in enumerate(itertools.islice(zip(first, second, strict=True), 4)):
        alone = correlations(a[None], b[None])
        assert (whole[i], bright[i]) == pytest.approx((alone[0][0], alone[1][0]), abs=1e-5)
        assert whole[i] == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-5)
