"""Which of the best configurations survive a first decision that stops two thirds?

    python -m benchmarks.search_quality.survival [--replays 200]

The first table ranks all recorded configurations of a task after a few epochs, and keeps the best third: by their
values, by the outcome model that the other task taught (so the task's own experience is left out), and by the model
that some full curves of the same task taught (then the others are ranked; the mean over a tenth of `--replays` draws).
It says which share of the best tenth is kept.

The second table has the same by values alone, at shares of the epochs, for each task that is recorded. The default
first rung is at a third.

The third table replays searches of 20 and of 160 random configurations with the schedulers themselves, one trial after
the other: which of a search's best tenth pass their first rung, how far the best trial that trained to its end is
below the best of all, and how many epochs all trials took. Searches of 160 have an eighth of `--replays`. The intervals
are of 95 %, over replays.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from benchmarks.search_quality.experience import trained
from benchmarks.search_quality.record import HERE, TASKS
from benchmarks.search_quality.sealed_tasks import SEALED_TASKS
from benchmarks.search_quality.surrogate import division_configurations
from benchmarks.verdict.rows import markdown
from wmlsearch.config import FEWEST_GRACE_EPOCHS, RunSettings
from wmlsearch.search.outcome_model import OutcomeModel, TrainedCurve, best_so_far
from wmlsearch.search.predictive import PredictiveHalving
from wmlsearch.search.scheduler import Scheduler
from wmlsearch.space import SearchSpace

EPOCHS_SEEN = (1, 2, 3, 6, 9)
TAUGHT = (20, 40, 80)  # full curves of the same task
TRIALS = (20, 160)  # of a replayed search
KEPT, BEST = 1 / 3, 1 / 10
SHARES = {"1/12": 1 / 12, "1/6": 1 / 6, "2/9": 2 / 9, "1/3": 1 / 3, "1/2": 1 / 2, "2/3": 2 / 3}  # of the epochs
FEWEST = 25  # recorded configurations of a task
ASHA, ASHA_EARLY = "asha", f"asha, --grace-epochs {FEWEST_GRACE_EPOCHS}"
PREDICTIVE, PREDICTIVE_ALONE = "predictive", "predictive, --no-experience"
SPACE = SearchSpace.read(HERE / "space.yaml")


def kept(scores: np.ndarray, final: np.ndarray) -> float:
    """Return which share of the best tenth is in the best third by `scores`."""
    best = set(np.argsort(-final, kind="stable")[: max(1, round(BEST * len(final)))])
    return len(best & set(np.argsort(-scores, kind="stable")[: round(KEPT * len(final))])) / len(best)


def scores(task: Sequence[TrainedCurve], epoch: int, teachers: Sequence[Sequence[TrainedCurve]]) -> np.ndarray:
    """Return the rank of each configuration after `epoch`: predicted by a model, or by its value without teachers."""
    seen = [each.curve[:epoch] for each in task]
    if not teachers:
        return best_so_far(seen)[:, -1]
    predicted: np.ndarray = OutcomeModel(SPACE, teachers, len(task[0].curve)).predict([c.values for c in task], seen)
    return predicted.mean(axis=0)


def first_decision(name: str, tasks: dict[str, list[TrainedCurve]], replays: int) -> list[tuple[str, ...]]:
    """Return the rows of the first table for a task."""
    task, others = tasks[name], [tasks[other] for other in tasks if other != name]
    final = best_so_far([each.curve for each in task])[:, -1]
    rows = [
        (label, *(f"{kept(scores(task, epoch, teachers), final):.2f}" for epoch in EPOCHS_SEEN))
        for label, teachers in ((f"{name}: values", []), (f"{name}: taught by the other task", others))
    ]
    for count in TAUGHT:
        if 2 * count > len(task):
            continue
        shares: dict[int, list[float]] = {epoch: [] for epoch in EPOCHS_SEEN}
        for replay in range(replays):
            order = np.random.default_rng(replay).permutation(len(task))
            teachers = [[task[at] for at in order[:count]]]
            asked = [task[at] for at in order[count:]]
            for epoch in EPOCHS_SEEN:
                shares[epoch].append(kept(scores(asked, epoch, teachers), final[order[count:]]))
        rows.append(
            (
                f"{name}: taught by {count} of its own curves",
                *(f"{np.mean(shares[epoch]):.2f}" for epoch in EPOCHS_SEEN),
            )
        )
    return rows


def recorded_curves() -> dict[str, np.ndarray]:
    """Return the first training of each recorded configuration by task: the objective, (configurations, epochs)."""
    curves = {name: np.array([each.curve for each in trained(name)]) for name in TASKS}
    for name, task in SEALED_TASKS.items():
        for place, division in enumerate(task.divisions):
            recorded = division_configurations(name, place)
            label = name if len(task.divisions) == 1 else f"{name}, {division.sealed[0]} sealed"
            if len(recorded) >= FEWEST:
                curves[label] = np.array([each.objective[0] for each in recorded])
    return curves


def by_share(curves: np.ndarray) -> tuple[str, ...]:
    """Return the share of the best tenth that is kept by values after each share of the epochs."""
    best = np.maximum.accumulate(curves, axis=1)
    at = [max(1, round(share * curves.shape[1])) for share in SHARES.values()]
    return tuple(f"{kept(best[:, epoch - 1], best[:, -1]):.2f}" for epoch in at)


def search(task: Sequence[TrainedCurve], kind: str, others: Sequence[Sequence[TrainedCurve]]) -> tuple[float, ...]:
    """Replay one trial after the other. Return the share of the best tenth that passes its first rung, the regret, and
    the epochs of all trials."""
    epochs, final = len(task[0].curve), best_so_far([each.curve for each in task])[:, -1]
    by_values = kind in (ASHA, ASHA_EARLY)
    settings = RunSettings(epochs=epochs, scheduler="asha" if by_values else "predictive")
    grace = FEWEST_GRACE_EPOCHS if kind == ASHA_EARLY else None
    settings = settings.model_copy(update={"experience": kind == PREDICTIVE, "grace_epochs": grace})
    taught = others if settings.experience else ()
    rule = (
        Scheduler(settings)
        if by_values
        else PredictiveHalving(settings, SPACE, lambda number: task[number].values, taught)
    )
    stops = [
        next((e for e, value in enumerate(each.curve, 1) if rule.report(n, e, value, e == epochs)), None)
        for n, each in enumerate(task)
    ]
    first = [settings.grace if isinstance(rule, Scheduler) else rule.rungs[n][0] for n in range(len(task))]
    best = np.argsort(-final, kind="stable")[: max(1, round(BEST * len(task)))]
    ended = [value for value, stop in zip(final, stops, strict=True) if stop is None]
    return (
        float(np.mean([stops[at] != first[at] for at in best])),
        float(max(final) - max(ended)),
        float(sum(stop or epochs for stop in stops)),
        float(np.mean([stop == rung for stop, rung in zip(stops, first, strict=True)])),
    )


def replayed(name: str, tasks: dict[str, list[TrainedCurve]], replays: int) -> list[tuple[str, ...]]:
    """Return the rows of the third table for a task."""
    others = [tasks[other] for other in tasks if other != name]
    rows: list[tuple[str, ...]] = []
    for trials in TRIALS:
        if trials > len(tasks[name]):
            continue
        count = max(2, replays * TRIALS[0] // trials)
        for kind in (ASHA, ASHA_EARLY, PREDICTIVE_ALONE, PREDICTIVE):
            results = []
            for replay in range(count):
                drawn = np.random.default_rng(replay).choice(len(tasks[name]), trials, replace=False)
                results.append(search([tasks[name][at] for at in drawn], kind, others))
            table = np.array(results)
            half = 1.96 * table.std(axis=0, ddof=1) / np.sqrt(count)
            passed, regret, epochs, stopped = (
                f"{mean:.{digits}f} ± {each:.{digits}f}"
                for mean, each, digits in zip(table.mean(axis=0), half, (2, 3, 0, 2), strict=True)
            )
            rows.append((f"{name}, {trials} trials: {kind}", stopped, passed, regret, epochs))
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replays", type=int, default=200)
    given = parser.parse_args()
    tasks = {name: trained(name) for name in TASKS}
    print(", ".join(f"{name}: {len(task)} configurations" for name, task in tasks.items()), "\n")
    few = max(1, given.replays // 10)
    rows = [row for name in tasks for row in first_decision(name, tasks, few)]
    print(markdown(("best third after", *(f"epoch {epoch}" for epoch in EPOCHS_SEEN)), rows), "\n")
    rows = [(f"{name} ({len(curves)})", *by_share(curves)) for name, curves in recorded_curves().items()]
    print(markdown(("by values, after a share of the epochs", *SHARES), rows), "\n")
    rows = [row for name in tasks for row in replayed(name, tasks, given.replays)]
    print(
        markdown(
            ("scheduler", "stopped at the first rung", "best tenth that passes it", "regret (Dice)", "epochs"), rows
        )
    )


if __name__ == "__main__":
    main()
