"""Which configurations get final runs, and which of them is the champion: decided on validation patients alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wmlsearch.config import TrialConfig
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import Leaderboard
from wmlsearch.runs.names import BASELINE, CHAMPION, PAPER, configuration_of
from wmlsearch.runs.objectives import CANDIDATE_METRIC, best_epoch
from wmlsearch.runs.schema import BAD, GOOD


@dataclass(frozen=True)
class Candidate:
    """A configuration with its final runs, one for each seed."""

    name: str  # "paper" for the baseline, else the trial that found it
    runs: tuple[RunDir, ...]
    values: tuple[float | None, ...]  # `val_dice_best` of the weights that each run keeps; None where it has none
    config: TrialConfig
    missing_seeds: tuple[int, ...]  # seeds without a run: it was one of the best when the first seeds were trained only

    @property
    def complete(self) -> bool:
        """Whether the run of every seed has finished with a value."""
        return not self.missing_seeds and None not in self.values and all(run.state in GOOD for run in self.runs)

    @property
    def mean(self) -> float | None:
        """The mean value over seeds; None where no run has one."""
        return statistics.fmean(self._numbers) if self._numbers else None

    @property
    def standard_error(self) -> float | None:
        """The standard error of the mean over seeds; None with a single one."""
        numbers = self._numbers
        return statistics.stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else None

    @property
    def score(self) -> float | None:
        """The mean minus one standard error, by which the champion is selected; None where a seed failed."""
        return self.mean - (self.standard_error or 0.0) if self.complete and self.mean is not None else None

    @property
    def best_run(self) -> RunDir:
        """The run with the highest value: the one to use where a single network is wanted."""
        values = [-math.inf if value is None else value for value in self.values]
        return self.runs[values.index(max(values))]

    @property
    def _numbers(self) -> list[float]:
        return [value for value in self.values if value is not None]


def select_candidates(board: Leaderboard, count: int) -> list[RunDir]:
    """Return the best `count` trials with different configurations, the baseline's excluded, from best to worst.

    A trial that a budget interrupted can be selected, one that failed or diverged cannot. Two trials are the same if
    configuration and learning rate factors (--scheduler pbt) are equal. A child whose best epoch its parent trained is
    left out: its weights are the parent's.
    """
    selected: dict[tuple[str, str], RunDir] = {}
    baseline = _identity(TrialConfig(), {})
    for entry in board.trials if count else ():
        run = RunDir(Path(entry.path))
        record = run.record()
        identity = _identity(record.config, record.rate_factors)
        inherited = (entry.best.epoch if entry.best else 0) <= record.parent_epoch
        if entry.value is None or entry.state in BAD or identity == baseline or inherited or identity in selected:
            continue
        selected[identity] = run
        if len(selected) == count:
            break
    return list(selected.values())


def _identity(config: TrialConfig, rate_factors: Mapping[int, float]) -> tuple[str, str]:
    return repr(sorted(config.model_dump().items())), repr(sorted(rate_factors.items()))


def read_candidates(search: SearchDir) -> list[Candidate]:
    """Return all configurations that have final runs: the baseline first, then the others from best to worst score."""
    runs: dict[str, list[RunDir]] = {}
    for run in search.finals():
        runs.setdefault(configuration_of(run.name), []).append(run)
    candidates, seeds = [], search.record().settings.final_seeds
    for name, final_runs in runs.items():
        values = tuple(_measure(run) for run in final_runs)
        missing = tuple(seed for seed in seeds if not search.final(name, seed).exists())
        candidates.append(Candidate(name, tuple(final_runs), values, final_runs[0].record().config, missing))
    return sorted(candidates, key=_rank)


def _measure(run: RunDir) -> float | None:
    best = best_epoch(run.rows(), run.record().settings.objective)
    return best.metrics.get(CANDIDATE_METRIC) if best else None


def _rank(candidate: Candidate) -> tuple[bool, float, str]:
    score = candidate.score if candidate.score is not None else -math.inf
    return candidate.name != PAPER, -score, candidate.name


def select_champion(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the candidate with the best score, the baseline excluded; None where no other finished with all seeds."""
    others = [candidate for candidate in candidates if candidate.name != PAPER and candidate.score is not None]
    return others[0] if others else None


def role_of(candidate: Candidate, champion: str) -> str:
    """Return "baseline", "champion" or "" for a candidate. `champion` is the name of the champion, or ""."""
    return BASELINE if candidate.name == PAPER else CHAMPION if candidate.name == champion else ""


def finished_baseline(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the baseline; None where it has not finished with all seeds."""
    baselines = [candidate for candidate in candidates if candidate.name == PAPER and candidate.score is not None]
    return baselines[0] if baselines else None
