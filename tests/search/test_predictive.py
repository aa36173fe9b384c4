"""Stopping by predicted results: the outcome model, its recorded trainings, and the scheduler."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import epoch_row, run_record, search_record

from benchmarks.search_quality.experience import RECORDED
from benchmarks.search_quality.experience import recorded_tasks as tasks_of_the_benchmarks
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.search import predictive
from wmlsearch.search.experience import recorded_tasks
from wmlsearch.search.outcome_model import (
    ENOUGH_CURVES,
    ENOUGH_OWN_CURVES,
    OutcomeModel,
    TrainedCurve,
    chance_among_best,
    curve_ranks,
)
from wmlsearch.search.predictive import PredictiveHalving
from wmlsearch.search.rungs import levels_of
from wmlsearch.search.scheduler import Scheduler
from wmlsearch.search.tune_loop import replay_reports
from wmlsearch.space import SearchSpace

SPACE = SearchSpace.from_mapping(
    {
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "schedule": {"choices": ["plateau", "onecycle"]},
        "plateau_patience": {"low": 2, "high": 10, "when": {"schedule": "plateau"}},
    }
)
EPOCHS = 18


def curve(values: dict[str, object], scale: float = 1.0, epochs: int = EPOCHS) -> list[float]:
    """Return a curve on which onecycle starts late and ends far ahead."""
    late = values["schedule"] == "onecycle"
    share = np.arange(1, epochs + 1) / epochs
    peak = 0.9 if late else 0.5 + 0.02 * float(np.log10(float(str(values["learning_rate"]))))
    return [scale * float(peak * (value**0.9 if late else value**0.3)) for value in share]


def task(seed: int, count: int, scale: float = 1.0, epochs: int = EPOCHS) -> list[TrainedCurve]:
    rng = np.random.default_rng(seed)
    drawn = [SPACE.sample(rng) for _ in range(count)]
    return [TrainedCurve(values, curve(dict(values), scale, epochs)) for values in drawn]


def test_a_task_of_other_values_and_epochs_teaches_who_ends_first() -> None:
    model = OutcomeModel(SPACE, [task(0, 30, scale=0.3, epochs=27), task(1, 30, scale=0.01, epochs=9)], EPOCHS)
    assert model.curves == 60
    trials = task(2, 12)
    expected = model.predict([each.values for each in trials], [each.curve[:2] for each in trials]).mean(axis=0)
    late = np.array([each.values["schedule"] == "onecycle" for each in trials])
    assert min(each.curve[1] for each in trials) == min(
        each.curve[1] for each, is_late in zip(trials, late, strict=True) if is_late
    )
    assert expected[late].min() > expected[~late].max()
    again = OutcomeModel(SPACE, [task(0, 30, scale=0.3, epochs=27), task(1, 30, scale=0.01, epochs=9)], EPOCHS)
    assert np.array_equal(
        again.predict([each.values for each in trials], [each.curve[:2] for each in trials]).mean(axis=0), expected
    )


def test_ranks_of_a_curve_are_those_at_the_epoch_and_half_way() -> None:
    best = np.array([[0.1, 0.5, 0.5], [0.2, 0.2, 0.6]])
    assert curve_ranks(best, 3).tolist() == [[0.25, 0.75], [0.75, 0.25]]
    assert curve_ranks(best, 1).tolist() == [[0.25, 0.25], [0.75, 0.75]]


def test_the_chance_is_the_share_of_trees() -> None:
    expected = np.array([[0.9, 0.1, 0.5], [0.9, 0.95, 0.5]])
    assert [chance_among_best(expected, trial, best=1) for trial in range(3)] == [0.5, 0.5, 0]
    assert [chance_among_best(expected, trial, best=2) for trial in range(3)] == [1, 0.5, 0.5]
    assert chance_among_best(expected, 2) == 1, "three trials are the best three"


def check_chance(reason: str) -> None:
    """Check that a reason gives a chance below 100 %: of a few trials each is among the best three."""
    chance = re.fullmatch(r"(\d+) % chance of (being the best|the best [23]), predicted at epoch 2", reason)
    assert chance, reason
    assert int(chance[1]) < 100


def rule(trials: list[TrainedCurve], tasks: list[list[TrainedCurve]]) -> PredictiveHalving:
    settings = RunSettings(epochs=EPOCHS, scheduler="predictive")
    return PredictiveHalving(settings, SPACE, lambda number: trials[number].values, tasks)


def run(rule: PredictiveHalving | Scheduler, trials: list[TrainedCurve]) -> list[int]:
    """Report trials one after the other. Return how many epochs each trains."""
    lasted = []
    for number, trial in enumerate(trials):
        for epoch, value in enumerate(trial.curve, start=1):
            if rule.report(number, epoch, value, ended=epoch == EPOCHS):
                break
        lasted.append(epoch)
    return lasted


def test_late_starters_go_on_where_experience_says_so() -> None:
    trials = task(3, 24)
    late = np.array([each.values["schedule"] == "onecycle" for each in trials])
    taught = rule(trials, [task(0, ENOUGH_CURVES, scale=0.3)])
    lasted = np.array(run(taught, trials))
    assert set(lasted) <= {2, 6, EPOCHS}
    assert max(lasted[late]) == EPOCHS
    assert max(lasted[~late][2:]) < EPOCHS, "once two late starters have shown themselves"
    for number in np.flatnonzero(lasted < EPOCHS):
        epoch = lasted[number]
        reason = taught.stop_reason(number)
        if epoch == 2:
            check_chance(reason)
        else:
            assert reason == f"behind the best of its rung at epoch {epoch}"
    by_values = np.array(run(Scheduler(RunSettings(epochs=EPOCHS, grace_epochs=2)), trials))
    assert (by_values[late] == EPOCHS).sum() < (lasted[late] == EPOCHS).sum(), "asha with these rungs stops more"


def test_a_trial_is_compared_with_some_of_very_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictive, "MOST_COMPARED", 4)
    compared: list[int] = []
    predict = OutcomeModel.predict

    def counted(model: OutcomeModel, configurations: Sequence[Mapping[str, Any]], curves: Any, own: Any) -> np.ndarray:
        compared.append(len(configurations) - 1)
        return predict(model, configurations, curves, own)

    monkeypatch.setattr(OutcomeModel, "predict", counted)
    run(rule(trials := task(3, 14), [task(0, ENOUGH_CURVES)]), trials)
    assert compared == [1, 2, 3, 4, 3, 3, 4, 4, 3, 4, 4, 4, 4]


def test_with_too_little_experience_values_are_compared_later() -> None:
    trials = [TrainedCurve({"learning_rate": 1e-3, "schedule": "onecycle"}, [value] * EPOCHS) for value in (0.5, 0.4)]
    for tasks in ([], [task(0, ENOUGH_CURVES - 1)]):
        blind = rule(trials, tasks)
        assert run(blind, trials) == [EPOCHS, 4]
        assert blind.stop_reason(1) == "behind the best of its rung at epoch 4"


def test_the_forecast_knows_the_rungs() -> None:
    def rungs(**values: object) -> list[int]:
        return [level.epoch for level in levels_of(RunSettings.from_mapping({"epochs": 18, **values}))]

    assert rungs(scheduler="predictive") == [2, 6, 18]
    assert rungs(scheduler="predictive", experience=False) == [4, 12, 18]
    assert rungs(scheduler="asha") == [6, 18]
    assert rungs(scheduler="predictive", experience=False, grace_epochs=5) == [5, 15, 18]


def test_a_stopped_trial_says_its_chance_and_a_resumed_search_says_the_same(tmp_path: Path) -> None:
    settings = RunSettings(epochs=EPOCHS, scheduler="predictive")
    search = SearchDir.create(tmp_path / "s", search_record({"name": "s"}))
    space = SearchSpace.read("quick")
    rng = np.random.default_rng(0)
    for number in range(6):
        about = {"name": f"trial-{number:04d}", "config": space.config(space.sample(rng)).model_dump()}
        trial = RunDir.create(search.trial(number).path, run_record(about))
        for epoch in (1, 2):
            value = 0.5 - number / 20
            trial.append(epoch_row({"epoch": epoch, "time": number + epoch / 10, "val_dice_patients_best": value}))

    def replayed() -> dict[str, str]:
        scheduler = Scheduler(settings, space, lambda number: search.trial(number).record().config)
        return {run.name: run.status().reason for run in replay_reports(search, settings, scheduler)}

    reasons = replayed()
    assert reasons
    for reason in reasons.values():
        check_chance(reason)
    for name in reasons:
        search.trial(int(name[-4:])).set_status("running")
    assert replayed() == reasons


def test_a_baseline_outside_the_space_is_compared_with() -> None:
    """Its `lesion_share` is null, which a range cannot hold."""
    space = SearchSpace.from_mapping({"lesion_share": {"low": 0.1, "high": 0.6}, "depth": {"choices": [3, 4]}})
    configurations = [TrialConfig(), TrialConfig(lesion_share=0.3), TrialConfig(lesion_share=0.6, depth=3)]
    assert space.mismatches(configurations[0])
    scheduler = Scheduler(
        RunSettings(epochs=EPOCHS, scheduler="predictive"), space, lambda number: configurations[number]
    )
    stopped = [scheduler.report(number, epoch, 0.1 * number) for epoch in (1, 2) for number in (2, 1, 0)]
    assert stopped[:4] == [False] * 4, "no rung at epoch 1, and none was at epoch 2 before"
    assert stopped[-1], "the worst of three"
    check_chance(scheduler.stop_reason(0, 2)[0])


def test_the_scheduler_needs_the_space() -> None:
    with pytest.raises(ValueError, match="needs the space and the configurations"):
        Scheduler(RunSettings(scheduler="predictive"))


def test_the_shipped_trainings_are_those_of_the_benchmarks() -> None:
    shipped = {file.name: file.read_text(encoding="utf-8") for file in RECORDED.glob("*.jsonl")}
    assert shipped == {f"{task.name}.jsonl": task.as_file() for task in tasks_of_the_benchmarks()}


def test_the_shipped_trainings_can_be_read() -> None:
    tasks = recorded_tasks()
    assert [(task.name, task.drawn) for task in tasks] == [
        ("few", True), ("hard-101", False), ("hard-102", False), ("phantom", True),
    ]  # fmt: skip
    assert sum(len(task.trained) for task in tasks if task.drawn) >= ENOUGH_CURVES
    for task in tasks:
        assert len({len(trained.curve) for trained in task.trained}) == 1
        assert all(trained.curve == sorted(trained.curve) for trained in task.trained)
        assert {trained.score is None for trained in task.trained} == {task.drawn}, "no patients of theirs were sealed"


def own_search(count: int) -> list[TrainedCurve]:
    """Return trials that reach their best at once, by a learning rate that no early value shows."""
    rng = np.random.default_rng(5)
    trials = []
    for _ in range(count):
        values = {"learning_rate": 10 ** rng.uniform(-4, -2), "schedule": "onecycle"}
        start, end = 0.2 + 0.1 * rng.random(), 0.3 + 0.25 * np.log10(values["learning_rate"] / 1e-4)
        trials.append(TrainedCurve(values, [start] * 3 + [float(end)] * (EPOCHS - 3)))
    return trials


def test_full_curves_of_the_search_teach() -> None:
    """Without experience, trials that begin after enough full curves have the earlier rungs, and keep the best."""
    trials = own_search(80)
    blind = rule(trials, [])
    lasted = np.array(run(blind, trials))
    rungs = [list(blind.rungs[number]) for number in range(len(trials))]
    begun = rungs.index([2, 6])
    assert (lasted[:begun] == EPOCHS).sum() == ENOUGH_OWN_CURVES
    assert rungs == [[4, 12]] * begun + [[2, 6]] * (len(trials) - begun)
    later = np.arange(len(trials)) >= begun
    stopped = later & (lasted == 2)
    assert stopped.sum() > 0.4 * later.sum()
    final = np.array([trial.curve[-1] for trial in trials])
    assert lasted[later & (final > np.quantile(final, 0.9))].min() > 2, "none of the best is stopped at once"
    check_chance(blind.stop_reason(int(np.flatnonzero(stopped)[0])))
    assert np.array_equal(run(rule(trials, []), trials), lasted)


def test_full_curves_of_the_search_correct_misleading_experience() -> None:
    trials = own_search(60)
    upside_down = [
        TrainedCurve(each.values, [0.5] * 3 + [1 - each.curve[-1]] * (EPOCHS - 3)) for each in own_search(ENOUGH_CURVES)
    ]
    final = np.array([trial.curve[-1] for trial in trials])
    taught = rule(trials, [upside_down])
    lasted = np.array(run(taught, trials))
    assert all(list(taught.rungs[number]) == [2, 6] for number in range(len(trials)))
    best = final > np.quantile(final, 0.8)
    early, late = np.arange(len(trials)) < 20, np.arange(len(trials)) >= 40
    assert (lasted[best & late] > 2).mean() > (lasted[best & early] > 2).mean()


def test_the_share_of_trees_that_the_search_teaches_grows() -> None:
    trials = own_search(12)
    values, final = [each.values for each in trials], [each.curve[-1] for each in trials]
    curves = [each.curve[:2] for each in own_search(20)]
    taught = OutcomeModel(SPACE, [task(0, ENOUGH_CURVES)], EPOCHS)
    untaught = OutcomeModel(SPACE, [task(0, ENOUGH_CURVES - 1)], EPOCHS)
    for count, trees in ((3, 50), (12, 80)):
        assert len(taught.fit_own(values[:count], final[:count], curves)) == trees
        assert len(untaught.fit_own(values[:count], final[:count], curves)) == 100
    own = taught.fit_own(values, final, curves)
    mixed = taught.predict(values, [each.curve[:2] for each in trials], own)
    plain = taught.predict(values, [each.curve[:2] for each in trials])
    assert mixed.shape == plain.shape == (100, 12)
    assert np.array_equal(mixed[80:], plain[80:])


def test_the_trees_are_fitted_less_often_the_more_curves_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictive, "MOST_OWN_CURVES", 5)
    fitted: list[int] = []
    fit_own = OutcomeModel.fit_own

    def counted(model: OutcomeModel, configurations: Any, final: Any, curves: Any) -> Any:
        fitted.append(len(configurations))
        return fit_own(model, configurations, final, curves)

    monkeypatch.setattr(OutcomeModel, "fit_own", counted)
    trials = own_search(40)
    taught = rule(trials, [task(0, ENOUGH_CURVES)])
    for number, each in enumerate(trials):  # each reaches the rung when those before have trained to their end
        for epoch, value in enumerate(each.curve, start=1):
            taught.report(number, epoch, value, ended=epoch == EPOCHS)
    assert max(fitted) == 5
    assert len(fitted) < 30


def test_a_resumed_search_decides_as_one_that_was_not_interrupted() -> None:
    """Trials that run side by side: reports are replayed in their order."""
    trials = own_search(60)
    whole, decisions = rule(trials, []), []
    reports = sorted(
        (number // 4 * EPOCHS + epoch, number, epoch, value)
        for number, each in enumerate(trials)
        for epoch, value in enumerate(each.curve, start=1)
    )
    ended: set[int] = set()
    heard = []
    for _, number, epoch, value in reports:
        if number not in ended:
            stop = whole.report(number, epoch, value, ended=epoch == EPOCHS)
            heard.append((number, epoch, value))
            decisions.append(stop)
            if stop:
                ended.add(number)
    again = rule(trials, [])
    assert [again.report(number, epoch, value, ended=epoch == EPOCHS) for number, epoch, value in heard] == decisions
    assert [again.stop_reason(number) for number in ended] == [whole.stop_reason(number) for number in ended]
    assert any(epoch == 2 for (_, epoch, _), stop in zip(heard, decisions, strict=True) if stop)
