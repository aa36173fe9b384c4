"""The forest that proposes the next configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
from optuna.trial import TrialState
from records import epoch_row, search_record
from sklearn.ensemble import ExtraTreesRegressor

from wmlsearch.config import RunSettings
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.search.distributions import search_space
from wmlsearch.search.optuna_study import Study
from wmlsearch.search.pbt import trial_record
from wmlsearch.search.samplers import forest
from wmlsearch.search.samplers.forest import (
    MAX_TRIALS,
    OWN_FOREST_TRIALS,
    STARTUP_TRIALS,
    TREES,
    EndedTrial,
    ForestSampler,
    active_parameters,
    draw,
    encode,
    fit_forest,
    refit_points,
)
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
DISTRIBUTIONS = search_space(SPACE)
EPOCHS = 9


def end(values: Mapping[str, Any]) -> float:
    """Return the value of a trial at its end: best with bce and a learning rate near 1e-3."""
    return float(0.9 - 0.2 * abs(np.log10(values["learning_rate"]) + 3) - 0.4 * (values["loss"] == "dice"))


def is_active(name: str, values: Mapping[str, Any]) -> bool:
    return SPACE.dimensions[name].active(values)


def study_of(
    past: Sequence[tuple[Mapping[str, Any], int, float]], sampler: ForestSampler | None = None
) -> optuna.Study:
    """Return a study with trials that reached an epoch with a value."""
    study = optuna.create_study(
        direction="maximize", sampler=sampler or ForestSampler(DISTRIBUTIONS, is_active, seed=0)
    )
    study.add_trials(
        [
            optuna.create_trial(
                state=TrialState.COMPLETE if epoch == EPOCHS else TrialState.PRUNED,
                value=value,
                params=dict(values),
                distributions={name: DISTRIBUTIONS[name] for name in values},
                intermediate_values={epoch: value},
            )
            for values, epoch, value in past
        ]
    )
    return study


def propose(study: optuna.Study, count: int) -> list[dict[str, Any]]:
    """Return what is proposed for the next trials, of which none ends."""
    proposals = []
    for _ in range(count):
        trial, values = study.ask(), dict[str, Any]()
        for name, distribution in DISTRIBUTIONS.items():
            if is_active(name, values):
                choices = getattr(distribution, "choices", None)
                suggest = trial.suggest_int if name == "plateau_patience" else trial.suggest_float
                log = {} if name == "plateau_patience" else {"log": True}
                values[name] = (
                    trial.suggest_categorical(name, choices)
                    if choices
                    else suggest(name, distribution.low, distribution.high, **log)  # type: ignore[attr-defined]
                )
        proposals.append(values)
    return proposals


class TestAsOptunaTestsItsOwn(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """Optuna's tests for samplers."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: ForestSampler(n_startup_trials=2)


def test_encoding_of_numbers_choices_and_inactive_dimensions() -> None:
    values = {"depth": 3, "loss": "dice", "learning_rate": 1e-3, "schedule": "constant"}
    assert np.allclose(encode(DISTRIBUTIONS, values), [0.5, 0, 1, 0.5, 0, 1, -1])
    values |= {"schedule": "plateau", "plateau_patience": 10}
    assert np.allclose(encode(DISTRIBUTIONS, values), [0.5, 0, 1, 0.5, 1, 0, 1])


def test_a_range_whose_bounds_have_the_same_logarithm() -> None:
    narrow = {"low": 1e-3, "high": math.nextafter(1e-3, 1), "log": True}
    distributions = search_space(SearchSpace.from_mapping({"learning_rate": narrow}))
    assert encode(distributions, {"learning_rate": 1e-3}) == [-1]


def test_a_value_outside_the_space_that_is_no_number_counts_as_inactive() -> None:
    distributions = search_space(
        SearchSpace.from_mapping(
            {"lesion_share": {"low": 0.2, "high": 0.6}, "ema": {"choices": [0.0, 0.9]}, "depth": {"low": 3, "high": 5}}
        )
    )
    assert np.allclose(encode(distributions, {"lesion_share": None, "ema": 0.9, "depth": 4}), [-1, 1, 0.5])
    assert np.allclose(encode(distributions, {"lesion_share": 0.9, "ema": 0.0, "depth": 4}), [1, 0, 0.5])
    as_choices = search_space(SearchSpace.from_mapping({"lesion_share": {"choices": [0.2, 0.6]}}))
    assert encode(as_choices, {"lesion_share": None}) == [-1]


def test_values_are_drawn_as_the_space_draws_them() -> None:
    ours, spaces = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(20):
        drawn: dict[str, Any] = {}
        for name, distribution in DISTRIBUTIONS.items():
            if is_active(name, drawn):
                drawn[name] = draw(distribution, ours)
        assert drawn == SPACE.sample(spaces)


