"""What is said of a running search: its forecast, a line for each run that ends, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from wmlsearch.config import RunSettings
from wmlsearch.forecast.comparison import forecast_line, trials_left_s
from wmlsearch.runs.folders import FINAL_RUNS, TRIALS, AnyDir, RunDir, SearchDir
from wmlsearch.runs.leaderboard import Entry, LiveLeaderboard
from wmlsearch.runs.objectives import CANDIDATE_METRIC
from wmlsearch.runs.schema import BAD, RUNNING, RunStatus, Usage
from wmlsearch.runs.wording import duration, last_line, number, plural, score
from wmlsearch.space import SearchSpace

SLOTS_EVERY_S = 5.0  # between two looks whether slots wait for machines
FORECAST_TRIALS = 5  # the forecast gives the time left until as many trials have ended, then their time does


def slots_in_words(usage: Usage) -> str:
    """Return how many slots have machines, while others wait for some; else ""."""
    have = "slot has its machine" if usage.slots == 1 else "slots have their machines"
    waits = "waits" if usage.slots_waiting == 1 else "wait"
    return f"{usage.slots:g} {have}, {usage.slots_waiting:g} {waits} for machines" if usage.slots_waiting else ""


class SearchLines:
    """Follows a search by the changes in its folder, and says what happens.

    Args:
        search: The search. A new search gets its folder later.
        space: The search space.
        settings: The settings of the search.
        say: Called with each line.
        each_end: Whether to say when a run ends; False where a table shows it.
    """

    def __init__(
        self,
        search: SearchDir,
        space: SearchSpace,
        settings: RunSettings,
        say: Callable[[str], None],
        each_end: bool = True,
    ) -> None:
        self.search, self.space, self.settings, self.say, self.each_end = search, space, settings, say, each_end
        self.started = time.monotonic()
        self.forecast = search.forecast() if search.exists() else None  # a new search gets it later
        self.board = LiveLeaderboard(search, space, settings)  # a resumed search has trials
        self.final_states: dict[Path, str] = {}
        if search.exists():
            self.final_states = {run.path: run.state for run in search.finals()}
        self.reasons: dict[Path, str] = {}  # said already, of running runs
        self.slots_looked, self.slots_said = time.monotonic(), ""
        self.ended_before = self.ended  # trials that an earlier process has ended

    def update(self, run: AnyDir) -> None:
        """Say what has changed in the folder of the search or of one of its runs."""
        status = run.status()
        self._say_restart(run, status)
        self._say_slots()
        if isinstance(run, SearchDir):
            self._say_forecast()
        elif run.path.parent.name == FINAL_RUNS:
            self._update_final(run, status)
        elif run.path.parent.name == TRIALS:
            self._update_trial(run, status)

    def _say_slots(self) -> None:
        """Say how many slots wait for machines, when that has changed."""
        if self.each_end and time.monotonic() - self.slots_looked > SLOTS_EVERY_S and self.search.exists():
            self.slots_looked = time.monotonic()
            usage = self.search.usage()
            words = slots_in_words(usage)
            if words != self.slots_said:
                self.slots_said = words
                if words or usage.slots:  # at the end of the trials there are none
                    self.say(words or "all slots have their machines")

    def _say_forecast(self) -> None:
        if not self.forecast and (forecast := self.search.forecast()):
            self.forecast = forecast
            self.say(forecast_line(forecast))

    def _say_restart(self, run: AnyDir, status: RunStatus) -> None:
        """Say why a running run was moved to another process, or a machine gets no more trials, once."""
        reason = status.reason if status.state == RUNNING else ""
        if reason and reason != self.reasons.get(run.path):
            self.say(f"{run.record().name}: {reason}")
        if reason:
            self.reasons[run.path] = reason
        else:
            self.reasons.pop(run.path, None)

    def _update_trial(self, run: RunDir, status: RunStatus) -> None:
        if not self.board.begun:
            self.started = time.monotonic()
        entry = self.board.update(run, status)
        if self.each_end and entry.state != RUNNING:
            time_left = f", about {duration(self.time_left_s())} left" if self.ended < self.settings.trials else ""
            values = ", ".join(f"{name} {score(name, entry.metric(name))}" for name in self.settings.objective_names)
            self._say_end(entry, values, f"{self.ended} of {plural(self.settings.trials, 'trial')}{time_left}")

    def _update_final(self, run: RunDir, status: RunStatus) -> None:
        self.final_states[run.path] = status.state
        if self.each_end and status.state != RUNNING:
            entry = Entry.of(run, self.space)
            ended = sum(state != RUNNING for state in self.final_states.values())
            value = f"{CANDIDATE_METRIC} {number(entry.metric(CANDIDATE_METRIC), 4)}"
            self._say_end(entry, value, f"{ended} of at most {plural(self.settings.final_run_count, 'final run')}")

    def _say_end(self, entry: Entry, values: str, count: str) -> None:
        state, epochs = entry.state.replace("_", " "), plural(entry.epochs, "epoch")
        self.say(f"{entry.name} {state} after {epochs}, {values} ({count})")
        if entry.state in BAD:
            self.say(f"  {last_line(entry.reason)}")

    @property
    def ended(self) -> int:
        """The number of trials that have ended."""
        return self.board.ended

    def time_left_s(self) -> float:
        """Estimate the seconds left: from the forecast at first, then from the trials that have ended.

        Assumes that the final runs train all epochs.
        """
        passed, ended = time.monotonic() - self.started, self.ended - self.ended_before
        trials = passed / max(ended, 1) * (self.settings.trials - self.ended)
        if self.forecast and ended < FORECAST_TRIALS:
            expected = trials_left_s(self.forecast, self.search.usage())
            trials = expected if expected or not ended else trials
        final = 0.0
        if self.settings.baseline:
            final_run = self.board.epoch_s * self.settings.epochs
            final = (self.forecast.final_s if self.forecast else 0) or final_run * self.settings.final_run_count
        return trials + final
