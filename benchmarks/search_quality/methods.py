"""The search methods that are compared. Each uses the real sampler and scheduler of its library."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import SearchDir
from wmlsearch.search import portfolio, predictive
from wmlsearch.search.distributions import suggest_value
from wmlsearch.search.experience import recorded_tasks
from wmlsearch.search.optuna_study import Study
from wmlsearch.search.scheduler import Scheduler
from wmlsearch.space import SearchSpace


class Ours:
    """wmlsearch's study and scheduler. The first trial is the baseline, if it lies in the space, as in any search.

    Args:
        space: What is searched.
        epochs: Of a whole training.
        seed: Of the search.
        without: The names of shipped recordings that the search may not know, since they are of the same task.
        settings: Other settings of the search.
    """

    def __init__(
        self, space: SearchSpace, epochs: int, seed: int, without: Collection[str] = (), **settings: Any
    ) -> None:
        self.settings = RunSettings(**{"epochs": epochs, "seed": seed, **settings})
        self.space = space
        self.first = 1 if space.mismatches(TrialConfig()) else 0  # of the trials
        self.folder = tempfile.TemporaryDirectory()
        self.configurations: dict[int, TrialConfig] = {}
        with known_tasks(without):
            first_trials = portfolio.choose_portfolio(space, self.settings.first_trials, [TrialConfig()])
            self.study = Study(SearchDir(Path(self.folder.name)), space, self.settings, first_trials)
            self.scheduler = Scheduler(self.settings, space, self.configurations.__getitem__)
        self.best: dict[int, float] = {}

    def propose(self, number: int) -> Mapping[str, Any]:
        config = self.configurations[number + self.first] = self.study.ask(number + self.first)
        return self.space.active_values(config)

    def report(self, number: int, epoch: int, value: float) -> bool:
        self._report(number, epoch, value)
        return self.scheduler.report(number + self.first, epoch, value)

    def ended(self, number: int, state: str, epoch: int, value: float) -> None:
        if state == "completed":
            self._report(number, epoch, value)
            self.scheduler.report(number + self.first, epoch, value, ended=True)
        self.study.tell(number + self.first, state, self.best.get(number))

    def _report(self, number: int, epoch: int, value: float) -> None:
        self.study.report(number + self.first, epoch, value)
        self.best[number] = max(value, self.best.get(number, value))


@contextmanager
def known_tasks(without: Collection[str]) -> Iterator[None]:
    """Let searches that begin in this context know the shipped recordings of all tasks but these."""
    others = tuple(task for task in recorded_tasks() if task.name not in without)
    with (
        patch.object(predictive, "recorded_tasks", lambda: others),
        patch.object(portfolio, "recorded_tasks", lambda: others),
    ):
        yield


def of_the_same_kind(task: str) -> list[str]:
    """Return the names of the shipped recordings that are of a benchmark's phantom, whoever its patients are."""
    names = [recorded.name for recorded in recorded_tasks()]
    hard = [name for name in names if name.startswith("hard-")]
    easy = [name for name in names if name not in hard]
    return {"hard-phantom": hard, "easy-phantom": easy, "phantom": easy}.get(task, [])


class RayWithOptuna:
    """Ray Tune's OptunaSearch and ASHAScheduler with their defaults, called as Tune calls them."""

    def __init__(self, space: SearchSpace, epochs: int, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        self.searcher = OptunaSearch(space=partial(_define, space), metric="value", mode="max", seed=seed)
        self.scheduler = ASHAScheduler(time_attr="epoch", metric="value", mode="max", max_t=epochs)
        self.trials: dict[int, Trial] = {}

    def propose(self, number: int) -> Mapping[str, Any]:
        trial = self.trials[number] = Trial("stand-in", trial_id=str(number), stub=True)
        with warnings.catch_warnings():  # a busy machine is told that the space takes long
            warnings.filterwarnings("ignore", "Define-by-run function")
            values = self.searcher.suggest(trial.trial_id)
        if values is None:
            raise RuntimeError("OptunaSearch proposes nothing, though it has no limit")
        controller: Any = None  # ASHA does not use it
        self.scheduler.on_trial_add(controller, trial)
        return values

    def report(self, number: int, epoch: int, value: float) -> bool:
        result, trial = {"epoch": epoch, "training_iteration": epoch, "value": value}, self.trials[number]
        controller: Any = None
        stop = bool(self.scheduler.on_trial_result(controller, trial, result) == TrialScheduler.STOP)
        if not stop:  # Tune does not pass the result at which a trial is stopped to the searcher
            self.searcher.on_trial_result(trial.trial_id, result)
        return stop

    def ended(self, number: int, state: str, epoch: int, value: float) -> None:
        trial = self.trials.pop(number)
        controller: Any = None
        result = {"epoch": epoch, "training_iteration": epoch, "value": value}
        self.scheduler.on_trial_complete(controller, trial, result)
        self.searcher.on_trial_complete(trial.trial_id, result)


class OptunaAlone:
    """Optuna's default sampler with its HyperbandPruner."""

    def __init__(self, space: SearchSpace, epochs: int, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = optuna.samplers.TPESampler(seed=seed)
        self.study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner, study_name=str(seed))
        self.open: dict[int, optuna.Trial] = {}

    def propose(self, number: int) -> Mapping[str, Any]:
        trial = self.open[number] = self.study.ask()
        _define(self.space, trial)
        return trial.params

    def report(self, number: int, epoch: int, value: float) -> bool:
        self.open[number].report(value, epoch)
        return self.open[number].should_prune()

    def ended(self, number: int, state: str, epoch: int, value: float) -> None:
        trial = self.open.pop(number)
        if state == "completed":
            self.study.tell(trial, value)
        else:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)


class RandomSearch:
    """Random configurations, each trained to its end."""

    def __init__(self, space: SearchSpace, epochs: int, seed: int) -> None:
        self.space, self.rng = space, np.random.default_rng(seed)

    def propose(self, number: int) -> Mapping[str, Any]:
        return self.space.sample(self.rng)

    def report(self, number: int, epoch: int, value: float) -> bool:
        return False

    def ended(self, number: int, state: str, epoch: int, value: float) -> None:
        """Do nothing."""


def _define(space: SearchSpace, trial: optuna.Trial) -> None:
    values: dict[str, Any] = {}
    for name, dimension in space.dimensions.items():
        if dimension.active({**space.defaults, **values}):
            values[name] = suggest_value(trial, name, dimension.domain)
