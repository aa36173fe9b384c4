"""Optuna behind Tune's searcher interface: it proposes trials, and hears the truth about how each one ended."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState
from ray.tune.search import Searcher

from wmlsearch.config import TrialConfig
from wmlsearch.runs import SearchDir
from wmlsearch.space import Choices, Range, SearchSpace

# What Optuna is told for each way to end. A trial stopped by the scheduler is no finished trial: its score is that of
# an early epoch. One that diverged is pruned with a violated constraint, for TPE would rank it by its epoch alone.
TOLD = {
    "completed": TrialState.COMPLETE,
    "early_stopped": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "interrupted": TrialState.PRUNED,
    "diverged": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


class Study:
    """The Optuna study of a search, kept as a journal file in its folder; trials go by the search's own numbers."""

    def __init__(self, search: SearchDir, space: SearchSpace, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(search.journal)))
        self.space, self.seed = space, seed
        self._study = optuna.create_study(
            study_name=search.name, storage=storage, direction="maximize", load_if_exists=True
        )
        self._open: dict[int, Trial] = {}

    def ask(self, number: int) -> TrialConfig:
        """The configuration of trial `number`. The first is the paper's point, told to the study if in the space."""
        paper = TrialConfig()
        if number == 0 and self.space.outside(paper):
            return paper
        if number == 0:
            self._study.enqueue_trial(self.space.values_of(paper))
        # Seeded by (seed, number): what trial n is offered doesn't depend on how often the search was interrupted.
        self._study.sampler = sampler(int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0]))
        trial = self._study.ask()
        trial.set_user_attr("trial", number)
        values: dict[str, Any] = {}
        for name, dimension in self.space.dimensions.items():
            if dimension.active({**self.space.defaults, **values}):
                values[name] = suggest_value(trial, name, dimension.domain)
        self._open[number] = trial
        return self.space.config(values)

    def report(self, number: int, epoch: int, value: float) -> None:
        """A trial's value after an epoch."""
        if number in self._open:
            self._open[number].report(value, epoch)

    def tell(self, number: int, state: str, best: float | None) -> None:
        """How a trial ended (a state of `runs.ENDED`), and its best value where there is one."""
        trial = self._open.pop(number, None)
        if trial is None:  # the paper's point outside the space
            return
        told = TOLD[state]
        if state == "diverged":
            trial.set_constraint("diverged", 1.0)
        if told is TrialState.COMPLETE and best is None:
            told = TrialState.FAIL
        self._study.tell(trial, best if told is TrialState.COMPLETE else None, state=told)


class StudySearcher(Searcher):
    """Lets Tune draw trials from a `Study`. What comes of them the study hears from the recorder, with its epoch."""

    def __init__(self, study: Study, objective: str, place: Callable[[int], str]) -> None:
        """`place(number)` is where a trial's checkpoints go."""
        super().__init__(metric=objective, mode="max")
        self.study, self.place, self.next = study, place, 0

    def suggest(self, trial_id: str) -> dict[str, Any]:
        number, self.next = self.next, self.next + 1
        return {"number": number, "config": self.study.ask(number).model_dump(), "place": self.place(number)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Told by the recorder instead: Tune doesn't say why a trial ended."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for Tuner.restore, which isn't used: a search is rebuilt from its run folder

    def save(self, checkpoint_path: str) -> None:
        """Tune wants a file at its checkpoints; ours is the study's journal."""
        with open(checkpoint_path, "w", encoding="utf-8") as file:
            file.write(self.study._study.study_name)

    def restore(self, checkpoint_path: str) -> None:
        raise RuntimeError("a search is rebuilt from its run folder, not from Tune's checkpoints")


def sampler(seed: int) -> optuna.samplers.BaseSampler:
    """TPE, what depends on Optuna's version pinned: joint within a branch of conditions, aware of running trials."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=10
        )


def suggest_value(trial: Trial, name: str, domain: Choices | Range) -> Any:
    """Let Optuna draw a value of one dimension."""
    if isinstance(domain, Choices):
        return trial.suggest_categorical(name, domain.values)
    if domain.whole:
        return trial.suggest_int(name, int(domain.low), int(domain.high), log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, log=domain.log)
