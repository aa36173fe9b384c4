"""Splits: the paper's counts, lists of patients, and refusals; the certificate."""

from __future__ import annotations

from dataclasses import fields

import pytest

from wmlsearch.data.certificate import OPTIMISTIC, Certificate, certify
from wmlsearch.data.split import SPLITS, _shares, assign, split_counts
from wmlsearch.errors import InputError
from wmlsearch.runs.schema import SplitCertificate


def count(assignment: dict[str, str]) -> tuple[int, ...]:
    return tuple(list(assignment.values()).count(split) for split in SPLITS)


def test_a_run_records_every_field_of_the_certificate() -> None:
    assert [*(field.name for field in fields(Certificate)), "voxels_sha256"] == list(SplitCertificate.model_fields)


def test_paper_counts() -> None:
    assert split_counts(4918) == (3098, 344, 1476)
    assert count(assign((str(i) for i in range(4918)), 0, noun="images")) == (3098, 344, 1476)


@pytest.mark.parametrize("n", range(3, 60))
def test_rule(n: int) -> None:
    train, val, test = split_counts(n)
    assert test * 10 >= 3 * n > (test - 1) * 10  # ceil(0.3 n)
    assert val == max(1, (n - test) // 10)
    assert train >= 1
    assert train + val + test == n


def test_depends_on_the_seed_but_not_on_the_order() -> None:
    names = [f"p{i}" for i in range(30)]
    assert assign(names, 1) == assign(reversed(names), 1)
    assert assign(names, 1) != assign(names, 2)


def test_fixed_names() -> None:
    names = ["01", "02", "03", "04", "Zoë B"]
    fixed = {"train": ["sub-01"], "val": ["02"], "test": ["sub-Zoë B"]}
    assert assign(names, 0, fixed) == {"01": "train", "02": "val", "Zoë B": "test"}
    with_test = assign([f"{i:02}" for i in range(30)], 0, {"test": ["00", "01"]})
    assert count(with_test) == (26, 2, 2)
    assert with_test["00"] == with_test["01"] == "test"
    assert count(assign([f"{i:02}" for i in range(30)], 0, {"train": ["00", "01"]})) == (2, 5, 23)
    assert count(assign([f"{i:02}" for i in range(30)], 0, {"val": ["00", "01"]})) == (19, 2, 9)
    assert count(assign(["a", "b", "c"], 0, {"val": ["a"], "test": ["b"]})) == (1, 1, 1)


@pytest.mark.parametrize("given", [{}, {"train": 1}, {"val": 1}, {"test": 1}, {"train": 1, "val": 1}, {"test": 3}])
def test_nobody_is_lost_or_in_two_splits(given: dict[str, int]) -> None:
    names = [f"{i:02}" for i in range(9)]
    fixed, start = {}, 0
    for split, n in given.items():
        fixed[split] = names[start : start + n]
        start += n
    result = assign(names, 3, fixed)
    assert sorted(result) == names
    assert min(count(result)) >= 1
    assert all(result[name] == split for split, members in fixed.items() for name in members)


def test_faults_are_listed_together() -> None:
    with pytest.raises(InputError) as error:
        assign(["07", "19", "26"], 0, {"train": ["19", "sub-7"], "val": ["19"], "test": ["xyz"]})
    assert str(error.value) == (
        "the lists of patients do not fit the data\n"
        "  - --train-patients: no patient '7' in the data; did you mean '07'? the data have 07, 19, 26\n"
        "  - --test-patients: no patient 'xyz' in the data; the data have 07, 19, 26\n"
        "  - patient '19': must be in one split, but is in --train-patients and --val-patients; keep it in one"
    )


def test_too_few() -> None:
    with pytest.raises(InputError) as error:
        assign(["01", "02"], 0)
    assert str(error.value) == (
        "too few patients for a split: train, validation and test need at least 1 each, 3 together, "
        "but got 2 (01, 02); add patients"
    )
    with pytest.raises(InputError) as error:
        assign(["01", "02", "03"], 0, {"test": ["01", "02", "03"]})
    assert str(error.value) == (
        "too few patients for a split: train and validation need at least 1 each, 2 together, "
        "but got 3 (01, 02, 03), 0 of them in none of the lists; add patients"
    )


def test_counts_by_hand() -> None:
    # 30 % rounded up is test; a tenth of the rest, rounded down and at least 1, is validation.
    counts = {3: (1, 1, 1), 10: (6, 1, 3), 11: (6, 1, 4), 28: (18, 1, 9), 29: (18, 2, 9), 30: (19, 2, 9)}
    assert {n: split_counts(n) for n in counts} == counts
    assert split_counts(30, 5) == (23, 2, 5), "a tenth of 25"
    assert split_counts(30, 1) == (27, 2, 1)


@pytest.mark.parametrize(
    ("train", "val", "test", "expected"),
    [
        # Of 30, the rule gives 9 to test and 2 to validation.
        (0, 0, 5, (23, 2, 5)),  # a tenth of 25 is validation
        (0, 0, 28, (1, 1, 28)),  # at least 1
        (0, 2, 0, (19, 2, 9)),
        (0, 26, 0, (1, 26, 3)),  # of 4 free ones at least 1 is for training
        (0, 28, 0, (1, 28, 1)),
        (2, 0, 0, (2, 5, 23)),  # 28 free ones as 2 to 9: 28 * 2 / 11 = 5.1
        (27, 0, 0, (27, 1, 2)),  # 3 * 2 / 11 = 0.5
        (28, 0, 0, (28, 1, 1)),  # 2 * 2 / 11 = 0.4, and at least 1
        (1, 0, 1, (1, 28, 1)),  # the only open split gets all
        (20, 5, 5, (20, 5, 5)),
        (10, 5, 5, (10, 5, 5)),  # all three are fixed: ten are in none
    ],
)
def test_shares_of_fixed_splits_by_hand(train: int, val: int, test: int, expected: tuple[int, ...]) -> None:
    names = [f"{i:02}" for i in range(30)]
    fixed = {"train": names[:train], "val": names[train : train + val], "test": names[30 - test :]}
    assert count(assign(names, 0, fixed)) == expected


def test_shares_add_up_to_the_free_ones() -> None:
    nobody: dict[str, list[str]] = {split: [] for split in SPLITS}
    assert _shares(30, 30, nobody, SPLITS) == {"test": 9, "val": 2, "train": 19}
    assert _shares(30, 4, nobody | {"val": ["a"] * 26}, ["train", "test"]) == {"test": 3, "train": 1}


def test_three_patients_are_enough() -> None:
    assert count(assign("abc", 0)) == (1, 1, 1)
    assert count(assign("abc", 0, {"train": ["a"]})) == (1, 1, 1)


def test_the_draw_stays_what_it_was() -> None:
    drawn = ("train", "val", "test", "train", "train", "train", "test", "test")
    assert assign("abcdefgh", 3) == dict(zip("abcdefgh", drawn, strict=True))


def test_a_similar_name_is_offered_from_half_on() -> None:
    def fault(name: str, *known: str) -> str:
        with pytest.raises(InputError) as error:
            assign([*known, "qqqqqqqq", "wwwwwwww"], 0, {"train": [name]})
        return error.value.faults[0]

    assert "did you mean '0b'?" in fault("0a", "0b"), "one of two letters: 2 * 1 / 4"
    assert "did you mean" not in fault("abcd", "abxyz"), "two of four and five: 2 * 2 / 9"
    assert "did you mean 'abcd'?" in fault("abc", "abxx", "abcd", "abcxx"), "the most similar one"


def test_long_lists_of_names_are_cut() -> None:
    def names(count: int) -> str:
        known = [f"{i:02}" for i in range(count)]
        with pytest.raises(InputError) as error:
            assign(known, 0, {"test": ["zz"]})
        return error.value.faults[0].split("; the data have ")[1]

    twelve = "00, 01, 02, 03, 04, 05, 06, 07, 08, 09, 10, 11"
    assert (names(12), names(13), names(20)) == (twelve, f"{twelve} and 1 more", f"{twelve} and 8 more")
    assert names(0) == "none"


def test_too_few_for_one_open_split() -> None:
    with pytest.raises(InputError) as error:
        assign(["01", "02"], 0, {"train": ["01"], "val": ["02"]})
    assert str(error.value) == (
        "too few patients for a split: test needs at least 1 each, 1 together, but got 2 (01, 02), 0 of them in none "
        "of the lists; add patients"
    )


def test_certificate() -> None:
    assignment = {"a": "train", "b": "val", "c": "test"}
    patient_of = {name: name for name in assignment}
    certificate = certify(assignment, patient_of, "patient", 5, ["a", "b", "c", "d"])
    assert certificate.patients == {"train": ("a",), "val": ("b",), "test": ("c",)}
    assert certificate.left_out == ("d",)
    assert certificate.note is None
    assert not certificate.optimistic
    assert certificate.units == {"train": 1, "val": 1, "test": 1}
    moved = certify({**assignment, "b": "train"}, patient_of, "patient", 5)
    assert moved.assignment_sha256 != certificate.assignment_sha256
    image = certify(assignment, {"a": "p", "b": "p", "c": ""}, "image", 5)
    assert image.note == OPTIMISTIC == "image-level split: optimistic"
    assert image.optimistic
    assert image.patients == {"train": ("p",), "val": ("p",), "test": ()}
