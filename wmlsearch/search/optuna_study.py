"""The Optuna study of a search: it proposes configurations, and records how each trial ended."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from wmlsearch.config import OBJECTIVES, RunSettings, TrialConfig
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.objectives import objective_values
from wmlsearch.runs.schema import EXPERIENCE, UNFINISHED, EpochRow
from wmlsearch.search.distributions import search_space, suggest_value
from wmlsearch.search.samplers.forest import ForestSampler
from wmlsearch.search.samplers.optuna_samplers import make_sampler
from wmlsearch.search.samplers.untried import PROPOSALS, TriedConfigurations, UntriedSampler
from wmlsearch.search.study_journal import ORIGIN, TRIAL_NUMBER, StudyJournal, create_study, remove_lock
from wmlsearch.space import SearchSpace

# The Optuna state for each state of a trial. A trial that the scheduler stopped is PRUNED: its value is of an early
# epoch. A trial that diverged or ran out of memory is PRUNED with a violated constraint, since TPE would rank it by its
# epoch alone.
OPTUNA_STATES = {
    "completed": TrialState.COMPLETE,
    "early_stopped": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "interrupted": TrialState.PRUNED,
    "diverged": TrialState.PRUNED,
    "out_of_memory": TrialState.PRUNED,
    "lost": TrialState.FAIL,
    "failed": TrialState.FAIL,
}
# With several objectives a trial has no value before its end, and TPE ranks a PRUNED trial without a value as a bad
# one. So only trials with a violated constraint, which TPE ranks below all others, are PRUNED.
OPTUNA_STATES_OF_SEVERAL = {**OPTUNA_STATES, "stopped": TrialState.FAIL, "interrupted": TrialState.FAIL}
CONSTRAINED = ("diverged", "out_of_memory")  # states that violate a constraint


class SpaceExhaustedError(Exception):
    """No configuration of the space is left to try."""


class Study:
    """The Optuna study of a search, a journal file in its folder. Trials have the search's own numbers.

    A resumed search makes its study anew from the run folder: the journal may be torn, or hold a trial that never
    began. The new study has the same trials in the same order, so its proposals are the same. The file is written when
    a trial begins and when it ends.
    """

    def __init__(
        self,
        search: SearchDir,
        space: SearchSpace,
        settings: RunSettings,
        portfolio: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Make the study of a search, with the trials in its folder.

        Args:
            search: The search. Its folder must exist.
            space: The search space.
            settings: The settings of the search.
            portfolio: Hyperparameters of the first trials after the baseline that are no children. The sampler draws
                those that are left out.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.settings, self._portfolio = space, settings, portfolio
        self._distributions, defaults = search_space(space), space.defaults
        self._tried = TriedConfigurations(space, settings.trials)
        self._forest = ForestSampler(
            self._distributions,
            lambda name, values: space.dimensions[name].active({**defaults, **values}),
            seed=settings.seed,
            is_excluded=self._tried.__contains__,
        )
        self._open: dict[int, Trial] = {}  # trials that have not ended, by number
        self._children: set[int] = set()  # numbers of trials that the study has not proposed
        remove_lock(search.journal)
        self._journal = StudyJournal(search.journal)
        directions = [OBJECTIVES[objective] for objective in settings.objectives] or ["maximize"]
        new = create_study(self._journal, search.name, directions, earlier=search.journal)
        self._study = new.study
        for trial in search.earlier():
            self._add_ended(trial.config, trial.state, trial.values, trial.final, {}, times=(0.0, 0.0))
        for run in search.trials():
            self._restore(run, new.sampler_states.get(int(run.name), {}))
        self._journal.replace_file()

    def _restore(self, run: RunDir, sampler_state: Mapping[str, Any]) -> None:
        """Add a trial of the run folder, with the state that its sampler stored in the journal."""
        number, state, record = int(run.name), run.state, run.record()
        self._tried.add(record.config)
        if record.parent is not None:  # the study did not propose a child, whose learning rate changed during training
            self.add_child(number)
            return
        if number == 0 and self.space.mismatches(record.config):
            return
        values, final = study_values(run.rows(), self.settings)
        if state not in UNFINISHED:
            status = run.status()
            times = status.started, status.ended or status.started
            about = _user_attrs(number, record.origin)
            self._add_ended(record.config, state, values, final, about, sampler_state, times=times)
            return
        self._queue(_user_attrs(number, record.origin), sampler_state)
        trial = self._begin(number, self._given(record.config))
        for epoch, value in values.items():
            trial.report(value, epoch)

    def _add_ended(
        self,
        config: TrialConfig,
        state: str,
        values: Mapping[int, float],
        final: Sequence[float] | None,
        user_attrs: Mapping[str, Any],
        system_attrs: Mapping[str, Any] | None = None,
        *,
        times: tuple[float, float],
    ) -> None:
        """Add a trial that has ended, with its value by epoch, or its final value of each objective.

        `times` are its start and its end, Unix seconds: the forest learns from trials in the order of their ends.
        """
        params = self.space.active_values(config)
        optuna_state = self._optuna_state(state, bool(values or final))
        value = None
        if values and optuna_state is not TrialState.FAIL:  # as in `Study.tell`: a pruned trial has its last value
            value = max(values.values()) if optuna_state is TrialState.COMPLETE else values[max(values)]
        trial = optuna.trial.create_trial(
            state=optuna_state,
            value=value,
            values=final if self.settings.objectives and optuna_state is TrialState.COMPLETE else None,
            params=params,
            distributions={name: self._distributions[name] for name in params},
            intermediate_values=dict(values),
            user_attrs=dict(user_attrs),
            system_attrs=dict(system_attrs or {}),
            constraints={state: 1.0} if state in CONSTRAINED else None,
        )
        trial.datetime_start, trial.datetime_complete = (datetime.fromtimestamp(time_s) for time_s in times)
        self._study.add_trial(trial)

    def ask(self, number: int) -> TrialConfig:
        """Return the configuration of trial `number`.

        Trial 0 is the baseline configuration. It is part of the study only if it lies in the space. The sampler
        proposes a configuration that no trial before had, as far as there is one. Without one, a fresh trial of
        --scheduler pbt repeats a configuration, since its children differ.

        Raises:
            SpaceExhaustedError: Each configuration of the space has been tried.
        """
        baseline = TrialConfig()
        if number == 0 and self.space.mismatches(baseline):
            self._tried.add(baseline)
            return baseline
        if number and self._tried.is_complete and self.settings.scheduler != "pbt":
            count = self._tried.count or 0
            configurations = f"all {count} configurations" if count > 1 else "the only configuration"
            raise SpaceExhaustedError(f"{configurations} of the space {'have' if count > 1 else 'has'} been tried")
        sampler = self._given(baseline) if number == 0 else self._sampler(number)
        given = self._from_experience(number)
        self._queue(_user_attrs(number, EXPERIENCE if given else ""))
        trial = self._begin(number, self._untried(number, sampler, given) if number else sampler)
        self._journal.write()
        config = self.space.config(trial.params)
        self._tried.add(config)
        return config

    def _from_experience(self, number: int) -> Mapping[str, Any]:
        """Return the hyperparameters that the portfolio has for a trial.

        It has none if no configuration with them was found that was not tried: the sampler proposes another one.
        """
        position = number - sum(child < number for child in self._children)  # among the trials that are no children
        if not 1 <= position <= len(self._portfolio):
            return {}
        values = self._portfolio[position - 1]
        return {} if self._tried.draw_other(self._random(number), values) is None else values

    def add_child(self, number: int) -> None:
        """Note that a trial is the child of another one (--scheduler pbt), so the study does not propose it."""
        self._children.add(number)

    def origin(self, number: int) -> str:
        """Return EXPERIENCE if the configuration of a trial that runs is one of the portfolio, else ""."""
        trial = self._open.get(number)
        return str(trial.user_attrs.get(ORIGIN, "")) if trial else ""

    def _queue(self, user_attrs: Mapping[str, Any], system_attrs: Mapping[str, Any] | None = None) -> None:
        """Add a trial that the next `ask` of the study takes."""
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.WAITING, user_attrs=dict(user_attrs), system_attrs=dict(system_attrs or {})
            )
        )

    def _begin(self, number: int, sampler: BaseSampler) -> Trial:
        """Begin the queued trial, with the values that the sampler proposes where the queued trial has none."""
        self._study.sampler = sampler
        trial = self._open[number] = self._study.ask()
        drawn, defaults = dict[str, Any](), self.space.defaults
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Constraints have been set")  # cmaes warns that it ignores those trials
            for name, dimension in self.space.dimensions.items():
                if dimension.active({**defaults, **drawn}):
                    drawn[name] = suggest_value(trial, name, dimension.domain)
        return trial

    def _given(self, config: TrialConfig) -> BaseSampler:
        return _GivenValues(self._distributions, self.space.active_values(config))

    def _untried(self, number: int, sampler: BaseSampler, given: Mapping[str, Any]) -> BaseSampler:
        """Return a sampler for trial `number` that proposes what no trial has had, with the `given` values."""
        proposals = 1 if sampler is self._forest else PROPOSALS  # the forest leaves out by itself what was tried
        return UntriedSampler(sampler, self.space, self._tried, self._random(number), proposals, given)

    def _random(self, number: int) -> np.random.Generator:
        """Return the random numbers by which a configuration for trial `number` is drawn that was not tried."""
        return np.random.default_rng((self.settings.seed, number, zlib.crc32(b"untried")))

    def _sampler(self, number: int) -> BaseSampler:
        if self.settings.sampler == "forest":
            return self._forest
        # Seeded by (seed, number), so that the proposal does not depend on how often the search was interrupted.
        seed = int(np.random.SeedSequence((self.settings.seed, number)).generate_state(1)[0])
        return make_sampler(self.settings.sampler, seed, self.settings.seed)

    def report(self, number: int, epoch: int, value: float) -> None:
        """Record a trial's value after an epoch. With several objectives Optuna takes no values before the end."""
        if number in self._open and not self.settings.objectives:
            self._open[number].report(value, epoch)

    def tell(self, number: int, state: str, best: float | Sequence[float] | None) -> None:
        """Record how a trial ended (one of `runs.schema.ENDED`), and its best value or its value of each objective."""
        trial = self._open.pop(number, None)
        if trial is None:  # the study does not have it: a child, or a baseline configuration outside the space
            return
        if state in CONSTRAINED:
            trial.set_constraint(state, 1.0)
        optuna_state = self._optuna_state(state, best is not None)
        self._study.tell(trial, best if optuna_state is TrialState.COMPLETE else None, state=optuna_state)
        self._journal.write()

    def _optuna_state(self, state: str, has_value: bool) -> TrialState:
        optuna_state = (OPTUNA_STATES_OF_SEVERAL if self.settings.objectives else OPTUNA_STATES)[state]
        return TrialState.FAIL if optuna_state is TrialState.COMPLETE and not has_value else optuna_state


class _GivenValues(BaseSampler):
    """Proposes values that are decided: those of the baseline configuration, or of a trial that began earlier."""

    def __init__(self, distributions: dict[str, BaseDistribution], values: Mapping[str, Any]) -> None:
        self._distributions, self._values = distributions, values

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return dict(self._values)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._values[param_name]


def _user_attrs(number: int, origin: str) -> dict[str, Any]:
    """Return the user attributes of a trial in the study."""
    return {TRIAL_NUMBER: number, **({ORIGIN: origin} if origin else {})}


def study_values(rows: Sequence[EpochRow], settings: RunSettings) -> tuple[dict[int, float], list[float] | None]:
    """Return what the study records of a trial: its value by epoch; with several objectives only the final values."""
    if settings.objectives:
        return {}, objective_values(rows, settings.objectives)
    return {row.epoch: row.metrics.get(settings.objective) or 0.0 for row in rows}, None
