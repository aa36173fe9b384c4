"""The progress of a search or training in the terminal."""

from __future__ import annotations

import contextlib

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from wmlsearch.cli.leaderboard_tables import leaderboard_table
from wmlsearch.cli.verdict_tables import final_runs_table
from wmlsearch.config import RunSettings
from wmlsearch.errors import InputError
from wmlsearch.runs.folders import TRIALS, AnyDir, RunDir, SearchDir
from wmlsearch.runs.objectives import CANDIDATE_METRIC, POOLED_METRIC
from wmlsearch.runs.schema import RUNNING
from wmlsearch.runs.wording import duration, number
from wmlsearch.space import SearchSpace
from wmlsearch.workflows.search_lines import SearchLines, slots_in_words

MAX_ROWS = 10  # of the leaderboard, and of the running trials that are named, while a search runs
REDRAWS_PER_S = 2  # a redraw takes about 10 ms of the processor that the search needs


class SearchDisplay:
    """Shows a running search: a live table in a terminal, otherwise a line for each run that ends.

    The table is drawn by a thread, a few times a second, from what `update` has noted: the search never waits for it.
    """

    def __init__(self, console: Console, search: SearchDir, space: SearchSpace, settings: RunSettings) -> None:
        self.console, self.search, self.settings = console, search, settings
        self.current_work = ""  # after the final runs
        # One bar for the whole search: a new bar at each change would restart its clock.
        self.bar = Progress(
            TextColumn("trials"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        self.task = self.bar.add_task("", total=settings.trials)
        self.view: RenderableType = Text("starting Ray ...")
        self.has_changed = self.finals_changed = False  # since the view was drawn
        self.finals: RenderableType | None = None  # the table of the final runs
        self.live = (
            Live(console=console, refresh_per_second=REDRAWS_PER_S, transient=True, get_renderable=self._latest_view)
            if console.is_terminal
            else None
        )
        self.lines = SearchLines(search, space, settings, self.say, each_end=self.live is None)

    def __enter__(self) -> SearchDisplay:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()

    def say(self, text: str) -> None:
        """Print a line that stays, above the live table."""
        self.console.print(text, highlight=False, markup=False)

    def update(self, run: AnyDir) -> None:
        """Show a change of the search or of one of its runs."""
        self.lines.update(run)
        if not isinstance(run, RunDir) or run.path.parent.name != TRIALS:
            self.finals_changed = True
        if isinstance(run, RunDir):
            self.has_changed = True

    def progress(self, what: str, done: int, total: int) -> None:
        """Show the progress of the work after the final runs."""
        self.current_work = f"{what}: {done} of {total}"
        self.has_changed = True
        if not self.live and done == total:
            self.console.print(self.current_work, highlight=False)

    def _latest_view(self) -> RenderableType:
        """Return what the terminal shows now. Called in the thread that draws."""
        if self.has_changed:
            self.has_changed = False
            with contextlib.suppress(InputError, OSError):  # a damaged file stops a search only where it is needed
                self.view = self._live_view()
        return self.view

    def _live_view(self) -> RenderableType:
        if self.finals_changed:
            self.finals_changed = False
            self.finals = final_runs_table(self.search)
        lines = self.lines
        has_estimate = lines.forecast or lines.ended > lines.ended_before
        time_left = f"about {duration(lines.time_left_s())} left" if has_estimate else "the first trials are running"
        self.bar.update(self.task, completed=lines.ended, description=time_left)
        epochs = self.settings.epochs
        trials = lines.board.running
        finals = [RunDir(path) for path, state in list(lines.final_states.items()) if state == RUNNING]
        running = [f"{entry.name} epoch {entry.epochs + 1}/{epochs}" for entry in trials[:MAX_ROWS]]
        running += [f"{run.record().name} epoch {len(run.rows()) + 1}/{epochs}" for run in finals]
        if len(trials) > MAX_ROWS:
            running.append(f"{len(trials) - MAX_ROWS} more")
        waiting = slots_in_words(self.search.usage()) if self.search.exists() else ""
        return Group(
            self.bar,
            Text(f"now: {self.current_work or ', '.join(running)}"),
            *([Text(waiting)] if waiting else []),
            leaderboard_table(lines.board.top(MAX_ROWS), "", self.console.width),
            *([self.finals] if self.finals is not None else []),
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
