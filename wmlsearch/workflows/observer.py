"""What the caller of a search or training gets: callbacks while it runs, and its outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wmlsearch.runs.early_end import EarlyEnd, EndCause
from wmlsearch.runs.folders import AnyDir
from wmlsearch.runs.progress import Progress


def _ignore_change(run: AnyDir) -> None:
    """Do nothing."""


def _ignore_progress(step: str, done: int, total: int) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Observer:
    """Callbacks that follow a search or training."""

    on_change: Callable[[AnyDir], None] = _ignore_change  # called after each change in a run folder, with that folder
    say: Callable[[str], None] = print  # shows a message to the user
    progress: Progress = _ignore_progress  # called while the sealed test is evaluated
    # Ends this process at once, with a status, as a second Ctrl-C or a dead Ray asks for. None: the process belongs to
    # the user, such as a notebook, and the caller gets an error; the process ends only if a dead Ray never lets go.
    end_process: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Outcome:
    """How a search or training ended."""

    run: AnyDir
    early_end: EarlyEnd | None  # why it ended before all its trials or epochs were done; None if it did not
    mlflow_problem: str  # why MLflow lacks part of it; "" if MLflow has everything
    pictures: tuple[Path, ...] = ()  # pages and images that were written

    @property
    def interrupted(self) -> bool:
        """Whether a request to stop or an error of the storage ended it, so that it can be resumed."""
        return self.early_end is not None and self.early_end.resumable

    @property
    def lost_ray(self) -> bool:
        """Whether it ended because Ray's servers died."""
        return self.early_end is not None and self.early_end.cause is EndCause.RAY_DIED
