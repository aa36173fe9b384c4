"""The progress of a search or training in the terminal."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from wmlsearch.cli.forecast_tables import forecast_line
from wmlsearch.cli.leaderboard_tables import leaderboard_table, number, score
from wmlsearch.cli.verdict_tables import confirmed_table
from wmlsearch.config import RunSettings
from wmlsearch.forecast.comparison import trials_left_s
from wmlsearch.runs.folders import AnyDir, RunDir, SearchDir
from wmlsearch.runs.leaderboard import Entry, leaderboard
from wmlsearch.runs.objectives import CANDIDATE_METRIC, POOLED_METRIC
from wmlsearch.runs.schema import BAD, RUNNING, UNFINISHED
from wmlsearch.runs.wording import duration, last_line, plural
from wmlsearch.space import SearchSpace

MAX_ROWS = 10  # of the leaderboard while a search runs
FORECAST_TRIALS = 5  # the forecast gives the time left until as many trials have ended, then their time does


class SearchDisplay:
    """Shows a running search: a live table in a terminal, otherwise a line for each run that ends."""

    def __init__(self, console: Console, search: SearchDir, space: SearchSpace, settings: RunSettings) -> None:
        self.console, self.search, self.space, self.settings = console, search, space, settings
        self.started = time.monotonic()
        self.forecast = search.forecast() if search.exists() else None  # a new search gets it later
        self.entries: dict[Path, Entry] = {}  # of the trials
        for run in search.trials():  # a resumed search has some
            if run.state not in UNFINISHED:
                self.entries[run.path] = Entry.of(run, space)
        self.final_states: dict[Path, str] = {}
        if search.exists():
            self.final_states = {run.path: run.state for run in search.finals()}
        self.reasons: dict[Path, str] = {}  # printed already, of running runs
        self.current_work = ""  # after the final runs
        self.ended_before = self.ended  # trials that an earlier process has ended
        # One bar for the whole search: a new bar at each change would restart its clock.
        self.bar = Progress(
            TextColumn("trials"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        self.task = self.bar.add_task("", total=settings.trials)
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> SearchDisplay:
        if self.live:
            self.live.start()
            self.live.update(Text("starting Ray ..."))
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()

    def say(self, text: str) -> None:
        """Print a line that stays, above the live table."""
        self.console.print(text, highlight=False, markup=False)

    def update(self, run: AnyDir) -> None:
        """Show a change of the search or of one of its runs."""
        self._show_restart(run)
        if isinstance(run, SearchDir):
            self._show_forecast()
            return
        if run.path.parent.name == "final":
            self._update_final(run)
        elif run.path.parent.name == "trials":
            self._update_trial(run)
        if self.live:
            self.live.update(self._live_view())

    def progress(self, what: str, done: int, total: int) -> None:
        """Show the progress of the work after the final runs."""
        self.current_work = f"{what}: {done} of {total}"
        if self.live:
            self.live.update(self._live_view())
        elif done == total:
            self.console.print(self.current_work, highlight=False)

    def _show_forecast(self) -> None:
        if not self.forecast and (forecast := self.search.forecast()):
            self.forecast = forecast
            self.say(forecast_line(forecast))

    def _show_restart(self, run: AnyDir) -> None:
        """Print why a running run was moved to another process, or a machine gets no more trials, once."""
        status = run.status()
        reason = status.reason if status.state == RUNNING else ""
        if reason and reason != self.reasons.get(run.path):
            self.say(f"{run.record().name}: {reason}")
        self.reasons[run.path] = reason

    def _update_trial(self, run: RunDir) -> None:
        if not self.entries:
            self.started = time.monotonic()
        entry = self.entries[run.path] = Entry.of(run, self.space)
        if not self.live and entry.state != RUNNING:
            left = f", about {duration(self.time_left_s())} left" if self.ended < self.settings.trials else ""
            values = ", ".join(f"{name} {score(name, entry.metric(name))}" for name in self.settings.objective_names)
            self._print_end(entry, values, f"{self.ended} of {self.settings.trials} trials{left}")

    def _update_final(self, run: RunDir) -> None:
        self.final_states[run.path] = run.state
        if not self.live and run.state != RUNNING:
            entry = Entry.of(run, self.space)
            ended = sum(state != RUNNING for state in self.final_states.values())
            value = f"{CANDIDATE_METRIC} {number(entry.metric(CANDIDATE_METRIC), 4)}"
            self._print_end(entry, value, f"{ended} of at most {self.settings.final_run_count} final runs")

    def _print_end(self, entry: Entry, values: str, count: str) -> None:
        state, epochs = entry.state.replace("_", " "), plural(entry.epochs, "epoch")
        self.console.print(f"{entry.name} {state} after {epochs}, {values} ({count})", highlight=False)
        if entry.state in BAD:
            self.console.print(f"  {last_line(entry.reason)}", highlight=False, markup=False)

    @property
    def ended(self) -> int:
        """The number of trials that have ended."""
        return sum(entry.state != RUNNING for entry in self.entries.values())

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
            epoch_s = [entry.metric("epoch_s") or 0.0 for entry in self.entries.values() if entry.best]
            final_run = sum(epoch_s) / max(len(epoch_s), 1) * self.settings.epochs
            final = (self.forecast.final_s if self.forecast else 0) or final_run * self.settings.final_run_count
        return trials + final

    def _live_view(self) -> RenderableType:
        board = leaderboard(self.search)
        has_estimate = self.forecast or self.ended > self.ended_before
        left = f"about {duration(self.time_left_s())} left" if has_estimate else "the first trials are running"
        self.bar.update(self.task, completed=self.ended, description=left)
        epochs = self.settings.epochs
        trials = [entry for entry in self.entries.values() if entry.state == RUNNING]
        finals = [RunDir(path) for path, state in self.final_states.items() if state == RUNNING]
        running = [f"{entry.name} epoch {entry.epochs + 1}/{epochs}" for entry in trials]
        running += [f"{run.record().name} epoch {len(run.rows()) + 1}/{epochs}" for run in finals]
        confirmed = [table] if (table := confirmed_table(self.search)) is not None else []
        return Group(
            self.bar,
            Text(f"now: {self.current_work or ', '.join(running)}"),
            leaderboard_table(board, "", self.console.width, MAX_ROWS),
            *confirmed,
            Text("Ctrl-C stops the search cleanly", style="dim"),
        )


class TrainingDisplay:
    """Shows a single training: a line for each epoch."""

    def __init__(self, console: Console, settings: RunSettings) -> None:
        self.console, self.settings, self.epochs = console, settings, 0

    def update(self, run: AnyDir) -> None:
        """Print the epochs that are new since the last call."""
        rows = run.rows() if isinstance(run, RunDir) else []
        for row in rows[self.epochs :]:
            names = ("train_loss", "val_loss", CANDIDATE_METRIC, POOLED_METRIC)
            metrics = "   ".join(f"{name} {number(row.metrics.get(name), 4)}" for name in names)
            seconds = number(row.metrics.get("epoch_s"), 1)
            self.console.print(
                f"epoch {row.epoch:>3} of {self.settings.epochs}   {metrics}   {seconds} s", highlight=False
            )
        self.epochs = len(rows)
