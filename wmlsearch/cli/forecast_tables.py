"""The forecast of a search in the terminal: a table before the search, a line, and a comparison with what was used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from wmlsearch.forecast.comparison import compare_with_forecast
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.names import PAPER
from wmlsearch.runs.schema import RUNNING
from wmlsearch.runs.wording import duration

if TYPE_CHECKING:
    from wmlsearch.forecast.cost import Forecast  # imports Ray, which `status` does not need


def show_forecast(console: Console, forecast: Forecast, power: str = "") -> None:
    """Print the trials and epochs of each rung, what they cost, and what was measured.

    Args:
        power: The smallest difference that the verdict could find, in words, or "".
    """
    console.print(_rungs_table(forecast))
    lines = [*_cost_lines(forecast), *([f"verdict   {power}"] if power else []), *_measurement_lines(forecast)]
    for line in [*lines, *(f"note: {note}" for note in forecast.notes)]:
        console.print(line, highlight=False, soft_wrap=True)


def _rungs_table(forecast: Forecast) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("rung", "trials", "epochs"):
        table.add_column(name, justify="left" if name == "rung" else "right")
    for rung in forecast.rungs:
        table.add_row(f"up to epoch {rung.epoch}", f"{rung.trials:.1f}", f"{rung.epochs:.1f}")
    if forecast.final_runs:
        table.add_row("final runs", f"{forecast.final_runs:.1f}", f"{forecast.final_epochs:.1f}")
    table.add_row("all", "", f"{forecast.epochs + forecast.final_epochs:.1f}", style="bold")
    return table


def _cost_lines(forecast: Forecast) -> list[str]:
    parts = {"start": forecast.start_s, "search": forecast.search_s, "final runs": forecast.final_s}
    times = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
    return [
        *([f"ends by   {forecast.ends_by}, before the last trial"] if forecast.ends_by else []),
        f"time      {duration(forecast.total_s)} ({times}); an epoch of a trial takes {forecast.epoch_s:.2g} s",
        *([f"GPU-hours {forecast.gpu_hours:.2g}"] if forecast.gpu_hours else []),
        f"disk      {forecast.disk_bytes / 1e6:.3g} MB for checkpoints",
        f"memory    {forecast.peak_memory_mb:.0f} MiB at the peak, for each worker",
    ]


def _measurement_lines(forecast: Forecast) -> list[str]:
    lines = [f"measured  on {forecast.device}, {forecast.slots.count} at a time:"]
    for timed in forecast.measured:
        config, throughput = timed.config, timed.throughput
        name = "baseline" if timed.of == PAPER else timed.of
        lines.append(
            f"  {name:<8}  depth {config.depth}, base_channels {config.base_channels}: "
            f"{1000 * throughput.train_s:.3g} ms an image to train ({throughput.images} a step), "
            f"{1000 * throughput.val_s:.3g} ms to validate"
        )
    return lines


def forecast_comparison(search: SearchDir) -> Table | None:
    """Return a table of the stored forecast beside what the search has used; None if it has no forecast."""
    rows = compare_with_forecast(search)
    if not rows:
        return None
    table = Table(box=None, header_style="bold", pad_edge=False)
    used = "so far" if search.state == RUNNING else "happened"
    for name in ("", "forecast", used):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(row.quantity, row.forecast, row.used)
    return table
