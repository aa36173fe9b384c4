"""What a user gets: the sealed Dice per patient of what each search method hands over, at equal epochs.

    python -m benchmarks.search_quality.outcome [--replays 20] [--jobs 2] [--task NAME ...]

Nothing is trained: a surrogate of recorded curves answers each proposal (surrogate.py; its quality is printed first).
Every method may spend the epochs of 20 full trainings on four simulated workers, one epoch taking as long as another.

- "network": the sealed Dice of the network that the method hands over, at its best epoch. wmlsearch hands over
  networks that it trains anew for the verdict (judgement runs): their mean, not that of the ensemble. The others hand
  over the trial with the highest objective.
- "configuration": the mean sealed Dice of that configuration over other seeds, by which luck is left out.
- "epochs to": epochs until the configuration with the highest objective so far is within 0.02 of the best one's mean,
  that is the best of 200 random ones.

The epochs of selection runs count, so a search that has them has fewer for its trials. Judgement runs do not count:
whoever wants a verdict needs them for any configuration. With `--trials N` searches also end after N trials, as
`wmlsearch tune --trials N` does; then they spend different numbers of epochs, and selection runs are not taken off.

Intervals are of 95 %, by bootstrap over replays, and differences are paired by replay. With several sealed patients of
real data, each has searches of its own, and a replay is their mean.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from benchmarks.search_quality.replay import Replay, ReplayedTrial, replay, training_seed
from benchmarks.search_quality.surrogate import Benchmark, Surrogate, benchmarks, table
from benchmarks.verdict.rows import markdown
from wmlsearch.config import RunSettings
from wmlsearch.verdict.champion import FAR_BEHIND

TRIALS = 20  # whose epochs a method may spend
WITHIN = 0.02  # Dice
JUDGEMENT_SEEDS = range(10**6, 10**6 + 8)  # which no trial has
RANDOM_CONFIGURATIONS = 200  # among which the best is looked for
FIRST_SEED = 1000  # of the replays: with seed 0, methods would draw the recorded configurations themselves
KEPT_AFTER_ONE = 3  # configurations that are trained to the end after one epoch of all: arXiv 2307.15422
RESAMPLES = 10_000
OURS = "wmlsearch"
RANDOM = "random search"
BASELINE = "the baseline alone"


@dataclass(frozen=True)
class Outcome:
    """What a method hands over."""

    network: float  # sealed Dice
    configuration: float  # mean sealed Dice over other seeds
    epochs_to: float  # until the configuration in front is within WITHIN of the best; infinite if it never is
    epochs: int  # spent
    trials: int


class Scorer:
    """The mean sealed Dice of configurations over the judgement seeds."""

    def __init__(self, surrogate: Surrogate) -> None:
        self._surrogate, self._known = surrogate, dict[str, float]()

    def means(self, configurations: Sequence[Mapping[str, Any]]) -> list[float]:
        names = [repr(sorted(values.items())) for values in configurations]
        new = {name: values for name, values in zip(names, configurations, strict=True) if name not in self._known}
        if new:
            answers = self._surrogate.answers(list(new.values()), JUDGEMENT_SEEDS)
            self._known |= {
                name: float(np.mean([answer.kept() for answer in of_one]))
                for name, of_one in zip(new, answers, strict=True)
            }
        return [self._known[name] for name in names]

    def best(self) -> float:
        """The highest mean of many random configurations."""
        space = self._surrogate.space
        drawn = [space.sample(np.random.default_rng((1, number))) for number in range(RANDOM_CONFIGURATIONS)]
        return max(self.means(drawn))


@dataclass(frozen=True)
class ScoredDivision:
    """A task with one division of its patients, and what scores a replay on it."""

    task: Benchmark
    surrogate: Surrogate
    scorer: Scorer
    goal: float  # the mean sealed Dice that counts as the best

    @classmethod
    def of(cls, task: Benchmark, surrogate: Surrogate) -> ScoredDivision:
        scorer = Scorer(surrogate)
        return cls(task, surrogate, scorer, scorer.best() - WITHIN)

    def epochs_to(self, run: Replay) -> float:
        """Return the epochs until the configuration in front reaches the goal; infinite if it never does."""
        means = self.scorer.means([trial.values for _, trial in run.leaders])
        reached = (epochs for (epochs, _), mean in zip(run.leaders, means, strict=True) if mean >= self.goal)
        return next(reached, math.inf)


def searched(make: Callable[..., Any], on: ScoredDivision, seed: int, trials: int | None = None) -> Outcome:
    """Replay a search that hands over its best trial."""
    run = replay(make(on.task, seed), on.surrogate, TRIALS * on.task.epochs, seed, trials)
    best = run.best
    mean = on.scorer.means([best.values])[0]
    return Outcome(best.network, mean, on.epochs_to(run), run.epochs, len(run.trials))


def confirmed(make: Callable[..., Any], on: ScoredDivision, seed: int, trials: int | None = None) -> Outcome:
    """Replay a search of this project with its selection runs: the champion's new networks are handed over."""
    task = on.task
    settings = RunSettings(epochs=task.epochs, seed=seed)
    budget = TRIALS * task.epochs
    if trials is None:
        budget -= settings.selection_run_count * task.epochs
    run = replay(make(task, seed), on.surrogate, budget, seed, trials)
    candidates = [task.baseline, *_candidates(run, settings.confirm_top, task.baseline)]
    runs = on.surrogate.answers(candidates, settings.selection_seeds)
    means = [float(np.mean([answer.objective.max() for answer in of_one])) for of_one in runs]
    champion = candidates[int(np.argmax(means))]  # the baseline where none is better
    mean = on.scorer.means([champion])[0]
    spent = run.epochs + len(candidates) * settings.confirm_seeds * task.epochs
    return Outcome(mean, mean, on.epochs_to(run), spent, len(run.trials))


