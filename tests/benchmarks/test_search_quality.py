"""The recorder of the tabular benchmark continues after an interruption and refuses the table of another space."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.search_quality import record as recorder
from benchmarks.search_quality.record import HERE, Task, record
from wmlsearch.errors import InputError
from wmlsearch.space import SearchSpace

CLOCK = ("epoch_s", "images_per_s", "peak_memory_mb")
TINY = Task(patients=3, val_patients=("02",), test_patients=("03",), shape=(32, 32, 8), size=16, epochs=3)
SPACE = SearchSpace.from_mapping(
    {
        "depth": 1,
        "base_channels": {"choices": [2, 4]},
        "learning_rate": {"low": 1e-3, "high": 1e-2, "log": True},
        "schedule": {"choices": ["plateau", "step"]},
        "step_fraction": {"low": 0.3, "high": 0.8, "when": {"schedule": "step"}},
    }
)


def facts(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{name: text for name, text in row.items() if name not in CLOCK} for row in csv.DictReader(file)]


@pytest.fixture(scope="module", autouse=True)
def _data_made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    data = TINY.prepare(tmp_path_factory.mktemp("data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Task, "prepare", lambda *_: data)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("record") / "table.csv"
    record(path, SPACE, TINY, until=2)
    return path


def test_recorded_rows_are_complete_curves(whole: Path) -> None:
    rows = facts(whole)
    assert [(row["number"], row["epoch"], row["ended"]) for row in rows] == [
        (str(number), str(epoch), "completed" if epoch == 3 else "") for number in (0, 1) for epoch in (1, 2, 3)
    ]
    assert all(row["val_loss"] and (row["step_fraction"] != "") == (row["schedule"] == "step") for row in rows)


@pytest.mark.parametrize("rows_left", [0, 1.5, 3, 5, 5.5])  # of 3 + 3; a half: torn inside a row
def test_recorder_resumes_a_truncated_table(whole: Path, tmp_path: Path, rows_left: float) -> None:
    header, *lines = whole.read_text().splitlines(keepends=True)
    cut = tmp_path / "table.csv"
    torn = lines[int(rows_left)][:30] if rows_left % 1 else ""
    cut.write_text(header + "".join(lines[: int(rows_left)]) + torn)
    messages: list[str] = []
    record(cut, SPACE, TINY, until=2, tell=messages.append)
    assert facts(cut) == facts(whole)
    assert len(messages) == (2 if rows_left < 3 else 1)


def test_two_processes_record_the_same_table(whole: Path, tmp_path: Path) -> None:
    record(tmp_path / "table.csv", SPACE, TINY, until=2, jobs=2)
    assert sorted(facts(tmp_path / "table.csv"), key=lambda row: (row["number"], row["epoch"])) == facts(whole)


def test_complete_table_is_not_changed(whole: Path) -> None:
    before = whole.read_bytes()
    record(whole, SPACE, TINY, until=2)
    assert whole.read_bytes() == before


def test_recorder_stops_after_its_time_limit(tmp_path: Path) -> None:
    record(tmp_path / "table.csv", SPACE, TINY, until=2, minutes=0)
    assert facts(tmp_path / "table.csv") == []


def test_diverged_configuration_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverging(*args: Any, **options: Any) -> Iterator[object]:
        yield next(real(*args, **options))
        raise recorder.Diverged

    real = recorder.epochs
    monkeypatch.setattr(recorder, "epochs", diverging)
    messages: list[str] = []
    for _ in range(2):
        record(tmp_path / "table.csv", SPACE, TINY, until=1, tell=messages.append)
    assert len(messages) == 1
    assert [(row["epoch"], row["ended"], row["val_loss"] != "") for row in facts(tmp_path / "table.csv")] == [
        ("1", "", True),
        ("2", "diverged", False),
    ]


def test_table_of_another_space_is_refused(whole: Path) -> None:
    other = SPACE.to_mapping() | {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    with pytest.raises(InputError, match="configuration 0 is not what other draws"):
        record(whole, SearchSpace.from_mapping(other, "other"), TINY, until=2)
    with pytest.raises(InputError, match="columns"):
        record(
            whole, SearchSpace.from_mapping(SPACE.to_mapping() | {"dropout": {"low": 0.0, "high": 0.5}}), TINY, until=2
        )


def test_benchmark_space_has_branches_of_the_default_space() -> None:
    shipped, default = SearchSpace.read(HERE / "space.yaml"), SearchSpace.read("unet")
    joined = {
        "dice_over", "early_stop_patience", "ema", "input_slices", "intensity", "lesion_share", "optimizer",
        "weight_decay",
    }  # fmt: skip
    left = {"step_fraction", "step_factor"}
    assert set(default.dimensions) == (set(shipped.dimensions) | joined) - left
    both = set(default.dimensions) & set(shipped.dimensions)
    assert all(default.dimensions[name].when == shipped.dimensions[name].when for name in both)
    assert shipped.fixed["early_stop_patience"] > Task().epochs
