"""The time of a trial beside its training, compared with other ways to run trials.

    python -m benchmarks.turnaround

On two cores: wall time from the first trial's start to the last one's end, times the trials at once, minus the seconds
that the training function itself reports (the same for all), divided by the number of trials. The start of Ray is not
counted; the start of the processes in which trials run is counted. The search is complete: forest, run folder,
checkpoints, MLflow mirror; the others only train. Two-worker trials are counted after the first. Each way runs in a
separate process with a time limit.
"""

from __future__ import annotations

import heapq
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import trivial
from benchmarks.processes import Overdue, call
from benchmarks.table import Row, show

LIMIT_S = 300
Trials = Sequence[tuple[float, float, float]]  # of each: when it was started, when it had ended, seconds of training


def measure() -> list[Row]:
    """Measure wmlsearch's trials of one worker and of two, each against the other ways in the same run."""
    with tempfile.TemporaryDirectory() as folder:
        data = trivial.make_data(Path(folder))
        call(trivial.make_store, folder, limit_s=LIMIT_S)
        one = _measure(trivial.search, data, folder, 50, 1)
        trainer = _measure(trivial.torch_trainer, data, folder, 5, 1)
        function = _measure(trivial.tune_function, data, folder, 20)
        optuna = _measure(trivial.optuna_alone, data, 10)
        pairs = _measure(trivial.search, data, folder, 12, 2)[1:]
        trainer_of_two = _measure(trivial.torch_trainer, data, folder, 5, 2)[1:]
    of_one, of_two = "turnaround, 50 trials of one worker", "turnaround, 12 trials of two workers, after the first"
    nested = "5 of a TorchTrainer in a Tune function"
    return [
        _row(of_one, one, 0.3),
        _row(of_one, one, 50, nested, trainer),
        _row(of_one, one, 3, "20 of a Tune function", function),
        _row(of_one, one, 1, "10 of Optuna with a process each", optuna),
        _row(of_two, pairs, 1.0),
        _row(of_two, pairs, 20, nested, trainer_of_two),
    ]


def platform_s(trials: Trials, begun: float, at_once: int) -> list[float]:
    """Return the seconds of each trial beside its training, from when its slot was free until it ended."""
    free, result = [begun] * at_once, []
    for _, ended, trained in sorted(trials):
        result.append(ended - heapq.heappop(free) - trained)
        heapq.heappush(free, ended)
    return result


def _measure(way: Callable[..., Any], *arguments: Any) -> list[float]:
    """Return the platform seconds of each trial of a way; none if it has not ended within its time limit."""
    try:
        result = call(way, *arguments, limit_s=LIMIT_S)
    except Overdue as error:
        print(error)
        return []
    return platform_s(result["trials"], result["begun"], result["at_once"])


def _row(what: str, ours: Sequence[float], aim: float, name: str = "", other: Sequence[float] = ()) -> Row:
    """Return the row that compares our time with an aim in seconds, or with another way if `name` is set."""
    if not name:
        return Row(what, _words(ours), aim=f"at most {aim:g} s", met=statistics.mean(ours) <= aim if ours else None)
    ratio = statistics.mean(other) / statistics.mean(ours) if ours and other else None
    wanted = f"{aim:g}x less" if aim > 1 else "less"
    return Row(what, _words(ours), f"{name}: {_words(other)}", ratio, wanted, None if ratio is None else ratio > aim)


def _words(seconds: Sequence[float]) -> str:
    if not seconds:
        return f"not ended within {LIMIT_S} s"
    return f"{statistics.mean(seconds):.2f} s (median {statistics.median(seconds):.2f})"


if __name__ == "__main__":
    show(__doc__, measure)
