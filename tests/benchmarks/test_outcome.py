"""The outcome benchmark: its surrogate is deterministic, every epoch is counted, methods hand over what they should."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.search_quality import methods as searches
from benchmarks.search_quality import outcome
from benchmarks.search_quality.replay import WORKERS, replay, training_seed
from benchmarks.search_quality.surrogate import (
    Benchmark,
    Recorded,
    Surrogate,
    benchmarks,
    held_out,
    nearest_values,
    noise_between_seeds,
)
from wmlsearch.config import TrialConfig
from wmlsearch.search import portfolio, predictive
from wmlsearch.space import SearchSpace

SPACE = SearchSpace.from_mapping(
    {
        "depth": {"choices": [3, 4]},
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "schedule": {"choices": ["plateau", "constant"]},
        "plateau_patience": {"low": 2, "high": 10, "when": {"schedule": "plateau"}},
    }
)
EPOCHS, CONFIGURATIONS = 9, 60


def quality(values: Mapping[str, Any]) -> float:
    """Configurations are better near a learning rate of 3e-3, where the baseline is not."""
    return 0.8 - abs(np.log10(values["learning_rate"]) + 2.5) / 3


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    recorded, rng, shape = [], np.random.default_rng(0), 1 - 0.5 ** np.arange(1, EPOCHS + 1)
    for number in range(CONFIGURATIONS):
        values = SPACE.sample(np.random.default_rng(number))
        seeds = 2 if number % 3 == 0 else 1
        objective = quality(values) * shape + rng.normal(0, 0.01, (seeds, 1))
        recorded.append(Recorded(values, objective, objective - 0.1))
    return Surrogate(SPACE, recorded)


@pytest.fixture(scope="module")
def task(surrogate: Surrogate) -> Benchmark:
    return Benchmark("example", (surrogate,))


def test_equal_questions_have_equal_answers(surrogate: Surrogate) -> None:
    values = SPACE.sample(np.random.default_rng(7))
    again = Surrogate(SPACE, surrogate.recorded)
    one, other = surrogate.answer(values, 3), again.answer(dict(reversed(values.items())), 3)
    assert one.objective.tolist() == other.objective.tolist()
    assert one.sealed.tolist() == other.sealed.tolist()
    assert surrogate.answer(values, 4).objective.tolist() != one.objective.tolist()


def test_noise_is_that_between_recorded_seeds(surrogate: Surrogate) -> None:
    values = SPACE.sample(np.random.default_rng(7))
    answers = surrogate.answers([values], range(400))[0]
    spread = np.std([answer.objective for answer in answers], axis=0)
    assert noise_between_seeds(surrogate) == pytest.approx(0.01, abs=0.004)
    assert ((spread > 0.002) & (spread < 0.02)).all(), "that of the five pairs whose objective ends nearest"
    assert all(np.ptp(answer.objective - answer.sealed) < 1e-9 for answer in answers), "as correlated as recorded"
    mean = np.mean([answer.objective for answer in answers], axis=0)
    assert mean == pytest.approx(surrogate.mean_curves([values])[0][:EPOCHS], abs=0.003)


def test_recorded_configuration_has_its_own_curves(surrogate: Surrogate) -> None:
    for each in surrogate.recorded[:5]:
        assert surrogate.mean_curves([each.values])[0] == pytest.approx(each.curves.mean(axis=0))


def test_unseen_configurations_are_predicted(surrogate: Surrogate) -> None:
    agreement = held_out(surrogate)
    assert list(agreement) == ["epoch 1", "epoch 2", "epoch 3", "epoch 6", "epoch 9", "sealed"]
    assert all(min(numbers) > 0.7 for numbers in agreement.values())


def test_network_is_that_of_the_best_epoch_so_far(surrogate: Surrogate) -> None:
    answer = surrogate.answer(surrogate.recorded[0].values, 0)
    assert answer.kept(3) == answer.sealed[int(answer.objective[:3].argmax())]
    assert answer.kept() == answer.sealed[int(answer.objective.argmax())]


class Scripted:
    """Proposes one configuration, and stops each trial after its second epoch, or none."""

    def __init__(self, stop: bool) -> None:
        self.stop = stop
        self.log: list[tuple[int, str, int]] = []

    def propose(self, number: int) -> Mapping[str, Any]:
        return {"depth": 3, "learning_rate": 1e-3, "schedule": "constant"}

    def report(self, number: int, epoch: int, value: float) -> bool:
        return self.stop and epoch == 2

    def ended(self, number: int, state: str, epoch: int, value: float) -> None:
        self.log.append((number, state, epoch))


@pytest.mark.parametrize(("stop", "epochs"), [(True, 2), (False, EPOCHS)])
def test_every_epoch_is_counted(surrogate: Surrogate, stop: bool, epochs: int) -> None:
    method = Scripted(stop)
    run = replay(method, surrogate, max_epochs=100, seed=0)
    assert run.epochs == 100 == sum(trial.epochs for trial in run.trials)
    assert method.log[:WORKERS] == [(n, "stopped" if stop else "completed", epochs) for n in range(WORKERS)]
    spent, values = zip(*((epochs, trial.value) for epochs, trial in run.leaders), strict=True)
    assert list(spent) == sorted(spent)
    assert run.best.value == max(trial.value for trial in run.trials) == max(values)
    assert len({training_seed(0, n) for n in range(9)} | {training_seed(1, n) for n in range(9)}) == 18


def test_a_search_ends_with_its_last_trial(surrogate: Surrogate) -> None:
    method = Scripted(stop=False)
    run = replay(method, surrogate, max_epochs=100 * EPOCHS, seed=0, max_trials=6)
    assert len(run.trials) == 6
    assert {trial.state for trial in run.trials} == {"completed"}
    assert [number for number, *_ in method.log] == list(range(6))


def scored(task: Benchmark, goal: float) -> outcome.ScoredDivision:
    (surrogate,) = task.surrogates
    return outcome.ScoredDivision(task, surrogate, outcome.Scorer(surrogate), goal)


@pytest.mark.parametrize("name", list(outcome.methods()))
def test_each_method_spends_its_epochs_once(name: str, task: Benchmark) -> None:
    division = scored(task, goal=0.5)
    one, again = (outcome.methods()[name](division, 6) for _ in range(2))
    budget = outcome.TRIALS * EPOCHS
    assert one.epochs == EPOCHS if name == outcome.BASELINE else budget - EPOCHS < one.epochs <= budget
    assert 0 < one.configuration < 0.75
    assert again == one
    if name == outcome.OURS:
        assert one.configuration > outcome.baseline_alone(division, 6).configuration


def test_champion_is_the_baseline_where_no_candidate_is_better(task: Benchmark) -> None:
    """A search that knows only bad configurations hands over the baseline, and pays for the selection runs."""

    class Bad(Scripted):
        def propose(self, number: int) -> Mapping[str, Any]:
            return {"depth": 3, "learning_rate": 1e-4 * (1 + number / 1000), "schedule": "constant"}

    division = scored(task, goal=1.0)
    result = outcome.confirmed(lambda *_: Bad(stop=False), division, 5)
    assert result.configuration == division.scorer.means([task.baseline])[0]
    assert result.epochs == outcome.TRIALS * EPOCHS
    assert result.epochs_to == np.inf


def test_first_trial_is_the_baseline_if_it_lies_in_the_space(tmp_path: Path) -> None:
    assert searches.Ours(SPACE, EPOCHS, seed=5).propose(0) == SPACE.active_values(TrialConfig())
    outside = SearchSpace.from_mapping({**SPACE.to_mapping(), "depth": {"choices": [1, 2]}})
    assert searches.Ours(outside, EPOCHS, seed=5).propose(0) != nearest_values(outside, TrialConfig())
    assert nearest_values(outside, TrialConfig())["depth"] == 2


def test_experience_of_the_task_itself_is_left_out() -> None:
    shipped = predictive.recorded_tasks()
    assert [task.name for task in shipped] == ["few", "hard-101", "hard-102", "phantom"]
    with searches.known_tasks(searches.of_the_same_kind("hard-phantom")):
        assert predictive.recorded_tasks() == portfolio.recorded_tasks() == (shipped[0], shipped[3])
    with searches.known_tasks(searches.of_the_same_kind("easy-phantom")):
        assert predictive.recorded_tasks() == portfolio.recorded_tasks() == shipped[1:3]
    assert predictive.recorded_tasks() == portfolio.recorded_tasks() == shipped


def test_table_of_outcomes() -> None:
    of = {
        outcome.OURS: [[outcome.Outcome(0.5, 0.5, 20, 100, 9)], [outcome.Outcome(0.7, 0.7, 20, 100, 9)]],
        outcome.RANDOM: [[outcome.Outcome(0.4, 0.4, 80, 100, 5)], [outcome.Outcome(0.6, 0.6, 80, 100, 5)]],
    }
    lines = outcome.outcome_table("example", of).splitlines()
    assert "0.600 [0.500, 0.700]" in lines[2]
    assert "20 (0.25)" in lines[2]
    assert "+0.100 [+0.100, +0.100]" in lines[3], "paired by replay"
    (alone,) = outcome.outcome_table("example", {outcome.RANDOM: of[outcome.RANDOM]}).splitlines()[2:]
    assert "0.500 [0.400, 0.600]" in alone, "of one method, nothing is ahead"
    assert "+" not in alone


def test_surrogate_of_the_table() -> None:
    phantom = benchmarks()[0].surrogates[0]
    assert len(phantom.recorded) == 206
    assert len(phantom.repeated) == 51
    answer = phantom.answer(phantom.recorded[0].values, 1)
    assert answer.objective.shape == answer.sealed.shape == (27,)
    assert answer.objective.tolist() != answer.sealed.tolist(), "another training stands for the sealed patients"