@pytest.mark.parametrize("given", [True, False], ids=["space given", "space learned"])
def test_a_later_epoch_ranks_above_a_higher_value(given: bool) -> None:
    """Half of the trials are stopped at the first epoch, where the worse loss is far ahead."""
    rng = np.random.default_rng(0)
    past = []
    for values in (SPACE.sample(rng) for _ in range(40)):
        past.append((values, 1, 0.99) if values["loss"] == "dice" else (values, EPOCHS, end(values)))
    sampler = ForestSampler(DISTRIBUTIONS, is_active, seed=0) if given else ForestSampler(seed=0)
    chosen = propose(study_of(past, sampler), 200)
    by_chance = [SPACE.sample(rng) for _ in range(2000)]
    # of four random candidates one is bce in 15 cases of 16
    assert np.mean([values["loss"] == "bce" for values in chosen]) > 0.85
    assert np.mean([end(values) for values in chosen]) > np.quantile([end(values) for values in by_chance], 0.7)


def test_a_proposal_depends_on_the_seed_the_number_and_the_trials_that_ended() -> None:
    rng = np.random.default_rng(0)
    past = [(values, EPOCHS, end(values)) for values in (SPACE.sample(rng) for _ in range(30))]
    first, second = study_of(past), study_of(past)
    ahead = propose(first, 3)
    assert propose(second, 3) == ahead, "a study that is loaded again goes on as it would have"
    other = study_of(past, ForestSampler(DISTRIBUTIONS, is_active, seed=1))
    assert propose(other, 1) != ahead[:1]


def test_studies_of_the_same_name_and_brackets_of_hyperband_are_told_apart() -> None:
    """HyperbandPruner shows a sampler the trials of one bracket at a time."""
    rng = np.random.default_rng(2)
    past = [(values, EPOCHS, end(values)) for values in (SPACE.sample(rng) for _ in range(60))]
    kept = ForestSampler(DISTRIBUTIONS, is_active, seed=0)
    for earlier in (past[:30], past[30:]):
        fresh = study_of(earlier)
        study = optuna.create_study(study_name="same", direction="maximize", sampler=kept)
        study.add_trials(fresh.get_trials())
        assert propose(study, 2) == propose(fresh, 2)
    brackets = optuna.pruners.HyperbandPruner(1, EPOCHS, 3)
    study = optuna.create_study(study_name="a", direction="maximize", sampler=kept, pruner=brackets)
    study.add_trials(fresh.get_trials(states=(TrialState.COMPLETE,)))
    proposals = propose(study, 6)
    for number, proposal in enumerate(proposals, start=len(past[30:])):
        again = optuna.create_study(study_name="a", direction="maximize", pruner=brackets)
        again.add_trials(study.get_trials()[:number])
        again.sampler = ForestSampler(DISTRIBUTIONS, is_active, seed=0)
        assert propose(again, 1) == [proposal]


def test_the_direction_of_the_study_is_followed() -> None:
    study = optuna.create_study(direction="minimize", sampler=ForestSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_float("z", 0, 1), n_trials=60)
    late = [trial.value for trial in study.trials[30:]]
    assert np.mean([value for value in late if value is not None]) < 0.7  # by chance 1


def test_trials_with_a_violated_constraint_or_without_a_finite_value_rank_last() -> None:
    study = optuna.create_study(direction="maximize", sampler=ForestSampler(seed=0))
    for _ in range(60):
        trial = study.ask()
        kind = trial.suggest_categorical("kind", ["constraint", "nan", "fine"])
        trial.suggest_float("x", 0, 1)
        if kind == "fine":
            study.tell(trial, 0.0)
            continue
        trial.report(float("nan") if kind == "nan" else 0.9, 100)
        if kind == "constraint":
            trial.set_constraint("memory", 1.0)
        study.tell(trial, state=TrialState.PRUNED)
    late = [trial.params["kind"] for trial in study.trials[20:]]
    assert late.count("fine") > 0.6 * len(late)  # by chance a third


def test_which_parameters_are_suggested_is_learned() -> None:
    """plateau_patience is suggested beside one schedule only, and a grandchild beside high values of it."""
    rng = np.random.default_rng(0)
    space = {**DISTRIBUTIONS, "grandchild": optuna.distributions.FloatDistribution(0, 1)}

    def suggested(values: dict[str, Any]) -> dict[str, Any]:
        if values["schedule"] != "plateau":
            values.pop("plateau_patience", None)
        if values.get("plateau_patience", 0) < 6:
            values.pop("grandchild")
        return values

    drawn = [{name: draw(distribution, rng) for name, distribution in space.items()} for _ in range(120)]
    past = [suggested(dict(values)) for values in drawn[:100]]
    learned = active_parameters(space, past, drawn[100:])
    assert learned == [suggested(dict(values)) for values in drawn[100:]]
    assert {len(values) for values in learned} == {4, 5, 6}


