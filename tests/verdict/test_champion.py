"""Which configurations are candidates, and which is the champion: from run folders alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from records import epoch_row, run_record, search_record

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.runs.names import PAPER
from wmlsearch.runs.schema import SelectionRecord
from wmlsearch.verdict.champion import (
    Candidate,
    baseline_config,
    judgement_pairs,
    read_candidates,
    select_candidates,
    select_champion,
    selection_seeds,
)

SPACE = {"depth": {"choices": [2, 3, 4]}, "batch_size": {"choices": [4, 5, 8]}}


def search_of(path: Path, **settings: Any) -> SearchDir:
    values = RunSettings(trials=9, **settings).model_dump()
    return SearchDir.create(
        path, search_record({"name": "s", "settings": values, "space": {"source": "", "values": SPACE}})
    )


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    """A search with two selection runs of each configuration, seeds 1 and 2, and judgement runs from seed 3 on."""
    return search_of(tmp_path / "s")


def add(run: RunDir, config: dict[str, Any], values: Sequence[float], state: str = "completed", **more: Any) -> RunDir:
    about = {"name": f"trial-{run.name}", "kind": "trial", "settings": RunSettings().model_dump()}
    RunDir.create(run.path, run_record({**about, "config": TrialConfig(**config).model_dump(), **more}))
    for epoch, value in enumerate(values, start=1):
        row = {"epoch": epoch, "val_dice_patients_best": value, "val_dice_best": value / 2, "val_dice": value / 4}
        run.append(epoch_row(row))
    run.set_status(state)
    return run


def candidates(search: SearchDir, count: int = 3) -> list[str]:
    return [run.name for run in select_candidates(leaderboard(search), count, baseline_config(search))]


def test_the_best_different_ones_are_candidates(search: SearchDir) -> None:
    add(search.trial(0), {}, [0.9])  # the baseline's own configuration, the best of all
    add(search.trial(1), {"depth": 2}, [0.5])
    add(search.trial(2), {"depth": 3}, [0.8, 0.7])
    add(search.trial(3), {"depth": 3}, [0.75])  # the same again
    add(search.trial(4), {"batch_size": 8}, [0.85], "diverged")
    add(search.trial(5), {"batch_size": 4}, [], "failed")
    add(search.trial(6), {"batch_size": 4}, [0.6], "early_stopped")
    assert candidates(search) == ["0002", "0006", "0001"]
    assert candidates(search, 1) == ["0002"]
    assert candidates(search, 0) == []


def test_trials_that_differ_only_where_nothing_has_an_effect_are_the_same(search: SearchDir) -> None:
    add(search.trial(0), {}, [0.5])
    add(search.trial(1), {"schedule": "cosine", "plateau_patience": 3}, [0.9])
    add(search.trial(2), {"schedule": "cosine", "plateau_patience": 7}, [0.9])
    add(search.trial(3), {"loss": "bce", "dice_over": "batch"}, [0.8])  # trains as the baseline does
    add(search.trial(4), {"loss": "bce", "plateau_patience": 7}, [0.7])
    assert candidates(search) == ["0001", "0004"]


def test_in_a_search_of_an_older_version_trials_differ_by_any_hyperparameter(search: SearchDir) -> None:
    add(search.trial(0), {}, [0.5])
    add(search.trial(1), {"schedule": "cosine", "plateau_patience": 3}, [0.9])
    add(search.trial(2), {"schedule": "cosine", "plateau_patience": 7}, [0.9])
    add(search.trial(3), {"schedule": "cosine", "plateau_patience": 7}, [0.8])
    add(search.trial(4), {}, [0.7])
    board, baseline = leaderboard(search), baseline_config(search)
    trials = select_candidates(board, 3, baseline, all_hyperparameters=True)
    assert [run.name for run in trials] == ["0001", "0002"]


@pytest.mark.parametrize("state", ["stopped", "interrupted"])
def test_a_trial_that_was_ended_early_far_behind_is_no_candidate(state: str, search: SearchDir) -> None:
    """The best trial has 0.6, so 0.54 is the lowest value of a candidate that was ended early."""
    add(search.trial(0), {}, [0.6])
    add(search.trial(1), {"depth": 2}, [0.2], "completed")
    add(search.trial(2), {"depth": 3}, [0.53], state)
    add(search.trial(3), {"batch_size": 4}, [0.55], state)
    add(search.trial(4), {"batch_size": 8}, [0.006], state)
    add(search.trial(5), {"depth": 3, "batch_size": 8}, [0.99], "failed")
    assert candidates(search) == ["0003", "0001"]


def test_the_baseline_is_the_first_trial_of_the_search(search: SearchDir) -> None:
    """Of an older version it can differ from today's defaults."""
    assert baseline_config(search) == TrialConfig()
    add(search.trial(0), {"depth": 3}, [0.5])
    add(search.trial(1), {"depth": 3}, [0.6])
    add(search.trial(2), {}, [0.4])
    assert baseline_config(search) == TrialConfig(depth=3)
    assert candidates(search) == ["0002"]


