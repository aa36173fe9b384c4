"""The guard against leakage on slices made up for it: what is compared with what, what is reported, and how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from wmlsearch.data.certificate import Certificate, certify
from wmlsearch.data.leakage import (
    ComparedSlice,
    Duplicate,
    LeakageGuard,
    duplicate_lines,
    find_duplicates,
    fold_part,
)
from wmlsearch.data.slice_similarity import SliceSignature
from wmlsearch.data.slice_writer import VolumeTask
from wmlsearch.data.sources import Source
from wmlsearch.errors import InputError

NONE = {"equal": 0, "near": 0, "mirrored": 0}


def blurred(seed: int) -> np.ndarray:
    """A thumbnail with low frequencies only, as those of heads have."""
    coarse = np.random.default_rng(seed).integers(20, 250, (8, 8)).astype(float)
    return np.kron(coarse, np.ones((4, 4))).astype(np.uint8)


def signature(checksum: str, thumbnail: np.ndarray | None = None) -> SliceSignature:
    return SliceSignature(checksum.encode() or None, thumbnail)


def compared(name: str, part: str, given: SliceSignature, volume: int = 0) -> ComparedSlice:
    return ComparedSlice(volume, name[0], name, part, given)


def found(first: list[SliceSignature], second: list[SliceSignature]) -> list[tuple[str, str, str]]:
    """(second, first, kind) of each duplicate."""
    duplicates = find_duplicates(
        [compared(f"a{i}", "train", one) for i, one in enumerate(first)],
        [compared(f"b{i}", "test", one) for i, one in enumerate(second)],
    )
    return [(duplicate.second.name, duplicate.first.name, duplicate.kind) for duplicate in duplicates]


# ------------------------------------------------------------------------------------------------------------ finding


def test_equal_slices_are_told_by_their_checksum() -> None:
    first = [signature("x"), signature("y"), signature("y"), signature("")]
    assert found(first, [signature("y"), signature("z"), signature(""), signature("x")]) == [
        ("b0", "a1", "equal"),  # the first of equals
        ("b3", "a0", "equal"),
    ]
    (duplicate,) = find_duplicates([compared("a", "train", first[0])], [compared("b", "test", first[0])])
    assert duplicate.correlation == 1


def test_near_and_mirrored_slices_are_told_by_their_thumbnail() -> None:
    pictures = [blurred(seed) for seed in range(4)]
    first = [signature(f"{seed}", picture) for seed, picture in enumerate(pictures)]
    dimmer = (pictures[2] * 0.8).astype(np.uint8)
    second = [
        signature("p", dimmer),
        signature("q", pictures[1][:, ::-1]),
        signature("r", blurred(9)),
        signature("s", pictures[0][::-1]),  # upside down
        signature("0", pictures[3]),  # equal to the first by checksum, which comes before
        signature("t"),
    ]
    assert found(first, second) == [("b4", "a0", "equal"), ("b0", "a2", "near"), ("b1", "a1", "mirrored")]
    assert found(first, second[2:4]) == []
    assert found([signature("x")], second) == [], "one part has no thumbnail"
    assert found(first, [signature("t")]) == []


def test_a_symmetric_slice_is_of_the_kind_that_is_more_alike() -> None:
    picture = blurred(1)
    symmetric = ((picture.astype(int) + picture[:, ::-1]) // 2).astype(np.uint8)
    slightly = symmetric.copy()
    slightly[:, :2] += 5
    assert found([signature("x", slightly)], [signature("y", slightly)])[0][2] == "near"
    assert found([signature("x", slightly)], [signature("y", slightly[:, ::-1])])[0][2] == "mirrored"
    assert found([signature("x", symmetric)], [signature("y", symmetric)])[0][2] == "near", "of equals the first kind"


# ----------------------------------------------------------------------------------------------------------- the guard


def add(guard: LeakageGuard, patient: str, splits: str, checksums: str, fold: int | None = None) -> None:
    """Add a NIfTI volume with a slice for each letter of `splits` (n: train, v: val, t: test) and of `checksums`."""
    words = [{"n": "train", "v": "val", "t": "test"}[letter] for letter in splits]
    source = Source(patient, "", Path("raw"), (Path(f"raw/{patient}.nii"),))
    numbers = [10 + i for i in range(len(words))]
    task = VolumeTask(source, cast(Any, None), numbers, words, [True] * len(words), fold)
    guard.add(task, [signature(letter.strip()) for letter in checksums])


def certificate(folds: int = 0, level: str = "patient") -> Certificate:
    names = [(f"p{i}",) for i in range(folds)]
    return certify({"a": "train", "b": "val", "c": "test"}, {"a": "a", "b": "b", "c": "c"}, level, 0, "abc", names)


def test_pairs_of_splits_are_counted() -> None:
    guard = LeakageGuard()
    add(guard, "a", "nnnn", "xyz ")
    add(guard, "b", "vv", "xx")
    add(guard, "c", "ttt", "xyw")
    result = guard.certify(certificate(), allow_leakage=True)
    assert result.compared == 9
    assert result.duplicates == {
        "train/val": NONE | {"equal": 2},
        "train/test": NONE | {"equal": 2},
        "val/test": NONE | {"equal": 1},
    }
    assert (result.optimistic, result.note) == (True, "duplicates across splits: optimistic")
    with pytest.raises(InputError) as error:
        guard.certify(certificate(), allow_leakage=False)
    assert error.value.headline.startswith("splits share slices, so results would look better than they are; give ")
    assert error.value.faults == (
        "patient 'b' (val) and patient 'a' (train): 2 equal; b.nii slice 10 and a.nii slice 10 are the most alike",
        "patient 'c' (test) and patient 'a' (train): 2 equal; c.nii slice 10 and a.nii slice 10 are the most alike",
        "patient 'c' (test) and patient 'b' (val): 1 equal; c.nii slice 10 and b.nii slice 10",
    )


def test_different_slices_pass() -> None:
    guard = LeakageGuard()
    add(guard, "a", "nn", "xx")  # equal within a split
    add(guard, "b", "v", "y")
    add(guard, "c", "t", "z")
    before = certificate()
    assert guard.certify(before, allow_leakage=False) == replace(
        before, compared=4, duplicates=dict.fromkeys(("train/val", "train/test", "val/test"), NONE)
    )


def test_folds_are_compared_with_each_other_and_with_test() -> None:
    guard = LeakageGuard()
    add(guard, "a", "v", "x", fold=0)
    add(guard, "b", "n", "y", fold=1)
    add(guard, "d", "n", "y", fold=1)  # equal within a fold
    add(guard, "e", "nn", "xy", fold=2)
    add(guard, "c", "ttt", "xxy")
    result = guard.certify(certificate(3), allow_leakage=True)
    assert result.compared == 8
    assert result.duplicates == {"fold/fold": NONE | {"equal": 2}, "fold/test": NONE | {"equal": 3}}
    with pytest.raises(InputError) as error:
        guard.certify(certificate(3), allow_leakage=False)
    assert error.value.headline.startswith("folds or splits share slices, so ")
    assert error.value.faults == (
        "patient 'e' (fold 2) and patient 'a' (fold 0): 1 equal; e.nii slice 10 and a.nii slice 10",
        "patient 'e' (fold 2) and patient 'b' (fold 1): 1 equal; e.nii slice 11 and b.nii slice 10",
        "patient 'c' (test) and patient 'a' (fold 0): 2 equal; c.nii slice 10 and a.nii slice 10 are the most alike",
        "patient 'c' (test) and patient 'b' (fold 1): 1 equal; c.nii slice 12 and b.nii slice 10",
    )
    assert fold_part(2) == "fold 2"


def test_an_image_level_split_keeps_its_note() -> None:
    guard = LeakageGuard()
    add(guard, "a", "nt", "xx")
    result = guard.certify(certificate(level="image"), allow_leakage=True)
    assert (result.optimistic, result.note) == (True, "image-level split: optimistic")


def test_a_patient_in_two_parts_is_refused_in_a_split_by_patient() -> None:
    guard = LeakageGuard()
    add(guard, "a", "n", "x")
    add(guard, "b", "v", "y")
    add(guard, "a", "nt", "zw")
    with pytest.raises(InputError) as error:
        guard.certify(certificate(), allow_leakage=True)
    assert str(error.value) == (
        "patient 'a' is in train (a.nii slice 10) and in test (a.nii slice 11), but a split by patient must keep all "
        "scans together"
    )
    guard.certify(certificate(level="image"), allow_leakage=True)


def test_pictures_are_named_by_their_file() -> None:
    guard = LeakageGuard()
    for patient, split in (("a", "train"), ("b", "test")):
        files = tuple(Path(f"raw/{patient}_{i}.png") for i in range(3))
        guard.add(
            VolumeTask(Source(patient, "", Path("raw"), files), cast(Any, None), [2], [split], [True]), [signature("x")]
        )
    with pytest.raises(InputError, match=r"1 equal; b_2\.png and a_2\.png$"):
        guard.certify(certificate(), allow_leakage=False)


# ----------------------------------------------------------------------------------------------------------- messages


def duplicate(first: str, second: str, kind: str, correlation: float, volumes: tuple[int, int] = (0, 1)) -> Duplicate:
    none = signature("")
    return Duplicate(
        compared(first, "train", none, volumes[0]), compared(second, "test", none, volumes[1]), kind, correlation
    )


def test_a_line_for_each_two_volumes() -> None:
    lines = duplicate_lines(
        [
            duplicate("a1", "b1", "near", 0.99312),
            duplicate("a2", "b2", "mirrored", 0.99658),
            duplicate("a3", "b3", "near", 0.991),
            duplicate("c1", "d1", "near", 0.99995, (2, 3)),
            duplicate("c2", "d2", "equal", 1.0, (2, 3)),
            duplicate("e1", "d3", "near", 0.99549, (4, 3)),
            duplicate("e2", "d4", "near", 0.999, (4, 5)),
        ]
    )
    assert lines == [
        "patient 'b' (test) and patient 'a' (train): 2 nearly equal, 1 nearly equal when mirrored; b2 and a2 are the "
        "most alike, correlation 0.9966",
        "patient 'd' (test) and patient 'c' (train): 1 equal, 1 nearly equal; d2 and c2 are the most alike",
        "patient 'd' (test) and patient 'e' (train): 1 nearly equal; d3 and e1, correlation 0.9955",
        "patient 'd' (test) and patient 'e' (train): 1 nearly equal; d4 and e2, correlation 0.9990",
    ]
    assert duplicate_lines([]) == []


def test_an_equal_slice_is_the_most_alike_whatever_the_others_correlation() -> None:
    (line,) = duplicate_lines([duplicate("a1", "b1", "equal", 1.0), duplicate("a2", "b2", "near", 1.0)])
    assert "; b1 and a1 are the most alike" in line
    (line,) = duplicate_lines([duplicate("a2", "b2", "near", 1.0), duplicate("a1", "b1", "equal", 1.0)])
    assert "; b1 and a1 are the most alike" in line
