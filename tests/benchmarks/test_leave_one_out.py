"""Leave one patient out: what is trained, and what the table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.search_quality import leave_one_out
from benchmarks.search_quality.leave_one_out import GROUPS, SEEDS, Run, table, variants
from benchmarks.search_quality.sealed_record import HERE, SPACE, Key, Training
from wmlsearch.config import TrialConfig
from wmlsearch.errors import InputError
from wmlsearch.space import SearchSpace

WIDE = SearchSpace.read(HERE / SPACE)
CHOSEN = WIDE.active_values(
    TrialConfig(input_slices=3, depth=3, loss="tversky", tversky_alpha=0.25, optimizer="sgd", augment="light")
)


def trained(number: int, division: int, objective: float, seed: int = 0) -> Training:
    return Training(Key(number, seed, division), {"depth": number}, (0.0, objective), ((0.1,), (0.2,)), 1.0)


@pytest.fixture
def _recording(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = [trained(number, division, 0.1 * number) for number in (3, 5) for division in range(3)]
    recording += [trained(9, 1, 0.9, seed=1)]
    monkeypatch.setattr(leave_one_out, "read", lambda _: recording)


def test_every_hyperparameter_is_in_one_group() -> None:
    names = [name for group in GROUPS.values() for name in group]
    assert sorted(names) == sorted(WIDE.dimensions)


def test_an_ablation_sets_one_group_back() -> None:
    values = dict(variants(WIDE, CHOSEN))
    assert len(values) == 2 + len(GROUPS)
    assert values["baseline"] == WIDE.active_values(TrialConfig())
    without_loss = values["loss as in the baseline"]
    assert without_loss["loss"] == "bce"
    assert "tversky_alpha" not in without_loss  # it has no effect there
    assert without_loss["optimizer"] == "sgd"
    assert values["optimisation as in the baseline"]["optimizer"] == "adam"


@pytest.mark.usefixtures("_recording")
def test_the_found_configuration_has_the_highest_objective_of_the_first_seed() -> None:
    assert leave_one_out.found(1) == (5, {"depth": 5})


def test_without_a_recording_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leave_one_out, "read", lambda _: [])
    with pytest.raises(InputError, match="has no recording"):
        leave_one_out.found(0)


@pytest.mark.usefixtures("_recording")
def test_the_table_leaves_out_what_was_trained_for_another_choice(tmp_path: Path) -> None:
    runs = [Run(division, 5, "baseline", seed, 0.2) for division in range(3) for seed in SEEDS]
    runs += [Run(division, 3, "found configuration", seed, 0.9) for division in range(3) for seed in SEEDS]
    lines = table(runs).splitlines()
    assert lines[0].startswith("| trained | sealed 07 (configuration 5) |")
    assert lines[2:] == ["| baseline | 0.200 ± 0.000 | 0.200 ± 0.000 | 0.200 ± 0.000 | 0.200 |"]
    assert leave_one_out.recorded(tmp_path / "none.jsonl") == []
