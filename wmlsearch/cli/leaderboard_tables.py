"""The leaderboard of a search in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from wmlsearch.runs.leaderboard import Entry, Leaderboard
from wmlsearch.runs.objectives import CANDIDATE_METRIC
from wmlsearch.runs.schema import BAD, RUNNING
from wmlsearch.runs.wording import number, score

STYLES = {RUNNING: "cyan", "completed": "green", "early_stopped": "green", **dict.fromkeys(BAD, "red")}


def leaderboard_table(board: Leaderboard, title: str, width: int, max_rows: int | None = None) -> Table:
    """Return a table of rank, scores at the best epoch, epochs, state and hyperparameters of each trial.

    Each hyperparameter has a column, unless that takes more than `width` characters: then they share one.
    """
    table = _table(board, title, max_rows, [(name, [name]) for name in board.searched])
    if Measurement.get(_UNBOUNDED, _UNBOUNDED.options, table).maximum > width:
        table = _table(board, title, max_rows, [("hyperparameters", list(board.searched))])
    return table


_UNBOUNDED = Console(width=10_000, markup=False, emoji=False)


def _table(board: Leaderboard, title: str, max_rows: int | None, columns: list[tuple[str, list[str]]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="bold", pad_edge=False)
    for name in ("rank", "trial", *_scores(board), "epochs", "state"):
        table.add_column(name, justify="left" if name in ("trial", "state") else "right", no_wrap=True)
    for name, members in columns:
        table.add_column(name, justify="left" if len(members) > 1 else "right", overflow="fold")
    on_front = {entry.path for entry in board.front}
    for place, entry in enumerate(board.trials[:max_rows], start=1):
        rank = str(place) if entry.value is not None else ""
        if board.objectives:  # trials of the front have no order
            rank = "front" if entry.path in on_front else ""
        table.add_row(rank, *_cells(entry, board, columns))
    left_out = board.left_out + max(len(board.trials) - (max_rows or len(board.trials)), 0)
    if left_out:
        table.add_row("", f"... {left_out} more")
    return table


def _scores(board: Leaderboard) -> tuple[str, ...]:
    """Return the metrics to show: the objectives, and the metric of the candidates if the trials have it."""
    measured = any(CANDIDATE_METRIC in entry.best.metrics for entry in board.trials if entry.best)
    return tuple(dict.fromkeys((*board.objectives, board.objective, *([CANDIDATE_METRIC] if measured else []))))


def _cells(entry: Entry, board: Leaderboard, columns: list[tuple[str, list[str]]]) -> list[Text | str]:
    scores = [score(name, entry.metric(name)) for name in _scores(board)]
    origin = f", {entry.origin}" if entry.origin else ""
    state = Text(entry.state.replace("_", " ") + origin, style=STYLES.get(entry.state, ""))
    values = []
    for _, members in columns:
        active = [name for name in members if name in entry.config]
        if len(members) > 1:
            values.append(" ".join(f"{name}={number(entry.config[name])}" for name in active))
        else:
            values.append(number(entry.config[active[0]]) if active else "")
    return [entry.name, *scores, str(entry.epochs), state, *values]
