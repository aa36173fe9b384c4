"""Typed records of a search or training as scripts read them: `status --json`, and the input of `tune --on-end`.

docs/reference/json.md documents each field. A change that breaks scripts raises FORMAT.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmlsearch.runs.folders import AnyDir, RunDir, SearchDir
from wmlsearch.runs.leaderboard import Entry, leaderboard
from wmlsearch.runs.liveness import GONE, Liveness
from wmlsearch.runs.names import SEARCH, TRAIN
from wmlsearch.runs.objectives import best_epoch
from wmlsearch.runs.schema import RUNNING, UNFINISHED
from wmlsearch.workflows.resume_command import resume_command

FORMAT = 1


@dataclass(frozen=True)
class TrialSummary:
    """A trial or a final run of a search, with the metrics of its best epoch."""

    name: str
    state: str
    reason: str
    epochs: int
    best_epoch: int | None
    value: float | None
    metrics: dict[str, float | None]
    config: dict[str, Any]
    path: str

    @classmethod
    def of(cls, entry: Entry) -> TrialSummary:
        best, path = entry.best, str(Path(entry.path).resolve())
        return cls(
            entry.name, entry.state, entry.reason, entry.epochs, best.epoch if best else None, entry.value,
            dict(best.metrics) if best else {}, dict(entry.config), path,
        )  # fmt: skip


@dataclass(frozen=True)
class FolderSummary:
    """What the states of a search and of a run have in common."""

    format: int
    kind: str
    name: str
    path: str
    state: str
    reason: str
    process: str
    owner: str
    last_sign: float
    started: float
    ended: float | None
    data: str
    data_path: str

    @classmethod
    def of_folder(cls, folder: AnyDir, kind: str, name: str, liveness: Liveness) -> FolderSummary:
        """Read the record and the status of a folder. Raises InputError."""
        record, status = folder.record(), folder.status()
        return FolderSummary(
            format=FORMAT,
            kind=kind,
            name=name,
            path=str(folder.path.resolve()),
            state=state_of(folder, liveness),
            reason=status.reason,
            process=liveness.process,
            owner=liveness.owner,
            last_sign=liveness.last_sign,
            started=status.started,
            ended=status.ended,
            data=record.data.name,
            data_path=record.data_path,
        )


@dataclass(frozen=True)
class SearchSummary(FolderSummary):
    """The state of a search."""

    objectives: list[str]
    trials_planned: int
    trials_ended: int
    trials: list[TrialSummary]
    final_runs: list[TrialSummary]
    champion: str | None
    champion_reason: str
    outcome: str | None
    verdict: list[str]
    seconds: float
    gpu_seconds: float
    slots: int
    slots_waiting: int
    report: str | None
    resume: str | None

    @classmethod
    def of(cls, search: SearchDir, liveness: Liveness | None = None) -> SearchSummary:
        """Read the folder of a search, running or ended. Raises InputError.

        Args:
            search: The search.
            liveness: Whether the search's process lives. None: read it from the folder.
        """
        record, status, board = search.record(), search.status(), leaderboard(search)
        used, selection, evaluation = search.usage(), search.selection(), search.evaluation()
        verdict = evaluation.verdict if evaluation else None
        sentences = [verdict.sentence, *([verdict.models.sentence] if verdict.models else [])] if verdict else []
        page = search.report_page
        return cls(
            **vars(cls.of_folder(search, SEARCH, search.path.resolve().name, liveness or Liveness.of(search))),
            objectives=list(record.settings.objective_names),
            trials_planned=record.settings.trials,
            trials_ended=sum(entry.state not in UNFINISHED for entry in board.trials),
            trials=[TrialSummary.of(entry) for entry in board.trials],
            final_runs=[TrialSummary.of(entry) for entry in board.finals],
            champion=selection.champion if selection else None,
            champion_reason=selection.sentence if selection else "",
            outcome=verdict.outcome if verdict else None,
            verdict=sentences,
            seconds=used.seconds + used.final_seconds,
            gpu_seconds=used.gpu_seconds + used.final_gpu_seconds,
            slots=int(used.slots) if status.state == RUNNING else 0,
            slots_waiting=int(used.slots_waiting) if status.state == RUNNING else 0,
            report=str(page.resolve()) if page.is_file() else None,
            resume=resume_command(search) if status.state in UNFINISHED else None,
        )


@dataclass(frozen=True)
class TrainingSummary(FolderSummary):
    """The state of a run of `wmlsearch train`, or of a single run of a search."""

    epochs_planned: int
    epochs: int
    best_epoch: int | None
    value: float | None
    metrics: dict[str, float | None]
    config: dict[str, Any]
    weights: str | None

    @classmethod
    def of(cls, run: RunDir) -> TrainingSummary:
        """Read the folder of a run. Raises InputError."""
        record, liveness, rows = run.record(), Liveness.of(run), run.rows()
        objective = record.settings.objective
        best = best_epoch(rows, objective)
        return cls(
            **vars(cls.of_folder(run, TRAIN, record.name, liveness)),
            epochs_planned=record.settings.epochs,
            epochs=len(rows),
            best_epoch=best.epoch if best else None,
            value=best.metrics.get(objective) if best else None,
            metrics=dict(best.metrics) if best else {},
            config=record.config.model_dump(),
            weights=str(run.best.resolve()) if run.best.exists() else None,
        )


def summary_of(run: AnyDir) -> SearchSummary | TrainingSummary:
    """Return the state of a search or run. Raises InputError."""
    return SearchSummary.of(run) if isinstance(run, SearchDir) else TrainingSummary.of(run)


def state_of(run: AnyDir, liveness: Liveness) -> str:
    """Return the state that the folder records; "gone" where that is "running" and no process holds it."""
    state = run.state
    return GONE if state == RUNNING and liveness.process == GONE else state
