"""The forest that judges what to try next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wmlsearch.config import RunSettings
from wmlsearch.runs import SearchDir
from wmlsearch.search.forest import encode, propose
from wmlsearch.search.suggest import STARTUP_TRIALS, Study
from wmlsearch.space import SearchSpace

SPACE = SearchSpace.of(
    {
        "depth": {"choices": [2, 3, 4]},
        "loss": {"choices": ["bce", "dice"]},
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "schedule": {"choices": ["plateau", "constant"]},
        "plateau_patience": {"low": 2, "high": 10, "when": {"schedule": "plateau"}},
    }
)
EPOCHS = 9


def curve(values: Mapping[str, Any], epochs: int) -> dict[int, float]:
    """Rates near 1e-3 and bce end well, dice begins well."""
    end = 0.9 - 0.3 * abs(np.log10(values["learning_rate"]) + 3) - 0.5 * (values["loss"] == "dice")
    return {
        epoch: float(end * epoch / EPOCHS + 0.3 * (values["loss"] == "dice") / epoch) for epoch in range(1, epochs + 1)
    }


def test_numbers_are_scaled_words_are_one_hot_and_what_is_off_says_so() -> None:
    values = {"depth": 3, "loss": "dice", "learning_rate": 1e-3, "schedule": "constant"}
    assert np.allclose(encode(SPACE, values), [0.5, 0, 1, 0.5, 0, 1, -1])
    values |= {"schedule": "plateau", "plateau_patience": 10}
    assert np.allclose(encode(SPACE, values), [0.5, 0, 1, 0.5, 1, 0, 1])


def test_it_learns_from_broken_off_curves_what_ends_well() -> None:
    """One trial in three is whole; at the first epoch, where most of them end, the wrong loss is ahead."""
    rng = np.random.default_rng(0)
    drawn = [SPACE.sample(rng) for _ in range(30)]
    past = [(values, curve(values, EPOCHS if n % 3 == 0 else 1)) for n, values in enumerate(drawn)]
    proposed = [propose(SPACE, past, EPOCHS, np.random.default_rng(seed)) for seed in range(20)]
    ends = [curve(values, EPOCHS)[EPOCHS] for values in proposed]
    by_chance = [curve(SPACE.sample(rng), EPOCHS)[EPOCHS] for _ in range(200)]
    assert np.mean(ends) > np.quantile(by_chance, 0.75)
    assert all(values["loss"] == "bce" for values in proposed)
    assert propose(SPACE, past, EPOCHS, np.random.default_rng(7)) == proposed[7]


def test_the_study_asks_it_once_there_is_a_past(tmp_path: Any) -> None:
    search = SearchDir.create(tmp_path / "s", {"name": "s"})
    study = Study(search, SPACE, RunSettings(epochs=EPOCHS))
    drawn = []
    for number in range(1, 40):
        config = study.ask(number)
        drawn.append(SPACE.values_of(config))
        for epoch, value in curve(drawn[-1], EPOCHS).items():
            study.report(number, epoch, value)
        if drawn[-1]["depth"] == 4:
            study.tell(number, "out_of_memory", None)
        else:
            study.tell(number, "completed", max(curve(drawn[-1], EPOCHS).values()))
    later = drawn[STARTUP_TRIALS + 9 :]
    assert np.mean([values["loss"] == "bce" for values in later]) > 0.9
    assert np.mean([values["depth"] == 4 for values in later]) < 0.1
