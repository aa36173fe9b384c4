"""The search methods that are compared. Each uses the real sampler and scheduler of its library."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from benchmarks.search_quality.replay import MEASURE
from wmlsearch.config import RunSettings
from wmlsearch.runs.folders import SearchDir
from wmlsearch.search.distributions import suggest_value
from wmlsearch.search.optuna_study import Study
from wmlsearch.search.scheduler import Scheduler
from wmlsearch.space import SearchSpace


class Ours:
    """wmlsearch's study and scheduler, without the baseline as the first trial, since the other methods have none."""

    def __init__(self, space: SearchSpace, epochs: int, seed: int, **settings: Any) -> None:
        self.settings = RunSettings(**{"epochs": epochs, "seed": seed, **settings})
        self.signal, self.space = self.settings.objective, space
        self.folder = tempfile.TemporaryDirectory()
        self.study = Study(SearchDir(Path(self.folder.name)), space, self.settings)
        self.scheduler = Scheduler(self.settings)
        self.best: dict[int, float] = {}

    def propose(self, number: int) -> Mapping[str, Any]:
        return self.space.active_values(self.study.ask(number + 1))

    def report(self, number: int, epoch: int, value: float) -> bool:
        self._report(number, epoch, value)
        return self.scheduler.report(number + 1, epoch, value)

    def ended(self, number: int, state: str, epoch: int, value: float | None) -> None:
        if state == "completed" and value is not None:
            self._report(number, epoch, value)
            self.scheduler.report(number + 1, epoch, value, ended=True)
        self.study.tell(number + 1, state, self.best.get(number))

    def _report(self, number: int, epoch: int, value: float) -> None:
        self.study.report(number + 1, epoch, value)
        self.best[number] = max(value, self.best.get(number, value))


class RayWithOptuna:
    """Ray Tune's OptunaSearch and ASHAScheduler with their defaults, called as Tune calls them."""

    signal = MEASURE

    def __init__(self, space: SearchSpace, epochs: int, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space = space
        self.searcher = OptunaSearch(space=partial(_define, space), metric="value", mode="max", seed=seed)
        self.scheduler = ASHAScheduler(time_attr="epoch", metric="value", mode="max", max_t=epochs)
        self.trials: dict[int, Trial] = {}

    def propose(self, number: int) -> Mapping[str, Any]:
        trial = self.trials[number] = Trial("stand-in", trial_id=str(number), stub=True)
        values: dict[str, Any] = self.searcher.suggest(trial.trial_id)
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

    def ended(self, number: int, state: str, epoch: int, value: float | None) -> None:
        trial = self.trials.pop(number)
        controller: Any = None
        if value is None:
            self.searcher.on_trial_complete(trial.trial_id, error=True)
            return
        result = {"epoch": epoch, "training_iteration": epoch, "value": value}
        self.scheduler.on_trial_complete(controller, trial, result)
        self.searcher.on_trial_complete(trial.trial_id, result)


class OptunaAlone:
    """Optuna's default sampler with its HyperbandPruner."""

    signal = MEASURE

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

    def ended(self, number: int, state: str, epoch: int, value: float | None) -> None:
        trial = self.open.pop(number)
        if state == "completed":
            self.study.tell(trial, value)
        else:
            outcome = optuna.trial.TrialState.PRUNED if state == "stopped" else optuna.trial.TrialState.FAIL
            self.study.tell(trial, state=outcome)


class RandomSearch:
    """Random configurations, each trained to its end."""

    signal = MEASURE

    def __init__(self, space: SearchSpace, epochs: int, seed: int) -> None:
        self.space, self.rng = space, np.random.default_rng(seed)

    def propose(self, number: int) -> Mapping[str, Any]:
        return self.space.sample(self.rng)

    def report(self, number: int, epoch: int, value: float) -> bool:
        return False

    def ended(self, number: int, state: str, epoch: int, value: float | None) -> None:
        """Do nothing."""


def _define(space: SearchSpace, trial: optuna.Trial) -> None:
    values: dict[str, Any] = {}
    for name, dimension in space.dimensions.items():
        if dimension.active({**space.defaults, **values}):
            values[name] = suggest_value(trial, name, dimension.domain)
