"""The state of a search in the terminal: leaderboard, failures, final runs, forecast and verdict."""

from __future__ import annotations

from rich.console import Console

from wmlsearch.cli.forecast_tables import forecast_comparison
from wmlsearch.cli.leaderboard_tables import leaderboard_table
from wmlsearch.cli.verdict_tables import final_runs_table, show_verdict
from wmlsearch.config import OBJECTIVES
from wmlsearch.runs.folders import AnyDir, SearchDir
from wmlsearch.runs.leaderboard import Leaderboard, leaderboard
from wmlsearch.runs.liveness import ALIVE, GONE, SILENT, Liveness, clock
from wmlsearch.runs.schema import BAD, RUNNING, UNFINISHED
from wmlsearch.runs.wording import last_line, plural
from wmlsearch.verdict.wording import optimistic_note
from wmlsearch.workflows.resume_command import resume_command, resume_note
from wmlsearch.workflows.search_lines import slots_in_words


def show_search(console: Console, search: SearchDir) -> None:
    """Print the state of a search, running or ended."""
    record, status = search.record(), search.status()
    board = leaderboard(search)
    trials = f"{len(board.trials)} of {plural(record.settings.trials, 'trial')}"
    title = f"{search.name}: {state_in_words(search)}, {trials} on {record.data.name}"
    console.print(leaderboard_table(board, title, console.width))
    if board.objectives:
        console.print(_front_line(board), highlight=False, soft_wrap=True)
    if note := optimistic_note(record):
        console.print(
            f"warning: {note}: data on both sides of the split make results look better",
            style="yellow",
        )
    if status.state == RUNNING and (words := slots_in_words(search.usage())):
        console.print(words, highlight=False)
    if status.reason:  # of a running search: what became of a machine
        note = "note" if status.state == RUNNING else "ended early"
        console.print(f"{note}: {status.reason}", highlight=False)
    for entry in (*board.trials, *board.finals):
        if entry.state in BAD:
            state = entry.state.replace("_", " ")
            console.print(f"{entry.name} {state}: {last_line(entry.reason)}", highlight=False, markup=False)
    for table in (final_runs_table(search), forecast_comparison(search)):
        if table is not None:
            console.print(table)
    show_verdict(console, search)
    if status.state in UNFINISHED and (line := _line_to_go_on(search, trials)):
        console.print(line, highlight=False, soft_wrap=True)
        if note := resume_note(search):
            console.print(note, highlight=False, markup=False, soft_wrap=True)


def state_in_words(run: AnyDir) -> str:
    """Return the state of a search or run: "running", or "its process has been gone since 14:02"."""
    state, liveness = run.state, Liveness.of(run)
    if state != RUNNING or liveness.process == ALIVE:
        return state
    if liveness.process == GONE:
        since = clock(liveness.last_sign)
        if liveness.owner and not liveness.is_elsewhere:
            return f"its process has been gone since {since}"
        owner = f"it was {liveness.owner}; " if liveness.owner else ""
        return f"no process has held this folder since {since} ({owner}it died, or the folder is a copy)"
    return f"{liveness.owner} has written nothing since {clock(liveness.last_sign)}"


def _line_to_go_on(search: SearchDir, trials: str) -> str:
    """Return how to go on with a search that is not complete, or "" while its process is at work."""
    process, resume = Liveness.of(search).process, resume_command(search)
    if process == SILENT:
        return f"{state_in_words(search)}, {trials}; if that machine is down, continue with {resume}"
    if search.state == RUNNING:
        return "" if process == ALIVE else f"{state_in_words(search)}, {trials}; continue with {resume}"
    if process == ALIVE:
        return f"its process still ends the trials or writes the report; then continue with {resume}"
    return f"{trials}; continue with {resume}"


def _front_line(board: Leaderboard) -> str:
    names = [f"{name} ({'lowest' if OBJECTIVES[name] == 'minimize' else 'highest'})" for name in board.objectives]
    return (
        f"Pareto front: {len(board.front)} of {plural(len(board.trials), 'trial')}, by "
        f"{', '.join(names)}; a trial's values are those of its epoch with the highest {board.objective}"
    )
