"""What the terminal shows: leaderboards, the progress of a search or training, and where to look next."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from wmlsearch.conclusion import compared_slices, confirmed_table, optimistic_note, show_verdict
from wmlsearch.config import OBJECTIVES, RunSettings
from wmlsearch.data.manifest import Manifest
from wmlsearch.outlook import comparison, duration, in_a_line, trials_left_s
from wmlsearch.runs import BAD, RUNNING, UNFINISHED, RunDir, SearchDir
from wmlsearch.space import SearchSpace
from wmlsearch.verdict.champion import MEASURE
from wmlsearch.verdict.leaderboard import Entry, Leaderboard, leaderboard

SHOWN = 10  # rows of a leaderboard while a search runs
DIGITS = {"images_per_s": 1, "epoch_s": 2, "peak_memory_mb": 1}  # behind the point; other metrics: 4
ENOUGH = 5  # trials that have ended: from then on their time says more than the forecast of the time left
STYLES = {RUNNING: "cyan", "completed": "green", "early_stopped": "green", **dict.fromkeys(BAD, "red")}


def leaderboard_table(board: Leaderboard, title: str, width: int, most: int | None = None) -> Table:
    """Rank, scores at the best epoch, epochs, state, hyperparameters.

    Each hyperparameter has a column, or they share one where `width` characters are too few for that.
    """
    table = _table(board, title, most, [(name, [name]) for name in board.searched])
    if Measurement.get(_UNBOUNDED, _UNBOUNDED.options, table).maximum > width:
        table = _table(board, title, most, [("hyperparameters", list(board.searched))])
    return table


_UNBOUNDED = Console(width=10_000, markup=False, emoji=False)


def _table(board: Leaderboard, title: str, most: int | None, columns: list[tuple[str, list[str]]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="bold", pad_edge=False)
    for name in ("rank", "trial", *_scores(board), "epochs", "state"):
        table.add_column(name, justify="left" if name in ("trial", "state") else "right", no_wrap=True)
    for name, members in columns:
        table.add_column(name, justify="left" if len(members) > 1 else "right", overflow="fold")
    shown = board.trials[:most]
    on_front = {entry.path for entry in board.front}
    for place, entry in enumerate(shown, start=1):
        rank = str(place) if entry.value is not None else ""
        if board.objectives:  # no order says which of the front is better
            rank = "front" if entry.path in on_front else ""
        table.add_row(rank, *_cells(entry, board, columns))
    if most and len(board.trials) > most:
        table.add_row("", f"... {len(board.trials) - most} more")
    return table


def _scores(board: Leaderboard) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*board.objectives, board.objective, "val_dice_best", "val_dice")))


def _cells(entry: Entry, board: Leaderboard, columns: list[tuple[str, list[str]]]) -> list[Text | str]:
    scores = [score(name, entry.best.get(name)) for name in _scores(board)]
    child = f", child of {entry.parent}" if entry.parent else ""
    state = Text(entry.state.replace("_", " ") + child, style=STYLES.get(entry.state, ""))
    values = []
    for _, members in columns:
        there = [name for name in members if name in entry.config]
        if len(members) > 1:
            values.append(" ".join(f"{name}={number(entry.config[name])}" for name in there))
        else:
            values.append(number(entry.config[there[0]]) if there else "")
    return [entry.name, *scores, str(entry.epochs), state, *values]


def number(value: Any, digits: int = 0) -> str:
    """0.6123, 0.00313, 16, bce; an empty cell for what is not a number."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.{digits}f}" if digits else f"{value:.3g}"


def score(name: str, value: Any) -> str:
    """A metric with as many digits as it deserves: 0.6123, 81.4 images/s."""
    return number(value, DIGITS.get(name, 4))


def _epochs(entry: Entry) -> str:
    return f"{entry.epochs} epoch{'s' if entry.epochs != 1 else ''}"


def last_line(text: str) -> str:
    """Of a traceback, what was raised."""
    return (text.strip().splitlines() or [""])[-1]


