"""Which configurations are confirmed, and which of them is the champion: by validation patients alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import BAD, GOOD, RunDir, SearchDir
from wmlsearch.runs.leaderboard import Leaderboard
from wmlsearch.runs.names import PAPER, configuration_of
from wmlsearch.runs.objectives import MEASURE, best_epoch


@dataclass(frozen=True)
class Candidate:
    """A configuration with its final runs: one for each seed."""

    name: str  # "paper", or the trial that it was found by
    runs: tuple[RunDir, ...]
    values: tuple[float | None, ...]  # `val_dice_best` of the weights that each run keeps; None where it has none
    config: Mapping[str, Any]
    lacking: tuple[int, ...]  # seeds without a run: it was among the best when it was begun, and then no more

    @property
    def complete(self) -> bool:
        """All seeds have come to their end with a value."""
        return not self.lacking and None not in self.values and all(run.state in GOOD for run in self.runs)

    @property
    def mean(self) -> float | None:
        known = [value for value in self.values if value is not None]
        return statistics.fmean(known) if known else None

    @property
    def standard_error(self) -> float | None:
        """Of the mean over seeds; None with a single one."""
        known = [value for value in self.values if value is not None]
        return statistics.stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None

    @property
    def score(self) -> float | None:
        """Mean minus one standard error: how good it is at least, probably. None where a seed failed."""
        return self.mean - (self.standard_error or 0.0) if self.complete and self.mean is not None else None

    @property
    def best(self) -> RunDir:
        """Its run with the highest value: the one to use where a single network is wanted."""
        return max(zip(self.runs, self.values, strict=True), key=lambda it: -math.inf if it[1] is None else it[1])[0]


def select_candidates(board: Leaderboard, count: int) -> list[RunDir]:
    """The best `count` trials with different configurations, none of them the paper's, from best to worst.

    One that a budget interrupted may be among them, one that went wrong not.
    Two trials are the same where configuration and rate factors are (--scheduler pbt); a child whose best epoch is its
    parent's is left to its parent.
    """
    chosen: dict[tuple[str, str], RunDir] = {}
    paper = _identity(TrialConfig().model_dump(), {})
    for entry in board.trials:
        run = RunDir(Path(entry.path))
        identity = _identity(run.about()["config"], run.rate_factors())
        inherited = entry.best.get("epoch", 0) <= run.about().get("parent_epoch", 0)
        if entry.value is None or entry.state in BAD or identity == paper or inherited or identity in chosen:
            continue
        chosen[identity] = run
        if len(chosen) == count:
            break
    return list(chosen.values()) if count else []


def _identity(config: Mapping[str, Any], factors: Mapping[int, float]) -> tuple[str, str]:
    return repr(sorted(config.items())), repr(sorted(factors.items()))


def candidates(search: SearchDir) -> list[Candidate]:
    """All configurations that have final runs: the paper's, then the others by their score, the best first."""
    runs: dict[str, list[RunDir]] = {}
    for run in search.finals():
        runs.setdefault(configuration_of(run.name), []).append(run)
    found, seeds = [], RunSettings.of(search.about()["settings"]).final_seeds
    for name, own in runs.items():
        values = tuple(best_epoch(run.rows(), run.about()["settings"]["objective"]).get(MEASURE) for run in own)
        lacking = tuple(seed for seed in seeds if not search.final(name, seed).exists())
        found.append(Candidate(name, tuple(own), values, own[0].about()["config"], lacking))
    return sorted(found, key=lambda it: (it.name != PAPER, -(it.score if it.score is not None else -math.inf), it.name))


def champion(found: list[Candidate]) -> Candidate | None:
    """The best of those other than the paper's; None where none came to its end with all seeds."""
    others = [candidate for candidate in found if candidate.name != PAPER and candidate.score is not None]
    return others[0] if others else None
