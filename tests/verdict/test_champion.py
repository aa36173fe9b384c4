"""Which configurations are confirmed, and which is the champion: from run folders alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from records import epoch_row, run_record, search_record

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.runs.names import PAPER
from wmlsearch.verdict.champion import read_candidates, select_candidates, select_champion

SPACE = {"depth": {"choices": [2, 3, 4]}, "batch_size": {"choices": [4, 5, 8]}}


def search_of(path: Path, seeds: int) -> SearchDir:
    settings = RunSettings(trials=9, confirm_seeds=seeds).model_dump()
    return SearchDir.create(
        path, search_record({"name": "s", "settings": settings, "space": {"source": "", "values": SPACE}})
    )


@pytest.fixture
def search(tmp_path: Path) -> SearchDir:
    return search_of(tmp_path / "s", 3)


def add(run: RunDir, config: dict[str, Any], values: list[float], state: str = "completed", **more: Any) -> RunDir:
    about = {"name": f"trial-{run.name}", "kind": "trial", "settings": RunSettings().model_dump()}
    RunDir.create(run.path, run_record({**about, "config": TrialConfig(**config).model_dump(), **more}))
    for epoch, value in enumerate(values, start=1):
        run.append(epoch_row({"epoch": epoch, "val_dice_best": value, "val_dice": value}))
    run.set_status(state)
    return run


def test_the_best_different_ones_are_confirmed(search: SearchDir) -> None:
    add(search.trial(0), {}, [0.9])  # the paper's own configuration, the best of all
    add(search.trial(1), {"depth": 2}, [0.5], "interrupted")
    add(search.trial(2), {"depth": 3}, [0.8, 0.7])
    add(search.trial(3), {"depth": 3}, [0.75])  # the same again
    add(search.trial(4), {"batch_size": 8}, [0.85], "diverged")
    add(search.trial(5), {"batch_size": 4}, [], "failed")
    add(search.trial(6), {"batch_size": 4}, [0.6], "early_stopped")
    assert [run.name for run in select_candidates(leaderboard(search), 3)] == ["0002", "0006", "0001"]
    assert [run.name for run in select_candidates(leaderboard(search), 1)] == ["0002"]
    assert select_candidates(leaderboard(search), 0) == []


def test_a_found_schedule_makes_another_configuration(search: SearchDir) -> None:
    """Population based training: the paper's values with another schedule are not the paper's configuration."""
    add(search.trial(0), {}, [0.3, 0.4])
    factors = {"rate_factors": {"3": 1.2}, "parent": 0, "parent_epoch": 2}
    add(search.trial(1), {}, [0.3, 0.4, 0.5], **factors)
    add(search.trial(2), {}, [0.3, 0.4, 0.35], **{**factors, "rate_factors": {"3": 0.8}})  # its best is its parent's
    assert [run.name for run in select_candidates(leaderboard(search), 3)] == ["0001"]


def final(search: SearchDir, model: str, values: list[float | None], state: str = "completed") -> None:
    for seed, value in enumerate(values):
        rows = [] if value is None else [value, value / 2]
        add(search.final(model, seed), {}, rows, state if value is not None else "failed", model=model)


def test_the_champion_is_the_surest(search: SearchDir) -> None:
    final(search, "paper", [0.9, 0.9, 0.9])
    final(search, "trial-0001", [0.9, 0.5, 0.7])  # the highest mean, but it depends on the seed
    final(search, "trial-0002", [0.68, 0.66, 0.67])
    final(search, "trial-0003", [0.99, 0.99, None])  # a seed failed
    found = read_candidates(search)
    assert [it.name for it in found] == [PAPER, "trial-0002", "trial-0001", "trial-0003"]
    surest = select_champion(found)
    assert surest is not None
    assert surest.name == "trial-0002"
    assert surest.mean == pytest.approx(0.67)
    assert surest.standard_error == pytest.approx(0.01 / math.sqrt(3))
    assert surest.score == pytest.approx(0.67 - 0.01 / math.sqrt(3))
    assert surest.best_run.name == "trial-0002-seed0"
    assert found[3].score is None


def test_who_has_not_all_seeds_is_no_champion(search: SearchDir) -> None:
    """It was among the best when its first seed was trained; then the search was resumed with more trials."""
    final(search, "paper", [0.5, 0.5, 0.5])
    final(search, "trial-0003", [0.99])
    (paper, lucky) = read_candidates(search)
    assert (paper.missing_seeds, lucky.missing_seeds, lucky.score) == ((), (1, 2), None)
    assert select_champion([paper, lucky]) is None
    final(search, "trial-0021", [0.6, 0.61, 0.62])
    best = select_champion(read_candidates(search))
    assert best is not None
    assert best.name == "trial-0021"


def test_one_seed_has_no_error_and_the_paper_is_never_champion(tmp_path: Path) -> None:
    search = search_of(tmp_path / "s", 1)
    final(search, "paper", [0.9])
    assert select_champion(read_candidates(search)) is None
    final(search, "trial-0001", [0.4])
    (_, only) = read_candidates(search)
    assert (only.standard_error, only.score) == (None, 0.4)
    assert select_champion(read_candidates(search)) == only


def test_the_value_is_that_of_the_weights_that_are_kept(search: SearchDir) -> None:
    """With another objective than val_dice_best, the epoch that it picks."""
    settings = RunSettings(objective="val_dice").model_dump()
    run = search.final("trial-0001", 0)
    about = {"name": "x", "kind": "confirmation", "model": "trial-0001", "settings": settings}
    RunDir.create(run.path, run_record({**about, "config": TrialConfig().model_dump()}))
    run.append(epoch_row({"epoch": 1, "val_dice_best": 0.7, "val_dice": 0.1}))
    run.append(epoch_row({"epoch": 2, "val_dice_best": 0.6, "val_dice": 0.5}))
    run.set_status("completed")
    assert read_candidates(search)[0].values == (0.6,)
