"""What `plan` and `tune` forecast, without Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wmlsearch.config import RunSettings
from wmlsearch.space import SearchSpace
from wmlsearch.workflows.forecast import _with_possible_trials


@pytest.mark.parametrize(
    ("values", "scheduler", "trials"),
    [
        ({"depth": {"low": 3, "high": 5}}, "asha", 3),
        ({"depth": {"low": 3, "high": 5}, "loss": "dice"}, "asha", 4),  # and the baseline, which is outside
        ({"depth": {"low": 3, "high": 5}}, "pbt", 20),  # which repeats configurations
        ({"dropout": {"low": 0.1, "high": 0.2}}, "asha", 20),
    ],
)
def test_a_forecast_counts_no_more_trials_than_the_space_has(
    values: dict[str, Any], scheduler: str, trials: int
) -> None:
    settings = RunSettings.from_mapping({"trials": 20, "scheduler": scheduler})
    plan: Any = SimpleNamespace(space=SearchSpace.from_mapping(values), settings=settings)
    assert _with_possible_trials(plan) == settings.model_copy(update={"trials": trials})
