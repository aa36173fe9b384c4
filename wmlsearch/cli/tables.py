"""Tables in the terminal: the leaderboard of a search, the facts of a prepared data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from wmlsearch.cli.forecast_tables import forecast_comparison
from wmlsearch.cli.verdict_tables import confirmed_table, show_verdict
from wmlsearch.config import OBJECTIVES
from wmlsearch.data.manifest import Manifest
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.leaderboard import Entry, Leaderboard, leaderboard
from wmlsearch.runs.schema import BAD, RUNNING
from wmlsearch.verdict.wording import leakage_note, optimistic_note

DIGITS = {"images_per_s": 1, "epoch_s": 2, "peak_memory_mb": 1}  # behind the point; other metrics: 4
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
    scores = [score(name, entry.metric(name)) for name in _scores(board)]
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


def last_line(text: str) -> str:
    """Of a traceback, what was raised."""
    return (text.strip().splitlines() or [""])[-1]


def show_search(console: Console, search: SearchDir, pictures: Sequence[Path] = ()) -> None:
    """The leaderboard of a search, and what to know about it."""
    record, status = search.record(), search.status()
    board = leaderboard(search)
    trials, wanted = len(board.trials), record.settings.trials
    title = f"{search.name}: {status.state}, {trials} of {wanted} trials on {record.data.name}"
    console.print(leaderboard_table(board, title, console.width))
    if board.objectives:
        names = [f"{name} ({'lowest' if OBJECTIVES[name] == 'minimize' else 'highest'})" for name in board.objectives]
        console.print(
            f"front: {len(board.front)} of {trials} trials, which no other beats in {', '.join(names)}; a trial's "
            f"values are those of its epoch with the highest {board.objective}",
            highlight=False,
            soft_wrap=True,
        )
    if note := optimistic_note(record):
        console.print(f"{note}: what is on both sides of the split makes results look better", style="yellow")
    if status.reason:
        console.print(f"ended early: {status.reason}", highlight=False)
    for entry in (*board.trials, *board.finals):
        if entry.state in BAD:
            state = entry.state.replace("_", " ")
            console.print(f"{entry.name} {state}: {last_line(entry.reason)}", highlight=False, markup=False)
    if (confirmed := confirmed_table(search)) is not None:
        console.print(confirmed)
    if (compared := forecast_comparison(search)) is not None:
        console.print(compared)
    show_verdict(console, search)
    for picture in pictures:
        console.print(f"picture: {picture}", highlight=False, soft_wrap=True)


def show_manifest(console: Console, out: Path, manifest: Manifest) -> None:
    """What `prepare` has made: patients, slices and lesion share of each split, and what to mind."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("split", "patients", "scans", "slices", "used", "lesion"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, count in manifest.counts.items():
        cells = [str(number) for number in (count.patients, count.timepoints, count.slices, count.kept)]
        table.add_row("test (sealed)" if split == "test" else split, *cells, f"{100 * count.lesion_share:.2f} %")
    console.print(table)
    console.print(leakage_note(manifest.certificate), highlight=False)
    for warning in [*([manifest.certificate.note] if manifest.certificate.note else []), *manifest.warnings]:
        console.print(f"mind: {warning}", style="yellow", highlight=False, soft_wrap=True)
    console.print(f"{manifest.plane} slices of {manifest.size} x {manifest.size} pixels are in {out}", highlight=False)
    console.print(f"have a look at {out / 'contact_sheet.png'}; next: wmlsearch tune --data {out}", highlight=False)
