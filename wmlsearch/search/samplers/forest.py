"""A random forest proposes the next configuration (`--sampler forest`), as a sampler for any Optuna study.

Most trials of a search are stopped after a few epochs, so their values are of different epochs. The forest ranks
trials by the epoch that they reached, and among equals by their best value, and learns the rank from the
hyperparameters (random forests as in SMAC, Hutter et al. 2011). It then takes the best of a few configurations drawn at
random. So no region of the space is excluded for good, and an error of the forest costs little. benchmarks/README.md
compares it with a sampler that trusts its model more.
"""

from __future__ import annotations

import functools
import math
import threading
import weakref
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from numbers import Real
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sklearn.tree import DecisionTreeClassifier, ExtraTreeRegressor

from wmlsearch.search.trees import fit_trees, predict_by_tree
from wmlsearch.space import Choices, Range

CANDIDATES = 4
DRAWS = 20  # of a candidate, at most, where configurations are excluded
STARTUP_TRIALS = 10
TREES = 20
MAX_TRIALS = 1000  # that the forest learns from: with more, proposals take longer and are no better
# Up to so many ended trials, each proposal has a forest of its own, fitted to all of them. Beyond, a forest is fitted
# when a 32nd part more has ended: a thread fits it while the one before is used.
OWN_FOREST_TRIALS = 100
REFIT_PART = 32

Space = Mapping[str, BaseDistribution]
Outcome = tuple[float, float]  # the step that a trial reached (infinite if it ended by itself), its best value
WORST: Outcome = (-math.inf, 0.0)
Activity = Callable[[str, Mapping[str, Any]], bool]


