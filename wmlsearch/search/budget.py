"""When a search ends before its last trial: a budget is used up, a stop is requested, or trials keep failing."""

from __future__ import annotations

import re
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from ray import tune

from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings
from wmlsearch.runs.early_end import STOP_REQUESTED, EarlyEnd, EndCause
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.lock import check_still_held
from wmlsearch.runs.objectives import dice_value
from wmlsearch.runs.schema import RUNNING, EpochRow

TICK_S = 1.0  # between two looks at the clock and at the run folder
SAME_ERRORS = 3  # trials with the same traceback one after another, after which the search ends; at least all slots


class Budget(tune.Stopper):
    """What the trials of a search have used, over all of its sessions, and why it ends early.

    Time in which no process ran the search does not count. The trials end early enough to leave the expected cost of
    the final runs in each budget. Tune calls `stop_all` at each turn of its loop.

    Attributes:
        storage_error: Why the run folder or the storage cannot be written any more, or None.
        running: The number of trials that have their machines; the recorder sets it.
        waiting: The number of trials that wait for machines; the recorder sets it.
    """

    def __init__(self, search: SearchDir, settings: RunSettings, slots: Slots) -> None:
        self.search, self.settings = search, settings
        self.gpus_per_trial = slots.workers * slots.gpus
        self._failure: EarlyEnd | None = None  # an error
        self._request: EarlyEnd | None = None  # a signal
        self._ending: EarlyEnd | None = None  # all others
        self.storage_error: OSError | None = None
        self.slots = slots
        self.running = self.waiting = 0
        self.epochs, self.epochs_s, self.best_dice = 0, 0.0, 0.0
        for run in search.trials():
            for row in run.trained_rows():
                self.add(row)
        used = search.usage()
        self._seconds, self._gpu_seconds = used.seconds, used.gpu_seconds
        self._last, self._unwritten_s = time.monotonic(), 0.0
        self._errors: Counter[str] = Counter()  # by kind: since a trial has ended without an error

    @property
    def early_end(self) -> EarlyEnd | None:
        """Why the trials end early; None while they go on."""
        return self._failure or self._request or self._ending

    @property
    def reason(self) -> str:
        """The text of `early_end`, one line and perhaps a traceback; "" while the trials go on."""
        return str(self.early_end or "")

    @property
    def failed(self) -> bool:
        """Whether an error ends the trials: in the program, or of every machine."""
        return self._failure is not None

    def add(self, row: EpochRow) -> None:
        """Count an epoch of a trial."""
        self.epochs += 1
        self.epochs_s += row.metrics.get("epoch_s") or 0.0
        self.best_dice = max(self.best_dice, dice_value(row, self.settings.objective) or 0.0)

    def add_error(self, trace: str) -> None:
        """Count a trial that an error in the program ended."""
        kind = _error_kind(trace)
        self._errors[kind] += 1
        if self._errors[kind] >= max(SAME_ERRORS, self.slots.count):
            text = f"{self._errors[kind]} trials failed with the same error:\n{trace.strip()}"
            self.fail(EarlyEnd(EndCause.ERROR, text))

    def add_success(self) -> None:
        """Count a trial that no error ended: the errors before were those of single configurations."""
        self._errors.clear()

    def fail(self, end: EarlyEnd) -> None:
        """End the search, since no trial can succeed."""
        if self.early_end is None:
            self._failure = end

    def request(self, end: EarlyEnd) -> None:
        """End the search, since a signal asks for it. It may come at any line of the other methods."""
        self._request = end

    def end(self, reason: str) -> None:
        """End the trials, since none can begin any more, as if a budget were used up."""
        self._ending = self._ending or EarlyEnd(EndCause.BUDGET, reason)

    def abort(self, error: OSError) -> None:
        """End the search, since a result could not be written."""
        self.storage_error = self.storage_error or error
        self._ending = self._ending or EarlyEnd.by_storage(error)

    def count(self) -> None:
        """Count the time since the last call. Call it before `running` changes."""
        passed = time.monotonic() - self._last
        self._last += passed
        self._seconds += passed
        self._unwritten_s += passed
        self._gpu_seconds += passed * self.running * self.gpus_per_trial

    def tick(self, at_least_s: float = 0.0) -> bool:
        """Count the time, and write it if at least `at_least_s` seconds are not written. Returns whether it was."""
        self.count()
        if self._unwritten_s < at_least_s:
            return False
        self._unwritten_s = 0.0
        with suppress(OSError):  # a later tick writes it; the recorder reports a disk that is full
            self.search.update_usage(
                seconds=self._seconds,
                gpu_seconds=self._gpu_seconds,
                slots=self.running,
                slots_waiting=self.waiting,
            )
        return True

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self.early_end is not None:
            self._record_request()
            return True
        ticked = self.tick(TICK_S)
        try:
            check_still_held(self.search.path)
        except OSError as error:
            self.abort(error)
            return True
        if ticked and self.search.stop_requested():
            self._ending = STOP_REQUESTED
        else:
            self._ending = self._used_up()
        return self.early_end is not None

    def _record_request(self) -> None:
        """Record a request to stop at once: the trials take seconds to end, which a batch system may not grant."""
        end = self.early_end
        if end is not None and end.cause is EndCause.REQUEST and self.search.state == RUNNING:
            with suppress(OSError):  # the ends of trials and search are recorded once more
                for run in self.search.trials():
                    if run.state == RUNNING:
                        run.set_status("interrupted", end.text)
                self.search.set_status("interrupted", end.text)

    def _used_up(self) -> EarlyEnd | None:
        """Return the end if a budget is used up, or None."""
        limits, runs = self.settings, self.settings.final_run_count
        run_s = limits.epochs * self.epochs_s / max(self.epochs, 1)  # of a final run that trains all epochs
        stages = (limits.selection_run_count, limits.judgement_run_count)  # one after the other
        rounds = sum(-(-count // self.slots.count) for count in stages)
        for name, used, final, limit in (
            ("--max-hours", self._seconds / 3600, run_s * rounds / 3600, limits.max_hours),
            ("--max-gpu-hours", self._gpu_seconds / 3600, run_s * runs * self.gpus_per_trial / 3600,
             limits.max_gpu_hours),
            ("--max-epochs-total", self.epochs, runs * limits.epochs, limits.max_epochs_total),
            ("--target-dice", self.best_dice, 0, limits.target_dice),
        ):  # fmt: skip
            if limit is not None and used + final >= limit:
                reserved = f" ({final:.3g} of it is reserved for the final runs)" if final else ""
                return EarlyEnd(EndCause.BUDGET, f"{name} {limit:g} is reached{reserved}")
        return None


def _error_kind(trace: str) -> str:
    """Return what tracebacks of the same error share: the lines of code and the exception class."""
    lines = re.findall(r'File "([^"]+)", line (\d+)', trace)
    kind = trace.strip().splitlines()[-1].partition(":")[0] if trace.strip() else ""
    return f"{lines} {kind}"