def _candidates(run: Replay, count: int, baseline: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the best configurations as `verdict.champion.select_candidates` does."""
    selected: list[Mapping[str, Any]] = []
    highest = run.best.value
    for trial in sorted(run.trials, key=lambda each: -each.value):
        cut_short = trial.state != "completed" and trial.value < FAR_BEHIND * highest
        if trial.epochs and not cut_short and trial.values not in (baseline, *selected) and len(selected) < count:
            selected.append(trial.values)
    return selected


def best_after_one_epoch(on: ScoredDivision, seed: int, trials: int | None = None) -> Outcome:
    """Train random configurations for an epoch each, and the best of them to the end."""
    budget, epochs = TRIALS * on.task.epochs, on.task.epochs
    count = trials or budget - KEPT_AFTER_ONE * (epochs - 1)
    rng = np.random.default_rng(seed)
    drawn = [on.task.space.sample(rng) for _ in range(count)]
    answers = (on.surrogate.answer(values, training_seed(seed, number)) for number, values in enumerate(drawn))
    run = Replay([ReplayedTrial(values, answer) for values, answer in zip(drawn, answers, strict=True)])
    for trial in run.trials:
        run.train(trial)
    for trial in sorted(run.trials, key=lambda each: -each.value)[:KEPT_AFTER_ONE]:
        for _ in range(epochs - 1):
            run.train(trial)
    best = run.best
    return Outcome(best.network, on.scorer.means([best.values])[0], on.epochs_to(run), run.epochs, count)


def baseline_alone(on: ScoredDivision, seed: int) -> Outcome:
    """Train the baseline configuration once."""
    task = on.task
    mean = on.scorer.means([task.baseline])[0]
    epochs_to = task.epochs if mean >= on.goal else math.inf
    return Outcome(on.surrogate.answer(task.baseline, training_seed(seed, 0)).kept(), mean, epochs_to, task.epochs, 1)


def methods(trials: int | None = None) -> dict[str, Callable[[ScoredDivision, int], Outcome]]:
    """Return each method by name. Its searches end after so many trials, too."""
    from benchmarks.search_quality.methods import OptunaAlone, Ours, RandomSearch, RayWithOptuna, of_the_same_kind

    def ours(**settings: Any) -> Callable[[Benchmark, int], Ours]:
        return lambda task, seed: Ours(task.space, task.epochs, seed, without=of_the_same_kind(task.name), **settings)

    def other(kind: type) -> Callable[[Benchmark, int], Any]:
        return lambda task, seed: kind(task.space, task.epochs, seed)

    searches: dict[str, Callable[..., Outcome]] = {
        OURS: partial(confirmed, ours()),
        "wmlsearch, --no-experience": partial(confirmed, ours(experience=False)),
        "wmlsearch, --grace-epochs 2": partial(confirmed, ours(grace_epochs=2)),
        "wmlsearch, --scheduler none": partial(confirmed, ours(scheduler="none")),
        "wmlsearch, --scheduler predictive": partial(confirmed, ours(scheduler="predictive")),
        "wmlsearch, predictive, --no-experience": partial(confirmed, ours(scheduler="predictive", experience=False)),
        "wmlsearch, --no-baseline": partial(searched, ours()),
        "Ray OptunaSearch + ASHAScheduler": partial(searched, other(RayWithOptuna)),
        "Optuna TPE + HyperbandPruner": partial(searched, other(OptunaAlone)),
        RANDOM: partial(searched, other(RandomSearch)),
        f"the best {KEPT_AFTER_ONE} after one epoch": best_after_one_epoch,
    }
    return {**{name: partial(search, trials=trials) for name, search in searches.items()}, BASELINE: baseline_alone}


@cache
def _tasks() -> dict[str, list[ScoredDivision]]:
    """Return the divisions of each task."""
    return {task.name: [ScoredDivision.of(task, surrogate) for surrogate in task.surrogates] for task in benchmarks()}


def run(task_name: str, method: str, seed: int, trials: int | None) -> list[Outcome]:
    """Replay a method once on each division of a task, with at most so many trials."""
    return [methods(trials)[method](division, seed) for division in _tasks()[task_name]]


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean over replays and its 95 % bootstrap interval."""
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)


