"""What a change to a configuration gains: which configurations are trained, how, and what the table says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.search_quality import changes
from benchmarks.search_quality.changes import (
    BASELINE,
    RECIPE,
    RESIDUAL,
    Run,
    Variant,
    effects,
    record,
    recorded,
    table,
    train,
    variants,
)
from benchmarks.search_quality.sealed_tasks import DividedData, SealedTask
from wmlsearch.config import TrialConfig


def test_each_configuration_is_another_one() -> None:
    configs = [variant.config for variant in variants()]
    assert len({config.model_dump_json() for config in configs}) == len(configs)
    assert configs[0] == TrialConfig(early_stop_patience=changes.EPOCHS)
    assert configs[1].lesion_share == 0.5


@pytest.fixture(scope="module")
def task() -> SealedTask:
    division = changes.Division(("01", "02"), ("03",), ("04", "05"))
    return SealedTask((division,), size=32, epochs=2, cohort="hard", shape=(32, 32, 12), lesion_size=3)


def test_a_training_is_scored_by_its_best_epoch(task: SealedTask, tmp_path: Path) -> None:
    (prepared,) = task.prepare(tmp_path, seed=3)
    data = DividedData.open(prepared, "cpu")
    small = TrialConfig(depth=1, base_channels=4, learning_rate=1e-2)
    objective, sealed = train(small, data, epochs=2)
    assert len(objective) == 2
    assert max(objective) > 0
    assert len(sealed) == 2
    assert all(0 <= score <= 1 for score in sealed)
    diverging = small.model_copy(update={"optimizer": "sgd", "learning_rate": 1e30})
    assert train(diverging, data, epochs=1) == ((), (0.0, 0.0))


def test_a_recording_goes_on_where_it_ended(task: SealedTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = list[TrialConfig]()

    def one(config: TrialConfig, _: DividedData) -> tuple[tuple[float, ...], tuple[float, ...]]:
        trained.append(config)
        return (0.4, 0.5), (0.25, 0.75)

    monkeypatch.setattr(changes, "task", lambda: task)
    monkeypatch.setattr(changes, "train", one)
    path = tmp_path / "changes.jsonl"
    record([7], 0, 2, path)
    record([7], 0, 2, path)
    assert trained == [variant.config for variant in variants()[::2]]
    with path.open("a") as file:
        file.write('{"of": "the recipe", "cha')  # killed while it wrote
    assert recorded(path)[0] == Run(BASELINE, "", 7, (0.4, 0.5), (0.25, 0.75))
    assert len(recorded(path)) == len(trained)


def test_the_gain_of_a_part_is_fitted_to_all_trainings() -> None:
    """Here parts add up, cohorts differ, and balanced batches help an overlap loss only, as they do."""
    rng = np.random.default_rng(0)
    runs = []
    for variant in variants():
        config = variant.config
        overlap = config.loss != "bce"
        for cohort in (1, 2):
            dice = 0.3 + 0.1 * (cohort == 2) - 0.1 * (overlap and config.dice_over == "slice")
            dice += 0.05 * (config.network == "residual") + 0.07 * (overlap and config.lesion_share == 0.5)
            runs.append(Run(variant.of, variant.change, cohort, (0.5,), (dice + rng.normal(0, 1e-4), dice)))
    rows = dict(re.findall(r"\| (.+) \| [+-](\S+) ±", effects(runs)))
    assert rows["network residual"] == "0.050"
    assert rows["lesion_share 0.5, with bce_dice"] == "0.070"
    assert rows["lesion_share 0.5, with bce"] == rows["bce_dice over the batch"] == "0.000"
    assert rows["bce_dice over the slice"] == "0.100"
    assert rows["depth 3"] == "0.000"


def test_the_table_has_gains_in_pairs_of_patients() -> None:
    runs = [
        Run(of, change, cohort, (0.5,), sealed)
        for of, change, cohort, sealed in (
            (BASELINE, "", 1, (0.1, 0.3)),
            (BASELINE, "", 2, (0.3, 0.5)),
            (RECIPE, "", 1, (0.2, 0.4)),
            (RECIPE, "", 2, (0.4, 0.6)),
            (RECIPE, "depth 3", 1, (0.3, 0.5)),
            (RECIPE, "depth 3", 2, (0.5, 0.7)),
            (RECIPE, "network residual", 1, (0.6, 0.8)),
            (RECIPE, "network residual", 2, (0.6, 0.8)),
            (RESIDUAL, "loss bce", 1, (0.7, 0.9)),
            (RESIDUAL, "loss bce", 2, (0.7, 0.9)),
            (RECIPE, "loss bce", 1, (0.0, 0.0)),  # the other cohort is not yet recorded
        )
    ]
    assert table(runs).splitlines()[2:] == [
        "| the baseline | 0.200 0.400 | 0.300 |  |",
        "| the recipe | 0.300 0.500 | 0.400 | +0.100 [+0.100, +0.100] |",
        "| the recipe: network residual | 0.700 0.700 | 0.700 | +0.300 [+0.200, +0.400] |",
        "| the recipe: depth 3 | 0.400 0.600 | 0.500 | +0.100 [+0.100, +0.100] |",
        "| the recipe, residual: loss bce | 0.800 0.800 | 0.800 | +0.100 [+0.100, +0.100] |",
    ]
    assert Variant(RECIPE, "depth 3").config.depth == 3
    halves = [runs[0], runs[3]]  # of two recorders, each with a cohort
    assert table(halves).splitlines()[2:] == ["| the baseline | 0.200 | 0.200 |  |"]
