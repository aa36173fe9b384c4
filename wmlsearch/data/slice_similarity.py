"""How alike two prepared slices are: a checksum of the foreground, and a thumbnail of it.

The thumbnail is placed by the centre and the spread of the brightness, so the window, the grey scale and the voxel size
make no difference. Two slices are *equal* when their checksums are, *near* duplicates when the perceptual hashes of
their thumbnails (signs of the low frequencies) and then the thumbnails agree, and *mirrored* when they do so left to
right.

Detected are copies saved as JPEG, brightened, shifted in the window, scaled or mirrored, and neighbouring slices of one
scan that look alike. Not detected are changed copies that are rotated by more than a few degrees, upside down, evenly
grey inside their outline, with little foreground, or under a window that cuts the head off at another place; and
follow-up scans, which are different images.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from wmlsearch.data.geometry import VolumeGeometry
from wmlsearch.data.head_detection import MIN_CONTRAST
from wmlsearch.data.stack import Array

MIN_FOREGROUND = 0.1  # slices with less, as a share of the box around the volume's head, have no thumbnail
MAX_HASH_DISTANCE = 51  # bits of 255, a fifth, in which near duplicates may differ
MIN_CORRELATION = 0.99  # of the thumbnails of near duplicates
MIN_BRIGHT_CORRELATION = 0.9  # within the bright part of both: all slices correlate by the outline of a head
BRIGHT = 0.5  # share of a thumbnail's typical brightness above which a pixel is bright
FEW_PIXELS = 100  # slices with less foreground are compared with their place in the window
THUMBNAIL_EDGE = 32  # pixels
THUMBNAIL_REACH = 2.2  # standard deviations of the brightness from the centre to the edge; a disc ends at 2
DARK = 0.15  # share of a slice's typical brightness below which pixels say nothing about where the head is
# How much is compared at once. They bound the memory and change no result.
BATCH = 512  # thumbnails, or pairs of them, in float32  # pragma: no mutate
HASH_BATCH = 64  # hashes of the others, with all hashes  # pragma: no mutate


@dataclass(frozen=True)
class SliceSignature:
    """What is kept of a slice to compare it with others, about 1 KiB."""

    checksum: bytes | None  # of the foreground, wherever the window lies; None where the slice has one grey value
    thumbnail: Array | None  # (THUMBNAIL_EDGE, THUMBNAIL_EDGE) uint8; None where there is too little foreground


@dataclass(frozen=True)
class Match:
    """The thumbnail that is most like another one."""

    index: int
    correlation: float


def slice_signatures(geometry: VolumeGeometry, images: Array) -> list[SliceSignature]:
    """Return the signature of each slice of a volume, cut with this geometry: (n, size, size) uint8."""
    background_8_bit = (geometry.background - geometry.low) * 255 / (geometry.high - geometry.low)
    background = round(min(max(background_8_bit, 0), 255))
    foregrounds = images
    if background:
        foregrounds = np.abs(foregrounds.astype(np.int16) - background).astype(np.uint8)
    if not foregrounds.any():
        return [SliceSignature(None, None) for _ in images]
    head = foregrounds > MIN_CONTRAST * foregrounds.max()
    in_any_slice = head.any(axis=0)
    min_pixels = MIN_FOREGROUND * in_any_slice[_bounding_box(in_any_slice)].size
    has_foreground = head.sum(axis=(1, 2)) >= min_pixels
    return [
        SliceSignature(_checksum(foreground), _thumbnail(foreground) if enough else None)
        for foreground, enough in zip(foregrounds, has_foreground, strict=True)
    ]


def _bounding_box(pixels: Array) -> tuple[slice, slice]:
    """Return the rows and columns of the smallest box around the nonzero pixels. There must be at least one."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _checksum(foreground: Array) -> bytes | None:
    """Return sha256 of the box around the foreground of a slice (rows, columns); None for one grey value.

    A slice with few pixels of foreground is hashed whole, because its box alone would equal that of many others.
    """
    if foreground.min() == foreground.max():
        return None
    inside = foreground[_bounding_box(foreground)]
    if np.count_nonzero(inside) < FEW_PIXELS:
        inside = foreground
    return hashlib.sha256(repr(inside.shape).encode() + inside.tobytes()).digest()


