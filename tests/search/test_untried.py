"""No trial repeats another one's configuration, as long as the space has others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.schema import EXPERIENCE
from wmlsearch.search.optuna_study import SpaceExhaustedError, Study
from wmlsearch.search.samplers.untried import TriedConfigurations
from wmlsearch.space import SearchSpace
from wmlsearch.space.effects import identity

SIX = {"loss": {"choices": ["bce", "dice", "bce_dice"]}, "norm": {"choices": ["batch", "instance"]}}
SAMPLERS = ["forest", "tpe", "gp", "random", "qmc", "cmaes"]


def new_study(path: Path, values: dict[str, Any], **settings: Any) -> Study:
    search = SearchDir(path)
    search.path.mkdir()
    return Study(search, SearchSpace.from_mapping(values), RunSettings(**settings))


def tried(study: Study, number: int) -> TrialConfig:
    """Return the configuration of a trial, which ends at once. The value is highest with one loss."""
    config = study.ask(number)
    study.tell(number, "completed", 0.9 if config.loss == "dice" else 0.1)
    return config


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_configuration_is_tried_once(sampler: str, tmp_path: Path) -> None:
    study = new_study(tmp_path / "s", SIX, sampler=sampler, trials=20)
    configs = [tried(study, number) for number in range(6)]
    assert {(config.loss, config.norm) for config in configs} == {
        (loss, norm) for loss in ("bce", "dice", "bce_dice") for norm in ("batch", "instance")
    }
    with pytest.raises(SpaceExhaustedError) as caught:
        study.ask(6)
    assert str(caught.value) == "all 6 configurations of the space have been tried"


def test_configurations_that_train_the_same_are_one(tmp_path: Path) -> None:
    values = {"schedule": {"choices": ["constant", "plateau"]}, "plateau_patience": {"choices": [3, 4, 5]}}
    study = new_study(tmp_path / "s", values, trials=20)
    configs = [tried(study, number) for number in range(4)]
    assert len({identity(config.model_dump()) for config in configs}) == 4
    assert [config.schedule for config in configs].count("constant") == 1
    with pytest.raises(SpaceExhaustedError, match="all 4 configurations"):
        study.ask(4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_nothing_is_tried_again_in_a_space_with_more_configurations_than_trials(sampler: str, tmp_path: Path) -> None:
    values = {**SIX, "depth": {"choices": [3, 4]}}
    study = new_study(tmp_path / "s", values, sampler=sampler, trials=11)
    assert len({tried(study, number) for number in range(11)}) == 11


def test_fresh_trials_of_a_population_may_repeat_a_configuration(tmp_path: Path) -> None:
    study = new_study(tmp_path / "s", SIX, scheduler="pbt", trials=8)
    configs = [tried(study, number) for number in range(8)]
    assert len(set(configs[:6])) == 6
    assert set(configs[6:]) <= set(configs[:6])


def test_trials_from_experience_are_not_repeated(tmp_path: Path) -> None:
    search = SearchDir(tmp_path / "s")
    search.path.mkdir()
    portfolio = [{"loss": "dice", "norm": "batch"}, {"loss": "bce_dice", "norm": "instance"}]
    study = Study(search, SearchSpace.from_mapping(SIX), RunSettings(trials=20), portfolio)
    configs = [tried(study, number) for number in range(6)]
    assert [(config.loss, config.norm) for config in configs[1:3]] == [("dice", "batch"), ("bce_dice", "instance")]
    assert len(set(configs)) == 6


def test_a_configuration_from_experience_that_was_tried_is_left_to_the_sampler(tmp_path: Path) -> None:
    """The first of the portfolio differs from the baseline in a hyperparameter without effect."""
    search = SearchDir(tmp_path / "s")
    search.path.mkdir()
    space = SearchSpace.from_mapping({**SIX, "dice_over": {"choices": ["slice", "batch"]}})
    portfolio = [{"loss": "bce", "norm": "batch", "dice_over": "batch"}, {"loss": "bce", "norm": "instance"}]
    study = Study(search, space, RunSettings(trials=20), portfolio)
    baseline, first, second = (study.ask(number) for number in range(3))
    assert len({identity(config.model_dump()) for config in (baseline, first, second)}) == 3
    assert (second.loss, second.norm) == ("bce", "instance")
    assert [study.origin(number) for number in range(3)] == ["", "", EXPERIENCE]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_experience_leaves_to_the_sampler_makes_it_another_configuration(
    sampler: str, seed: int, tmp_path: Path
) -> None:
    search = SearchDir(tmp_path / "s")
    search.path.mkdir()
    space = SearchSpace.from_mapping({**SIX, "depth": {"choices": [3, 4]}})
    portfolio = [{"loss": "dice"}, {"loss": "dice"}, {"loss": "dice", "depth": 3}, {"depth": 4}, {"norm": "batch"}]
    study = Study(search, space, RunSettings(trials=9, sampler=sampler, seed=seed), portfolio)
    configs = [study.ask(number) for number in range(9)]
    assert len(set(configs)) == 9
    for number, config in enumerate(configs[1:6]):
        if study.origin(number + 1):
            assert config.model_dump().items() >= portfolio[number].items()
        else:
            assert number == 2, "two others have dice, and perhaps depth 3 with both normalisations"


def test_a_trial_outside_the_space_is_none_of_its_configurations(tmp_path: Path) -> None:
    study = new_study(tmp_path / "s", {**SIX, "depth": 3}, trials=20)
    assert tried(study, 0) == TrialConfig()
    assert len({tried(study, number) for number in range(1, 7)}) == 6
    with pytest.raises(SpaceExhaustedError):
        study.ask(7)


def test_what_is_left_of_a_space() -> None:
    space, rng = SearchSpace.from_mapping(SIX), np.random.default_rng(0)
    counted, many = TriedConfigurations(space, 6), TriedConfigurations(space, 5)
    assert (counted.count, many.count) == (6, None)
    for each in (counted, many):
        left = []
        while (values := each.draw_other(rng)) is not None:
            assert values not in each
            each.add(space.config(values))
            assert values in each
            left.append(values)
        assert len(left) == 6
    assert counted.is_complete
    assert not many.is_complete, "it is not known"