def test_conditions_need_the_space() -> None:
    with pytest.raises(ValueError, match="`is_active` needs a `search_space`"):
        ForestSampler(is_active=is_active)


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
    trials = [
        EndedTrial(at, {}, features, (1.0, rank)) for at, (features, rank) in enumerate(zip(known, ranks, strict=True))
    ]
    positions = [sorted(ranks).index(rank) / len(ranks) for rank in ranks]
    reference = ExtraTreesRegressor(TREES, max_features=0.8, random_state=7).fit(known, positions)
    assert np.array_equal(fit_forest(trials, seed=7).predict(asked), reference.predict(asked))


def test_the_forest_learns_from_a_sample_of_very_many_trials() -> None:
    rng = np.random.default_rng(0)
    sampled = [SPACE.sample(rng) for _ in range(2 * MAX_TRIALS)]
    past = [(values, EPOCHS, end(values)) for values in sampled]
    proposed = propose(study_of(past), 10)
    assert proposed[0] == propose(study_of(past), 1)[0], "the same seed draws the same sample"
    assert np.median([end(values) for values in proposed]) > np.quantile([value for _, _, value in past], 0.7)


def test_with_many_trials_a_forest_is_fitted_when_a_32nd_part_more_has_ended() -> None:
    assert refit_points(OWN_FOREST_TRIALS + 1) == (100, 100)
    assert refit_points(102) == (100, 100)
    assert refit_points(103) == (100, 103)
    assert refit_points(106) == (103, 106)
    before, latest = refit_points(10_000)
    assert 9_300 < before < latest <= 10_000
    points = {point for ended in range(101, 10_001) for point in refit_points(ended)}
    assert len(points) < 160, "so many forests for ten thousand trials"


def test_a_study_that_is_loaded_again_uses_the_same_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials end in another order than that of their numbers, and a forest may take its time."""
    fitted: list[tuple[int, ...]] = []
    fit = forest.fit_forest

    def watched(trials: Sequence[EndedTrial], seed: int) -> forest.Forest:
        fitted.append(tuple(trial.number for trial in trials))
        return fit(trials, seed)

    monkeypatch.setattr(forest, "fit_forest", watched)
    rng = np.random.default_rng(0)
    study = optuna.create_study(direction="maximize", sampler=ForestSampler(DISTRIBUTIONS, is_active, seed=0))
    running = [study.ask(DISTRIBUTIONS) for _ in range(16)]
    again = ForestSampler(DISTRIBUTIONS, is_active, seed=0)
    for ended in range(1, 140):
        study.tell(running.pop(int(rng.integers(len(running)))), rng.random())
        number = len(study.trials)
        proposal = study.sampler.sample_relative(study, optuna.trial.FrozenTrial(**asked(number)), DISTRIBUTIONS)
        if ended in (9, 50, 100, 101, 103, 120, 139):
            loaded = again.sample_relative(study, optuna.trial.FrozenTrial(**asked(number)), DISTRIBUTIONS)
            fresh = ForestSampler(DISTRIBUTIONS, is_active, seed=0)
            assert (
                proposal
                == loaded
                == fresh.sample_relative(study, optuna.trial.FrozenTrial(**asked(number)), DISTRIBUTIONS)
            )
        running.append(study.ask(DISTRIBUTIONS))
    assert max(map(len, fitted)) < 139


def asked(number: int) -> dict[str, Any]:
    """Return the fields of a trial that has just begun."""
    trial = optuna.trial.create_trial(state=TrialState.RUNNING)
    return {
        "number": number, "trial_id": number, "state": trial.state, "value": None, "values": None,
        "datetime_start": trial.datetime_start, "datetime_complete": None, "params": {}, "distributions": {},
        "user_attrs": {}, "system_attrs": {}, "intermediate_values": {},
    }  # fmt: skip


def test_a_resumed_search_proposes_what_it_would_have_proposed(tmp_path: Path) -> None:
    """With more trials than have a forest each, and ends in another order than the numbers."""
    search = SearchDir.create(tmp_path / "s", search_record({"name": "s"}))
    settings = RunSettings(epochs=2, trials=200)
    study, rng = Study(search, SPACE, settings), np.random.default_rng(0)
    running: list[int] = []
    for number in range(1, 131):
        run = RunDir.create(search.trial(number).path, trial_record(search.record(), number, study.ask(number)))
        running.append(number)
        if len(running) < 8:
            continue
        ending = running.pop(int(rng.integers(len(running))))
        run, value = search.trial(ending), float(rng.random())
        run.append(epoch_row({"epoch": 1, "val_dice_patients_best": value}))
        study.report(ending, 1, value)
        run.set_status("stopped")
        study.tell(ending, "stopped", value)
    ahead = [Study(search, SPACE, settings).ask(number) for number in (131,)]
    assert [study.ask(131)] == ahead
