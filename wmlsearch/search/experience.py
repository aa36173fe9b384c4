"""Recorded trainings that ship with the package: from them a search knows something before its first trial.

A file of `recorded/` holds those of one task, as `python -m benchmarks.search_quality.experience` writes it: a line
that describes the task, then a line for each training with its hyperparameters, its best objective up to each epoch,
and where other patients were sealed, their Dice as `score`. In the first line, `fixed` has hyperparameters that all of
its trainings had. Those that are nowhere named were as in `VALUES_BEFORE`, or as the baseline's. `drawn` says whether
the configurations were drawn at random: a rank among chosen ones is not one among those of a search.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from wmlsearch.config import VALUES_BEFORE
from wmlsearch.search.outcome_model import TrainedCurve

FORMAT = 1


@dataclass(frozen=True)
class RecordedTask:
    """The recorded trainings of one task."""

    name: str
    drawn: bool  # whether their configurations were drawn at random
    trained: tuple[TrainedCurve, ...]

    @classmethod
    def read(cls, text: str) -> RecordedTask:
        """Read the content of a file."""
        task, *lines = map(json.loads, text.splitlines())
        fixed = {**VALUES_BEFORE, **task.get("fixed", {})}
        trained = (TrainedCurve(line["values"], line["curve"], fixed, line.get("score")) for line in lines)
        return cls(task["task"], task["drawn"], tuple(trained))


@cache
def recorded_tasks() -> tuple[RecordedTask, ...]:
    """Return the recorded tasks, in the order of their names."""
    files = (file for file in resources.files("wmlsearch.search.recorded").iterdir() if file.name.endswith(".jsonl"))
    tasks = (RecordedTask.read(file.read_text(encoding="utf-8")) for file in files)
    return tuple(sorted(tasks, key=lambda task: task.name))
