"""Which configurations get final runs, and which of them is the champion: decided on development patients alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import Entry, Leaderboard
from wmlsearch.runs.names import BASELINE, CHAMPION, PAPER, configuration_of, natural_key
from wmlsearch.runs.objectives import CANDIDATE_METRIC, POOLED_METRIC, best_epoch
from wmlsearch.runs.schema import BAD, GOOD, EpochRow, RunRecord, SelectionRecord
from wmlsearch.runs.wording import be, plural
from wmlsearch.space.effects import identity

FAR_BEHIND = 0.9  # a trial that was ended early is a candidate from this share of the best trial's value on
CUT_SHORT = ("stopped", "interrupted")  # states of trials that were ended before their last epoch
MEASURES = {CANDIDATE_METRIC: "mean Dice per patient", POOLED_METRIC: "pooled Dice"}


@dataclass(frozen=True)
class FinalRun:
    """A final run and what is known of it."""

    run: RunDir
    record: RunRecord
    state: str
    value: float | None  # the metric of the candidates, of the weights that it keeps; None without one

    @property
    def seed(self) -> int:
        return self.record.settings.seed

    @property
    def fold(self) -> int:
        """The fold of development patients on which it validated."""
        return self.record.fold

    @property
    def finished(self) -> bool:
        """Whether it ended well and has a value."""
        return self.state in GOOD and self.value is not None


@dataclass(frozen=True)
class Candidate:
    """A configuration with its final runs."""

    name: str  # "paper" for the baseline, else the trial that found it
    config: TrialConfig
    rate_factors: Mapping[int, float]  # of a child of population based training
    selection: tuple[FinalRun, ...]  # runs that choose the champion, by seed
    judgement: tuple[FinalRun, ...]  # runs that are judged on the sealed test, by seed
    missing_seeds: tuple[int, ...]  # of selection runs that were not begun
    metric: str = CANDIDATE_METRIC  # that the values of its runs are

    @property
    def complete(self) -> bool:
        """Whether the selection runs of all seeds have finished."""
        return not self.missing_seeds and all(run.finished for run in self.selection)

    def mean_over(self, seeds: Sequence[int]) -> float | None:
        """The mean value of the finished selection runs with these seeds; None without one."""
        values = [run.value for run in self.selection if run.finished and run.value is not None and run.seed in seeds]
        return statistics.fmean(values) if values else None

    @property
    def mean(self) -> float | None:
        """The mean value of the finished selection runs; None without one."""
        return self.mean_over(self.finished_seeds)

    @property
    def standard_error(self) -> float | None:
        """The standard error of the mean; None with a single finished selection run."""
        values = [run.value for run in self.selection if run.finished and run.value is not None]
        return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None

    @property
    def finished_seeds(self) -> tuple[int, ...]:
        """The seeds of the finished selection runs."""
        return tuple(run.seed for run in self.selection if run.finished)

    @cached_property
    def runs(self) -> tuple[FinalRun, ...]:
        """All final runs, those that chose the champion first."""
        return (*self.selection, *self.judgement)


def select_candidates(
    board: Leaderboard, count: int, baseline: TrialConfig, *, all_hyperparameters: bool = False
) -> list[RunDir]:
    """Return the best `count` trials with different configurations, the baseline's excluded, from best to worst.

    A trial that failed or diverged is no candidate. One that was ended before its last epoch is a candidate only if its
    value is at least `FAR_BEHIND` of the best trial's. Two trials are the same if they differ only in hyperparameters
    that have no effect in them, and their learning rate factors (--scheduler pbt) are equal. A child whose best epoch
    its parent trained is left out: its weights are the parent's.

    Args:
        board: The trials, from best to worst.
        count: Maximum number of candidates.
        baseline: The baseline configuration.
        all_hyperparameters: Whether trials also differ by hyperparameters that have no effect, as in older versions.
    """
    selected: dict[tuple[object, ...], RunDir] = {}
    baseline_training = _training(baseline, {}, all_hyperparameters)
    highest = max((entry.value for entry in board.trials if _can_be_candidate(entry) and entry.value), default=0.0)
    for entry in board.trials if count else ():
        run = RunDir(Path(entry.path))
        record = run.record()
        training = _training(record.config, record.rate_factors, all_hyperparameters)
        inherited = (entry.best.epoch if entry.best else 0) <= record.parent_epoch
        if not _can_be_candidate(entry) or training == baseline_training or inherited or training in selected:
            continue
        if entry.state in CUT_SHORT and (entry.value or 0.0) < FAR_BEHIND * highest:
            continue
        selected[training] = run
        if len(selected) == count:
            break
    return list(selected.values())


def _can_be_candidate(entry: Entry) -> bool:
    return entry.value is not None and entry.state not in BAD


def _training(config: TrialConfig, rate_factors: Mapping[int, float], all_hyperparameters: bool) -> tuple[object, ...]:
    values = config.model_dump()
    return tuple(values.values()) if all_hyperparameters else identity(values), tuple(sorted(rate_factors.items()))


def baseline_config(search: SearchDir) -> TrialConfig:
    """Return the baseline configuration of a search: that of its first trial."""
    first = search.trial(0)
    return first.record().config if first.exists() else TrialConfig()


def selection_seeds(search: SearchDir, settings: RunSettings) -> list[int]:
    """Return the seeds of each configuration's selection runs. Those of older versions began with the trials' seed."""
    if any(run.record().purpose == "" for run in search.finals()):
        return [settings.seed + k for k in range(settings.confirm_seeds)]
    return settings.selection_seeds


def read_candidates(search: SearchDir) -> list[Candidate]:
    """Return all configurations that have final runs: the baseline first, then the others from best to worst mean.

    Those that lack a selection run come last.
    """
    final_runs, metric = _read_final_runs(search)
    by_name: dict[str, list[FinalRun]] = {}
    for run in final_runs:
        by_name.setdefault(configuration_of(run.run.name), []).append(run)
    settings = search.record().settings
    seeds = selection_seeds(search, settings) if settings.confirm_top else []
    candidates = []
    for name, runs in by_name.items():
        ordered = sorted(runs, key=lambda run: run.seed)
        selection = tuple(run for run in ordered if run.record.purpose != "judgement")
        begun = {run.seed for run in selection}
        candidates.append(
            Candidate(
                name=name,
                config=ordered[0].record.config,
                rate_factors=ordered[0].record.rate_factors,
                selection=selection,
                judgement=tuple(run for run in ordered if run.record.purpose == "judgement"),
                missing_seeds=tuple(seed for seed in seeds if seed not in begun),
                metric=metric,
            )
        )
    return sorted(candidates, key=_rank)


def _rank(candidate: Candidate) -> tuple[bool, bool, float, list[tuple[int, int, str]]]:
    mean = -math.inf if candidate.mean is None else candidate.mean
    return candidate.name != PAPER, not candidate.complete, -mean, natural_key(candidate.name)


def _read_final_runs(search: SearchDir) -> tuple[list[FinalRun], str]:
    """Read all final runs and the metric of their values: that of older versions if one of them has no other."""
    best: dict[RunDir, tuple[RunRecord, EpochRow | None]] = {}
    for run in search.finals():
        record = run.record()
        best[run] = record, best_epoch(run.rows(), record.settings.objective)
    old = any(row is not None and CANDIDATE_METRIC not in row.metrics for _, row in best.values())
    metric = POOLED_METRIC if old else CANDIDATE_METRIC
    runs = [
        FinalRun(run, record, run.state, row.metrics.get(metric) if row else None)
        for run, (record, row) in best.items()
    ]
    return runs, metric


def select_champion(candidates: Sequence[Candidate]) -> SelectionRecord:
    """Select the configuration with the highest mean over its selection runs; the baseline's if no other is higher.

    Configurations are compared on the seeds, and with them the folds, that the baseline has finished. A candidate that
    lacks one of its selection runs, or failed in one, is not selected.

    Args:
        candidates: All configurations with final runs. Without the baseline's, the best of the others is selected.
    """
    baseline = next((candidate for candidate in candidates if candidate.name == PAPER), None)
    others = [candidate for candidate in candidates if candidate.name != PAPER]
    complete = [candidate for candidate in others if candidate.complete]
    seeds = baseline.finished_seeds if baseline is not None else ()
    if not seeds and complete:
        seeds = complete[0].finished_seeds
    means = {PAPER: baseline.mean_over(seeds) if baseline is not None else None}
    means |= {candidate.name: candidate.mean_over(seeds) for candidate in complete}
    best = max(complete, key=lambda candidate: means[candidate.name] or 0.0, default=None)
    at_baseline = means[PAPER]
    if best is not None and (at_baseline is None or (means[best.name] or 0.0) > at_baseline):
        champion, sentence = best.name, _champion_sentence(best, means, len(seeds))
    else:
        champion, sentence = PAPER, _baseline_sentence(best, means, len(seeds), len(others))
    if left_out := len(others) - len(complete):
        sentence += f" {plural(left_out, 'candidate')} without all selection runs {be(left_out)} left out."
    return SelectionRecord(champion=champion, sentence=sentence, seeds=list(seeds), means=means)


def role_of(candidate: Candidate, champion: str) -> str:
    """Return "baseline", "champion", "baseline and champion" or "". `champion` is the name of the champion, or ""."""
    roles = [BASELINE] if candidate.name == PAPER else []
    return " and ".join([*roles, CHAMPION] if candidate.name == champion else roles)


def _champion_sentence(champion: Candidate, means: Mapping[str, float | None], runs: int) -> str:
    baseline, measure = means[PAPER], MEASURES[champion.metric]
    return (
        f"{champion.name} is the champion: its {measure} on validation patients is {means[champion.name]:.3f} over "
        f"{plural(runs, 'selection run')}, "
        + ("and the baseline configuration finished none." if baseline is None else f"the baseline's {baseline:.3f}.")
    )


def _baseline_sentence(best: Candidate | None, means: Mapping[str, float | None], runs: int, candidates: int) -> str:
    text = "Nothing better than the baseline configuration was found, so it is the champion and the sealed test stays "
    if best is None:
        reason = "no candidate finished its selection runs" if candidates else "no trial is a candidate"
        return f"{text}closed: {reason}."
    return (
        f"{text}closed: its {MEASURES[best.metric]} on validation patients is {means[PAPER]:.3f} over "
        f"{plural(runs, 'selection run')}, that of the best candidate ({best.name}) {means[best.name]:.3f}."
    )


def judgement_pairs(baseline: Candidate, champion: Candidate) -> tuple[list[FinalRun], list[FinalRun]]:
    """Return the finished judgement runs of both that have a partner with the same seed and fold, by seed."""
    finished = [{run.seed: run for run in one.judgement if run.finished} for one in (baseline, champion)]
    shared = sorted(finished[0].keys() & finished[1].keys())
    return [finished[0][seed] for seed in shared], [finished[1][seed] for seed in shared]