def test_a_found_schedule_makes_another_configuration(search: SearchDir) -> None:
    """Population based training: the paper's values with another schedule are not the paper's configuration."""
    add(search.trial(0), {}, [0.3, 0.4])
    factors = {"rate_factors": {"3": 1.2}, "parent": 0, "parent_epoch": 2}
    add(search.trial(1), {}, [0.3, 0.4, 0.5], **factors)
    add(search.trial(2), {}, [0.3, 0.4, 0.35], **{**factors, "rate_factors": {"3": 0.8}})  # its best is its parent's
    assert candidates(search) == ["0001"]


def selection(search: SearchDir, model: str, values: Mapping[int, float | None], purpose: str = "selection") -> None:
    """Add a selection run for each seed; one without a value has failed."""
    for seed, value in values.items():
        settings = RunSettings(seed=seed).model_dump()
        about = {"model": model, "purpose": purpose, "settings": settings, "fold": seed - 1 if purpose else 0}
        rows = [] if value is None else [value, value / 2]
        add(search.final(model, seed), {}, rows, "completed" if rows else "failed", **about)


def judgement(search: SearchDir, model: str, values: Mapping[int, float | None]) -> None:
    """Add a judgement run for each number; one without a value has failed."""
    for number, value in values.items():
        about = {"model": model, "purpose": "judgement", "settings": RunSettings(seed=3 + number).model_dump()}
        rows = [] if value is None else [value]
        run = search.judgement_run(model, number)
        add(run, {}, rows, "completed" if rows else "failed", fold=number, **about)


def selected(search: SearchDir) -> SelectionRecord:
    return select_champion(read_candidates(search))


def test_the_champion_has_the_highest_mean(search: SearchDir) -> None:
    selection(search, PAPER, {1: 0.6, 2: 0.5})
    selection(search, "trial-0001", {1: 0.9, 2: 0.3})
    selection(search, "trial-0002", {1: 0.55, 2: 0.55})
    selection(search, "trial-0003", {1: 0.99, 2: None})  # failed
    selection(search, "trial-0004", {1: 0.99})  # among the best when the first seed was trained; more trials came
    found = read_candidates(search)
    assert [one.name for one in found] == [PAPER, "trial-0001", "trial-0002", "trial-0003", "trial-0004"]
    assert [one.complete for one in found] == [True, True, True, False, False]
    assert found[4].missing_seeds == (2,)
    assert found[1].mean == pytest.approx(0.6)
    assert found[1].standard_error == pytest.approx(0.3)  # standard deviation 0.6 / sqrt(2), divided by sqrt(2)
    assert found[3].standard_error is None
    chosen = selected(search)
    assert (chosen.champion, chosen.seeds) == ("trial-0001", [1, 2])
    assert chosen.means == pytest.approx({"paper": 0.55, "trial-0001": 0.6, "trial-0002": 0.55})
    assert chosen.sentence == (
        "trial-0001 is the champion: its mean Dice per patient on validation patients is 0.600 over 2 selection runs, "
        "the baseline's 0.550. 2 candidates without all selection runs are left out."
    )


def test_the_champion_is_the_baseline_where_nothing_is_better(search: SearchDir) -> None:
    selection(search, PAPER, {1: 0.5, 2: 0.75})
    selection(search, "trial-0001", {1: 0.75, 2: 0.5})  # equal
    selection(search, "trial-0002", {1: 0.6, 2: 0.6})
    chosen = selected(search)
    assert chosen.champion == PAPER
    assert chosen.sentence == (
        "Nothing better than the baseline configuration was found, so it is the champion and the sealed test stays "
        "closed: its mean Dice per patient on validation patients is 0.625 over 2 selection runs, that of the best "
        "candidate (trial-0001) 0.625."
    )


def test_without_candidates_the_champion_is_the_baseline(search: SearchDir) -> None:
    assert selected(search).sentence == (
        "Nothing better than the baseline configuration was found, so it is the champion and the sealed test stays "
        "closed: no trial is a candidate."
    )
    selection(search, PAPER, {1: 0.5, 2: 0.75})
    selection(search, "trial-0001", {1: 0.9, 2: None})
    chosen = selected(search)
    assert (chosen.champion, chosen.means) == (PAPER, {PAPER: 0.625})
    assert chosen.sentence == (
        "Nothing better than the baseline configuration was found, so it is the champion and the sealed test stays "
        "closed: no candidate finished its selection runs. 1 candidate without all selection runs is left out."
    )


def test_configurations_are_compared_on_the_runs_that_the_baseline_has_finished(search: SearchDir) -> None:
    """The baseline failed on fold 0, where all are better than on fold 1."""
    selection(search, PAPER, {1: None, 2: 0.5})
    selection(search, "trial-0001", {1: 0.9, 2: 0.4})
    selection(search, "trial-0002", {1: 0.6, 2: 0.55})
    chosen = selected(search)
    assert (chosen.champion, chosen.seeds) == ("trial-0002", [2])
    assert chosen.means == {PAPER: 0.5, "trial-0001": 0.4, "trial-0002": 0.55}


