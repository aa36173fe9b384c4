"""The guard against leakage: the same slice, or the same patient under two names, in more than one split.

Each prepared slice is kept as a checksum of its image and a thumbnail of its foreground: placed by the centre and
spread of the brightness, so a window, a grey scale or a voxel size of another volume makes no difference. Two slices
are *equal* when their images are, *near* duplicates when the perceptual hashes (signs of the low frequencies) and then
the thumbnails agree, and *mirrored* when they do so left to right.

Found: copies saved as JPEG, brightened, shifted in the window, scaled, mirrored, and neighbouring slices of one scan
that look alike. Not found: changed copies that are turned by more than a few degrees, upside down, evenly grey inside
their outline, with little foreground, or under a window that cuts the head off at another place; and follow-up scans,
which are other images: these are known by the patient's name alone.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from wmlsearch.config import InputError
from wmlsearch.data.certificate import DUPLICATES, PAIRS, Certificate
from wmlsearch.data.cutting import CutSlices
from wmlsearch.data.geometry import VolumeGeometry
from wmlsearch.data.head_detection import MIN_CONTRAST
from wmlsearch.data.manifest import Task
from wmlsearch.data.patient_names import first_lines

Array = np.ndarray[Any, Any]

FOREGROUND = 0.1  # slices with less, as a share of the box around the volume's head, are compared for equality alone
NEAR_HASH = 51  # of 255 bits, a fifth, may differ
NEAR_CORRELATION = 0.99  # of two thumbnails, more than
NEAR_INSIDE = 0.9  # the same within the bright part of both: the outline of a head makes all slices correlate
BRIGHT = 0.5  # of a thumbnail's typical brightness
FEW = 100  # pixels that are not background: below, a slice is compared with its place in the window
EDGE = 32  # pixels of a thumbnail
AT_ONCE = 512  # thumbnails, or pairs of them, that are looked at in float32
REACH = 2.2  # a thumbnail reaches so many standard deviations of the brightness from its centre; a disc ends at 2
DARK = 0.15  # of a slice's typical brightness: below, pixels say nothing about where the head is
ADVICE = (
    "give copies and follow-up scans of a patient the same patient id, or leave one out "
    "(--allow-leakage counts duplicates instead, and marks all results as optimistic)"
)


# ------------------------------------------------------------------------------------------------------------- slices


Look = tuple[bytes | None, Array | None]  # checksum and thumbnail of a slice


@dataclass(frozen=True)
class _Slice:
    volume: int
    file: str  # the slice's name for the user
    split: str
    checksum: bytes | None  # of the image, wherever the window lies; None where it has one grey value
    thumbnail: Array | None  # (EDGE, EDGE) uint8; None where there is too little foreground


@dataclass(frozen=True)
class _Duplicate:
    first: _Slice
    second: _Slice
    kind: str
    correlation: float


def look(geometry: VolumeGeometry, slices: CutSlices) -> list[Look]:
    """What the guard keeps of each slice of a volume."""
    scaled = (geometry.background - geometry.low) * 255 / (geometry.high - geometry.low)
    background = round(min(max(scaled, 0), 255))
    bright = slices.images
    if background:
        bright = np.abs(bright.astype(np.int16) - background).astype(np.uint8)
    head = bright > MIN_CONTRAST * bright.max(initial=0)
    anywhere = head.any(axis=0)
    least = FOREGROUND * max(1, anywhere[_box(anywhere)].size)
    enough = head.sum(axis=(1, 2)) >= least
    return [(_checksum(one), _thumbnail(one) if seen else None) for one, seen in zip(bright, enough, strict=True)]


class Guard:
    """Sees all slices of a data set as they are cut, about 1 KiB of each, and then looks for what splits share."""

    def __init__(self) -> None:
        self._slices: list[_Slice] = []
        self._patients: list[str] = []  # by volume

    def add(self, task: Task, looks: Sequence[Look]) -> None:
        """Take in a volume's slices, as `look` has seen them."""
        s = task.source
        for look, index, split in zip(looks, task.stored, task.splits, strict=True):
            name = f"{s.name(s.image[0])} slice {index}" if s.is_nifti else s.name(s.image[index])
            self._slices.append(_Slice(len(self._patients), name, split, *look))
        self._patients.append(s.patient)

    def certify(self, certificate: Certificate, allow: bool) -> Certificate:
        """The certificate with the number of slices compared and of duplicates found.

        Raises InputError with patients and files when there are duplicates, unless `allow`: then they are counted, and
        the split is marked as optimistic. A patient in two parts of a split by patient is always refused.
        """
        if certificate.level == "patient":
            self._check_patients()
        found = [duplicate for pair in PAIRS for duplicate in self._between(*pair.split("/"))]
        if found and not allow:
            raise InputError(
                f"splits share slices, so results would look better than they are; {ADVICE}", self._lines(found)
            )
        count = {pair: dict.fromkeys(DUPLICATES, 0) for pair in PAIRS}
        for each in found:
            count[f"{each.first.split}/{each.second.split}"][each.kind] += 1
        optimistic = certificate.optimistic or bool(found)
        note = certificate.note or ("duplicates across splits: optimistic" if found else None)
        return replace(certificate, optimistic=optimistic, note=note, compared=len(self._slices), duplicates=count)

    def _check_patients(self) -> None:
        seen: dict[str, _Slice] = {}
        for each in self._slices:
            first = seen.setdefault(self._patients[each.volume], each)
            if first.split != each.split:
                raise InputError(
                    f"patient {self._patients[each.volume]!r} is in {first.split} ({first.file}) and in {each.split} "
                    f"({each.file}), but a split by patient must keep all scans together"
                )

    def _between(self, first: str, second: str) -> Iterator[_Duplicate]:
        """Of each slice in the second split, the duplicate in the first that is most like it."""
        ours = [each for each in self._slices if each.split == first]
        theirs = [each for each in self._slices if each.split == second]
        by_checksum: dict[bytes, _Slice] = {}
        for each in ours:
            if each.checksum is not None:
                by_checksum.setdefault(each.checksum, each)
        rest = []
        for each in theirs:
            if each.checksum is not None and each.checksum in by_checksum:
                yield _Duplicate(by_checksum[each.checksum], each, "equal", 1.0)
            elif each.thumbnail is not None:
                rest.append(each)
        ours = [each for each in ours if each.thumbnail is not None]
        if not ours or not rest:
            return
        left = np.stack([each.thumbnail for each in ours if each.thumbnail is not None])
        right = np.stack([each.thumbnail for each in rest if each.thumbnail is not None])
        as_it_is, mirrored = near_pairs(left, right), near_pairs(left, right[:, :, ::-1])
        for row, each in enumerate(rest):
            options = [
                (found[row][1], kind, found[row][0])
                for kind, found in (("near", as_it_is), ("mirrored", mirrored))
                if row in found
            ]
            if options:
                correlation, kind, place = max(options, key=lambda option: option[0])
                yield _Duplicate(ours[place], each, kind, correlation)

    def _lines(self, found: Sequence[_Duplicate]) -> list[str]:
        """One line for each two volumes."""
        groups: dict[tuple[int, int, str, str], list[_Duplicate]] = defaultdict(list)
        for each in found:
            groups[each.first.volume, each.second.volume, each.first.split, each.second.split].append(each)
        lines = []
        for (a, b, of, to), group in groups.items():
            best = max(group, key=lambda each: (each.kind == "equal", each.correlation))
            who = f"patient {self._patients[b]!r} ({to}) and patient {self._patients[a]!r} ({of})"
            kinds = [(sum(each.kind == kind for each in group), kind) for kind in DUPLICATES]
            counts = ", ".join(f"{n} {_KINDS[kind]}" for n, kind in kinds if n)
            sure = "" if best.kind == "equal" else f", correlation {best.correlation:.4f}"
            lines.append(
                f"{who}: {counts}; {best.second.file} and {best.first.file}"
                f"{'' if len(group) == 1 else ' are the most alike'}{sure}"
            )
        return first_lines(lines)


