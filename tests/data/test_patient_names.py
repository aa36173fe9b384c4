"""Patients' names: spellings of one name in different splits are refused."""

from __future__ import annotations

import pytest

from wmlsearch.data.patient_names import check_patient_names, patient_name
from wmlsearch.errors import InputError


def test_patient_name() -> None:
    assert patient_name(" sub-07 ") == patient_name("07") == "07"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("p1", "P001"), ("7", "007"), ("Zoë", "Zoe\u0308"), ("p 1", "p1"), ("sub01", "1"), ("sub_3", "03"),
        ("p1-ses1", "p1-ses2"), ("p1", "p01_followup"), ("P1_baseline", "p1_follow-up2"), ("p1_tp2", "p1 "),
    ],
)  # fmt: skip
def test_names_of_one_patient(a: str, b: str) -> None:
    with pytest.raises(InputError, match="likely one patient's"):
        check_patient_names({a: "train", b: "test"}, {a: "a.nii", b: "b.nii"})
    check_patient_names({a: "train", b: "train"}, {a: "a.nii", b: "b.nii"})


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("site1_02", "site10_2"), ("site1_02", "site1_20"), ("a_1", "b_1"), ("1 1", "11"), ("p1", "p10"), ("0", "00A"),
        ("ms_m01", "ms_m02"), ("t1", "t2"), ("visit1", "visit2"), ("subject1", "1"), ("p1a", "p1b"), ("horses", "hor"),
    ],
)  # fmt: skip
def test_names_of_two_patients(a: str, b: str) -> None:
    check_patient_names({a: "train", b: "test"}, {a: "a.nii", b: "b.nii"})
