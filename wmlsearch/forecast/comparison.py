"""The forecast of a search as a line, and beside what it has used."""

from __future__ import annotations

from typing import NamedTuple

from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.schema import EpochRow, ForecastRecord, Usage
from wmlsearch.runs.wording import duration, plural


class ComparisonRow(NamedTuple):
    """One quantity, as text: `epochs of all trials`, `30.5`, `19`."""

    quantity: str
    forecast: str
    used: str


def trials_left_s(forecast: ForecastRecord, used: Usage) -> float:
    """Return the seconds that are left of the forecast time of the trials."""
    return max(0.0, forecast.start_s + forecast.search_s - used.seconds)


def forecast_line(forecast: ForecastRecord) -> str:
    """Return a stored forecast as a line: `forecast: about 12 min 3 s, 31 epochs of trials, 130 MB of checkpoints`."""
    final_runs = forecast.final_runs
    parts = [
        f"about {duration(forecast.total_s)}",
        f"{plural(round(forecast.epochs), 'epoch')} of trials"
        + (f" and at most {forecast.final_epochs} of {final_runs} final runs" if final_runs else ""),
        *([f"{forecast.gpu_hours:.2g} GPU-hours"] if forecast.gpu_hours else []),
        f"{forecast.disk_bytes / 1e6:.3g} MB of checkpoints",
        f"{forecast.peak_memory_mb:.0f} MiB a worker",
        *([f"the trials end by {forecast.ends_by}"] if forecast.ends_by else []),
    ]
    return f"forecast: {', '.join(parts)}"


def compare_with_forecast(search: SearchDir) -> list[ComparisonRow]:
    """Compare the stored forecast of a search with what it has used. Empty if it has no forecast."""
    forecast, used = search.forecast(), search.usage()
    if forecast is None:
        return []
    # Without the epochs that a child of population based training has from its parent: they were trained once.
    trials, finals = ([run.trained_rows() for run in runs] for runs in (search.trials(), search.finals()))
    rows = [
        _rungs_row(forecast, trials),
        ComparisonRow("epochs of all trials", f"{forecast.epochs:.1f}", str(sum(map(len, trials)))),
        ComparisonRow("time of the trials", duration(forecast.start_s + forecast.search_s), duration(used.seconds)),
    ]
    if forecast.final_runs or finals:
        times = [duration(seconds) if seconds else "-" for seconds in (forecast.final_s, used.final_seconds)]
        final_epochs = str(sum(map(len, finals)))
        rows += [
            ComparisonRow("epochs of final runs", f"at most {forecast.final_epochs}", final_epochs),
            ComparisonRow("time of final runs", *times),
        ]
    gpu_s = used.gpu_seconds + used.final_gpu_seconds
    if forecast.gpu_hours or gpu_s:
        rows.append(ComparisonRow("GPU-hours", f"{forecast.gpu_hours:.2g}", f"{gpu_s / 3600:.2g}"))
    memory_mb = max((row.metrics.get("peak_memory_mb") or 0.0 for rows_ in trials for row in rows_), default=0.0)
    rows.append(_amounts_row("peak memory of a worker", forecast.peak_memory_mb, memory_mb, "MiB"))
    disk_mb = forecast.disk_bytes / 1e6, used.checkpoint_bytes / 1e6
    rows.append(_amounts_row("checkpoints at most", *disk_mb, "MB"))
    return rows


def _rungs_row(forecast: ForecastRecord, trials: list[list[EpochRow]]) -> ComparisonRow:
    epochs = [rung.epoch for rung in forecast.rungs]
    return ComparisonRow(
        f"trials at epoch{'s' if len(epochs) > 1 else ''} {', '.join(map(str, epochs))}",
        ", ".join(f"{rung.trials:.1f}".removesuffix(".0") for rung in forecast.rungs),
        ", ".join(str(sum(any(row.epoch == epoch for row in rows) for rows in trials)) for epoch in epochs),
    )


def _amounts_row(quantity: str, forecast: float, used: float, unit: str) -> ComparisonRow:
    """Return a row such as `690 MiB`, `4.3 MB`; `-` stands for an unknown amount."""
    texts = [
        f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}" if value else "-" for value in (forecast, used)
    ]
    return ComparisonRow(quantity, *texts)