_KINDS = {"equal": "equal", "near": "nearly equal", "mirrored": "nearly equal when mirrored"}


# --------------------------------------------------------------------------------------------------------- likenesses


def _box(pixels: Array) -> tuple[slice, slice]:
    """The smallest upright box around the pixels that are not zero: rows, columns."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    return (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)) if len(rows) else (slice(0), slice(0))


def _checksum(bright: Array) -> bytes | None:
    """Of a slice (rows, columns) that is 0 in the background: sha256 of the box that is not; None for one grey value.

    A slice with a few pixels is taken whole: its box alone would be that of many another.
    """
    if bright.min() == bright.max():
        return None
    inside = bright[_box(bright)]
    if np.count_nonzero(inside) < FEW:
        inside = bright
    return hashlib.sha256(repr(inside.shape).encode() + inside.tobytes()).digest()


def _thumbnail(bright: Array) -> Array | None:
    """(rows, columns) uint8, 0 in the background -> (EDGE, EDGE) uint8 around the foreground; None for an even one.

    Sums over pixels place it, so no single pixel moves it, and neither does a factor on the brightness.
    """
    picture = Image.fromarray(bright)
    count, grey = np.array(picture.histogram()), np.arange(256)
    typical = np.sqrt(float(count @ grey**3) / max(1.0, float(count @ grey)))  # as in `_typical`, from the histogram
    weight = np.maximum(bright.astype(np.float32) - np.float32(DARK * typical), 0)
    box = []
    for sums in (weight.sum(axis=0), weight.sum(axis=1)):  # left and right, then top and bottom
        at = np.arange(len(sums)) + 0.5
        total = max(float(sums.sum()), 1e-9)
        centre = float(sums @ at) / total
        spread = REACH * max(1.0, np.sqrt(float(sums @ (at - centre) ** 2) / total))
        box.append((centre - spread, centre + spread))
    (left, right), (top, bottom) = box
    margin = max(0, int(np.ceil(max(-left, -top, right - bright.shape[1], bottom - bright.shape[0]))))
    if margin:
        border = np.concatenate([bright[0], bright[-1], bright[:, 0], bright[:, -1]])
        picture = ImageOps.expand(picture, margin, fill=int(np.median(border)))
    place = (left + margin, top + margin, right + margin, bottom + margin)
    small = np.asarray(picture.resize((EDGE, EDGE), Image.Resampling.BILINEAR, box=place))
    return small if small.min() < small.max() else None


def perceptual_hashes(thumbnails: Array) -> Array:
    """(n, EDGE, EDGE) -> (n, 4) uint64: which of the 255 lowest frequencies (DCT-II) are above their median."""
    n = np.arange(EDGE)
    waves = np.cos(np.pi / EDGE * n[: EDGE // 2, None] * (n + 0.5)).astype(np.float32)
    hashes = np.empty((len(thumbnails), 4), np.uint64)
    for start in range(0, len(thumbnails), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        levels = (waves @ thumbnails[part].astype(np.float32) @ waves.T).reshape(-1, EDGE**2 // 4)
        levels[:, 0] = -np.inf  # the mean grey
        bits = levels > np.median(levels[:, 1:], axis=1, keepdims=True)
        hashes[part] = np.packbits(bits, axis=1).view(np.uint64)
    return hashes


def near_pairs(left: Array, right: Array) -> dict[int, tuple[int, float]]:
    """{place in `right`: (place in `left`, correlation)} of the most alike thumbnails, where they are near duplicates.

    `left` (n, EDGE, EDGE) and `right` (m, EDGE, EDGE) are uint8.
    """
    a, b = perceptual_hashes(left), perceptual_hashes(right)
    found: dict[int, tuple[int, float]] = {}
    for start in range(0, len(b), 64):
        apart = np.zeros((len(b[start : start + 64]), len(a)), np.uint8)
        for word in range(a.shape[1]):
            apart += np.bitwise_count(b[start : start + 64, word, None] ^ a[None, :, word])
        rows, columns = np.nonzero(apart <= NEAR_HASH)
        for at in range(0, len(rows), AT_ONCE):
            mine, other = rows[at : at + AT_ONCE] + start, columns[at : at + AT_ONCE]
            correlation, inside = correlations(right[mine], left[other])
            for i in np.flatnonzero((correlation > NEAR_CORRELATION) & (inside > NEAR_INSIDE)):
                row, value = int(mine[i]), float(correlation[i])
                if value > found.get(row, (0, 0.0))[1]:
                    found[row] = (int(other[i]), value)
    return found


def correlations(first: Array, second: Array) -> tuple[Array, Array]:
    """Pearson's correlation of each of n pairs of thumbnails (n, EDGE, EDGE): of all pixels, and of the bright ones."""
    a, b = (each.reshape(len(each), -1).astype(np.float32) for each in (first, second))
    bright = ((a > BRIGHT * _typical(a)) & (b > BRIGHT * _typical(b))).astype(np.float32)
    return _correlation(a, b, np.ones_like(a)), _correlation(a, b, bright)


def _correlation(a: Array, b: Array, weight: Array) -> Array:
    """(n, pixels) each -> (n,); 0 where there is nothing to correlate."""
    total = np.maximum(weight.sum(axis=1, keepdims=True), 1)
    a = (a - (a * weight).sum(axis=1, keepdims=True) / total) * weight
    b = (b - (b * weight).sum(axis=1, keepdims=True) / total) * weight
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.minimum((a * b).sum(axis=1) / np.maximum(lengths, 1e-6), 1)


def _typical(grey: Array) -> Array:
    """The brightness (n, 1) of n pictures (n, pixels): bright pixels count for more, so the background hardly does."""
    return np.sqrt((grey**3).sum(axis=1, keepdims=True) / np.maximum(grey.sum(axis=1, keepdims=True), 1))
