"""The console and progress bars that all verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn


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


def console() -> Console:
    """Standard output, where a name or a reason such as "[/x]" or ":x:" stands as it is."""
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:  # a log or a pipe: no line should break because of a guessed width
        console.width = 200
    return console
