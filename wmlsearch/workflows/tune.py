"""The whole of `wmlsearch tune`: search, final runs, sealed test, report; mirrored in MLflow as it goes."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmlsearch.config import InputError, RunSettings
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.sealed_test import check_sealed_test
from wmlsearch.report.commands import resume_command
from wmlsearch.runs.folders import RUNNING, UNFINISHED, RunDir, SearchDir, check_new
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.search.interrupts import sigterm_as_interrupt
from wmlsearch.space import SearchSpace
from wmlsearch.tracking.mirror import Mirror
from wmlsearch.workflows.confirmation import BASELINE, CHAMPION, confirm, select_champion
from wmlsearch.workflows.forecast import CheckpointBytes, record_forecast, resolve_trials_per_gpu, warn_of_load
from wmlsearch.workflows.placement import LOCAL, Outcome, Placement, Progress
from wmlsearch.workflows.preflight import (
    check_baseline_fits,
    check_budgets,
    check_checkpoints,
    check_data,
    check_settings,
)
from wmlsearch.workflows.provenance import versions
from wmlsearch.workflows.sealed_test import sealed_test

if TYPE_CHECKING:
    from wmlsearch.cluster.resources import Slots

SHAPE = ("workers_per_trial", "gpus_per_worker", "trials_per_gpu")  # of the trials, which a resumed search keeps
OnChange = Callable[[RunDir], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class _Job:
    """A search that is to run: what, on what data, where; and who hears of it."""

    search: SearchDir
    space: SearchSpace
    settings: RunSettings
    data: Path
    where: Placement
    slots: Slots  # of the trials
    changed: OnChange
    say: Say
    progress: Progress

    @property
    def final_slots(self) -> Slots:
        """Of the final runs. Raises InputError where none fits any more."""
        return self.where.slots(max(self.settings.final_runs, 1))


def _nobody(what: str, done: int, total: int) -> None:
    """Nobody watches the progress."""


def tune(
    search: SearchDir,
    space: SearchSpace,
    settings: RunSettings,
    data: Path,
    mlflow_uri: str,
    on_change: OnChange,
    where: Placement = LOCAL,
    say: Say = print,
    warm_start: Sequence[SearchDir] = (),
    progress: Progress = _nobody,
) -> Outcome:
    """Search `space` on prepared `data`, confirm the best beside the paper's baseline, and judge on the sealed test.

    Everything is in the run folder before it is anywhere else; `on_change` hears of each change. The study begins with
    what the searches of `warm_start` have found. Raises InputError for what can't run, before anything is started.
    """
    from wmlsearch.cluster.connect import ray_session
    from wmlsearch.cluster.watchdog import watchdog
    from wmlsearch.search.optuna_study import known_earlier

    check_new(search.path)
    check_settings(space, settings, where)
    where.check_unused(search)
    if settings.baseline:
        check_sealed_test(data)
    data_record = check_data(space, data, where.workers_per_trial)
    earlier, left_out = known_earlier(warm_start, space, settings, data_record["fingerprint"])
    if settings.forecast:
        warn_of_load(where, say)
    with ray_session(where.ray_address), watchdog(say, lambda: _waiting(search), hint=_go_on(search)):
        where, packing = resolve_trials_per_gpu(where, space, settings, data, say)
        slots = where.slots(settings.trials)
        check_budgets(space, settings, slots)
        check_baseline_fits(settings, data, where, slots)
        say(f"trials run {slots}")
        if warm_start:
            reasons = "".join(f", {count} left out ({reason})" for reason, count in sorted(left_out.items()))
            say(f"of earlier searches the study knows {len(earlier)} trials{reasons}")
        about = {
            "name": search.name,
            "kind": "search",
            "space": {"source": space.source, "values": space.mapping()},
            "settings": settings.model_dump(),
            "data": data_record,
            "data_path": str(data.resolve()),
            "warm_start": {"taken": len(earlier), "left_out": dict(left_out)},
            "shape": {name: getattr(where, name) for name in SHAPE},
            "storage": where.storage_to_keep,
            "packing": packing,
            "certificate": dataclasses.asdict(Manifest.read(data).certificate),
            "versions": versions(),
        }
        with search.locked():
            SearchDir.create(search.path, about)
            search.set_earlier(earlier)
            return _tune(_Job(search, space, settings, data, where, slots, on_change, say, progress), mlflow_uri)


def resume(
    search: SearchDir,
    changes: Mapping[str, Any],
    data: Path | None,
    mlflow_uri: str,
    on_change: OnChange,
    where: Placement = LOCAL,
    say: Say = print,
    progress: Progress = _nobody,
) -> Outcome:
    """Go on with a search that was stopped or died: what it has is kept, what ran goes on from its last checkpoint.

    `changes` are settings to replace (budgets); `data` is where the prepared data are now, if they were moved. `where`
    names the Ray, and the storage where it is another one now; the shape of the trials stays. Raises InputError for
    what can't be.
    """
    from wmlsearch.cluster.connect import ray_session
    from wmlsearch.cluster.watchdog import watchdog

    about = search.about()
    settings = RunSettings.of({**about["settings"], **changes})
    space = SearchSpace.of(about["space"]["values"], about["space"]["source"])
    if lacking := [name for name in ("shape", "data_path") if name not in about]:
        raise InputError(
            f"{search.file('about')}: lacks {' and '.join(lacking)}, so it can't go on; begin a new search"
        )
    data = data or Path(about["data_path"])
    manifest = Manifest.read(data)
    if manifest.fingerprint != about["data"]["fingerprint"]:
        raise InputError(
            f"{data}: is not the data of {search.name} (fingerprint {manifest.fingerprint[:12]} instead of "
            f"{about['data']['fingerprint'][:12]}); give those with --data, or begin a new search"
        )
    where = where.as_begun(about)
    check_settings(space, settings, where)
    manifest.verify(data)
    check_checkpoints(search, where)
    if settings.baseline:
        check_sealed_test(data)
    with search.locked(), ray_session(where.ray_address), watchdog(say, lambda: _waiting(search), hint=_go_on(search)):
        slots = where.slots(settings.trials)
        check_budgets(space, settings, slots)
        check_baseline_fits(settings, data, where, slots)
        search.change_settings(settings.model_dump(), storage=where.storage_to_keep)
        trials = search.trials()
        unfinished = [run.about()["name"] for run in trials if run.state in UNFINISHED]
        say(
            f"{search.name} goes on: {len(trials) - len(unfinished)} of {settings.trials} trials have ended"
            + (f"; from their last checkpoints: {', '.join(unfinished)}" if unfinished else "")
        )
        say(f"trials run {slots}")
        search.set_status(RUNNING)
        return _tune(_Job(search, space, settings, data, where, slots, on_change, say, progress), mlflow_uri)


def _tune(job: _Job, mlflow_uri: str) -> Outcome:
    """A search in its own folder, mirrored: whatever happens, the folder says how it ended."""
    search, on_change = job.search, job.changed
    job.where.make_place(search)
    mirror = Mirror(search, mlflow_uri)
    for part in search.all_runs():  # of a resumed search: MLflow may lack the end of what died
        mirror.notify(part)

    checkpoints = CheckpointBytes(search, job.where)

    def changed(run: RunDir) -> None:
        mirror.notify(run)  # first: what comes after may find its disk full
        checkpoints.look(run)
        on_change(run)

    early, state = "it broke off with an error", "failed"
    try:
        with sigterm_as_interrupt():
            early, failed = _search(dataclasses.replace(job, changed=changed))
        state = "failed" if failed else "interrupted" if early.startswith("stopped") else "completed"
    except KeyboardInterrupt as stopped:
        early, state = str(stopped) or "stopped by Ctrl-C", "interrupted"
    except OSError as error:  # a disk that is full, a storage that is away: what is there stays, and can go on
        early, state = f"stopped, since {error}", "interrupted"
    finally:
        for part in search.all_runs():  # final runs that broke off, or that are not wanted any more
            if part.state == RUNNING:
                with contextlib.suppress(OSError):
                    part.set_status("interrupted", early or "the search ended without it")
        pictures = _report(search, job.data, {**search.status(), "state": state, "reason": early}, job.say)
        several = bool(job.settings.objectives)
        front = {"front": [entry.name for entry in leaderboard(search).front]} if several else {}
        try:
            search.set_status(state, early, **front)
        except OSError as error:  # it still says "running", as after a kill
            early = early or f"stopped, since {error}"
        # All of them: who changed one may have been interrupted before he said so, and which are on the front of a
        # search with several objectives is known only now. Nothing is sent of what MLflow has.
        for part in search.all_runs():
            mirror.notify(part)
        on_change(search)
        problem = mirror.close()
    return Outcome(search, early, problem, pictures)


def _search(job: _Job) -> tuple[str, bool]:
    """The trials, the final runs, the verdict; returns why it ended early, or "", and whether by our errors."""
    from wmlsearch.cluster.data_shipping import make_shipment
    from wmlsearch.search.final_training import fetch_best_weights
    from wmlsearch.search.tune_loop import run_trials

    search, settings, where = job.search, job.settings, job.where
    on_cluster = bool(where.ray_address)
    shipment = make_shipment(job.data, send=on_cluster)
    if settings.forecast and not search.trials():  # of a resumed search the first one stays
        record_forecast(search, job.space, settings, shipment, job.slots, job.final_slots, job.say)
        job.changed(search)
    budget = run_trials(search, job.space, settings, shipment, job.slots, where.place, job.changed, elastic=on_cluster)
    board = leaderboard(search)
    for best in board.front or [board.best]:
        if best is not None:
            run = RunDir(Path(best.path))
            fetch_best_weights(run, where.place(run))

    if settings.baseline and not budget.failed and not budget.reason.startswith("stopped"):
        confirm(search, settings, shipment, where, job.final_slots, job.changed, job.say)
        _judge(job)
    return budget.reason, budget.failed


def _judge(job: _Job) -> None:
    """Champion, sealed test and verdict, as far as they can be had; what was tested already is not tested again."""
    search = job.search
    if not select_champion(search, job.settings, job.data, job.changed, job.say):
        return
    members = [search.model(role).about()["members"] for role in (BASELINE, CHAMPION)]
    if search.test().get("members") != members:
        sealed_test(search, job.settings, job.data, job.progress)
        for part in (*search.models(), search):
            job.changed(part)


def _go_on(search: SearchDir) -> str:
    return f"; to go on with it: {resume_command(search)}"


def _waiting(search: SearchDir) -> str:
    """The trainings that have been started and not reported yet; before its start a trial has no folder."""
    begun = [
        run
        for run in search.trials() + search.finals()
        if run.status().get("state") == RUNNING and not run.trained_rows()
    ]
    return " or ".join(run.about()["name"] for run in begun) or "the next trial"


def _report(search: SearchDir, data: Path, status: Mapping[str, Any], say: Say) -> tuple[Path, ...]:
    """The report, and examples of predictions for it; whatever goes wrong with that, the search has ended well."""
    from wmlsearch.report.examples import write_examples
    from wmlsearch.report.page import write_report

    try:
        with sigterm_as_interrupt():
            examples = write_examples(search, data)
            page = write_report(search, status)
    except KeyboardInterrupt as stopped:  # perhaps the second one: how the search ended is told all the same
        why = str(stopped) or "stopped by Ctrl-C"
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    else:
        return (page, examples) if examples else (page,)
    say(f"no report ({why}); later: wmlsearch report {search.name}")
    return ()
