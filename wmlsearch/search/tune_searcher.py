"""Tune's searcher interface: it hands out the trials that the study proposes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher


class StudySearcher(Searcher):
    """Lets Tune draw trials: first the unfinished ones of a resumed search, then from the study.

    What comes of them the study hears from the recorder, with its epoch. `begin(number)` gives what a slot needs to
    know of a trial, or None when the search is to end.
    """

    def __init__(self, objective: str, numbers: Sequence[int], begin: Callable[[int], dict[str, Any] | None]) -> None:
        super().__init__(metric=objective, mode="max")
        self.numbers, self.begin = list(numbers), begin

    def suggest(self, trial_id: str) -> Any:
        begun = self.begin(self.numbers[0]) if self.numbers else None
        if begun is None:
            return Searcher.FINISHED
        self.numbers.pop(0)
        return begun

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Told by the recorder instead: Tune doesn't say why a trial ended."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for Tuner.restore, which isn't used: a search is rebuilt from its run folder

    def save(self, checkpoint_path: str) -> None:
        """Tune wants a file at its checkpoints; ours is the study's journal."""
        Path(checkpoint_path).write_text("", encoding="utf-8")

    def restore(self, checkpoint_path: str) -> None:
        raise RuntimeError("a search is rebuilt from its run folder, not from Tune's checkpoints")
