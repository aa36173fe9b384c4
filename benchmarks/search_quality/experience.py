"""Write the recorded trainings that ship with the package (`wmlsearch/search/recorded/`) from this folder's tables.

    python -m benchmarks.search_quality.experience

A file has a line that describes the task, then a line for each configuration that trained to its end: its searched
hyperparameters, and its best objective up to each epoch with three digits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search_quality.record import HERE, TASKS
from benchmarks.search_quality.tables import MEASURE, Curves
from wmlsearch.search.experience import FORMAT
from wmlsearch.search.outcome_model import TrainedCurve
from wmlsearch.space import SearchSpace

# What the trainings of a task had that its table does not name, where that is not as in `VALUES_BEFORE`.
FIXED: dict[str, dict[str, Any]] = {"phantom": {}, "few": {"norm_momentum": 0.01, "flip_axis": "left-right"}}
RECORDED = Path(__file__).parents[2] / "wmlsearch" / "search" / "recorded"


def trained(task: str) -> list[TrainedCurve]:
    """Return the configurations of a task that trained to their end, in the order of their numbers."""
    table = Curves(HERE / TASKS[task].table, SearchSpace.read(HERE / "space.yaml"))
    return [
        TrainedCurve(dict(curve.values), [row[MEASURE] for row in curve.rows])
        for curve in table.all
        if not curve.diverged
    ]


def as_file(task: str) -> str:
    """Return the content of a task's file."""
    command = f"python -m benchmarks.search_quality.record --task {task}"
    about = {"task": task, "epochs": TASKS[task].epochs, "objective": MEASURE, "command": command}
    lines: list[dict[str, Any]] = [{"format": FORMAT, **about, **({"fixed": FIXED[task]} if FIXED[task] else {})}]
    for each in trained(task):
        curve = [round(float(value), 3) for value in np.maximum.accumulate(each.curve)]
        lines.append({"values": dict(each.values), "curve": curve})
    return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)


def main() -> None:
    """Write the file of each task."""
    for task in TASKS:
        (RECORDED / f"{task}.jsonl").write_text(as_file(task), encoding="utf-8")


if __name__ == "__main__":
    main()
