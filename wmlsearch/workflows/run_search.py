"""Run a planned search: forecast, trials, final runs, sealed test, report; mirrored in MLflow as it goes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from wmlsearch.inference.predictor import HERE, Predictions
from wmlsearch.runs.early_end import EarlyEnd, EndCause
from wmlsearch.runs.folders import AnyDir, RunDir, SearchDir
from wmlsearch.runs.interrupts import end_of, noted_only, signals_as_interrupts
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.runs.lock import check_still_held
from wmlsearch.runs.names import CHAMPION, PAPER
from wmlsearch.runs.schema import RUNNING
from wmlsearch.runs.wording import command, run_words
from wmlsearch.tracking.mirror import Mirror
from wmlsearch.verdict.champion import read_candidates, select_champion
from wmlsearch.workflows.checkpoint_usage import CheckpointUsage
from wmlsearch.workflows.final_models import keep_models
from wmlsearch.workflows.final_runs import FinalSlots, train_judgement_runs, train_selection_runs
from wmlsearch.workflows.forecast import record_forecast
from wmlsearch.workflows.observer import Observer, Outcome
from wmlsearch.workflows.placement import Placement
from wmlsearch.workflows.remaining_work import evaluates_models, judged_by_older_version
from wmlsearch.workflows.sealed_test import evaluate_search
from wmlsearch.workflows.search_plan import SearchPlan
from wmlsearch.workflows.stored_search import NO_STORAGE, StoredSearch

if TYPE_CHECKING:
    from wmlsearch.cluster.data_shipping import Shipment


@dataclass(frozen=True)
class _End:
    """How a search ended."""

    state: str  # completed, interrupted or failed
    early_end: EarlyEnd | None  # why it ended before all its trials were done; None if it did not

    @property
    def reason(self) -> str:
        """What the run folder records as the reason."""
        return str(self.early_end or "")


def run_search(
    search: SearchDir,
    plan: SearchPlan,
    mlflow_uri: str,
    observer: Observer,
    release_ray: Callable[[], None],
    stored: StoredSearch = NO_STORAGE,
) -> Outcome:
    """Run a search whose folder exists and is locked. Whatever happens, the folder says how it ended.

    Args:
        search: The search.
        plan: The plan that preflight has made.
        mlflow_uri: URI of the MLflow store.
        observer: Follows the search.
        release_ray: Called when the end is recorded, before the report is written, which can take longer than a batch
            system waits after its SIGTERM.
        stored: Copies the run folder to the storage, if there is one.
    """
    mirror = Mirror(search, mlflow_uri)
    for run in search.all_runs():  # MLflow may lack how the runs of a search ended whose process was killed
        mirror.notify(run)
    checkpoint_usage = CheckpointUsage(search, plan.placement)

    def on_change(run: AnyDir) -> None:
        mirror.notify(run)  # first, since the next lines may find the disk full
        stored.notify(run)
        checkpoint_usage.update(run)
        observer.on_change(run)

    end = _End("failed", EarlyEnd(EndCause.ERROR, "it broke off with an error"))
    try:
        with signals_as_interrupts():
            plan.placement.prepare_storage(search)
            stored.begin(search)
            end = _run_stages(search, plan, replace(observer, on_change=on_change), stored)
    except KeyboardInterrupt as interrupt:
        end = _End("interrupted", end_of(interrupt))
    except OSError as error:  # the disk is full or the storage is gone: what is written stays, to be resumed
        end = _End("interrupted", EarlyEnd.by_storage(error))
    finally:
        with noted_only():  # each step is short, or handles signals itself
            _interrupt_running(search, end.reason)
            end = _record_end(search, plan, end)
            mirror.notify(search)
            stored.notify(search)
            _release(release_ray, observer.say)
            pictures = _write_report(search, plan, observer)
            # Every run once more: an interrupt may have come between a change and its notification, and which trials
            # are on the Pareto front is known only now. The mirror sends only what MLflow lacks.
            for run in search.all_runs():
                mirror.notify(run)
            observer.on_change(search)
            with signals_as_interrupts():
                mlflow_problem = mirror.close()
            with signals_as_interrupts():
                stored.finish(search)  # MLflow's ledgers are part of the copy
    return Outcome(search, end.early_end, mlflow_problem, pictures)


def _run_stages(search: SearchDir, plan: SearchPlan, observer: Observer, stored: StoredSearch) -> _End:
    """Run the forecast, the trials, the final runs and the sealed test, as far as the search gets."""
    from wmlsearch.cluster.data_shipping import make_shipment
    from wmlsearch.search.tune_loop import run_trials

    settings, placement = plan.settings, plan.placement
    shipment = make_shipment(plan.data, plan.manifest.fingerprint, send=placement.on_cluster)
    if settings.forecast and not search.trials():  # a resumed search keeps its first forecast
        record_forecast(search, plan, shipment, observer.say)
        observer.on_change(search)
    budget = run_trials(
        search,
        plan.space,
        settings,
        shipment,
        plan.slots,
        location=placement.checkpoint_location,
        on_change=observer.on_change,
        elastic=placement.on_cluster,
        end_process=observer.end_process,
        when_copied=stored.when_copied,
        compiled_networks=placement.compiled_networks(search),
    )
    _fetch_best_weights(search, placement)
    stopped = budget.early_end is not None and budget.early_end.resumable
    if settings.baseline and not budget.failed and not stopped and not judged_by_older_version(search):
        _choose_and_judge(search, plan, shipment, observer, stored)
    return _End("failed" if budget.failed else "interrupted" if stopped else "completed", budget.early_end)


def _fetch_best_weights(search: SearchDir, placement: Placement) -> None:
    """Copy the weights of the best trial, or of the Pareto front, from the storage into their run folders."""
    from wmlsearch.search.final_training import fetch_best_weights

    board = leaderboard(search)
    for entry in board.front or [board.best]:
        if entry is not None:
            run = RunDir(Path(entry.path))
            fetch_best_weights(run, placement.checkpoint_location(run))


def _choose_and_judge(
    search: SearchDir, plan: SearchPlan, shipment: Shipment, observer: Observer, stored: StoredSearch
) -> None:
    """Choose the champion, train it and the baseline anew, keep both, and compare them on the sealed test.

    A killed search goes on with the step that it was in: what a step has finished is in the run folder. The champion is
    chosen again by each session, from the same runs if no trial was added.
    """
    from wmlsearch.search.final_training import RunTrainer

    def note_machine(text: str) -> None:
        search.set_status(RUNNING, text)
        observer.on_change(search)

    champion, slots = PAPER, FinalSlots(plan)
    elastic = plan.placement.on_cluster
    compiled_networks = plan.placement.compiled_networks(search)
    with RunTrainer(plan.settings, shipment, elastic, note_machine, stored.when_copied, compiled_networks) as trainer:
        if plan.settings.confirm_top:
            train_selection_runs(search, plan, slots, trainer, observer)
            champion = _choose_champion(search, observer)
            _set_aside_other_champion(search, champion, observer)
        train_judgement_runs(search, plan, slots, champion, trainer, observer)
    with _predictions(plan, observer) as predictions:
        comparable = keep_models(search, plan.settings, plan.data, observer, predictions)
        evaluation = search.evaluation()
        if evaluation is not None and not evaluates_models(search, evaluation):
            search.set_aside_evaluation(evaluation)
            observer.on_change(search)
            evaluation = None
        if comparable and evaluation is None:
            evaluate_search(search, plan.settings, plan.data, observer.progress, predictions)
            for model in search.models():
                observer.on_change(model)
            observer.on_change(search)


def _predictions(plan: SearchPlan, observer: Observer) -> contextlib.AbstractContextManager[Predictions]:
    """Return where the final networks predict: on GPUs of the cluster, else in this process, on its GPU if it has one.

    On a cluster Ray is asked also for a GPU of this machine, which may be somebody else's.
    """
    from wmlsearch.search.cluster_predictions import ClusterPredictions

    if plan.placement.on_cluster and plan.slots.gpus:
        return ClusterPredictions(plan.slots, 2 * plan.settings.final_runs, observer.say)
    return contextlib.nullcontext(HERE)


def _choose_champion(search: SearchDir, observer: Observer) -> str:
    """Record which configuration is the champion, and why. Return its name."""
    selection = select_champion(read_candidates(search))
    if selection != search.selection():
        search.set_selection(selection)
        observer.on_change(search)
    observer.say(selection.sentence)
    return selection.champion


def _set_aside_other_champion(search: SearchDir, champion: str, observer: Observer) -> None:
    """Put away the evaluation and the model of an earlier champion, which a resumed search does not show any more."""
    evaluation, model = search.evaluation(), search.model(CHAMPION)
    if evaluation is not None and evaluation.names.get(CHAMPION) != champion:
        search.set_aside_evaluation(evaluation)
        observer.on_change(search)
    if model.exists() and model.record().model != champion:
        model.remove()


def _interrupt_running(search: SearchDir, reason: str) -> None:
    """Set the state of runs that did not end: final runs that broke off, or that are not needed any more."""
    for run in search.all_runs():
        if run.state == RUNNING:
            with contextlib.suppress(OSError):
                run.set_status("interrupted", reason or "the search ended without it")


def record_broken_end(search: SearchDir, why: str) -> None:
    """Record that a search and its running runs were interrupted, without Ray: its servers are gone."""
    _interrupt_running(search, why)
    if search.state == RUNNING:
        with contextlib.suppress(OSError):
            search.set_status("interrupted", why)


def _release(release_ray: Callable[[], None], say: Callable[[str], None]) -> None:
    """Let go of Ray. If that fails or is interrupted, say so: the search has ended all the same."""
    try:
        with signals_as_interrupts():
            release_ray()
    except KeyboardInterrupt as interrupt:
        say(f"the shutdown of Ray was cut short ({end_of(interrupt)})")
    except Exception as error:
        say(f"warning: Ray was not shut down in order ({type(error).__name__}: {error}); the result is not affected")


def _write_report(search: SearchDir, plan: SearchPlan, observer: Observer) -> tuple[Path, ...]:
    """Write the report and its example predictions. If that fails, say so: the search has ended all the same."""
    from wmlsearch.report.examples import write_examples
    from wmlsearch.report.page import write_report

    try:
        with signals_as_interrupts():
            check_still_held(search.path)
            examples = write_examples(search, plan.data)
            page = write_report(search)
    except KeyboardInterrupt as interrupt:  # perhaps the second one; the end of the search is still recorded
        problem = str(end_of(interrupt))
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    else:
        return (page, examples) if examples else (page,)
    observer.say(f"no report ({problem}); to write it later: {command('report', *run_words(search.path))}")
    return ()


def _record_end(search: SearchDir, plan: SearchPlan, end: _End) -> _End:
    """Write into the folder how the search ended; returns that, with the error if it could not be written."""
    front = [entry.name for entry in leaderboard(search).front] if plan.settings.objectives else None
    try:
        search.set_status(end.state, end.reason, front=front)
    except OSError as error:  # the folder still says "running", as after a kill
        return replace(end, early_end=end.early_end or EarlyEnd.by_storage(error))
    return end
