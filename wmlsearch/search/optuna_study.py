"""Optuna behind Tune's searcher interface: it proposes trials, and hears the truth about how each one ended."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import Trial, TrialState

from wmlsearch.config import OBJECTIVES, RunSettings, TrialConfig
from wmlsearch.runs.files import append, cut_torn_line
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.objectives import values_of
from wmlsearch.runs.schema import GOOD, UNFINISHED, EarlierTrial, EpochRow
from wmlsearch.search.distributions import distribution, suggest_value
from wmlsearch.search.samplers.forest import propose
from wmlsearch.space import SearchSpace

# What Optuna is told for each way to end. A trial stopped by the scheduler is no finished trial: its score is that of
# an early epoch. One that diverged or found no room in memory is pruned with a violated constraint, for TPE would rank
# it by its epoch alone.
TOLD = {
    "completed": TrialState.COMPLETE,
    "early_stopped": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "interrupted": TrialState.PRUNED,
    "diverged": TrialState.PRUNED,
    "out_of_memory": TrialState.PRUNED,
    "lost": TrialState.FAIL,
    "failed": TrialState.FAIL,
}
# With several objectives a trial has no value before its end, and TPE takes a pruned one without a value for a bad one:
# only those with a violated constraint, which it ranks below all others, are told as pruned.
TOLD_OF_SEVERAL = {**TOLD, "stopped": TrialState.FAIL, "interrupted": TrialState.FAIL}
VIOLATED = ("diverged", "out_of_memory")
NOTES_OF_CMAES = ("cma:", "x_for_tell")
# What Optuna raises for a damaged journal, depending on what stands in the line.
_OF_DAMAGE = (LookupError, ValueError, TypeError, AttributeError, AssertionError, RecursionError)
STARTUP_TRIALS = 10  # drawn at random before a model of the past proposes


class _Journal(JournalFileBackend):
    """Optuna's journal file, without a wait for the disk at each line: what a power cut takes is in the run folder."""

    def __init__(self, path: Path) -> None:
        self._path, self._own_lock = path, JournalFileSymlinkLock(str(path))
        super().__init__(str(path), self._own_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._own_lock.acquire()  # optuna-dashboard may write notes there
        try:
            append(self._path, text.encode())
        finally:
            self._own_lock.release()


class Study:
    """The Optuna study of a search, kept as a journal file in its folder; trials go by the search's own numbers.

    Where the search has a past, the study is made anew from the run folder: the journal may be torn, and may know a
    trial that never began. The past is the same study, trial for trial, so what it proposes next is the same.
    """

    def __init__(self, search: SearchDir, space: SearchSpace, settings: RunSettings) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.settings = space, settings
        self._open: dict[int, Trial] = {}
        aside = search.journal.with_name(f".{search.journal.name}.new")
        for leftover in (aside, Path(f"{search.journal}.lock"), Path(f"{aside}.lock")):
            leftover.unlink(missing_ok=True)  # the lock of a process that was killed blocks for half a minute
        self._study, self._storage = self._create(search.name, aside)
        of_study, of_trials = _notes_of_samplers(search.journal, search.name)
        for key, value in of_study.items():
            self._storage.set_study_system_attr(self._study._study_id, key, value)
        for trial in search.earlier():
            self._add(trial.config, trial.state, trial.values, trial.final, {})
        unfinished = {}
        for run in search.trials():
            number, state = int(run.name), run.state
            record = run.record()
            if record.parent is not None:  # it was not asked for: its values tell of a rate that changed on the way
                continue
            config = record.config
            values, final = _heard(run.rows(), settings)
            if number == 0 and space.outside(config):
                continue
            if state in UNFINISHED:
                trial_ = self._ask(number, space.values_of(config))
                for key, value in of_trials.get(number, {}).items():
                    self._storage.set_trial_system_attr(trial_._trial_id, key, value)
                for epoch, value in values.items():
                    trial_.report(value, epoch)
                unfinished[number] = trial_.number
            else:
                self._add(config, state, values, final, {"trial": number}, of_trials.get(number))
        os.replace(aside, search.journal)
        self._study, self._storage = self._create(search.name, search.journal)
        trials = self._study.get_trials(deepcopy=False)
        self._open = {number: Trial(self._study, trials[there]._trial_id) for number, there in unfinished.items()}

    def _create(self, name: str, path: Path) -> tuple[optuna.Study, JournalStorage]:
        storage = JournalStorage(_Journal(path))
        ways = [OBJECTIVES[objective] for objective in self.settings.objectives] or ["maximize"]
        study = optuna.create_study(study_name=name, storage=storage, directions=ways, load_if_exists=True)
        return study, storage

    def _add(
        self,
        config: TrialConfig,
        state: str,
        values: Mapping[int, float],
        final: Sequence[float] | None,
        attrs: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """A trial that has ended."""
        params = self.space.values_of(config)
        told = self._told(state, bool(values or final))
        value = None
        if values and told is not TrialState.FAIL:  # as `Study.tell` has it: of a pruned trial the last one counts
            value = max(values.values()) if told is TrialState.COMPLETE else values[max(values)]
        trial = optuna.trial.create_trial(
            state=told,
            value=value,
            values=final if self.settings.objectives and told is TrialState.COMPLETE else None,
            params=params,
            distributions=self._distributions(params),
            intermediate_values=dict(values),
            user_attrs=dict(attrs),
            system_attrs=dict(notes or {}),
            constraints={state: 1.0} if state in VIOLATED else None,
        )
        self._study.add_trial(trial)

    def _distributions(self, names: Iterable[str]) -> dict[str, optuna.distributions.BaseDistribution]:
        return {name: distribution(self.space.dimensions[name].domain) for name in names}

    def ask(self, number: int) -> TrialConfig:
        """The configuration of trial `number`. The first is the paper's point, told to the study if in the space."""
        paper = TrialConfig()
        if number == 0 and self.space.outside(paper):
            return paper
        trial = self._ask(number, self.space.values_of(paper) if number == 0 else None)
        return self.space.config(trial.params)

    def _ask(self, number: int, values: Mapping[str, Any] | None) -> Trial:
        """A new trial, with given values or with the sampler's."""
        # Seeded by (seed, number): what trial n is offered doesn't depend on how often the search was interrupted.
        seed = int(np.random.SeedSequence((self.settings.seed, number)).generate_state(1)[0])
        if values is None and self.settings.sampler == "forest":
            values = self._by_forest(np.random.default_rng(seed))
        self._study.sampler = sampler(self.settings.sampler, seed, self.settings.seed)
        if values is not None and self.settings.sampler in ("forest", "random"):  # without notes: one line is enough
            template = optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=dict(values),
                distributions=self._distributions(values),
                user_attrs={"trial": number},
            )
            self._open[number] = Trial(self._study, self._storage.create_new_trial(self._study._study_id, template))
            return self._open[number]
        if values is not None:
            self._study.enqueue_trial(dict(values))
        trial = self._study.ask()
        trial.set_user_attr("trial", number)
        drawn, defaults = dict[str, Any](), self.space.defaults
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Constraints have been set")  # by cmaes, which leaves those trials out
            for name, dimension in self.space.dimensions.items():
                if dimension.active({**defaults, **drawn}):
                    drawn[name] = suggest_value(trial, name, dimension.domain)
        self._open[number] = trial
        return trial

    def _by_forest(self, rng: np.random.Generator) -> dict[str, Any]:
        """What the forest proposes by all trials that have ended."""
        past: list[tuple[Mapping[str, Any], tuple[int, float]]] = []
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
            if trial.constraints:  # it diverged or found no memory: nothing came of it
                past.append((trial.params, (0, 0.0)))
            elif curve := trial.intermediate_values:
                whole = trial.state is TrialState.COMPLETE
                past.append((trial.params, (self.settings.epochs if whole else max(curve), max(curve.values()))))
        if len(past) < STARTUP_TRIALS:
            return self.space.sample(rng)
        return propose(self.space, past, rng)

    def report(self, number: int, epoch: int, value: float) -> None:
        """A trial's value after an epoch. With several objectives Optuna takes none."""
        if number in self._open and not self.settings.objectives:
            self._open[number].report(value, epoch)

    def tell(self, number: int, state: str, best: float | Sequence[float] | None) -> None:
        """How a trial ended (a state of `runs.ENDED`), and its best value, or its value of each objective."""
        trial = self._open.pop(number, None)
        if trial is None:  # the paper's point outside the space
            return
        if state in VIOLATED:
            trial.set_constraint(state, 1.0)
        told = self._told(state, best is not None)
        self._study.tell(trial, best if told is TrialState.COMPLETE else None, state=told)

    def _told(self, state: str, has_value: bool) -> TrialState:
        told = (TOLD_OF_SEVERAL if self.settings.objectives else TOLD)[state]
        return TrialState.FAIL if told is TrialState.COMPLETE and not has_value else told


def _heard(rows: Sequence[EpochRow], settings: RunSettings) -> tuple[dict[int, float], list[float] | None]:
    """What a trial's epochs say to the study: the value of each; with several objectives only those of the best."""
    if settings.objectives:
        return {}, values_of(rows, settings.objectives)
    return {row.epoch: row.metrics.get(settings.objective) or 0.0 for row in rows}, None


def _notes_of_samplers(journal: Path, name: str) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """What samplers have written into an earlier journal of the study, and into each of its trials, by our numbers.

    qmc counts there where its sequence stands, cmaes keeps its state. Nothing where the journal is damaged.
    """
    if not journal.exists():
        return {}, {}
    cut_torn_line(journal)  # Optuna reads a journal with a torn last line, but never again once something follows it
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        study = storage.get_study_id_from_name(name)
        of_trials = {
            trial.user_attrs["trial"]: {
                key: value for key, value in trial.system_attrs.items() if key.startswith(NOTES_OF_CMAES)
            }
            for trial in storage.get_all_trials(study)
            if "trial" in trial.user_attrs
        }
        return dict(storage.get_study_system_attrs(study)), of_trials
    except _OF_DAMAGE:  # or of a search that died before its study was made
        return {}, {}


def sampler(kind: str, seed: int, study_seed: int) -> optuna.samplers.BaseSampler:
    """One of Optuna's samplers, what depends on Optuna's version pinned; all chance is in `seed`, of this trial alone.

    tpe: joint within a branch of conditions, aware of running trials. qmc: the next point of one scrambled sequence,
    which `study_seed` gives. gp, cmaes and qmc: what a condition switches on is drawn at random, and for cmaes choices
    too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)
        at_random = optuna.samplers.RandomSampler(seed=seed)
        if kind in ("random", "forest"):  # the forest's proposals are given to the study, which then draws nothing
            return at_random
        if kind == "gp":
            return optuna.samplers.GPSampler(
                seed=seed,
                independent_sampler=at_random,
                n_startup_trials=STARTUP_TRIALS,
                warn_independent_sampling=False,
            )
        if kind == "cmaes":
            return optuna.samplers.CmaEsSampler(
                seed=seed,
                independent_sampler=at_random,
                n_startup_trials=STARTUP_TRIALS,
                warn_independent_sampling=False,
            )
        if kind == "qmc":
            return optuna.samplers.QMCSampler(
                scramble=True, seed=study_seed, independent_sampler=at_random, warn_independent_sampling=False
            )
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS
        )


def known_earlier(
    searches: Sequence[SearchDir], space: SearchSpace, settings: RunSettings, fingerprint: str
) -> tuple[list[EarlierTrial], Counter[str]]:
    """Finished and stopped trials of earlier searches that the study may learn from, and why others are left out.

    A value counts only where it was measured on the same data with the same number of epochs (the schedules depend on
    it), for a configuration of this space; with several objectives only of a trial that came to its end.
    """
    taken: list[EarlierTrial] = []
    left: Counter[str] = Counter()
    for search in searches:
        record = search.record()
        for run in search.trials():
            state, rows, trial = run.state, run.rows(), run.record()
            if record.data.fingerprint != fingerprint:
                left["other data"] += 1
            elif record.settings.epochs != settings.epochs:
                left[f"{record.settings.epochs} epochs instead of {settings.epochs}"] += 1
            elif trial.parent is not None:
                left["children of population based training"] += 1
            elif state not in GOOD or not rows:
                left[f"{state.replace('_', ' ')}"] += 1
            elif space.outside(trial.config):
                left["outside the space"] += 1
            elif settings.objectives and state == "stopped":
                left["stopped before its end"] += 1
            elif settings.objectives and values_of(rows, settings.objectives) is None:
                left["without a value of each objective"] += 1
            else:
                values, final = _heard(rows, settings)
                more = {"final": final} if final is not None else {}
                taken.append(
                    EarlierTrial(search=str(search.path), config=trial.config, state=state, values=values, **more)
                )
    return taken, left
