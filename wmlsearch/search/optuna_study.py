"""The Optuna study of a search: it proposes configurations, and records how each trial ended."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import Trial, TrialState

from wmlsearch.config import OBJECTIVES, RunSettings, TrialConfig
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.objectives import objective_values
from wmlsearch.runs.schema import UNFINISHED, EpochRow
from wmlsearch.search.distributions import distribution, suggest_value
from wmlsearch.search.optuna_patches import (
    TRIAL_NUMBER,
    add_running_trial,
    journal_files,
    journal_storage,
    open_trial,
    read_sampler_state,
    restore_study_state,
    restore_trial_state,
)
from wmlsearch.search.samplers.forest import propose
from wmlsearch.search.samplers.optuna_samplers import STARTUP_TRIALS, make_sampler
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


class Study:
    """The Optuna study of a search, a journal file in its folder. Trials have the search's own numbers.

    A resumed search makes its study anew from the run folder: the journal may be torn, or hold a trial that never
    began. The new study has the same trials in the same order, so its proposals are the same.
    """

    def __init__(self, search: SearchDir, space: SearchSpace, settings: RunSettings) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.settings = space, settings
        self._open: dict[int, Trial] = {}  # trials that have not ended, by number
        journal = search.journal.with_name(f".{search.journal.name}.new")
        for leftover in (*journal_files(journal), journal_files(search.journal)[1]):
            leftover.unlink(missing_ok=True)
        self._study = self._create(search.name, journal)
        study_state, trial_states = read_sampler_state(search.journal, search.name)
        restore_study_state(self._study, study_state)
        for trial in search.earlier():
            self._add_ended(trial.config, trial.state, trial.values, trial.final, {})
        for run in search.trials():
            self._restore(run, trial_states.get(int(run.name), {}))
        os.replace(journal, search.journal)
        positions = {number: trial.number for number, trial in self._open.items()}
        self._study = self._create(search.name, search.journal)
        trials = self._study.get_trials(deepcopy=False)
        self._open = {number: open_trial(self._study, trials[position]) for number, position in positions.items()}

    def _create(self, name: str, journal: Path) -> optuna.Study:
        directions = [OBJECTIVES[objective] for objective in self.settings.objectives] or ["maximize"]
        return optuna.create_study(
            study_name=name, storage=journal_storage(journal), directions=directions, load_if_exists=True
        )

    def _restore(self, run: RunDir, sampler_state: Mapping[str, Any]) -> None:
        """Add a trial of the run folder, with the state that its sampler stored in the journal."""
        number, state, record = int(run.name), run.state, run.record()
        if record.parent is not None:  # the study did not propose a child, whose learning rate changed during training
            return
        if number == 0 and self.space.mismatches(record.config):
            return
        values, final = study_values(run.rows(), self.settings)
        if state not in UNFINISHED:
            self._add_ended(record.config, state, values, final, {TRIAL_NUMBER: number}, sampler_state)
            return
        trial = self._begin(number, self.space.active_values(record.config))
        restore_trial_state(trial, sampler_state)
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
    ) -> None:
        """Add a trial that has ended, with its value by epoch, or its final value of each objective."""
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
            distributions=self._distributions(params),
            intermediate_values=dict(values),
            user_attrs=dict(user_attrs),
            system_attrs=dict(system_attrs or {}),
            constraints={state: 1.0} if state in CONSTRAINED else None,
        )
        self._study.add_trial(trial)

    def _distributions(self, names: Iterable[str]) -> dict[str, optuna.distributions.BaseDistribution]:
        return {name: distribution(self.space.dimensions[name].domain) for name in names}

    def ask(self, number: int) -> TrialConfig:
        """Return the configuration of trial `number`.

        Trial 0 is the baseline configuration. It is part of the study only if it lies in the space.
        """
        baseline = TrialConfig()
        if number == 0 and self.space.mismatches(baseline):
            return baseline
        trial = self._begin(number, self.space.active_values(baseline) if number == 0 else None)
        return self.space.config(trial.params)

    def _begin(self, number: int, values: Mapping[str, Any] | None) -> Trial:
        """Add a trial that begins, with the given values or with those that the sampler proposes."""
        # Seeded by (seed, number), so that the proposal does not depend on how often the search was interrupted.
        seed = int(np.random.SeedSequence((self.settings.seed, number)).generate_state(1)[0])
        if values is None and self.settings.sampler == "forest":
            values = self._propose_by_forest(np.random.default_rng(seed))
        self._study.sampler = make_sampler(self.settings.sampler, seed, self.settings.seed)
        if values is not None and self.settings.sampler in ("forest", "random"):  # samplers that store no state
            trial = self._add_running(number, values)
        else:
            trial = self._ask_sampler(number, values)
        self._open[number] = trial
        return trial

    def _add_running(self, number: int, values: Mapping[str, Any]) -> Trial:
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=dict(values),
            distributions=self._distributions(values),
            user_attrs={TRIAL_NUMBER: number},
        )
        return add_running_trial(self._study, template)

    def _ask_sampler(self, number: int, values: Mapping[str, Any] | None) -> Trial:
        """Let Optuna's sampler draw the active dimensions, except for given values."""
        if values is not None:
            self._study.enqueue_trial(dict(values))
        trial = self._study.ask()
        trial.set_user_attr(TRIAL_NUMBER, number)
        drawn, defaults = dict[str, Any](), self.space.defaults
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Constraints have been set")  # cmaes warns that it ignores those trials
            for name, dimension in self.space.dimensions.items():
                if dimension.active({**defaults, **drawn}):
                    drawn[name] = suggest_value(trial, name, dimension.domain)
        return trial

    def _propose_by_forest(self, rng: np.random.Generator) -> dict[str, Any]:
        """Return the values that the forest proposes from all trials that have ended."""
        ended: list[tuple[Mapping[str, Any], tuple[int, float]]] = []  # values, (epoch that was reached, best value)
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
            if trial.constraints:  # it diverged or ran out of memory: the worst result
                ended.append((trial.params, (0, 0.0)))
            elif curve := trial.intermediate_values:
                complete = trial.state is TrialState.COMPLETE
                ended.append((trial.params, (self.settings.epochs if complete else max(curve), max(curve.values()))))
        if len(ended) < STARTUP_TRIALS:
            return self.space.sample(rng)
        return propose(self.space, ended, rng)

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

    def _optuna_state(self, state: str, has_value: bool) -> TrialState:
        optuna_state = (OPTUNA_STATES_OF_SEVERAL if self.settings.objectives else OPTUNA_STATES)[state]
        return TrialState.FAIL if optuna_state is TrialState.COMPLETE and not has_value else optuna_state


def study_values(rows: Sequence[EpochRow], settings: RunSettings) -> tuple[dict[int, float], list[float] | None]:
    """Return what the study records of a trial: its value by epoch; with several objectives only the final values."""
    if settings.objectives:
        return {}, objective_values(rows, settings.objectives)
    return {row.epoch: row.metrics.get(settings.objective) or 0.0 for row in rows}, None
