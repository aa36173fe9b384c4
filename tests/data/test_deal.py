"""Who is in which fold, worked out by hand."""

from __future__ import annotations

import pytest

from wmlsearch.data.folds import DevelopmentPatient, deal
from wmlsearch.errors import InputError


def patients(**loads: float) -> list[DevelopmentPatient]:
    return [DevelopmentPatient(name, load) for name, load in loads.items()]


def test_seven_patients_in_three_folds() -> None:
    # By falling load: a, b and c each open a fold (70, 60, 50). Of three folds with one patient d goes to that with 50
    # (90), e to that with 60 (90), f to that with 70 (90). Of three with two patients and 90, g goes to the first.
    seven = patients(g=10, c=50, a=70, e=30, b=60, f=20, d=40)
    folds = deal(seven, 3, 0)
    assert folds[0] == ("a", "f", "g"), "the largest fold comes first"
    assert set(folds[1:]) == {("b", "e"), ("c", "d")}
    assert deal(seven[::-1], 3, 0) == folds
    assert {deal(seven, 3, seed)[1] for seed in range(9)} == {("b", "e"), ("c", "d")}, "equal sizes: drawn"


def test_five_folds_or_as_many_as_have_a_lesion() -> None:
    assert len(deal(patients(a=7, b=6, c=5, d=4, e=3, f=2), None, 0)) == 5
    assert len(deal(patients(a=7, b=6, c=0, d=5), None, 0)) == 3
    assert set(deal(patients(a=7, b=0.1), None, 0)) == {("a",), ("b",)}
    for one in patients(a=7), patients(a=7, b=0), patients(a=0, b=0), []:
        assert deal(one, None, 0) == (), "there is nothing to divide"
    assert deal(patients(a=7, b=6), 1, 0) == ()


def test_patients_without_lesions_are_spread_over_folds_that_have_lesions() -> None:
    # a and b open the folds. Of the four without lesions two go to each: to that with fewer patients, of equals to that
    # with the lower load.
    mixed = patients(w=0, x=0, a=9, y=0, b=1, z=0)
    for seed in range(9):
        for fold in deal(mixed, None, seed):
            assert len(fold) == 3
            assert len({"a", "b"} & set(fold)) == 1


def test_equal_loads_are_drawn_by_the_seed() -> None:
    equal = patients(a=1, b=1, c=1, d=1)
    assert deal(equal, 2, 3) == deal(equal, 2, 3)
    assert len({frozenset(deal(equal, 2, seed)) for seed in range(20)}) == 3, "all ways to make two pairs of four"


def test_sites_are_spread_evenly() -> None:
    # Site A: a1 to a3 open three folds; site B: b1 opens the fourth, b2 joins the lowest load of the others (a3: 10),
    # b3 the next (a2: 20), b4 the last without B (a1: 30).
    sites = {"a1": 30.0, "a2": 20.0, "a3": 10.0, "b1": 4.0, "b2": 3.0, "b3": 2.0, "b4": 1.0}
    seven = [DevelopmentPatient(name, load, name[0]) for name, load in sites.items()]
    assert set(deal(seven, 4, 0)) == {("a1", "b4"), ("a2", "b3"), ("a3", "b2"), ("b1",)}
    # Without sites a1 to b1 open the folds, and b2 to b4 join the three lowest loads.
    assert set(deal(patients(**sites), 4, 0)) == {("a1",), ("a2", "b4"), ("a3", "b3"), ("b1", "b2")}


def test_chosen_patients_are_the_first_fold() -> None:
    # The others, 50, 40, 20 and 10, are dealt into two folds: 50 + 10 and 40 + 20.
    folds = deal(patients(a=50, b=40, c=30, d=20, e=10), 3, 0, ("c",))
    assert folds[0] == ("c",)
    assert set(folds[1:]) == {("a", "e"), ("b", "d")}
    assert deal(patients(a=50, b=40), None, 0, ("b",)) == (("b",), ("a",))
    assert deal(patients(a=0, b=40), None, 0, ("b",)) == (), "no lesion is left for a second fold"


def test_more_folds_than_can_have_a_lesion_are_refused() -> None:
    with pytest.raises(InputError) as error:
        deal(patients(a=7, b=6, c=0), 3, 0)
    assert str(error.value) == (
        "--folds 3: each fold needs a patient with a lesion, which makes 2 folds of 3 training and validation "
        "patients; give --folds 2"
    )


def test_a_number_of_folds_that_cannot_be() -> None:
    for loads, wanted, possible in (({"a": 7}, 2, "1 fold"), ({"a": 0}, 2, "0 folds")):
        with pytest.raises(InputError) as error:
            deal(patients(**loads), wanted, 0)
        assert str(error.value) == (
            f"--folds 2: each fold needs a patient with a lesion, which makes {possible} of 1 training and validation "
            "patient; give --folds 1"
        )
    assert deal(patients(a=0), 1, 0) == (), "one validation set needs no lesion"
    assert len(deal(patients(a=2, b=1), 2, 0)) == 2
    with pytest.raises(InputError, match=r"--folds 4: .* which makes 3 folds of 3 training and validation patients; "):
        deal(patients(a=3, b=2, c=0), 4, 0, ("c",))


def test_patients_without_lesions_are_dealt_after_those_of_all_sites() -> None:
    # a1 and b1 open the folds. Of site A's patients without lesions one joins b1, since a fold there has none of A, and
    # the other a1, since that fold has fewer patients. Dealt site by site, both would be in one fold without a lesion.
    three = [DevelopmentPatient(name, load, name[0]) for name, load in (("a1", 9), ("a2", 0), ("a3", 0), ("b1", 8))]
    for seed in range(9):
        first, second = deal(three, 2, seed)
        assert {"a1", "b1"} & set(first)
        assert {"a1", "b1"} & set(second)
        assert len(first) == len(second) == 2


def test_a_load_below_1_ml_is_a_lesion() -> None:
    # Site A: a1 (9) and a2 (0.5) open the folds, a3 (0.4) joins the lower load, a2. Then b1 goes to a1, with fewer
    # patients. As if without lesions, a2 and a3 would come after b1, and a3 would join a1.
    four = [DevelopmentPatient(name, load, name[0]) for name, load in (("a1", 9), ("a2", 0.5), ("a3", 0.4), ("b1", 8))]
    assert set(deal(four, 2, 0)) == {("a1", "b1"), ("a2", "a3")}


def test_the_chosen_fold_takes_no_other_patients() -> None:
    # c is alone in the first fold, of another load and site than the rest; a and b open the others.
    three = [DevelopmentPatient("a", 3, "x"), DevelopmentPatient("b", 2, "x"), DevelopmentPatient("c", 0, "y")]
    assert deal(three, 3, 0, ("c",))[0] == ("c",)
    assert set(deal(three, 3, 0, ("c",))[1:]) == {("a",), ("b",)}
