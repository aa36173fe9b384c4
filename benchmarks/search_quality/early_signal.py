"""What ranks trials early? And does the mean Dice per patient rank them as early as the pooled Dice does?

    python -m benchmarks.search_quality.early_signal

The first table is of table.csv: the rank correlation between a signal's value at an epoch and the final best Dice. The
second is of patients.csv, which has both means: full learning curves of random configurations, recorded like table.csv
by a later version (`python -m benchmarks.search_quality.record --table benchmarks/search_quality/patients.csv` records
more). For each epoch it has the rank correlation between each of the two, the best so far, and the final best mean Dice
per patient, and their difference with a 95 % bootstrap interval over configurations.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.search_quality.tables import MEASURE, shipped_table
from benchmarks.verdict.rows import markdown

CURVES = Path(__file__).with_name("patients.csv")
PATIENTS, POOLED = "val_dice_patients_best", "val_dice_best"
EPOCHS = (1, 2, 3, 6, 9, 18, 27)
RESAMPLES = 2000
SIGNALS = (
    "val_dice_best", "val_average_precision", "val_soft_dice", "val_dice_patients", "val_dice", "val_loss",
)  # fmt: skip


def signal_table() -> str:
    """Return the rank correlation of each signal's values with the final best Dice of the configurations, by epoch."""
    completed = [curve for curve in shipped_table().all if not curve.diverged]
    final = [max(row[MEASURE] for row in curve.rows) for curve in completed]
    rows = []
    for name in SIGNALS:
        sign = -1 if name == "val_loss" else 1
        values = [[sign * curve.rows[epoch - 1][name] for curve in completed] for epoch in EPOCHS]
        rows.append((name, *(f"{stats.spearmanr(of_epoch, final)[0]:.2f}" for of_epoch in values)))
    return markdown(("signal", *(f"epoch {epoch}" for epoch in EPOCHS)), rows)


def best_so_far(path: Path = CURVES) -> dict[str, np.ndarray]:
    """Return each signal's best value so far of the completed configurations, (configurations, epochs)."""
    rows = defaultdict(list)
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows[row["number"]].append(row)
    curves = [sorted(of_one, key=lambda row: int(row["epoch"])) for of_one in rows.values()]
    completed = [curve for curve in curves if curve[-1]["ended"] == "completed"]
    return {
        signal: np.maximum.accumulate([[float(row[signal]) for row in curve] for curve in completed], axis=1)
        for signal in (PATIENTS, POOLED)
    }


def table(signals: dict[str, np.ndarray]) -> str:
    """Return the rank correlations of both signals by epoch, and their difference."""
    final, rng = signals[PATIENTS][:, -1], np.random.default_rng(0)
    lines = []
    for epoch in EPOCHS:
        mine, pooled = (signals[name][:, epoch - 1] for name in (PATIENTS, POOLED))
        drawn = []
        for _ in range(RESAMPLES):
            of = rng.integers(len(final), size=len(final))
            drawn.append(_correlation(mine[of], final[of]) - _correlation(pooled[of], final[of]))
        low, high = np.quantile(drawn, (0.025, 0.975))
        ranks = (_correlation(mine, final), _correlation(pooled, final))
        interval = f"{ranks[0] - ranks[1]:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append((epoch, f"{ranks[0]:.2f}", f"{ranks[1]:.2f}", interval))
    return markdown(("epoch", PATIENTS, POOLED, "difference [95 %]"), lines)


def _correlation(signal: np.ndarray, final: np.ndarray) -> float:
    return float(stats.spearmanr(signal, final)[0])


def main() -> None:
    """Print both tables."""
    print(signal_table(), "\n")
    signals = best_so_far()
    print(f"{len(signals[PATIENTS])} configurations\n")
    print(table(signals))


if __name__ == "__main__":
    main()
