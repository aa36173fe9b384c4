"""Write the recorded trainings that ship with the package (`wmlsearch/search/recorded/`) from this folder's records.

    python -m benchmarks.search_quality.experience

Two tasks are tables of random configurations (record.py), the others hard cohorts with chosen ones (changes.py). A file
has a line that describes the task, then a line for each configuration that trained to its end: its searched
hyperparameters, its best objective up to each epoch with three digits, and the mean Dice of the sealed patients.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.search_quality import changes
from benchmarks.search_quality.record import HERE, TASKS
from benchmarks.search_quality.tables import MEASURE, Curves
from wmlsearch.config import VALUES_BEFORE, TrialConfig
from wmlsearch.search.experience import FORMAT
from wmlsearch.search.outcome_model import TrainedCurve
from wmlsearch.space import SearchSpace

# What the trainings of a task had that its table does not name, where that is not as in `VALUES_BEFORE`.
FIXED: dict[str, dict[str, Any]] = {"phantom": {}, "few": {"norm_momentum": 0.01, "flip_axis": "left-right"}}
RECORDED = Path(__file__).parents[2] / "wmlsearch" / "search" / "recorded"


@dataclass(frozen=True)
class RecordedTask:
    """A task, with its trainings that went to their end."""

    name: str
    epochs: int
    command: str  # that recorded it
    drawn: bool  # whether the configurations were drawn at random
    fixed: Mapping[str, Any]  # hyperparameters that all had, where those are not as in `VALUES_BEFORE`
    trained: tuple[TrainedCurve, ...]

    def as_file(self) -> str:
        """Return the content of the task's file."""
        about = {"task": self.name, "epochs": self.epochs, "objective": MEASURE, "command": self.command}
        about |= {"drawn": self.drawn}
        lines: list[dict[str, Any]] = [{"format": FORMAT, **about, **({"fixed": self.fixed} if self.fixed else {})}]
        for each in self.trained:
            curve = [round(float(value), 3) for value in np.maximum.accumulate(each.curve)]
            score = {} if each.score is None else {"score": round(each.score, 3)}
            lines.append({"values": dict(each.values), "curve": curve, **score})
        return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)


def trained(task: str) -> list[TrainedCurve]:
    """Return the configurations of a table that trained to their end, in the order of their numbers."""
    table = Curves(HERE / TASKS[task].table, SearchSpace.read(HERE / "space.yaml"))
    return [
        TrainedCurve(dict(curve.values), [row[MEASURE] for row in curve.rows])
        for curve in table.all
        if not curve.diverged
    ]


def of_table(task: str) -> RecordedTask:
    """Return a task whose trainings are a table."""
    command = f"python -m benchmarks.search_quality.record --task {task}"
    return RecordedTask(task, TASKS[task].epochs, command, True, FIXED[task], tuple(trained(task)))


def of_cohort(cohort: int) -> RecordedTask:
    """Return the task of a hard cohort. A hyperparameter is searched there if some configuration changes it."""
    runs = [run for run in changes.recorded() if run.cohort == cohort and len(run.objective) == changes.EPOCHS]
    configs = [run.variant.config for run in runs]
    otherwise = TrialConfig().model_dump()
    searched = [
        name for name in otherwise
        if name != "early_stop_patience" and any(getattr(config, name) != otherwise[name] for config in configs)
    ]  # fmt: skip
    return RecordedTask(
        f"hard-{cohort}",
        changes.EPOCHS,
        "python -m benchmarks.search_quality.changes --record",
        False,
        {name: otherwise[name] for name in VALUES_BEFORE if name not in searched},
        tuple(
            TrainedCurve(
                {name: getattr(config, name) for name in searched}, run.objective, score=float(np.mean(run.sealed))
            )
            for run, config in zip(runs, configs, strict=True)
        ),
    )


def recorded_tasks() -> list[RecordedTask]:
    """Return all tasks whose trainings ship, in the order of the names of their files."""
    cohorts = sorted({run.cohort for run in changes.recorded()})
    return sorted([*map(of_table, TASKS), *map(of_cohort, cohorts)], key=lambda task: task.name)


def main() -> None:
    """Write the file of each task."""
    for task in recorded_tasks():
        (RECORDED / f"{task.name}.jsonl").write_text(task.as_file(), encoding="utf-8")


if __name__ == "__main__":
    main()
