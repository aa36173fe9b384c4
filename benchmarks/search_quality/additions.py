"""What one addition gains a search: searches of a small space, and of the same space with one addition.

    python -m benchmarks.search_quality.additions [--replays 40] [--jobs 2] [--task NAME ...]

Searches are replayed as in outcome.py, without experience, on the tasks that were recorded from `wide.yaml`. The small
space has the hyperparameters of networks and training that the default space had before the newer ones existed. What is
not searched has the baseline's value. Compared is the sealed Dice of what wmlsearch hands over, in pairs by replay: an
addition that gains nothing costs trials, so it is below 0. The last rows add together what gains on its own, and
everything.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import repeat
from typing import Any

import numpy as np

from benchmarks.search_quality.methods import Ours
from benchmarks.search_quality.outcome import FIRST_SEED, ScoredDivision, confirmed, interval
from benchmarks.search_quality.surrogate import Benchmark, Surrogate, benchmarks
from benchmarks.verdict.rows import markdown
from wmlsearch.config import TrialConfig
from wmlsearch.space import SearchSpace

SMALL: Mapping[str, Any] = {
    "depth": {"choices": [2, 3, 4]},
    "base_channels": {"choices": [4, 8, 16]},
    "norm": {"choices": ["batch", "instance"]},
    "dropout": {"low": 0.0, "high": 0.4},
    "loss": {"choices": ["bce", "dice", "bce_dice"]},
    "learning_rate": {"low": 3e-4, "high": 3e-2, "log": True},
    "batch_size": {"low": 4, "high": 32, "log": True},
    "schedule": {"choices": ["plateau", "cosine", "onecycle", "constant"]},
    "augment": {"choices": ["none", "flip", "affine"]},
}
ADDITIONS: Mapping[str, Mapping[str, Any]] = {
    "input_slices": {"input_slices": {"choices": [1, 3]}},
    "intensity": {"intensity": {"choices": ["range", "zscore"]}},
    "network": {"network": {"choices": ["paper", "residual"]}},
    "norm_momentum": {"norm_momentum": {"low": 0.01, "high": 0.3, "log": True, "when": {"norm": "batch"}}},
    "loss: focal, tversky": {
        "loss": {"choices": ["bce", "dice", "bce_dice", "focal", "tversky"]},
        "tversky_alpha": {"low": 0.2, "high": 0.5, "when": {"loss": "tversky"}},
    },
    "dice_over": {"dice_over": {"choices": ["slice", "batch"], "when": {"loss": ["dice", "bce_dice"]}}},
    "optimizer": {
        "optimizer": {"choices": ["adam", "adamw"]},
        "weight_decay": {"choices": [0.0, 1e-4, 1e-2], "when": {"optimizer": "adamw"}},
    },
    "lesion_share": {"lesion_share": {"choices": [None, 0.3, 0.6]}},
    "schedule: poly": {"schedule": {"choices": ["plateau", "cosine", "poly", "onecycle", "constant"]}},
    "ema": {"ema": {"choices": [0.0, 0.95]}},
    "narrower ranges": {
        "dropout": {"low": 0.0, "high": 0.3},
        "learning_rate": {"low": 1e-3, "high": 3e-2, "log": True},
        "batch_size": {"low": 4, "high": 16, "log": True},
    },
    "augment: three strengths": {"augment": {"choices": ["none", "flip", "affine", "light", "medium", "strong"]}},
}
NOTHING, GAINING, EVERYTHING = "nothing", "those that gain", "everything"


class Narrowed(Surrogate):
    """A surrogate that answers the proposals of a part of its space."""

    def __init__(self, whole: Surrogate, space: SearchSpace) -> None:
        super().__init__(whole.space, whole.recorded)
        self._whole, self.space = whole.space, space

    def mean_curves(self, configurations: Sequence[Mapping[str, Any]]) -> np.ndarray:
        whole = [self._whole.active_values(self.space.config(values)) for values in configurations]
        return super().mean_curves(whole)


def space_with(additions: Iterable[str]) -> SearchSpace:
    """Return the small space with additions."""
    values = dict(SMALL)
    for name in additions:
        values |= ADDITIONS[name]
    space = SearchSpace.from_mapping(values, "additions")
    if reasons := space.mismatches(TrialConfig()):
        raise ValueError(f"the baseline is not in the space: {'; '.join(reasons)}")
    return space


@cache
def _narrowed(task_name: str, additions: tuple[str, ...]) -> list[ScoredDivision]:
    """Return the divisions of a task with the small space and additions."""
    (task,) = (each for each in benchmarks() if each.name == task_name)
    space = space_with(additions)
    narrowed = replace(task, surrogates=tuple(Narrowed(surrogate, space) for surrogate in task.surrogates))
    return [ScoredDivision.of(narrowed, surrogate) for surrogate in narrowed.surrogates]


def handed_over(task_name: str, additions: tuple[str, ...], seed: int) -> float:
    """Replay a search, and return the sealed Dice of what it hands over, the mean over a task's divisions."""

    def make(task: Benchmark, seed: int) -> Ours:
        return Ours(task.space, task.epochs, seed, experience=False)

    return float(np.mean([confirmed(make, division, seed).network for division in _narrowed(task_name, additions)]))


def compared(task: str, replays: int, pool: ProcessPoolExecutor) -> str:
    """Return the table of a task."""
    seeds = range(FIRST_SEED, FIRST_SEED + replays)

    def searches(additions: tuple[str, ...]) -> np.ndarray:
        return np.array(list(pool.map(handed_over, repeat(task), repeat(additions), seeds)))

    dice = {NOTHING: searches(())} | {name: searches((name,)) for name in ADDITIONS}
    gaining = tuple(name for name in ADDITIONS if (dice[name] - dice[NOTHING]).mean() > 0)
    dice |= {GAINING: searches(gaining), EVERYTHING: searches(tuple(ADDITIONS))}
    rows = [
        (name, f"{values.mean():.3f}", "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval(values - dice[NOTHING])))
        for name, values in dice.items()
    ]
    return markdown((f"{task}: what is added", "sealed Dice", "gain [95 %]"), rows)


def main() -> None:
    """Print the table of each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replays", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--task", nargs="*", metavar="NAME", help="tasks (default: all recorded from wide.yaml)")
    given = parser.parse_args()
    wide = [each.name for each in benchmarks() if "input_slices" in each.space.dimensions]
    with ProcessPoolExecutor(given.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for task in given.task or wide:
            print(compared(task, given.replays, pool), "\n", flush=True)


if __name__ == "__main__":
    main()