class SearchDisplay:
    """Follows a search: a live table in a terminal, a line for each trial that ends anywhere else."""

    def __init__(self, console: Console, search: SearchDir, space: SearchSpace, settings: RunSettings) -> None:
        self.console, self.search, self.space, self.settings = console, search, space, settings
        self.started, self.entries = time.monotonic(), {}
        self.forecast = search.forecast() if search.begun() else {}  # of a new search: there later
        for run in search.trials():  # of a search that is resumed
            if run.state not in UNFINISHED:
                self.entries[run.path] = Entry.of(run, space)
        self.finals: dict[Path, str] = {run.path: run.state for run in search.finals()} if search.begun() else {}
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

    def changed(self, run: RunDir) -> None:
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
            values = ", ".join(f"{name} {score(name, entry.best.get(name))}" for name in self.settings.ranked_by)
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
        reason = status.get("reason", "") if status.get("state") == RUNNING else ""
        if reason and reason != self.reasons.get(run.path):
            self.say(f"{run.about()['name']}: {reason}")
        self.reasons[run.path] = reason

    def _hear_forecast(self) -> None:
        if not self.forecast and (made := self.search.forecast()):
            self.forecast = made
            self.say(in_a_line(made))

    def _final_changed(self, run: RunDir) -> None:
        self.finals[run.path] = run.state
        ended = sum(state != RUNNING for state in self.finals.values())
        if run.state != RUNNING and not self.live:
            entry = Entry.of(run, self.space)
            self.console.print(
                f"{entry.name} {entry.state.replace('_', ' ')} after {_epochs(entry)}, "
                f"{MEASURE} {number(entry.best.get(MEASURE), 4)} "
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
            expected = trials_left_s(self.forecast, self.search.used())
            trials = expected if expected or not ended else trials
        epoch_s = [entry.best["epoch_s"] for entry in self.entries.values() if entry.best]
        final = 0.0
        if self.settings.baseline:
            of_one = sum(epoch_s) / max(len(epoch_s), 1) * self.settings.epochs
            final = self.forecast.get("final_s") or of_one * self.settings.final_runs
        return trials + final

    def _picture(self) -> RenderableType:
        board = leaderboard(self.search)
        known = self.forecast or self.ended > self.before
        left = f"about {duration(self.left_s())} left" if known else "the first trials are running"
        self.bar.update(self.task, completed=self.ended, description=left)
        running = [e for e in self.entries.values() if e.state == RUNNING]
        finals = [RunDir(path) for path, state in self.finals.items() if state == RUNNING]
        now = [f"{e.name} epoch {e.epochs + 1}/{self.settings.epochs}" for e in running]
        now += [f"{run.about()['name']} epoch {len(run.rows()) + 1}/{self.settings.epochs}" for run in finals]
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

    def changed(self, run: RunDir) -> None:
        rows = run.rows()
        for row in rows[self.epochs :]:
            self.console.print(
                f"epoch {row['epoch']:>3} of {self.settings.epochs}   train_loss {number(row.get('train_loss'), 4)}   "
                f"val_loss {number(row.get('val_loss'), 4)}   val_dice {number(row.get('val_dice'), 4)}   "
                f"val_dice_best {number(row.get('val_dice_best'), 4)}   {number(row.get('epoch_s'), 1)} s",
                highlight=False,
            )
        self.epochs = len(rows)


def show_search(console: Console, search: SearchDir, pictures: Sequence[Path] = ()) -> None:
    """The leaderboard of a search, and what to know about it."""
    about, status = search.about(), search.status()
    board = leaderboard(search)
    trials, wanted = len(board.trials), about["settings"]["trials"]
    title = f"{search.name}: {status.get('state')}, {trials} of {wanted} trials on {about['data']['name']}"
    console.print(leaderboard_table(board, title, console.width))
    if board.objectives:
        names = [f"{name} ({'lowest' if OBJECTIVES[name] == 'minimize' else 'highest'})" for name in board.objectives]
        console.print(
            f"front: {len(board.front)} of {trials} trials, which no other beats in {', '.join(names)}; a trial's "
            f"values are those of its epoch with the highest {board.objective}",
            highlight=False,
            soft_wrap=True,
        )
    if note := optimistic_note(about):
        console.print(f"{note}: what is on both sides of the split makes results look better", style="yellow")
    if status.get("reason"):
        console.print(f"ended early: {status['reason']}", highlight=False)
    for entry in (*board.trials, *board.finals):
        if entry.state in BAD:
            state = entry.state.replace("_", " ")
            console.print(f"{entry.name} {state}: {last_line(entry.reason)}", highlight=False, markup=False)
    if (confirmed := confirmed_table(search)) is not None:
        console.print(confirmed)
    if (compared := comparison(search)) is not None:
        console.print(compared)
    show_verdict(console, search)
    for picture in pictures:
        console.print(f"picture: {picture}", highlight=False, soft_wrap=True)


def progress_bar(console: Console) -> tuple[Progress, Callable[[str, int, int], None]]:
    """A bar for work that calls `(what, done, total)`; outside a terminal, a line when each kind of work is done."""
    columns: list[ProgressColumn | str] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    bar = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
    tasks: dict[str, Any] = {}

    def advance(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done, total=total)
        if done == total and not console.is_terminal:
            console.print(f"{what}: {total} of {total}", highlight=False)

    return bar, advance


def show_manifest(console: Console, out: Path, manifest: Manifest) -> None:
    """What `prepare` has made: patients, slices and lesion share of each split, and what to mind."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("split", "patients", "scans", "slices", "used", "lesion"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, count in manifest.counts.items():
        cells = [f"{count[name]:g}" for name in ("patients", "timepoints", "slices", "kept")]
        table.add_row("test (sealed)" if split == "test" else split, *cells, f"{100 * count['lesion_share']:.2f} %")
    console.print(table)
    console.print(compared_slices(dataclasses.asdict(manifest.certificate)), highlight=False)
    for warning in [*([manifest.certificate.note] if manifest.certificate.note else []), *manifest.warnings]:
        console.print(f"mind: {warning}", style="yellow", highlight=False, soft_wrap=True)
    console.print(f"{manifest.plane} slices of {manifest.size} x {manifest.size} pixels are in {out}", highlight=False)
    console.print(f"have a look at {out / 'contact_sheet.png'}; next: wmlsearch tune --data {out}", highlight=False)


def console() -> Console:
    """Standard output, where a name or a reason such as "[/x]" or ":x:" stands as it is."""
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:  # a log or a pipe: no line should break because of a guessed width
        console.width = 200
    return console