def _thumbnail(foreground: Array) -> Array | None:
    """Return the thumbnail of a slice (rows, columns) uint8 that is 0 in the background, and not only there.

    None where it shows one grey value.

    Sums over pixels place it, so neither a single pixel nor a factor on the brightness moves it.
    """
    picture = Image.fromarray(foreground)
    counts, greys = np.array(picture.histogram()), np.arange(256)
    typical = np.sqrt(float(counts @ greys**3) / float(counts @ greys))  # as `_typical`, from the histogram
    weight = np.maximum(foreground.astype(np.float32) - np.float32(DARK * typical), 0)
    spans = []
    for sums in (weight.sum(axis=0), weight.sum(axis=1)):  # left and right, then top and bottom
        positions = np.arange(len(sums)) + 0.5
        total = float(sums.sum())
        centre = float(sums @ positions) / total
        reach = THUMBNAIL_REACH * max(1.0, np.sqrt(float(sums @ (positions - centre) ** 2) / total))
        spans.append((centre - reach, centre + reach))
    (left, right), (top, bottom) = spans
    margin = max(0, int(np.ceil(max(-left, -top, right - foreground.shape[1], bottom - foreground.shape[0]))))
    border = np.concatenate([foreground[0], foreground[-1], foreground[:, 0], foreground[:, -1]])
    picture = ImageOps.expand(picture, margin, fill=int(np.median(border)))
    box = (left + margin, top + margin, right + margin, bottom + margin)
    small = np.asarray(picture.resize((THUMBNAIL_EDGE, THUMBNAIL_EDGE), Image.Resampling.BILINEAR, box=box))
    return small if small.min() < small.max() else None


def near_matches(thumbnails: Array, others: Array) -> dict[int, Match]:
    """Return for each of `others` that has near duplicates in `thumbnails` the most alike: {index in others: match}.

    Both are (n, THUMBNAIL_EDGE, THUMBNAIL_EDGE) uint8.
    """
    hashes, other_hashes = perceptual_hashes(thumbnails), perceptual_hashes(others)
    matches: dict[int, Match] = {}
    for start in range(0, len(other_hashes), HASH_BATCH):
        part = other_hashes[start : start + HASH_BATCH]
        distance = np.zeros((len(part), len(hashes)), np.uint8)
        for word in range(hashes.shape[1]):
            distance += np.bitwise_count(part[:, word, None] ^ hashes[None, :, word])
        rows, columns = np.nonzero(distance <= MAX_HASH_DISTANCE)
        for first in range(0, len(rows), BATCH):
            other, index = rows[first : first + BATCH] + start, columns[first : first + BATCH]
            correlation, bright = correlations(others[other], thumbnails[index])
            for i in np.flatnonzero((correlation > MIN_CORRELATION) & (bright > MIN_BRIGHT_CORRELATION)):
                row, value = int(other[i]), float(correlation[i])
                if row not in matches or value > matches[row].correlation:
                    matches[row] = Match(int(index[i]), value)
    return matches


def perceptual_hashes(thumbnails: Array) -> Array:
    """Return which of the 255 lowest frequencies (DCT-II) are above their median: (n, 4) uint64 for n thumbnails."""
    n = np.arange(THUMBNAIL_EDGE)
    waves = np.cos(np.pi / THUMBNAIL_EDGE * n[: THUMBNAIL_EDGE // 2, None] * (n + 0.5)).astype(np.float32)
    hashes = np.empty((len(thumbnails), 4), np.uint64)
    for start in range(0, len(thumbnails), BATCH):
        part = slice(start, start + BATCH)
        chosen = thumbnails[part].astype(np.float32)
        levels = (waves @ chosen @ waves.T).reshape(len(chosen), THUMBNAIL_EDGE**2 // 4)
        levels[:, 0] = -np.inf  # the mean grey
        bits = levels > np.median(levels[:, 1:], axis=1, keepdims=True)
        hashes[part] = np.packbits(bits, axis=1).view(np.uint64)
    return hashes


def correlations(first: Array, second: Array) -> tuple[Array, Array]:
    """Return Pearson's correlation (n,) of n pairs of thumbnails: of all pixels, and of those bright in both."""
    pixels = math.prod(first.shape[1:])
    a, b = (thumbnails.reshape(len(thumbnails), pixels).astype(np.float32) for thumbnails in (first, second))
    bright = ((a > BRIGHT * _typical(a)) & (b > BRIGHT * _typical(b))).astype(np.float32)
    return _correlation(a, b, np.ones_like(a)), _correlation(a, b, bright)


def _correlation(a: Array, b: Array, weight: Array) -> Array:
    """Return the weighted correlation (n,) of rows (n, pixels); 0 where a row is constant."""
    total = np.maximum(weight.sum(axis=1, keepdims=True), 1)
    a = (a - (a * weight).sum(axis=1, keepdims=True) / total) * weight
    b = (b - (b * weight).sum(axis=1, keepdims=True) / total) * weight
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.minimum((a * b).sum(axis=1) / np.maximum(lengths, 1e-6), 1)


def _typical(grey: Array) -> Array:
    """Return the typical brightness (n, 1) of n pictures (n, pixels), weighted so that the background hardly counts."""
    return np.sqrt((grey**3).sum(axis=1, keepdims=True) / grey.sum(axis=1, keepdims=True))
