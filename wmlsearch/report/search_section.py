"""What the report says of the search: its trials, how they ended, what failed, what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wmlsearch.report.tables import run_seconds
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import Entry, Leaderboard
from wmlsearch.runs.names import natural_key
from wmlsearch.runs.schema import BAD
from wmlsearch.runs.wording import duration, last_line

TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class TrialRow:
    """A row of the table of trials."""

    rank: int | str  # from 1; "front" on the Pareto front, "" without a value
    name: str
    objectives: Sequence[float | None]  # at the best epoch
    epochs: int
    seconds: float | None
    state: str
    config: dict[str, str]  # the searched hyperparameters
    baseline: bool  # the baseline configuration


def ranked_trials(board: Leaderboard) -> list[TrialRow]:
    """Return a row for each trial, from best to worst."""
    return [_trial_row(rank, entry, board) for rank, entry in enumerate(board.trials, 1)]


def _trial_row(rank: int, entry: Entry, board: Leaderboard) -> TrialRow:
    on_front = any(entry.path == other.path for other in board.front)
    ranked = entry.value is not None and not board.objectives
    return TrialRow(
        rank="front" if on_front else rank if ranked else "",
        name=entry.name,
        objectives=[entry.metric(name) for name in (board.objectives or (board.objective,))],
        epochs=entry.epochs,
        seconds=run_seconds(RunDir(Path(entry.path))),
        state=entry.state.replace("_", " ") + (", from experience" if entry.from_experience else ""),
        config={k: f"{value:.3g}" if isinstance(value, float) else str(value) for k, value in entry.config.items()},
        baseline=entry.is_baseline,
    )


@dataclass(frozen=True)
class Ending:
    """Trials that ended in the same state for the same reason."""

    state: str
    reason: str
    trials: list[str]


def endings(board: Leaderboard) -> list[Ending]:
    """Return how the trials ended, the most frequent way first."""
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in sorted(board.trials, key=lambda entry: natural_key(entry.name)):
        reason = last_line(entry.reason) if entry.state in BAD else entry.reason
        groups.setdefault((entry.state.replace("_", " "), reason), []).append(entry.name)
    ways = [Ending(state, reason, names) for (state, reason), names in groups.items()]
    return sorted(ways, key=lambda ending: (-len(ending.trials), ending.state, ending.reason))


@dataclass(frozen=True)
class Failure:
    """Runs that failed with the same error."""

    state: str
    reason: str
    traceback: str  # of the first one, or ""
    runs: list[str]


def failures(search: SearchDir) -> list[Failure]:
    """Return the errors of trials and final runs."""
    errors: dict[tuple[str, str], Failure] = {}
    for run in search.trials() + search.finals():
        if run.state not in BAD:
            continue
        status = run.status()
        reason = status.reason
        traceback = status.traceback or (reason if "\n" in reason.strip() else "")
        failure = Failure(run.state.replace("_", " "), last_line(reason), traceback, [])
        errors.setdefault((failure.state, failure.reason), failure).runs.append(run.record().name)
    return list(errors.values())


@dataclass(frozen=True)
class Child:
    """A trial of population based training that continued another one."""

    name: str
    parent: str
    parent_epoch: int  # after which it continued
    rate_factors: str


def children(board: Leaderboard) -> list[Child]:
    """Return the children of population based training, by name."""
    entries = sorted((entry for entry in board.trials if entry.parent), key=lambda entry: natural_key(entry.name))
    runs = [RunDir(Path(entry.path)) for entry in entries]
    return [
        Child(entry.name, entry.parent, run.record().parent_epoch, rate_factors_text(run))
        for entry, run in zip(entries, runs, strict=True)
    ]


def rate_factors_text(run: RunDir) -> str:
    """Return how population based training changed the learning rate: "(times) 0.8 from epoch 3"; or ""."""
    return ", ".join(f"{TIMES} {factor:g} from epoch {epoch}" for epoch, factor in run.record().rate_factors.items())


def costs(search: SearchDir) -> list[tuple[str, str]]:
    """Return what trials and final runs took, in words: time, epochs, GPU-hours."""
    used = search.usage()
    lines: list[tuple[str, str]] = []
    for what, seconds, runs in (
        ("trials", used.seconds, search.trials()),
        ("final runs", used.final_seconds, search.finals()),
    ):
        if epochs := sum(len(run.trained_rows()) for run in runs):
            lines += [(f"time of the {what}", duration(seconds)), (f"epochs of the {what}", str(epochs))]
    gpu_s = used.gpu_seconds + used.final_gpu_seconds
    return [*lines, ("GPU-hours", f"{gpu_s / 3600:.2f}" if gpu_s else "none used")]