class ForestSampler(BaseSampler):
    """Proposes the best of four random configurations by a random forest of the ranks of earlier trials.

    It learns from COMPLETE and PRUNED trials. A trial that came further ranks above one that was pruned earlier; at the
    same step the best value decides. A trial with a violated constraint (`Trial.set_constraint`) or without a finite
    value ranks last. Until `n_startup_trials` of them have ended, configurations are random.

    A proposal depends on `seed`, the trial's number and the trials that have ended, in the order of their ends, and on
    nothing else: a study that is loaded again goes on as it would have. It keeps no state in the study, and knows one
    objective.

    Args:
        search_space: The distribution of each parameter, if it is known beforehand; a parameter stands after those on
            which `is_active` says that it depends. None: all parameters that earlier trials had.
        is_active: Whether a parameter is suggested, given its name and the values of those before it in `search_space`
            that are suggested. None: it is learned from which earlier trials had the parameter.
        seed: Seed of all random numbers. None: a random seed.
        n_startup_trials: Random trials before the forest is used.
        is_excluded: Whether a configuration is not to be proposed, given the values of its parameters. Another one is
            drawn in its place, unless up to `DRAWS` draws are excluded too. None: none is excluded.
    """

    def __init__(
        self,
        search_space: Space | None = None,
        is_active: Activity | None = None,
        *,
        seed: int | None = None,
        n_startup_trials: int = STARTUP_TRIALS,
        is_excluded: Callable[[Mapping[str, Any]], bool] | None = None,
    ) -> None:
        if is_active is not None and search_space is None:
            raise ValueError(
                "`is_active` needs a `search_space`, in which parameters stand after those they depend on."
            )
        self._given, self._is_active, self._n_startup_trials = search_space, is_active, n_startup_trials
        self._is_excluded = is_excluded
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._past: _Past | None = None  # of the latest study
        self._lock = threading.Lock()  # `Study.optimize` may ask in several threads

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_past", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _past=None, _lock=threading.Lock())

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        _check_one_objective(study)
        if self._given is not None:
            return dict(self._given)
        latest: dict[str, BaseDistribution] = {}
        for earlier in _ended(study):
            latest.update(earlier.distributions)
        return {name: distribution for name, distribution in latest.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        _check_one_objective(study)
        if not search_space:
            return {}
        rng = np.random.default_rng((self._seed, trial.number))
        with self._lock:
            past = self._past_of(study, search_space)
            if len(past.trials) < self._n_startup_trials:
                return self._draw(search_space, rng)
            if len(past.trials) <= OWN_FOREST_TRIALS:
                forest = fit_forest(past.first(len(past.trials)), int(rng.integers(2**31)))
            else:
                forest = past.forest()
        candidates = [self._draw(search_space, rng) for _ in range(CANDIDATES)]
        if self._is_active is None:
            suggested = active_parameters(search_space, [earlier.params for earlier in forest.trials], candidates)
        else:
            suggested = candidates
        scores = forest.predict([encode(search_space, values) for values in suggested])
        return candidates[int(np.argmax(scores))]

    def _past_of(self, study: Study, space: dict[str, BaseDistribution]) -> _Past:
        """Return the trials that have ended by now."""
        past = self._past
        # By identity: others may have the same name, and HyperbandPruner makes a new study of each trial's bracket.
        if past is None or past.study() is not study or past.space != space:
            past = self._past = _Past(study, dict(space), self._seed)
        past.update(_ended(study))
        return past

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        _check_one_objective(study)
        name = zlib.crc32(param_name.encode())
        return draw(param_distribution, np.random.default_rng((self._seed, trial.number, name)))

    def _draw(self, space: Space, rng: np.random.Generator) -> dict[str, Any]:
        """Draw a configuration, another one in the place of one that is excluded."""
        for _ in range(DRAWS):
            values = self._draw_any(space, rng)
            if self._is_excluded is None or not self._is_excluded(values):
                break
        return values

    def _draw_any(self, space: Space, rng: np.random.Generator) -> dict[str, Any]:
        """Draw values of the parameters that are suggested; of all of them where that is to be learned."""
        values: dict[str, Any] = {}
        for name, distribution in space.items():
            if self._is_active is None or self._is_active(name, values):
                values[name] = draw(distribution, rng)
        return values


@dataclass(frozen=True)
class EndedTrial:
    """What the forest learns from a trial."""

    number: int
    params: Mapping[str, Any]
    features: Sequence[float]  # the encoded parameters
    outcome: Outcome


@dataclass(frozen=True)
class Forest:
    """Trees that predict the rank of a configuration among the trials that they were fitted to."""

    trials: Sequence[EndedTrial]
    trees: Sequence[ExtraTreeRegressor]

    def predict(self, candidates: Sequence[Sequence[float]]) -> np.ndarray:
        """Return the expected rank of each encoded candidate."""
        return sum(predict_by_tree(self.trees, np.array(candidates, np.float32))) / len(self.trees)


class _Past:
    """The trials of a study that have ended, and the forests that were fitted to them. Trials are read once."""

    def __init__(self, study: Study, space: dict[str, BaseDistribution], seed: int) -> None:
        self.study, self.space, self._seed = weakref.ref(study), space, seed
        self._maximize = study.direction is StudyDirection.MAXIMIZE
        self.trials: list[EndedTrial] = []  # in the order of their ends
        self._seen: set[int] = set()  # numbers of ended trials
        self._forests: dict[int, Future[Forest]] = {}  # by the number of trials that they are fitted to

    def update(self, ended: Sequence[FrozenTrial]) -> None:
        """Add the trials that have ended since the last call."""
        new: list[FrozenTrial] = []
        for trial in reversed(ended):  # the trials that have just ended are among the latest
            if len(new) == len(ended) - len(self._seen):
                break
            if trial.number not in self._seen:
                new.append(trial)
        new.sort(key=lambda trial: (trial.datetime_complete or datetime.min, trial.number))
        for trial in new:
            self._seen.add(trial.number)
            outcome = _outcome(trial, self._maximize)
            if outcome is not None:
                self.trials.append(EndedTrial(trial.number, trial.params, encode(self.space, trial.params), outcome))

    def first(self, count: int) -> list[EndedTrial]:
        """Return the trials that ended first, by their numbers."""
        return sorted(self.trials[:count], key=lambda trial: trial.number)

    def forest(self) -> Forest:
        """Return the forest for the next proposal, and let a thread fit the one that follows it.

        Which one it is follows from the number of ended trials, however fast the thread is.
        """
        before, latest = refit_points(len(self.trials))
        for count in (before, latest):
            if count not in self._forests:
                self._forests[count] = _in_thread(functools.partial(self._fit, self.first(count)))
        self._forests = {count: self._forests[count] for count in (before, latest)}
        return self._forests[before].result()

    def _fit(self, trials: Sequence[EndedTrial]) -> Forest:
        rng = np.random.default_rng((self._seed, zlib.crc32(b"forest"), len(trials)))
        if len(trials) > MAX_TRIALS:
            trials = [trials[at] for at in np.sort(rng.choice(len(trials), MAX_TRIALS, replace=False))]
        return fit_forest(trials, int(rng.integers(2**31)))


def refit_points(ended: int) -> tuple[int, int]:
    """Return to how many trials the forest in use and the one that follows it are fitted, of `ended` trials.

    There are more than OWN_FOREST_TRIALS. Both are equal until there is a second one.
    """
    before = latest = OWN_FOREST_TRIALS
    while (following := latest + latest // REFIT_PART) <= ended:
        before, latest = latest, following
    return before, latest


def _in_thread(fit: Callable[[], Forest]) -> Future[Forest]:
    """Return the result of a function that runs in a thread, which does not keep the process from ending."""
    future: Future[Forest] = Future()

    def run() -> None:
        try:
            future.set_result(fit())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="fit-forest", daemon=True).start()
    return future


def _check_one_objective(study: Study) -> None:
    if len(study.directions) > 1:
        raise ValueError(f"ForestSampler knows one objective, but the study has {len(study.directions)}.")


def _ended(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _outcome(trial: FrozenTrial, maximize: bool) -> Outcome | None:
    """Return how far a trial came and its best value, larger being better; None if it was pruned without a report."""
    if any(violation > 0 for violation in trial.constraints.values()):
        return WORST
    sign = 1.0 if maximize else -1.0
    if trial.state is TrialState.COMPLETE:
        return (math.inf, sign * trial.value) if trial.value is not None else None
    if not trial.intermediate_values:
        return None
    finite = [sign * value for value in trial.intermediate_values.values() if math.isfinite(value)]
    return (max(trial.intermediate_values), max(finite)) if finite else WORST


def dense_ranks(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the rank of each outcome from 0 (the worst) to below 1; equal ones have the same."""
    positions = {outcome: at for at, outcome in enumerate(sorted(set(outcomes)))}
    return [positions[outcome] / len(positions) for outcome in outcomes]


def fit_forest(trials: Sequence[EndedTrial], seed: int) -> Forest:
    """Fit trees to the ranks of trials: those of scikit-learn's ExtraTreesRegressor(TREES, max_features=0.8)."""
    random = np.random.RandomState(seed)
    x = np.array([trial.features for trial in trials], np.float32)
    y = np.array(dense_ranks([trial.outcome for trial in trials]))
    seeds = [random.randint(np.iinfo(np.int32).max) for _ in range(TREES)]
    return Forest(trials, fit_trees(x, y, seeds))


def draw(distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """Draw a value: uniform, or log-uniform where the distribution is logarithmic."""
    step = None if isinstance(distribution, CategoricalDistribution) else distribution.step  # type: ignore[attr-defined]
    if step is not None and not (isinstance(distribution, IntDistribution) and step == 1):
        low, high = distribution.low, distribution.high  # type: ignore[attr-defined]
        return min(low + step * rng.integers(round((high - low) / step) + 1).item(), high)
    return domain_of(distribution).sample(rng)


def domain_of(distribution: BaseDistribution) -> Choices | Range:
    """Return the choices or the range of a distribution, without its step."""
    if isinstance(distribution, CategoricalDistribution):
        return Choices(distribution.choices)
    if isinstance(distribution, IntDistribution | FloatDistribution):
        return Range(distribution.low, distribution.high, distribution.log)
    raise TypeError(f"{distribution} is not a categorical, an integer or a float distribution")


def encode(space: Space, values: Mapping[str, Any]) -> list[float]:
    """Return numbers for the forest: ranges and numeric choices from 0 to 1, other choices one-hot.

    -1 stands for a parameter that is inactive, and for a value that is no number among numbers: that of a trial outside
    the space, such as the baseline's `lesion_share` null.
    """
    numbers: list[float] = []
    for name, distribution in space.items():
        domain = domain_of(distribution)
        if isinstance(domain, Choices) and not all(type(choice) in (int, float) for choice in domain.values):
            numbers += [float(values.get(name) == choice) for choice in domain.values]
            continue
        low, high, log = _bounds(domain)
        scale: Callable[[float], float] = math.log if log else float
        value, width = values.get(name), scale(high) - scale(low)
        if not isinstance(value, Real) or width == 0:  # bounds that differ may have the same logarithm
            numbers.append(-1.0)
            continue
        value = min(max(float(value), low), high)  # an earlier trial may have had other bounds
        numbers.append((scale(value) - scale(low)) / width)
    return numbers


def _bounds(domain: Choices | Range) -> tuple[float, float, bool]:
    if isinstance(domain, Range):
        return domain.low, domain.high, domain.log
    chosen = [float(value) for value in domain.values if isinstance(value, int | float)]
    return min(chosen), max(chosen), False


def active_parameters(
    space: Space, past: Sequence[Mapping[str, Any]], candidates: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the values of each candidate that an objective would suggest, as trees learn from earlier trials.

    A parameter that only some trials had depends on parameters that more of them had, so these are decided first.
    """
    counts = Counter(name for values in past for name in values if name in space)
    decided = {name: space[name] for name in space if counts[name] == len(past)}
    kept = [{name: values[name] for name in decided} for values in candidates]
    conditional = [name for name in space if 0 < counts[name] < len(past)]
    for count in sorted({counts[name] for name in conditional}, reverse=True):
        names = [name for name in conditional if counts[name] == count]
        features, encoded = [[encode(decided, values) for values in rows] for rows in (past, kept)]
        for name in names:
            present = [name in values for values in past]
            tree = DecisionTreeClassifier(random_state=0)
            active = tree.fit(np.array(features), present).predict(np.array(encoded)) if decided else [True] * len(kept)
            for values, candidate, suggested in zip(kept, candidates, active, strict=True):
                if suggested:
                    values[name] = candidate[name]
        decided |= {name: space[name] for name in names}
    return kept
