"""First trials from experience (`--portfolio`): which ones, and what a search makes of them."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from records import run_record, search_record

from wmlsearch.cli.tune import tune
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.errors import InputError
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.search.budget import Budget
from wmlsearch.search.checkpoints import CheckpointRetention
from wmlsearch.search.optuna_study import Study
from wmlsearch.search.outcome_model import TrainedCurve
from wmlsearch.search.portfolio import active, choose_portfolio, greedy, in_space, share_that_applies
from wmlsearch.search.recorder import Recorder
from wmlsearch.search.scheduler import Scheduler
from wmlsearch.space import SearchSpace
from wmlsearch.tracking.sync import _tags
from wmlsearch.workflows.placement import LOCAL
from wmlsearch.workflows.preflight import choose_first_trials

SPACE = SearchSpace.from_mapping(
    {
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "batch_size": {"low": 4, "high": 16},
        "base_channels": {"choices": [8, 16, 32]},
        "schedule": {"choices": ["plateau", "cosine"]},
        "plateau_patience": {"low": 2, "high": 6, "when": {"schedule": "plateau"}},
        "warmup_fraction": {"low": 0.1, "high": 0.3, "when": {"schedule": "cosine"}},
        "weight_decay": {"low": 1e-6, "high": 1e-2, "log": True},
        "loss": "dice",
    }
)
COSINE: dict[str, Any] = {
    "learning_rate": 0.05, "batch_size": 9, "base_channels": 6, "schedule": "cosine", "warmup_fraction": 0.2,
    "loss": "dice",
}  # fmt: skip


def trained(values: dict[str, Any], final: float, **fixed: Any) -> TrainedCurve:
    return TrainedCurve(values, [final / 2, final], fixed)


def test_together_they_are_best() -> None:
    """The second one is not the second best of all, but the best where the first is poor."""
    expected = np.array([[0.9, 0.8, 0.1], [0.9, 0.8, 0.2], [0.1, 0.2, 0.6]])
    assert greedy(expected, 2) == [0, 2]
    assert greedy(expected, 5) == [0, 2, 1]


def test_a_recorded_configuration_is_taken_into_the_space() -> None:
    values = in_space(SPACE, trained(COSINE, 0.5))
    assert values == {
        "learning_rate": 0.01,  # the bound
        "batch_size": 9,
        "base_channels": 8,  # the nearest choice
        "schedule": "cosine",
        "plateau_patience": 5,  # the baseline's
        "warmup_fraction": 0.2,
    }  # the baseline's weight decay, 0, is not in the space, so the sampler draws it
    assert active(SPACE, values) == {name: value for name, value in values.items() if name != "plateau_patience"}
    assert in_space(SPACE, trained(COSINE, 0.5, weight_decay=1e-4))["weight_decay"] == 1e-4, "all of its task had it"
    other = in_space(SPACE, trained({**COSINE, "schedule": "onecycle", "batch_size": 4.6}, 0.5))
    assert other["schedule"] == "plateau", "the baseline's, since no choice is near"
    assert other["batch_size"] == 5
    assert share_that_applies(SPACE, COSINE) == 4 / 6


def test_a_space_to_which_less_than_half_applies_gets_none() -> None:
    recorded = [[trained(COSINE, 0.5)]]
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2}, "batch_size": {"low": 8, "high": 16}, "loss": "dice"}
    third = SearchSpace.from_mapping(space)
    assert choose_portfolio(third, 3, tasks=recorded) == []
    half = SearchSpace.from_mapping({**space, "base_channels": {"choices": [6, 12]}})
    assert choose_portfolio(half, 3, tasks=recorded) == [{"learning_rate": 0.01, "batch_size": 9, "base_channels": 6}]


def test_what_is_the_same_in_the_space_is_tried_once() -> None:
    same = {**COSINE, "learning_rate": 0.02, "base_channels": 4}
    other = {**COSINE, "warmup_fraction": 0.1}
    recorded = [[trained(COSINE, 0.5), trained(same, 0.6), trained(other, 0.4)]]
    found = [values["warmup_fraction"] for values in choose_portfolio(SPACE, 3, tasks=recorded)]
    assert sorted(found) == [0.1, 0.2]
    space = SearchSpace.from_mapping(
        {name: entry for name, entry in SPACE.to_mapping().items() if name != "weight_decay"}
    )
    tried = space.config({**active(space, in_space(space, trained(other, 0.4)))})
    (left,) = choose_portfolio(space, 3, [TrialConfig(), tried], recorded)
    assert left["warmup_fraction"] == 0.2


def test_a_configuration_that_is_good_on_every_task_comes_first() -> None:
    """One that is best on a task but poor on the other follows."""
    rng = np.random.default_rng(0)
    tasks = []
    for best in (4, 16):  # the tasks differ in the batch size that they like; both like a learning rate of 1e-3
        drawn = [{**COSINE, "learning_rate": 10 ** rng.uniform(-4, -2), "batch_size": int(rng.integers(4, 17))}
                 for _ in range(60)]  # fmt: skip
        tasks.append(
            [
                trained(v, 1 - abs(math.log10(v["learning_rate"]) + 3) / 2 - abs(v["batch_size"] - best) / 24)
                for v in drawn
            ]
        )
    portfolio = choose_portfolio(SPACE, 4, tasks=tasks)
    assert all(0.3e-3 < values["learning_rate"] < 3e-3 for values in portfolio)
    assert min(values["batch_size"] for values in portfolio) < 8
    assert max(values["batch_size"] for values in portfolio) > 12
    assert portfolio == choose_portfolio(SPACE, 4, tasks=tasks)


def test_a_single_choice_is_taken_though_nothing_was_recorded_with_it() -> None:
    space = SearchSpace.from_mapping({"loss": {"choices": ["bce", "bce_dice"]}, "dice_over": {"choices": ["batch"]}})
    assert in_space(space, trained({"loss": "bce_dice", "dice_over": "slice"}, 0.5)) == {
        "loss": "bce_dice",
        "dice_over": "batch",
    }


@pytest.mark.parametrize("name", ["quick", "unet"])
def test_the_shipped_records_fit_the_shipped_spaces(name: str) -> None:
    space = SearchSpace.read(name)
    portfolio = choose_portfolio(space, 3, [TrialConfig()])
    configs = [space.config(active(space, values)) for values in portfolio]
    assert len({repr(config) for config in (TrialConfig(), *configs)}) == 4
    assert not any(space.mismatches(config) for config in configs)


def test_fewer_than_asked_are_announced() -> None:
    said: list[str] = []
    space = SearchSpace.from_mapping({"weight_decay": {"low": 1e-6, "high": 1e-2}})
    request: Any = SimpleNamespace(space=space, settings=RunSettings(portfolio=3))
    assert choose_first_trials(request, [], said.append) == []
    assert said == [  # not one of which nothing applies, so that all of it would be the sampler's
        "note: experience gives 0 configurations instead of the 3 of --portfolio: the other recorded configurations "
        "are outside this space, or the same in it"
    ]
    by_default: Any = SimpleNamespace(space=space, settings=RunSettings())
    assert choose_first_trials(by_default, [], said.append) == []
    assert len(said) == 1, "nobody has asked for three"


def test_three_trials_are_from_experience_unless_there_is_none() -> None:
    quick, said = SearchSpace.read("quick"), list[str]()
    found: list[int] = []
    for settings in (RunSettings(), RunSettings(portfolio=1), RunSettings(experience=False), RunSettings(portfolio=0)):
        request: Any = SimpleNamespace(space=quick, settings=settings)
        found.append(len(choose_first_trials(request, [], said.append)))
    assert found == [3, 1, 0, 0]
    assert not said


def test_the_help_names_the_default() -> None:
    (option,) = [each for each in tune.params if each.name == "portfolio"]
    assert isinstance(option, click.Option)
    assert f"[default: {RunSettings().first_trials}]" in (option.help or "")


def test_there_is_no_portfolio_without_experience() -> None:
    with pytest.raises(InputError) as refused:
        RunSettings.from_mapping({"portfolio": 3, "experience": False})
    assert list(refused.value.faults) == [
        "experience must be true with portfolio, whose trials are from recorded tasks, but got "
        "(portfolio=3, experience=false)"
    ]


PORTFOLIO = [in_space(SPACE, trained(COSINE, 0.5)), {"schedule": "plateau", "learning_rate": 0.002}]


def origins(search: SearchDir) -> list[tuple[dict[str, Any], Any]]:
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(search.journal))))
    return [(trial.params, trial.user_attrs.get("origin")) for trial in study.trials]


@pytest.mark.parametrize("sampler", ["forest", "tpe", "gp", "random", "qmc", "cmaes"])
def test_the_study_tries_them_and_the_sampler_draws_the_rest(sampler: str, tmp_path: Path) -> None:
    search = SearchDir(tmp_path / "s")
    search.path.mkdir()
    settings = RunSettings(sampler=sampler)
    study = Study(search, SPACE, settings, PORTFOLIO)
    _, first, second, third = (study.ask(number) for number in range(4))
    assert active(SPACE, PORTFOLIO[0]).items() <= first.model_dump().items()
    assert (second.schedule, second.learning_rate) == ("plateau", 0.002)
    for config in (first, second, third):
        assert SPACE.mismatches(config) == []
    assert 1e-6 <= first.weight_decay <= 1e-2
    (tmp_path / "other").mkdir()
    plain = Study(SearchDir(tmp_path / "other"), SPACE, settings)
    proposals = [plain.ask(number) for number in range(4)]
    assert proposals[1].weight_decay != TrialConfig().weight_decay
    assert proposals[2] != second
    study.tell(1, "completed", 0.5)
    assert [origin for _, origin in origins(search)] == ["experience", "experience", None]


def test_a_search_records_where_they_are_from_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    settings = RunSettings(trials=4, baseline=False, forecast=False, portfolio=2)
    about = {"settings": settings.model_dump(), "space": {"source": "s", "values": SPACE.to_mapping()}}
    search = SearchDir.create(tmp_path / "s", search_record(about, portfolio=PORTFOLIO))
    retention = CheckpointRetention(LOCAL.checkpoint_location, lambda _: 0, math.inf, settings.objective_names)

    def recorder(search: SearchDir) -> Recorder:
        study = Study(search, SPACE, settings, search.record().portfolio)
        budget = Budget(search, settings, Slots(1, 1, 1, 0.0))
        return Recorder(
            search, settings, study, budget, LOCAL.checkpoint_location, retention, lambda _: None, Scheduler(settings)
        )

    whole = recorder(search)
    whole.begin(0)
    whole.begin(1)
    shutil.copytree(search.path, tmp_path / "copy" / "s")
    copy = SearchDir(tmp_path / "copy" / "s")
    resumed = recorder(copy)
    for number in (1, 2, 3):
        whole.begin(number)
        resumed.begin(number)
    runs = [search.trial(number).record() for number in range(4)]
    assert [copy.trial(number).record().config for number in range(4)] == [run.config for run in runs]
    assert [run.origin for run in runs] == ["", "experience", "experience", ""]
    assert origins(copy) == origins(search)
    words = {entry.name: entry.origin for entry in leaderboard(search).trials}
    assert words == {
        "trial-0000": "baseline", "trial-0001": "from experience", "trial-0002": "from experience", "trial-0003": "",
    }  # fmt: skip
    assert "origin" not in search.trial(3).record().as_json()
    assert _tags(runs[1], None)["origin"] == "experience"
    assert "origin" not in _tags(run_record(), None)
