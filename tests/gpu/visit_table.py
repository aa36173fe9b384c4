"""The results of a visit as Markdown tables, for `benchmarks/README.md`.

It needs the standard library only, as `benchmarks/table.py` does; the package `benchmarks` imports more.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from visit_stages import FAILED, INTERRUPTED, PASSED, TIMED_OUT, Result

ROWS = Path(__file__).resolve().parents[2] / "benchmarks" / "table.py"
HEAD = "| stage | result | seconds | numbers |\n|---|---|---:|---|"


def tables(results: Sequence[Result]) -> str:
    """Return the tables of results, oldest first: for each machine a line about it, its stages, rows of benchmarks."""
    machines: dict[tuple[str, str], list[Result]] = {}
    for result in sorted(results, key=lambda one: one.began):
        versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
        machines.setdefault((result.card, versions), []).append(result)
    return "\n\n".join(_table(*machine, stages) for machine, stages in machines.items()) + "\n"


def summary(results: Sequence[Result]) -> str:
    """Return `7 passed, 1 failed`."""
    counts = {
        state: sum(result.state == state for result in results) for state in (PASSED, FAILED, TIMED_OUT, INTERRUPTED)
    }
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "nothing was run"


def _table(card: str, versions: str, results: Sequence[Result]) -> str:
    dates = sorted({result.began.partition(" ")[0] for result in results})
    days = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    lines = [f"{days}, {card}, {versions}. {summary(results)}.", "", HEAD]
    lines += [
        f"| {_cell(result.what)} | {result.state} | {result.seconds:.0f} | {_cell(_numbers(result))} |"
        for result in results
    ]
    if rows := [row for result in results for row in result.rows]:
        benchmarks = _load(ROWS)
        lines += ["", benchmarks.table(benchmarks.Row(**row) for row in rows)]
    return "\n".join(lines)


def _numbers(result: Result) -> str:
    parts = [f"**{result.error}**"] if result.error else []
    parts += [f"{name} {_shown(value)}" for name, value in result.numbers.items()]
    parts += [f"rows below: {len(result.rows)}"] if result.rows else []
    parts += [f"processes left behind: {len(result.left_behind)}"] if result.left_behind else []
    return "; ".join(parts)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _load(path: Path) -> ModuleType:
    """Return a module from its file, without the package that it is in."""
    spec = importlib.util.spec_from_file_location("visit_benchmark_rows", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: is no Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module
