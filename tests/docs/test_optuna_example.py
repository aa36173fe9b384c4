"""The Optuna script of the page on searching runs as it stands."""

from __future__ import annotations

import re

import optuna
from paths import REPOSITORY

PAGE = REPOSITORY / "docs" / "searching.md"


def test_the_forest_works_in_a_plain_optuna_script() -> None:
    (script,) = re.findall(r"```python\n(import optuna\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(script, str(PAGE), "exec"), names)  # noqa: S102
    study = names["study"]
    assert isinstance(study, optuna.Study)
    states = [trial.state.name for trial in study.trials]
    assert (len(states), set(states)) == (40, {"COMPLETE", "PRUNED"})
    sgd = [trial for trial in study.trials if trial.params["optimizer"] == "sgd"]
    assert all(("momentum" in trial.params) == (trial in sgd) for trial in study.trials)
    assert study.best_params["learning_rate"] > 1e-3
