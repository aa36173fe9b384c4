"""How many bytes the checkpoints of a search take."""

from __future__ import annotations

from wmlsearch.runs.folders import AnyDir, RunDir, SearchDir
from wmlsearch.workflows.placement import Placement


class CheckpointUsage:
    """Records the most bytes that the checkpoints of a search took at a time, if they are kept in its run folders."""

    def __init__(self, search: SearchDir, placement: Placement) -> None:
        self.search, self.in_run_folders = search, not placement.storage
        self.runs_with_checkpoints: set[RunDir] = set()
        self.peak_bytes = search.usage().checkpoint_bytes

    def update(self, run: AnyDir) -> None:
        """Measure a run that has changed, and those that had checkpoints at the last call."""
        if not self.in_run_folders or isinstance(run, SearchDir):
            return
        sizes = {each: each.checkpoint_bytes() for each in (*self.runs_with_checkpoints, run)}
        self.runs_with_checkpoints = {each for each, size in sizes.items() if size}
        if sum(sizes.values()) > self.peak_bytes:
            self.peak_bytes = sum(sizes.values())
            self.search.update_usage(checkpoint_bytes=self.peak_bytes)