def test_a_baseline_that_finished_nothing_does_not_win(search: SearchDir) -> None:
    selection(search, PAPER, {1: None, 2: None})
    selection(search, "trial-0001", {1: 0.3, 2: 0.5})
    assert selected(search).champion == "trial-0001"
    assert selected(search).sentence == (
        "trial-0001 is the champion: its mean Dice per patient on validation patients is 0.400 over 2 selection runs, "
        "and the baseline configuration finished none."
    )


def test_one_run_has_no_standard_error(tmp_path: Path) -> None:
    search = search_of(tmp_path / "s", confirm_seeds=1)
    selection(search, PAPER, {1: 0.4})
    selection(search, "trial-0001", {1: 0.5})
    (_, only) = read_candidates(search)
    assert (only.standard_error, only.mean) == (None, 0.5)
    assert "over 1 selection run, the baseline's" in selected(search).sentence


def test_no_final_run_has_the_seed_of_another_training() -> None:
    settings = RunSettings(seed=7, confirm_seeds=3, final_runs=4)
    assert settings.selection_seeds == [8, 9, 10]
    assert settings.judgement_seeds == [11, 12, 13, 14]
    # the baseline and 3 candidates with 3 runs each, then 4 runs of the baseline and of the champion
    assert (settings.selection_run_count, settings.judgement_run_count, settings.final_run_count) == (12, 8, 20)
    only_baseline = settings.model_copy(update={"confirm_top": 0})
    assert (only_baseline.selection_run_count, only_baseline.judgement_run_count) == (0, 4)
    # no more candidates than trials beside the first one, which has the baseline configuration
    two_trials, one_trial = (settings.model_copy(update={"trials": trials}) for trials in (2, 1))
    assert (two_trials.selection_run_count, two_trials.judgement_run_count) == (6, 8)
    assert (one_trial.selection_run_count, one_trial.judgement_run_count) == (0, 4)
    without = settings.model_copy(update={"baseline": False})
    assert without.final_run_count == 0


def test_final_runs_of_an_older_version_are_its_selection_runs(search: SearchDir) -> None:
    """Their seeds began with the trials' own, and their measure was the pooled Dice."""
    settings = RunSettings(confirm_seeds=3)
    assert selection_seeds(search, settings) == [1, 2, 3]
    selection(search, PAPER, {0: 0.4, 1: 0.5}, purpose="")
    assert selection_seeds(search, settings) == [0, 1, 2]
    new = add(search.final("trial-0001", 0), {}, [0.9], model="trial-0001", purpose="selection")
    (new.path / "metrics.jsonl").write_text('{"epoch": 1, "time": 0.0, "ended": null, "val_dice_best": 0.25}\n')
    (paper, trial) = read_candidates(search)
    assert (paper.metric, trial.metric) == ("val_dice_best", "val_dice_best")
    assert [run.value for run in (*paper.selection, *trial.selection)] == [0.2, 0.25, 0.25]


def test_runs_are_judged_in_pairs(search: SearchDir) -> None:
    judgement(search, PAPER, {0: 0.5, 1: 0.5, 2: None, 3: 0.5, 4: 0.5})
    judgement(search, "trial-0001", {0: 0.6, 1: None, 2: 0.6, 3: 0.6})
    selection(search, "trial-0001", {1: 0.9, 2: 0.9})
    (paper, champion) = read_candidates(search)
    assert [run.run.name for run in champion.judgement] == [f"trial-0001-run{number}" for number in range(4)]
    pairs = judgement_pairs(paper, champion)
    assert [[run.run.name for run in runs] for runs in pairs] == [
        ["paper-run0", "paper-run3"],
        ["trial-0001-run0", "trial-0001-run3"],
    ]
    assert [(run.seed, run.fold) for run in pairs[1]] == [(3, 0), (6, 3)]
    assert judgement_pairs(champion, Candidate("x", TrialConfig(), {}, (), (), ())) == ([], [])


def test_the_value_is_that_of_the_weights_that_are_kept(search: SearchDir) -> None:
    """With another objective than the candidates' metric, the epoch that it picks."""
    settings = RunSettings(objective="val_dice").model_dump()
    run = search.final("trial-0001", 1)
    about = {"name": "x", "kind": "selection run", "model": "trial-0001", "purpose": "selection", "settings": settings}
    RunDir.create(run.path, run_record({**about, "config": TrialConfig().model_dump()}))
    run.append(epoch_row({"epoch": 1, "val_dice_patients_best": 0.7, "val_dice": 0.1}))
    run.append(epoch_row({"epoch": 2, "val_dice_patients_best": 0.6, "val_dice": 0.5}))
    run.set_status("completed")
    (candidate,) = read_candidates(search)
    assert [found.value for found in candidate.selection] == [0.6]
    assert math.isclose(candidate.mean or 0.0, 0.6)
