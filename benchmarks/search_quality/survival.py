"""Which of the best configurations survive a first decision that stops two thirds?

    python -m benchmarks.search_quality.survival [--replays 200]

The first table ranks all recorded configurations of a task after a few epochs, and keeps the best third: by their
values, by the outcome model that the other task taught (so the task's own experience is left out), and by the model
that some full curves of the same task taught (then the others are ranked; the mean over a tenth of `--replays` draws).
It says which share of the best tenth is kept.

The second table replays searches of 20 and of 160 random configurations with the schedulers themselves, one trial after
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
from benchmarks.verdict.rows import markdown
from wmlsearch.config import RunSettings
from wmlsearch.search.outcome_model import OutcomeModel, TrainedCurve, best_so_far
from wmlsearch.search.predictive import PredictiveHalving
from wmlsearch.search.scheduler import Scheduler
from wmlsearch.space import SearchSpace

EPOCHS_SEEN = (1, 2, 3, 6, 9)
TAUGHT = (20, 40, 80)  # full curves of the same task
TRIALS = (20, 160)  # of a replayed search
KEPT, BEST = 1 / 3, 1 / 10
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


def search(task: Sequence[TrainedCurve], kind: str, others: Sequence[Sequence[TrainedCurve]]) -> tuple[float, ...]:
    """Replay one trial after the other. Return the share of the best tenth that passes its first rung, the regret, and
    the epochs of all trials."""
    epochs, final = len(task[0].curve), best_so_far([each.curve for each in task])[:, -1]
    settings = RunSettings(epochs=epochs, scheduler="asha" if kind == "asha" else "predictive")
    settings = settings.model_copy(update={"experience": kind == "predictive"})
    taught = others if settings.experience else ()
    rule = (
        Scheduler(settings)
        if kind == "asha"
        else PredictiveHalving(settings, SPACE, lambda number: task[number].values, taught)
    )
    stops = [
        next((e for e, value in enumerate(each.curve, 1) if rule.report(n, e, value, e == epochs)), None)
        for n, each in enumerate(task)
    ]
    first = [settings.grace if isinstance(rule, Scheduler) else rule.rungs_of(n)[0] for n in range(len(task))]
    best = np.argsort(-final, kind="stable")[: max(1, round(BEST * len(task)))]
    ended = [value for value, stop in zip(final, stops, strict=True) if stop is None]
    return (
        float(np.mean([stops[at] != first[at] for at in best])),
        float(max(final) - max(ended)),
        float(sum(stop or epochs for stop in stops)),
        float(np.mean([stop == rung for stop, rung in zip(stops, first, strict=True)])),
    )


def replayed(name: str, tasks: dict[str, list[TrainedCurve]], replays: int) -> list[tuple[str, ...]]:
    """Return the rows of the second table for a task."""
    others, rows = [tasks[other] for other in tasks if other != name], []
    for trials in TRIALS:
        if trials > len(tasks[name]):
            continue
        count = max(2, replays * TRIALS[0] // trials)
        for kind in ("asha", "predictive, --no-experience", "predictive"):
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
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replays", type=int, default=200)
    given = parser.parse_args()
    tasks = {name: trained(name) for name in TASKS}
    print(", ".join(f"{name}: {len(task)} configurations" for name, task in tasks.items()), "\n")
    few = max(1, given.replays // 10)
    rows = [row for name in tasks for row in first_decision(name, tasks, few)]
    print(markdown(("best third after", *(f"epoch {epoch}" for epoch in EPOCHS_SEEN)), rows), "\n")
    rows = [row for name in tasks for row in replayed(name, tasks, given.replays)]
    print(
        markdown(
            ("scheduler", "stopped at the first rung", "best tenth that passes it", "regret (Dice)", "epochs"), rows
        )
    )


if __name__ == "__main__":
    main()
