"""The forest that proposes the next configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from records import search_record
from sklearn.ensemble import ExtraTreesRegressor

from wmlsearch.config import RunSettings
from wmlsearch.runs.folders import SearchDir
from wmlsearch.search.optuna_study import Study
from wmlsearch.search.samplers.forest import MAX_TRIALS, TREES, encode, predict_ranks, propose
from wmlsearch.search.samplers.optuna_samplers import STARTUP_TRIALS
from wmlsearch.space import SearchSpace

SPACE = SearchSpace.from_mapping(
    {
        "depth": {"choices": [2, 3, 4]},
        "loss": {"choices": ["bce", "dice"]},
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "schedule": {"choices": ["plateau", "constant"]},
        "plateau_patience": {"low": 2, "high": 10, "when": {"schedule": "plateau"}},
    }
)
EPOCHS = 9


def end(values: Mapping[str, Any]) -> float:
    """Return the value of a trial at its end: best with bce and a learning rate near 1e-3."""
    return float(0.9 - 0.2 * abs(np.log10(values["learning_rate"]) + 3) - 0.4 * (values["loss"] == "dice"))


def test_encoding_of_numbers_choices_and_inactive_dimensions() -> None:
    values = {"depth": 3, "loss": "dice", "learning_rate": 1e-3, "schedule": "constant"}
    assert np.allclose(encode(SPACE, values), [0.5, 0, 1, 0.5, 0, 1, -1])
    values |= {"schedule": "plateau", "plateau_patience": 10}
    assert np.allclose(encode(SPACE, values), [0.5, 0, 1, 0.5, 1, 0, 1])


def test_a_later_epoch_ranks_above_a_higher_value() -> None:
    """Half of the trials are stopped at the first epoch, where the worse loss is far ahead."""
    rng = np.random.default_rng(0)
    past = []
    for values in (SPACE.sample(rng) for _ in range(40)):
        past.append((values, (1, 0.99) if values["loss"] == "dice" else (EPOCHS, end(values))))
    chosen = [propose(SPACE, past, np.random.default_rng(seed)) for seed in range(200)]
    by_chance = [SPACE.sample(rng) for _ in range(2000)]
    # of four random candidates one is bce in 15 cases of 16
    assert np.mean([values["loss"] == "bce" for values in chosen]) > 0.85
    assert np.mean([end(values) for values in chosen]) > np.quantile([end(values) for values in by_chance], 0.7)
    assert propose(SPACE, past, np.random.default_rng(7)) == chosen[7]


def test_the_study_uses_the_forest_after_the_startup_trials(tmp_path: Path) -> None:
    search = SearchDir.create(tmp_path / "s", search_record({"name": "s"}))
    study = Study(search, SPACE, RunSettings(epochs=EPOCHS))
    drawn = []
    for number in range(1, 80):
        values = SPACE.active_values(study.ask(number))
        drawn.append(values)
        if values["depth"] == 4:
            study.tell(number, "out_of_memory", None)
            continue
        for epoch in range(1, EPOCHS + 1):
            study.report(number, epoch, end(values) * epoch / EPOCHS)
        study.tell(number, "completed", end(values))
    later = drawn[STARTUP_TRIALS + 10 :]
    assert np.mean([values["loss"] == "bce" for values in later]) > 0.7  # by chance 0.5
    assert np.mean([values["depth"] == 4 for values in later]) < 0.15  # by chance 0.33


def test_predicted_ranks_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    known, ranks, asked = rng.random((50, 7)).tolist(), rng.random(50).tolist(), rng.random((4, 7)).tolist()
    forest = ExtraTreesRegressor(TREES, max_features=0.8, random_state=7).fit(known, ranks)
    assert np.array_equal(predict_ranks(known, ranks, asked, seed=7), forest.predict(asked))


def test_the_forest_learns_from_a_sample_of_very_many_trials() -> None:
    rng = np.random.default_rng(0)
    sampled = [SPACE.sample(rng) for _ in range(2 * MAX_TRIALS)]
    past = [(values, (EPOCHS, end(values))) for values in sampled]
    proposed = [propose(SPACE, past, np.random.default_rng(seed)) for seed in range(10)]
    assert proposed[0] == propose(SPACE, past, np.random.default_rng(0)), "the same seed draws the same sample"
    assert np.median([end(values) for values in proposed]) > np.quantile([value for _, (_, value) in past], 0.7)
