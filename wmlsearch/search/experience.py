"""Recorded trainings that ship with the package: from them a search knows something before its first trial.

A file of `recorded/` holds those of one task, as `python -m benchmarks.search_quality.experience` writes it: a line
that describes the task, then a line for each training with its hyperparameters, its best objective up to each epoch,
and where other patients were sealed, their Dice as `score`.
`fixed` in the first line has hyperparameters that all of its trainings had. Those that are nowhere named were as in
`VALUES_BEFORE`, or as the baseline's.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

from wmlsearch.config import VALUES_BEFORE
from wmlsearch.search.outcome_model import TrainedCurve

FORMAT = 1


@cache
def recorded_tasks() -> tuple[tuple[TrainedCurve, ...], ...]:
    """Return the recorded trainings of each task, in the order of the names of the tasks."""
    files = sorted(
        (file for file in resources.files("wmlsearch.search.recorded").iterdir() if file.name.endswith(".jsonl")),
        key=lambda file: file.name,
    )
    return tuple(read_task(file.read_text(encoding="utf-8")) for file in files)


def read_task(text: str) -> tuple[TrainedCurve, ...]:
    """Return the trainings of a file."""
    task, *lines = map(json.loads, text.splitlines())
    fixed = {**VALUES_BEFORE, **task.get("fixed", {})}
    return tuple(TrainedCurve(line["values"], line["curve"], fixed, line.get("score")) for line in lines)
