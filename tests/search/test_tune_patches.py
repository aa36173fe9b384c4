"""As many processes as trials run at once, however short the trials are."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from benchmarks.ready import Ready
from benchmarks.simulated import new_search, row, space
from wmlsearch.cluster.resources import Slots, available_cpus
from wmlsearch.config import RunSettings
from wmlsearch.search import tune_loop
from wmlsearch.workflows.placement import LOCAL

pytestmark = pytest.mark.usefixtures("one_ray")
TRIALS = 12


class Counted(Ready):
    """Takes much longer to start than to train; each process leaves a file."""

    def setup(self, config: dict[str, Any], job: dict[str, Any] | None = None) -> None:
        super().setup(config, job)
        started = Path(self.job["data"]["started"])
        (started / str(os.getpid())).touch()
        time.sleep(0.5 * len(list(started.iterdir())))  # not all at the same time

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        with open(Path(self.job["data"]["started"]) / str(os.getpid()), "a") as file:
            file.write(f"{new_config['number']}\n")
        return super().reset_config(new_config)


class Mortal(Ready):
    """Dies, once in a search, while it is given to its third trial."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        died = Path(self.job["data"]["died"])
        if new_config["number"] == 2 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reset_config(new_config)


def test_a_process_is_kept_as_long_as_trials_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = min(2, available_cpus())
    settings = RunSettings(trials=TRIALS, epochs=2, scheduler="none", baseline=False, forecast=False)
    search, started = new_search(tmp_path / "s", settings), tmp_path / "started"
    started.mkdir()
    monkeypatch.setattr(tune_loop, "TrialWorker", Counted)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes don't know this module
    data = {"row": row(0, 1, settings.epochs), "started": str(started)}
    slots = Slots(at_once, 1, 1, 0.0)
    tune_loop.run_trials(search, space(), settings, data, slots, LOCAL.checkpoint_location, lambda _: None)
    assert [run.state for run in search.trials()] == ["completed"] * TRIALS
    had = [file.read_text().split() for file in started.iterdir()]
    assert len(had) == at_once, "a process was thrown away, or never came to a trial"
    assert sorted(number for numbers in had for number in numbers) == sorted(str(n) for n in range(TRIALS))
    assert all(had)


def test_a_trial_whose_process_dies_as_it_is_given_to_it_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RunSettings(trials=4, epochs=2, scheduler="none", baseline=False, forecast=False)
    search, died = new_search(tmp_path / "s", settings), tmp_path / "died"
    monkeypatch.setattr(tune_loop, "TrialWorker", Mortal)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes don't know this module
    data = {"row": row(0, 1, settings.epochs), "died": str(died)}
    tune_loop.run_trials(
        search, space(), settings, data, Slots(1, 1, 1, 0.0), LOCAL.checkpoint_location, lambda _: None
    )
    assert died.exists()
    assert [run.state for run in search.trials()] == ["completed"] * 4, [run.status() for run in search.trials()]
