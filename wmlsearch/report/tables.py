"""The report's tables as CSV files: all trials, the final runs, the sealed test."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wmlsearch.runs.evaluation import SLICES, Evaluation, NetworkScores
from wmlsearch.runs.files import write_text
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import Leaderboard
from wmlsearch.runs.objectives import best_epoch
from wmlsearch.runs.schema import EpochRow
from wmlsearch.verdict.champion import Candidate, role_of
from wmlsearch.verdict.wording import PAPER_TABLE, PAPER_TABLE_NAME

Row = Mapping[str, Any]  # the cells of a line by column


def write_tables(
    search: SearchDir,
    board: Leaderboard,
    candidates: Sequence[Candidate],
    champion: str,
    evaluation: Evaluation | None,
) -> list[str]:
    """Write the tables that are not empty into the report's folder, delete the others; return the names of those there.

    Args:
        candidates: The configurations with final runs; `champion` is the name of the champion, or "".
        evaluation: The evaluation on the sealed test; None before it was opened.
    """
    tables: dict[str, Sequence[Row]] = {
        "leaderboard.csv": trial_rows(board),
        "confirmation.csv": final_run_rows(candidates, champion),
        "test_patients.csv": list(_unit_rows(evaluation)) if evaluation else [],
        "test_table.csv": list(_pooled_rows(evaluation)) if evaluation else [],
    }
    for name, rows in tables.items():
        if rows:
            write_text(search.report / name, as_csv(rows))
        else:
            (search.report / name).unlink(missing_ok=True)  # of a champion that the search had before
    return [name for name, rows in tables.items() if rows]


def as_csv(rows: Sequence[Row]) -> str:
    """Return a header and a line for each row. Columns that only later rows have come last; None is empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def run_seconds(run: RunDir) -> float | None:
    """Return the seconds from a run's start to its end, None before that."""
    status = run.status()
    return status.ended - status.started if status.ended is not None else None


def trial_rows(board: Leaderboard) -> list[Row]:
    """Return a row for each trial, best first: how it ended, the metrics of its best epoch, its hyperparameters."""
    return [_trial(rank, entry.path, entry.parent) for rank, entry in enumerate(board.trials, 1)]


def _trial(rank: int, path: str, parent: str) -> Row:
    run = RunDir(Path(path))
    record, status, rows = run.record(), run.status(), run.rows()
    best = best_epoch(rows, record.settings.objective)
    return {
        "rank": rank if best and best.metrics.get(record.settings.objective) is not None else None,
        "trial": record.name,
        "state": run.state,
        "reason": status.reason,
        "parent": parent,
        "origin": record.origin,
        "epochs": len(rows),
        "seconds": run_seconds(run),
        **_epoch_cells(best),
        "predicted_memory_mb": status.predicted_memory_mb,
        **record.config.model_dump(),
    }


def _epoch_cells(row: EpochRow | None) -> Row:
    """Return the metrics of the best epoch. `learning_rate` is also a hyperparameter, so it gets another name."""
    if row is None:
        return {}
    names = {"learning_rate": "learning_rate_then"}
    return {"best_epoch": row.epoch, **{names.get(name, name): value for name, value in row.metrics.items()}}


def final_run_rows(candidates: Sequence[Candidate], champion: str) -> list[Row]:
    """Return a row for each final run. `champion` is the name of the champion, or ""."""
    return list(_final_runs(candidates, champion))


def _final_runs(candidates: Sequence[Candidate], champion: str) -> Iterator[Row]:
    for candidate in candidates:
        role = role_of(candidate, champion)
        for final_run in candidate.runs:
            run, record = final_run.run, final_run.record
            rows = run.rows()
            yield {
                "configuration": candidate.name,
                "role": role,
                "run": record.name,
                "purpose": record.purpose,
                "seed": final_run.seed,
                "fold": final_run.fold,
                "state": final_run.state,
                "reason": run.status().reason,
                "epochs": len(rows),
                "seconds": run_seconds(run),
                **_epoch_cells(best_epoch(rows, record.settings.objective)),
                "configuration_mean": candidate.mean,
                "configuration_standard_error": candidate.standard_error,
            }


def epoch_rows(runs: Sequence[RunDir]) -> list[Row]:
    """Return a row for each epoch of each run: its name, what it is for, and the metrics of the epoch."""
    rows: list[Row] = []
    for run in runs:
        record = run.record()
        purpose = record.purpose or record.kind
        rows += [{"run": record.name, "purpose": purpose, "epoch": row.epoch, **row.metrics} for row in run.rows()]
    return rows


def _unit_rows(evaluation: Evaluation) -> Iterator[Row]:
    for first_cells, network in _networks(evaluation):
        for scope in network.scopes:
            for unit in network.scope(scope).units:
                yield {**first_cells, "scope": scope, **unit.as_json()}


def _pooled_rows(evaluation: Evaluation) -> Iterator[Row]:
    for first_cells, network in _networks(evaluation):
        for scope in network.scopes:
            scores = network.scope(scope)
            yield {**first_cells, "scope": scope, **scores.pooled.as_json()}
            plain = {"threshold": 0.5, "mirror_averaging": False, "smallest_lesion_mm3": 0.0}
            yield {**first_cells, **plain, "scope": scope, **scores.pooled_half.as_json()}
    paper = {name: mean for name, (mean, _) in PAPER_TABLE.items()}
    yield {"role": PAPER_TABLE_NAME, "threshold": 0.5, "scope": SLICES, **paper}


def _networks(evaluation: Evaluation) -> Iterator[tuple[Row, NetworkScores]]:
    """Yield each network and ensemble, after the cells that say which it is."""
    for role, model in evaluation.models.items():
        for network in model.networks:
            cells = {"role": role, "model": evaluation.names[role], "network": network.name}
            chosen = ("seed", "threshold", "mirror_averaging", "smallest_lesion_mm3")
            yield {**cells, **{name: getattr(network, name) for name in chosen}}, network
