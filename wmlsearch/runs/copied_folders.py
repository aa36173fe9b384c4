"""Run folders that are copies of each other: they hold the same search or run, and perhaps one went on.

`tune --resume` sets an older folder aside as `NAME-before-DATE`, and people make backups with `cp -r`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wmlsearch.errors import InputError
from wmlsearch.runs.folders import AnyDir, RunDir, SearchDir, list_runs
from wmlsearch.runs.liveness import Liveness
from wmlsearch.runs.wording import command, run_words


@dataclass(frozen=True)
class CopiedRun:
    """A search or run, and its other folders.

    Args:
        latest: The folder in which the search or run has come furthest.
        others: Folders without anything newer.
    """

    latest: AnyDir
    others: tuple[AnyDir, ...] = ()


def path_to_set_aside(folder: Path) -> Path:
    """Return the path to which a folder is moved when a newer copy takes its place."""
    return folder.with_name(f"{folder.name}-before-{time.strftime('%Y%m%d-%H%M%S')}")


def was_set_aside(run: AnyDir) -> bool:
    """Return whether a newer copy has taken the place of a folder. Raises InputError."""
    return re.fullmatch(re.escape(run.record().name) + r"-before-\d{8}-\d{6}", run.path.name) is not None


def by_key(runs: Sequence[AnyDir]) -> list[CopiedRun]:
    """Return each search or run once, in the given order. A damaged folder counts as one of its own."""
    groups: dict[str, list[AnyDir]] = {}
    for run in runs:
        try:
            key = run.record().key
        except InputError:
            key = ""
        groups.setdefault(key or str(run.path), []).append(run)
    return [copied for group in groups.values() for copied in _of_group(group)]


def check_latest(run: AnyDir) -> None:
    """Refuse a folder beside which another one has come further with the same run. Raises InputError."""
    for copied in by_key(list_runs(run.path.parent)):
        if run.path.name in [other.path.name for other in copied.others]:
            raise InputError(
                f"{run.path}: is a copy of {copied.latest.path} and has nothing newer, and MLflow has one run of both; "
                f"sync that one (`{command('sync', *run_words(copied.latest.path))}`), or move it away"
            )


def _of_group(group: Sequence[AnyDir]) -> list[CopiedRun]:
    if len(group) == 1:
        return [CopiedRun(group[0])]
    progress, damaged = {}, []
    for run in group:
        try:
            progress[run] = (
                not was_set_aside(run),
                last_work(run),
                run.name == run.record().name,
                Liveness.of(run).last_sign,
            )
        except InputError:
            damaged.append(CopiedRun(run))
    if not progress:
        return damaged
    latest = max(progress, key=lambda run: progress[run])
    return [CopiedRun(latest, tuple(run for run in progress if run != latest)), *damaged]


def last_work(run: AnyDir) -> float:
    """Return the time of the last training or evaluation that a folder has records of, Unix seconds. Raises InputError.

    Neither the times of the files count, which `cp` changes, nor states, which `sync` corrects.
    """
    parts = [run, *(run.all_runs() if isinstance(run, SearchDir) else [])]
    times = [part.record().created for part in parts]
    times += [row.order for part in parts if isinstance(part, RunDir) for row in part.rows()[-1:]]
    evaluation = run.evaluation()
    return max([*times, *([] if evaluation is None else [evaluation.opened])])
