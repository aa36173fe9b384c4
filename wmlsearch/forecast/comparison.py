"""A forecast beside what the search used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.wording import duration

if TYPE_CHECKING:
    pass  # imports Ray, which `status` can do without


def trials_left_s(forecast: Mapping[str, Any], used: Mapping[str, float]) -> float:
    """Of the time that the trials were expected to take."""
    return max(0.0, forecast["start_s"] + forecast["search_s"] - used["seconds"])


def compared(search: SearchDir) -> list[tuple[str, str, str]]:
    """What was forecast beside what has happened, from a search's folder: (what, forecast, happened)."""
    expected, used = search.forecast(), search.used()
    if not expected:
        return []
    trials, finals = ([run.rows() for run in runs] for runs in (search.trials(), search.finals()))
    epochs = [rung["epoch"] for rung in expected["rungs"]]
    rows = [
        (
            f"trials at epoch{'s' if len(epochs) > 1 else ''} {', '.join(map(str, epochs))}",
            ", ".join(f"{rung['trials']:.1f}".removesuffix(".0") for rung in expected["rungs"]),
            ", ".join(str(sum(len(rows) >= epoch for rows in trials)) for epoch in epochs),
        ),
        ("epochs of all trials", f"{expected['epochs']:.1f}", str(sum(map(len, trials)))),
        ("time of the trials", duration(expected["start_s"] + expected["search_s"]), duration(used["seconds"])),
    ]
    if expected["final_runs"] or finals:
        rows.append(("epochs of final runs", f"at most {expected['final_epochs']}", str(sum(map(len, finals)))))
        times = [duration(seconds) if seconds else "-" for seconds in (expected["final_s"], used["final_seconds"])]
        rows.append(("time of final runs", times[0], times[1]))
    gpu_s = used["gpu_seconds"] + used["final_gpu_seconds"]
    if expected["gpu_hours"] or gpu_s:
        rows.append(("GPU-hours", f"{expected['gpu_hours']:.2g}", f"{gpu_s / 3600:.2g}"))
    memory = max((row.get("peak_memory_mb") or 0.0 for its in trials for row in its), default=0.0)
    rows.append(("peak memory of a worker", _amount(expected["peak_memory_mb"], "MiB"), _amount(memory, "MiB")))
    disk = (expected["disk_bytes"] / 1e6, used["checkpoint_bytes"] / 1e6)
    rows.append(("checkpoints at most", _amount(disk[0], "MB"), _amount(disk[1], "MB")))
    return rows


def _amount(value: float, unit: str) -> str:
    """`690 MiB`, `4.3 MB`; `-` for what is not known."""
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}" if value else "-"
