"""The console and the progress bar that all verbs share."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


def progress_bar(console: Console) -> tuple[Progress, Callable[[str, int, int], None]]:
    """Return a progress bar, and the function `(what, done, total)` that advances it.

    Outside a terminal it prints a line when each kind of work is done.
    """
    columns: list[ProgressColumn | str] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    bar = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
    tasks: dict[str, TaskID] = {}

    def advance(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done, total=total)
        if done == total and not console.is_terminal:
            console.print(f"{what}: {total} of {total}", highlight=False)

    return bar, advance


def console() -> Console:
    """Return a console on standard output that prints names such as "[/x]" or ":x:" unchanged."""
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:  # a log or a pipe has no width at which lines should break
        console.width = 200
    return console
