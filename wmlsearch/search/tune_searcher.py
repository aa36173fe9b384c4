"""Tune's searcher interface: it hands out the trials that the recorder begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from wmlsearch.search.messages import TrialAssignment


class StudySearcher(Searcher):
    """Hands trials to Tune: first the unfinished ones of a resumed search, then new ones.

    The recorder, not Tune, reports results to the study: Tune does not say why a trial ended.

    Args:
        objective: The metric that Tune is told to maximize.
        numbers: The trials to run, in order.
        begin: Returns the assignment of a trial, or None if the search is to end.
    """

    def __init__(self, objective: str, numbers: Sequence[int], begin: Callable[[int], TrialAssignment | None]) -> None:
        super().__init__(metric=objective, mode="max")
        self.numbers, self.begin = list(numbers), begin

    def suggest(self, trial_id: str) -> Any:
        assignment = self.begin(self.numbers[0]) if self.numbers else None
        if assignment is None:
            return Searcher.FINISHED
        self.numbers.pop(0)
        return assignment.as_plain()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: the recorder tells the study."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for Tuner.restore, which is not used: a search is rebuilt from its run folder

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file, since Tune wants one; the study has its journal."""
        Path(checkpoint_path).write_text("", encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        raise RuntimeError("a search is rebuilt from its run folder, not from Tune's checkpoints")