def outcome_table(task: str, outcomes: Mapping[str, Sequence[Sequence[Outcome]]]) -> str:
    """Return the table of a task: outcomes by method, replay and division."""
    networks = {
        name: np.array([np.mean([one.network for one in each]) for each in of]) for name, of in outcomes.items()
    }
    medians = {name: np.median([one.epochs_to for each in of for one in each]) for name, of in outcomes.items()}
    rows = []
    for name, of in outcomes.items():
        mean, low, high = interval(networks[name])
        configuration = np.mean([one.configuration for each in of for one in each])
        ahead = ""
        if name != OURS and OURS in networks:
            ahead = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval(networks[OURS] - networks[name]))
        spent = np.mean([[one.epochs, one.trials] for each in of for one in each], axis=0)
        missed = np.mean([math.isinf(one.epochs_to) for each in of for one in each])
        of_random = medians.get(RANDOM, math.inf)
        share = medians[name] / of_random if np.isfinite(medians[name]) and np.isfinite(of_random) else None
        rows.append(
            (name, f"{mean:.3f} [{low:.3f}, {high:.3f}]", ahead, f"{configuration:.3f}",
             f"{spent[0]:.0f} ({spent[1]:.0f})", f"{medians[name]:.0f}" + (f" ({share:.2f})" if share else ""),
             f"{100 * missed:.0f} %")
        )  # fmt: skip
    head = (
        task, "network [95 %]", "wmlsearch is ahead by [95 %]", "configuration", "epochs (trials)",
        f"epochs to {WITHIN} of the best, median (of random's)", "never",
    )  # fmt: skip
    return markdown(head, rows)


def main() -> None:
    """Print the quality of the surrogates, and the table of each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replays", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--task", nargs="*", metavar="NAME", help="tasks (default: all that have enough recordings)")
    parser.add_argument("--method", nargs="*", metavar="NAME", help="methods (default: all)")
    parser.add_argument("--trials", type=int, metavar="N", help="end each search after N trials, too")
    given = parser.parse_args()
    found = [task for task in benchmarks() if not given.task or task.name in given.task]
    print(table(found), "\n")
    names = given.method or list(methods())
    asked = [
        (task.name, name, seed, given.trials)
        for task in found
        for seed in range(FIRST_SEED, FIRST_SEED + given.replays)
        for name in names
    ]
    outcomes: dict[str, dict[str, list[list[Outcome]]]] = {task.name: {name: [] for name in names} for task in found}
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for (task_name, name, *_), result in zip(asked, pool.map(run, *zip(*asked, strict=True)), strict=True):
            outcomes[task_name][name].append(result)
    for task_name, of_task in outcomes.items():
        print(outcome_table(task_name, of_task), "\n")


if __name__ == "__main__":
    main()
