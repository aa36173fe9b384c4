"""The report's tables as CSV: all trials, the final runs, the sealed test."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wmlsearch.runs.files import write_text
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import Leaderboard
from wmlsearch.runs.names import PAPER
from wmlsearch.runs.objectives import best_epoch
from wmlsearch.verdict.champion import Candidate
from wmlsearch.verdict.evaluation import SLICES, VOLUMES
from wmlsearch.verdict.wording import PAPERS

Rows = Sequence[Mapping[str, Any]]


def write_tables(
    search: SearchDir, board: Leaderboard, found: Sequence[Candidate], chosen: str, test: Mapping[str, Any]
) -> list[str]:
    """Write the tables that there is something for into the report's folder; returns their names.

    Args:
        found: the configurations with final runs; `chosen` is the champion's name, or "".
        test: what the sealed test said, {} before it was opened.
    """
    tables: dict[str, Rows] = {
        "leaderboard.csv": [_trial(rank, entry.path, entry.parent) for rank, entry in enumerate(board.trials, 1)],
        "confirmation.csv": list(_finals(found, chosen)),
        "test_patients.csv": list(_units(test)),
        "test_table.csv": list(_pooled(test)),
    }
    for name, rows in tables.items():
        if rows:
            write_text(search.report / name, as_csv(rows))
    return [name for name, rows in tables.items() if rows]


def as_csv(rows: Rows) -> str:
    """A header and a line for each row; a name that only later rows have comes last, None is empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def seconds_of(run: RunDir) -> float | None:
    """From a run's beginning to its end; None before that."""
    status = run.status()
    return status["ended"] - status["started"] if "ended" in status else None


def _trial(rank: int, path: str, parent: str) -> dict[str, Any]:
    run = RunDir(Path(path))
    about, status, rows = run.about(), run.status(), run.rows()
    best = best_epoch(rows, about["settings"]["objective"])
    return {
        "rank": rank if best.get(about["settings"]["objective"]) is not None else None,
        "trial": about["name"],
        "state": run.state,
        "reason": status.get("reason", ""),
        "parent": parent,
        "epochs": len(rows),
        "seconds": seconds_of(run),
        **_of_epoch(best),
        "predicted_memory_mb": status.get("predicted_memory_mb"),
        **about["config"],
    }


def _of_epoch(row: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a row of metrics.jsonl, its epoch as `best_epoch`."""
    names = {"epoch": "best_epoch", "learning_rate": "learning_rate_then"}
    return {names.get(name, name): value for name, value in row.items() if name not in ("time", "ended")}


def _finals(found: Sequence[Candidate], chosen: str) -> Iterator[dict[str, Any]]:
    for candidate in found:
        role = "baseline" if candidate.name == PAPER else "champion" if candidate.name == chosen else ""
        for run in candidate.runs:
            about, rows = run.about(), run.rows()
            yield {
                "configuration": candidate.name,
                "role": role,
                "run": about["name"],
                "seed": about["settings"]["seed"],
                "state": run.state,
                "reason": run.status().get("reason", ""),
                "epochs": len(rows),
                "seconds": seconds_of(run),
                **_of_epoch(best_epoch(rows, about["settings"]["objective"])),
                "configuration_mean": candidate.mean,
                "configuration_standard_error": candidate.standard_error,
                "configuration_score": candidate.score,
            }


def _networks(test: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str, Mapping[str, Any]]]:
    """Whose scores, the scope, and the scores, of each network and ensemble of a sealed test."""
    for role, model in test.get("models", {}).items():
        for member in [*model["members"], *([model["ensemble"]] if model["ensemble"] else [])]:
            for scope in (VOLUMES, SLICES):
                if scope in member:
                    about = {"role": role, "model": test["names"][role], "network": member["name"]}
                    yield {**about, "seed": member["seed"], "threshold": member["threshold"]}, scope, member[scope]


def _units(test: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for about, scope, scores in _networks(test):
        for row in scores["units"]:
            yield {**about, "scope": scope, **row}


def _pooled(test: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for about, scope, scores in _networks(test):
        yield {**about, "scope": scope, **scores["pooled"]}
        yield {**about, "threshold": 0.5, "scope": scope, **scores["pooled_half"]}
    if test:
        paper = {name: mean for name, (mean, _) in PAPERS.items()}
        yield {"role": "the paper's Table I (other data)", "threshold": 0.5, "scope": SLICES, **paper}
