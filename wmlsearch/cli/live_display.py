"""What the terminal shows: leaderboards, the progress of a search or training, and where to look next."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from wmlsearch.cli.forecast_tables import forecast_line
from wmlsearch.cli.tables import last_line, leaderboard_table, number, score
from wmlsearch.cli.verdict_tables import confirmed_table
from wmlsearch.config import RunSettings
from wmlsearch.forecast.comparison import trials_left_s
from wmlsearch.runs.folders import AnyDir, RunDir, SearchDir
from wmlsearch.runs.leaderboard import Entry, leaderboard
from wmlsearch.runs.objectives import MEASURE
from wmlsearch.runs.schema import BAD, RUNNING, UNFINISHED
from wmlsearch.runs.wording import duration
from wmlsearch.space import SearchSpace

SHOWN = 10  # rows of a leaderboard while a search runs
ENOUGH = 5  # trials that have ended: from then on their time says more than the forecast of the time left


def _epochs(entry: Entry) -> str:
    return f"{entry.epochs} epoch{'s' if entry.epochs != 1 else ''}"


class SearchDisplay:
    """Follows a search: a live table in a terminal, a line for each trial that ends anywhere else."""

    def __init__(self, console: Console, search: SearchDir, space: SearchSpace, settings: RunSettings) -> None:
        self.console, self.search, self.space, self.settings = console, search, space, settings
        self.started, self.entries = time.monotonic(), {}
        self.forecast = search.forecast() if search.exists() else None  # of a new search: there later
        for run in search.trials():  # of a search that is resumed
            if run.state not in UNFINISHED:
                self.entries[run.path] = Entry.of(run, space)
        self.finals: dict[Path, str] = {run.path: run.state for run in search.finals()} if search.exists() else {}
        self.reasons: dict[Path, str] = {}  # of runs that go on, said already
        self.working = ""  # at what, after the final runs
        self.before = self.ended
        # One bar for the whole search: a new one at each change would begin to count its time again.
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
        """A line that stays, above the live table."""
        self.console.print(text, highlight=False, markup=False)

    def changed(self, run: AnyDir) -> None:
        if isinstance(run, SearchDir):
            self._hear_forecast()
            return
        self._hear_reason(run)
        if run.path.parent.name == "final":
            self._final_changed(run)
        elif run.path.parent.name == "trials":
            self._trial_changed(run)
        if self.live:
            self.live.update(self._picture())

    def progress(self, what: str, done: int, total: int) -> None:
        """How far the work after the final runs is."""
        self.working = f"{what}: {done} of {total}"
        if self.live:
            self.live.update(self._picture())
        elif done == total:
            self.console.print(self.working, highlight=False)

    def _trial_changed(self, run: RunDir) -> None:
        if not self.entries:
            self.started = time.monotonic()
        entry = self.entries[run.path] = Entry.of(run, self.space)
        if not self.live and entry.state != RUNNING:
            left = f", about {duration(self.left_s())} left" if self.ended < self.settings.trials else ""
            values = ", ".join(f"{name} {score(name, entry.metric(name))}" for name in self.settings.ranked_by)
            self.console.print(
                f"{entry.name} {entry.state.replace('_', ' ')} after {_epochs(entry)}, {values} "
                f"({self.ended} of {self.settings.trials} trials{left})",
                highlight=False,
            )
            if entry.state in BAD:
                self.console.print(f"  {last_line(entry.reason)}", highlight=False, markup=False)

    def _hear_reason(self, run: RunDir) -> None:
        """What has befallen a run that goes on."""
        status = run.status()
        reason = status.reason if status.state == RUNNING else ""
        if reason and reason != self.reasons.get(run.path):
            self.say(f"{run.record().name}: {reason}")
        self.reasons[run.path] = reason

    def _hear_forecast(self) -> None:
        if not self.forecast and (made := self.search.forecast()):
            self.forecast = made
            self.say(forecast_line(made))

    def _final_changed(self, run: RunDir) -> None:
        self.finals[run.path] = run.state
        ended = sum(state != RUNNING for state in self.finals.values())
        if run.state != RUNNING and not self.live:
            entry = Entry.of(run, self.space)
            self.console.print(
                f"{entry.name} {entry.state.replace('_', ' ')} after {_epochs(entry)}, "
                f"{MEASURE} {number(entry.metric(MEASURE), 4)} "
                f"({ended} of at most {self.settings.final_runs} final runs)",
                highlight=False,
            )
            if entry.state in BAD:
                self.console.print(f"  {last_line(entry.reason)}", highlight=False, markup=False)

    @property
    def ended(self) -> int:
        return sum(entry.state != RUNNING for entry in self.entries.values())

    def left_s(self) -> float:
        """Time left: by the forecast at first, then if the trials to come are like those that ended.

        The final runs are taken to go through all their epochs.
        """
        passed, ended = time.monotonic() - self.started, self.ended - self.before
        trials = passed / max(ended, 1) * (self.settings.trials - self.ended)
        if self.forecast and ended < ENOUGH:
            expected = trials_left_s(self.forecast, self.search.usage())
            trials = expected if expected or not ended else trials
        epoch_s = [entry.metric("epoch_s") or 0.0 for entry in self.entries.values() if entry.best]
        final = 0.0
        if self.settings.baseline:
            of_one = sum(epoch_s) / max(len(epoch_s), 1) * self.settings.epochs
            final = (self.forecast.final_s if self.forecast else 0) or of_one * self.settings.final_runs
        return trials + final

    def _picture(self) -> RenderableType:
        board = leaderboard(self.search)
        known = self.forecast or self.ended > self.before
        left = f"about {duration(self.left_s())} left" if known else "the first trials are running"
        self.bar.update(self.task, completed=self.ended, description=left)
        running = [e for e in self.entries.values() if e.state == RUNNING]
        finals = [RunDir(path) for path, state in self.finals.items() if state == RUNNING]
        now = [f"{e.name} epoch {e.epochs + 1}/{self.settings.epochs}" for e in running]
        now += [f"{run.record().name} epoch {len(run.rows()) + 1}/{self.settings.epochs}" for run in finals]
        confirmed = [table] if (table := confirmed_table(self.search)) is not None else []
        return Group(
            self.bar,
            Text(f"now: {self.working or ', '.join(now)}"),
            leaderboard_table(board, "", self.console.width, SHOWN),
            *confirmed,
            Text("Ctrl-C stops cleanly", style="dim"),
        )


class TrainingDisplay:
    """Follows one training: a line for each epoch."""

    def __init__(self, console: Console, settings: RunSettings) -> None:
        self.console, self.settings, self.epochs = console, settings, 0

    def changed(self, run: AnyDir) -> None:
        rows = run.rows() if isinstance(run, RunDir) else []
        for row in rows[self.epochs :]:
            names = ("train_loss", "val_loss", "val_dice", "val_dice_best")
            metrics = "   ".join(f"{name} {number(row.metrics.get(name), 4)}" for name in names)
            seconds = number(row.metrics.get("epoch_s"), 1)
            self.console.print(
                f"epoch {row.epoch:>3} of {self.settings.epochs}   {metrics}   {seconds} s", highlight=False
            )
        self.epochs = len(rows)
