"""`prepare` says when there are too few test patients for the verdict of a search."""

from __future__ import annotations

from pathlib import Path

import pytest
from nifti_files import cohort

from wmlsearch.data.prepare import PrepareOptions
from wmlsearch.workflows.prepare import prepare


def warnings(tmp_path: Path, patients: int, **options: object) -> list[str]:
    said: list[str] = []
    table = cohort(tmp_path / "raw", {f"p{i}": 10 + i for i in range(patients)})
    values = PrepareOptions(size=32, jobs=1, **options)  # type: ignore[arg-type]
    prepare(table, tmp_path / "out", values, said.append, "")
    return [line for line in said if "sealed test has" in line]


@pytest.mark.parametrize(
    ("patients", "tests", "advice"),
    [(8, 3, "add patients"), (9, 3, "name more with --test-patients, or add patients"), (3, 1, "add patients")],
)
def test_too_few_test_patients(tmp_path: Path, patients: int, tests: int, advice: str) -> None:
    count = f"{tests} patient{'s' if tests > 1 else ''}"
    assert warnings(tmp_path, patients) == [
        f"warning: the sealed test has {count}, and with fewer than 6 that have lesions the verdict of a search cannot "
        f"show any difference; {advice}"
    ]


def test_enough_test_patients(tmp_path: Path) -> None:
    assert warnings(tmp_path, 9, test_patients=tuple(f"p{i}" for i in range(6))) == []
