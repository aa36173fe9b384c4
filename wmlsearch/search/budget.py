"""When a search should end before its last trial: its budgets, a wish to stop, an error that comes again and again."""

from __future__ import annotations

import re
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from ray import tune

from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.schema import EpochRow

TICK_S = 1.0  # how often the clock is read and the run folder asked
SAME_ERRORS = 3  # so many trials with the same traceback are no accident
STOP_WISH = "stopped by `wmlsearch stop`"


class Budget(tune.Stopper):
    """What the trials have used, over all sessions of a search, and the `reason` to end it, once there is one.

    Time in which no process ran the search does not count. The trials end while enough is left of a budget for the
    final runs, as far as their epochs can be foreseen. Tune asks `stop_all` at each turn of its loop.
    """

    def __init__(self, search: SearchDir, settings: RunSettings, slots: Slots) -> None:
        self.search, self.settings = search, settings
        self.gpus_per_trial = slots.workers * slots.gpus
        self.reason, self.failed = "", False
        self.broken: OSError | None = None  # why the run folder or a storage can't be written any more
        self.slots = slots.count
        self.running = 0  # trials, as the recorder counts them
        self.epochs, self.epochs_s, self.best_dice = 0, 0.0, 0.0
        for run in search.trials():
            for row in run.trained_rows():
                self.add(row)
        used = search.usage()
        self._seconds, self._gpu_seconds = used.seconds, used.gpu_seconds
        self._last = time.monotonic()
        self._errors: Counter[str] = Counter()

    def add(self, row: EpochRow) -> None:
        """An epoch of a trial."""
        self.epochs += 1
        self.epochs_s += row.metrics.get("epoch_s") or 0.0
        self.best_dice = max(self.best_dice, row.metrics.get("val_dice_best") or 0.0)

    def add_error(self, trace: str) -> None:
        """A trial ended by an error in the program."""
        self._errors[_place(trace)] += 1
        if self._errors[_place(trace)] >= SAME_ERRORS and not self.reason:
            self.reason = f"{SAME_ERRORS} trials failed with the same error:\n{trace.strip()}"
            self.failed = True

    def break_off(self, error: OSError) -> None:
        """The search can't go on: what it is told could not be kept."""
        self.broken = self.broken or error
        self.reason = self.reason or f"stopped, since {error}"

    def tick(self, at_least_s: float = 0.0) -> None:
        """Count the time since the last tick, if it is long enough ago."""
        passed = time.monotonic() - self._last
        if passed >= at_least_s:
            self._last += passed
            self._seconds += passed
            self._gpu_seconds += passed * self.running * self.gpus_per_trial
            with suppress(OSError):  # the disk is full or away: a later tick writes it, and an epoch's line says so
                self.search.update_usage(seconds=self._seconds, gpu_seconds=self._gpu_seconds)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self.reason:
            return True
        before = self._last
        self.tick(TICK_S)
        if self._last != before and self.search.stop_requested():
            self.reason = STOP_WISH
        else:
            self.reason = self._reached()
        return bool(self.reason)

    def _reached(self) -> str:
        limits, runs = self.settings, self.settings.final_runs
        run_s = limits.epochs * self.epochs_s / max(self.epochs, 1)  # if it takes all its epochs
        at_once = max(min(self.slots, runs), 1)
        for name, used, final, limit in (
            ("--max-hours", self._seconds / 3600, run_s * -(-runs // at_once) / 3600, limits.max_hours),
            ("--max-gpu-hours", self._gpu_seconds / 3600, run_s * runs * self.gpus_per_trial / 3600,
             limits.max_gpu_hours),
            ("--max-epochs-total", self.epochs, runs * limits.epochs, limits.max_epochs_total),
            ("--target-dice", self.best_dice, 0, limits.target_dice),
        ):  # fmt: skip
            if limit is not None and used + final >= limit:
                kept = f", {final:.3g} of it are kept for the final runs" if final else ""
                return f"{name} {limit:g} is reached{kept}"
        return ""


def _place(trace: str) -> str:
    """What two tracebacks of the same error share: where it was raised, and its kind."""
    places = re.findall(r'File "([^"]+)", line (\d+)', trace)
    kind = trace.strip().splitlines()[-1].partition(":")[0] if trace.strip() else ""
    return f"{places} {kind}"
