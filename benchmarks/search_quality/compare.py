"""Compare searches on the recorded curves: epochs until a configuration within 0.01 Dice of the best is found.

    python -m benchmarks.search_quality.compare [--seeds 50] [--jobs 2] [--only NAME ...]

Prints the tables of benchmarks/README.md, and draws regret.png and signals.png beside them. Nothing is trained: see
replay.py. The seed determines all randomness of a run.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.search_quality.replay import MEASURE, Curves, Trace, search
from wmlsearch.space import SearchSpace

HERE = Path(__file__).parent
WITHIN = 0.01  # Dice
MAX_EPOCHS = 1500  # a search is given up after this number of epochs
RESAMPLES = 10_000
SIGNALS = (
    "val_dice_patients_best", "val_dice_best", "val_average_precision", "val_soft_dice", "val_dice_patients",
    "val_dice", "val_loss",
)  # fmt: skip
OURS = "wmlsearch"
STOCK = "Ray OptunaSearch + ASHAScheduler"
RANDOM = "random, full training"


def methods() -> dict[str, Callable[..., Any]]:
    """Return the factory (space, epochs, seed) of each method by name."""
    from benchmarks.search_quality.methods import OptunaAlone, Ours, RandomSearch, RayWithOptuna

    return {
        OURS: Ours,
        "wmlsearch, --sampler tpe": partial(Ours, sampler="tpe"),
        "wmlsearch, --sampler random": partial(Ours, sampler="random"),
        "wmlsearch, reduction factor 4": partial(Ours, reduction_factor=4),
        "wmlsearch, --grace-epochs 1": partial(Ours, grace_epochs=1),
        "wmlsearch, --scheduler hyperband": partial(Ours, scheduler="hyperband"),
        "wmlsearch, --objective val_average_precision": partial(Ours, objective="val_average_precision"),
        STOCK: RayWithOptuna,
        "Optuna + HyperbandPruner": OptunaAlone,
        RANDOM: RandomSearch,
    }


def curves() -> Curves:
    return Curves(HERE / "table.csv", SearchSpace.read(HERE / "space.yaml"))


def run(name: str, seed: int) -> tuple[str, Trace]:
    """Run one search of a method, and return its name and trace."""
    table = curves()
    method = methods()[name](table.space, table.epochs, seed)
    return name, search(method, table, MAX_EPOCHS, table.best - WITHIN)


def median_interval(values: Sequence[float], rng: np.random.Generator) -> tuple[float, float, float]:
    """Return the median and its 95 % bootstrap interval."""
    drawn = np.median(rng.choice(values, (RESAMPLES, len(values))), axis=1)
    return float(np.median(values)), *(float(x) for x in np.quantile(drawn, (0.025, 0.975), method="nearest"))


def ratio_interval(ones: Sequence[float], others: Sequence[float], rng: np.random.Generator) -> tuple[float, ...]:
    """Return the ratio of the medians of two methods and its 95 % bootstrap interval."""
    medians = [np.median(rng.choice(values, (RESAMPLES, len(values))), axis=1) for values in (ones, others)]
    low, high = np.quantile(medians[0] / medians[1], (0.025, 0.975))
    return float(np.median(ones) / np.median(others)), float(low), float(high)


def signal_ranks(table: Curves) -> dict[str, list[float]]:
    """Return for each signal and epoch the Spearman correlation of its values with the trials' final best Dice."""
    completed = [curve for curve in table.all if not curve.diverged]
    final = [max(row[MEASURE] for row in curve.rows) for curve in completed]
    return {
        name: [
            float(
                stats.spearmanr([(-1 if name == "val_loss" else 1) * c.rows[epoch][name] for c in completed], final)[0]
            )
            for epoch in range(table.epochs)
        ]
        for name in SIGNALS
        if name in table.recorded
    }


def draw(table: Curves, traces: dict[str, list[Trace]], ranks: dict[str, list[float]]) -> None:
    """Draw regret.png and signals.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    grid, rng = np.unique(np.geomspace(10, MAX_EPOCHS, 120).astype(int)), np.random.default_rng(0)
    for name in (OURS, STOCK, "Optuna + HyperbandPruner", RANDOM):
        if name in traces:
            regret = table.best - np.stack([trace.at(grid) for trace in traces[name]])
            drawn = np.median(regret[rng.integers(len(regret), size=(2000, len(regret)))], axis=1)
            line = axes.plot(grid, np.median(regret, axis=0), label=name)[0]
            low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
            axes.fill_between(grid, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
    axes.axhline(WITHIN, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="epochs spent", ylabel="Dice below the table's best", ylim=(0.002, 1))
    axes.set_title("Regret: median over seeds with its 95 % interval")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "regret.png", dpi=120)
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for name, values in ranks.items():
        axes.plot(range(1, len(values) + 1), values, "o-", markersize=3, label=name)
    axes.set(xlabel="epoch", ylabel="rank correlation with the best Dice at last", ylim=(-0.2, 1))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "signals.png", dpi=120)


def main() -> None:
    """Run all searches, print the tables, draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="*", help="names of methods")
    given = parser.parse_args()
    table, rng = curves(), np.random.default_rng(0)
    names = given.only or list(methods())
    tasks = [(name, seed) for seed in range(given.seeds) for name in names]
    traces: dict[str, list[Trace]] = {name: [] for name in names}
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for name, trace in pool.map(run, *zip(*tasks, strict=True)):
            traces[name].append(trace)
    goal = table.best - WITHIN
    near = sum(max(row[MEASURE] for row in curve.rows) >= goal for curve in table.all if curve.rows)
    print(f"{len(table.all)} configurations of {table.epochs} epochs")
    print(f"best {MEASURE} {table.best:.4f}, {near} configurations within {WITHIN} of it")
    spent = {name: [trace.epochs_to(goal) for trace in traces[name]] for name in names}
    head = ("epochs, median [95 %]", "of random's", "of stock Ray + Optuna's [95 %]", "not found")
    print(f"\n| search ({given.seeds} seeds) | {' | '.join(head)} |\n|---|{'---:|' * len(head)}")
    for name in names:
        middle, low, high = median_interval(spent[name], rng)
        missed = sum(math.isinf(value) for value in spent[name])
        of_random = f"{middle / np.median(spent[RANDOM]):.2f}" if RANDOM in spent else ""
        of_stock = ""
        if STOCK in spent and name != STOCK:
            capped = [[min(value, MAX_EPOCHS) for value in spent[one]] for one in (name, STOCK)]
            of_stock = "{:.2f} [{:.2f}, {:.2f}]".format(*ratio_interval(*capped, rng))
        print(f"| {name} | {middle:.0f} [{low:.0f}, {high:.0f}] | {of_random} | {of_stock} | {missed} |")
    ranks = signal_ranks(table)
    shown = [epoch for epoch in (1, 2, 3, 6, 9, 18, table.epochs) if epoch <= table.epochs]
    print(f"\n| signal | {' | '.join(f'epoch {epoch}' for epoch in shown)} |\n|---|{'---:|' * len(shown)}")
    for name, values in ranks.items():
        print(f"| {name} | {' | '.join(f'{values[epoch - 1]:.2f}' for epoch in shown)} |")
    draw(table, traces, ranks)


if __name__ == "__main__":
    main()
