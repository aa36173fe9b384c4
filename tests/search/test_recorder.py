"""The recorder begins trials."""

from __future__ import annotations

import math
from pathlib import Path

from records import search_record

from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings
from wmlsearch.runs.checks import validate_folder
from wmlsearch.runs.folders import SearchDir
from wmlsearch.search.budget import Budget
from wmlsearch.search.checkpoints import CheckpointRetention
from wmlsearch.search.optuna_study import Study
from wmlsearch.search.recorder import Recorder
from wmlsearch.search.scheduler import Scheduler
from wmlsearch.workflows.placement import LOCAL


def recorder_of(search: SearchDir, settings: RunSettings) -> Recorder:
    return Recorder(
        search,
        settings,
        Study(search, search.record().space.space(), settings),
        Budget(search, settings, Slots(1, 1, 1, 0.0)),
        LOCAL.checkpoint_location,
        CheckpointRetention(LOCAL.checkpoint_location, lambda _: 0, math.inf, settings.objective_names),
        lambda _: None,
        Scheduler(settings),
    )


def test_a_space_of_an_older_version_that_contradicts_itself_ends_the_trials_with_a_reason(tmp_path: Path) -> None:
    """With `plateau` its `min_learning_rate` is the baseline's, which is above some of its learning rates."""
    values = {
        "schedule": {"choices": ["plateau", "cosine"]},
        "learning_rate": {"low": 1e-6, "high": 1e-3, "log": True},
        "min_learning_rate": {"low": 1e-8, "high": 1e-7, "log": True, "when": {"schedule": "cosine"}},
    }
    settings = RunSettings(trials=20, baseline=False, forecast=False, portfolio=0)
    about = {"settings": settings.model_dump(), "space": {"source": "s", "values": values}}
    search = SearchDir.create(tmp_path / "s", search_record(about))
    validate_folder(search)
    recorder = recorder_of(search, settings)
    budget = recorder.budget
    begun = 0
    while recorder.begin(begun) is not None:
        begun += 1
    assert 1 <= begun < 20
    assert budget.reason.startswith(f"trial {begun} cannot begin: s: not a valid configuration; min_learning_rate <=")
    assert budget.stop_all()
    assert not budget.failed
    assert not search.trial(begun).exists()


def test_a_space_without_another_configuration_begins_no_more_and_lets_the_others_run(tmp_path: Path) -> None:
    values = {"depth": {"choices": [2, 3]}}
    settings = RunSettings(trials=20, baseline=False, forecast=False, portfolio=0)
    about = {"settings": settings.model_dump(), "space": {"source": "s", "values": values}}
    search = SearchDir.create(tmp_path / "s", search_record(about))
    recorder = recorder_of(search, settings)
    assert all(recorder.begin(number) is not None for number in range(3)), "the baseline and both"
    assert recorder.begin(3) is None
    assert recorder.exhausted == "all 2 configurations of the space have been tried"
    assert not recorder.budget.stop_all()
    assert not search.trial(3).exists()
