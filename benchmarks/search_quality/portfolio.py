"""Do first trials from experience find more than random ones?

    python -m benchmarks.search_quality.portfolio [--replays 400]

For each table of random configurations, the portfolio is chosen by the other recorded tasks (experience.py), so the
task's own experience is left out, and each of its configurations is answered by the nearest recorded one. The first
table says what share of random configurations each is better than. The second replays searches of random
configurations, trained to their end, of which the first are replaced by the portfolio: the best value among 5 and among
20 trials, and what the portfolio adds to it. The intervals are of 95 %, over replays.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from benchmarks.search_quality.experience import recorded_tasks, trained
from benchmarks.search_quality.record import HERE, TASKS
from benchmarks.search_quality.tables import MEASURE, Curves
from benchmarks.verdict.rows import markdown
from wmlsearch.config import VALUES_BEFORE
from wmlsearch.search.portfolio import active, choose_portfolio
from wmlsearch.space import SearchSpace

SIZES = (3, 4, 5)
TRIALS = (5, 20)
SPACE = SearchSpace.read(HERE / "space.yaml")


def best(values: list[float]) -> float:
    """Return the best value of a curve; 0 if it has none."""
    return max(values, default=0.0)


def of_portfolio(name: str) -> list[float]:
    """Return the best value on a task of each configuration of a portfolio that the other tasks chose."""
    table = Curves(HERE / TASKS[name].table, SPACE)
    others = [
        [replace(each, fixed={**VALUES_BEFORE, **other.fixed}) for each in other.trained]
        for other in recorded_tasks()
        if other.name != name
    ]
    chosen = choose_portfolio(SPACE, max(SIZES), tasks=others)
    rows = [table.nearest(active(SPACE, values)).rows for values in chosen]
    return [best([row[MEASURE] for row in each]) for each in rows]


def replayed(name: str, portfolio: list[float], replays: int) -> list[tuple[str, ...]]:
    """Return the rows of the second table for a task."""
    final = np.array([best(list(each.curve)) for each in trained(name)])
    rows = []
    for trials in TRIALS:
        drawn = np.stack([np.random.default_rng(r).choice(final, trials, replace=False) for r in range(replays)])
        random = drawn.max(axis=1)
        cells = []
        for size in SIZES:
            rest = drawn[:, : trials - size].max(axis=1, initial=0.0)
            added = np.maximum(rest, max(portfolio[:size])) - random
            cells.append(f"{added.mean():+.3f} ± {1.96 * added.std(ddof=1) / np.sqrt(replays):.3f}")
        rows.append((name, str(trials), f"{random.mean():.3f}", *cells))
    return rows


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replays", type=int, default=400)
    given = parser.parse_args()
    portfolios = {name: of_portfolio(name) for name in TASKS}
    rows = []
    for name, values in portfolios.items():
        final = np.array([best(list(each.curve)) for each in trained(name)])
        rows.append((name, *(f"{(final < value).mean():.2f}" for value in values)))
    print(markdown(("task", *(f"{number}." for number in range(1, max(SIZES) + 1))), rows), "\n")
    rows = [row for name in TASKS for row in replayed(name, portfolios[name], given.replays)]
    print(markdown(("task", "trials", "random", *(f"portfolio of {size}" for size in SIZES)), rows))


if __name__ == "__main__":
    main()
