"""What a search is expected to cost, as the terminal shows it: before, in a line, and beside what happened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from wmlsearch.forecast.comparison import compared
from wmlsearch.runs.folders import RUNNING, SearchDir
from wmlsearch.runs.wording import duration

if TYPE_CHECKING:
    from wmlsearch.forecast.cost import Forecast  # imports Ray, which `status` can do without


def show_forecast(console: Console, forecast: Forecast) -> None:
    """Trials and epochs of each rung, then what they take, and what was measured."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("rung", "trials", "epochs"):
        table.add_column(name, justify="left" if name == "rung" else "right")
    for rung in forecast.rungs:
        table.add_row(f"up to epoch {rung.epoch}", f"{rung.trials:.1f}", f"{rung.epochs:.1f}")
    if forecast.final_runs:
        table.add_row("final runs", f"{forecast.final_runs:.1f}", f"{forecast.final_epochs:.1f}")
    table.add_row("all", "", f"{forecast.epochs + forecast.final_epochs:.1f}", style="bold")
    console.print(table)
    parts = {"start": forecast.start_s, "search": forecast.search_s, "final runs": forecast.final_s}
    shown = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
    lines = [
        *([f"ends by   {forecast.ends_by}, before the last trial"] if forecast.ends_by else []),
        f"time      {duration(forecast.total_s)} ({shown}); an epoch of a trial takes {forecast.epoch_s:.2g} s",
        *([f"GPU-hours {forecast.gpu_hours:.2g}"] if forecast.gpu_hours else []),
        f"disk      {forecast.disk_bytes / 1e6:.3g} MB for checkpoints",
        f"memory    {forecast.peak_memory_mb:.0f} MiB at the peak, for each worker",
        f"measured  on {forecast.device}, {forecast.slots.count} at a time:",
    ]
    for entry in forecast.measured:
        config, timing = entry.config, entry.timing
        lines.append(
            f"  {entry.of:<8}  depth {config.depth}, base_channels {config.base_channels}: "
            f"{1000 * timing.train_s:.3g} ms an image to train ({timing.images} a step), "
            f"{1000 * timing.val_s:.3g} ms to validate"
        )
    for line in [*lines, *(f"mind: {note}" for note in forecast.notes)]:
        console.print(line, highlight=False, soft_wrap=True)


def in_a_line(forecast: Mapping[str, Any]) -> str:
    """`forecast: about 12 min 3 s, 31 epochs of trials, 130 MB of checkpoints, 690 MiB a worker`, of a stored one."""
    finals = forecast["final_runs"]
    parts = [
        f"about {duration(forecast['total_s'])}",
        f"{forecast['epochs']:.0f} epochs of trials"
        + (f" and at most {forecast['final_epochs']} of {forecast['final_runs']} final runs" if finals else ""),
        *([f"{forecast['gpu_hours']:.2g} GPU-hours"] if forecast["gpu_hours"] else []),
        f"{forecast['disk_bytes'] / 1e6:.3g} MB of checkpoints",
        f"{forecast['peak_memory_mb']:.0f} MiB a worker",
        *([f"the trials end by {forecast['ends_by']}"] if forecast["ends_by"] else []),
    ]
    return f"forecast: {', '.join(parts)}"


def comparison(search: SearchDir) -> Table | None:
    """The stored forecast of a search beside what has happened, as a table; None where there is no forecast."""
    rows = compared(search)
    if not rows:
        return None
    table = Table(box=None, header_style="bold", pad_edge=False)
    happened = "so far" if search.state == RUNNING else "happened"
    for name in ("", "forecast", happened):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(*row)
    return table
