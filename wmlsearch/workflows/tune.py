"""`wmlsearch tune`: begin a search, or resume one. Preflight makes its plan, `run_search` runs it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from wmlsearch.runs.early_end import EarlyEnd
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.interrupts import interrupt
from wmlsearch.runs.process import end_this_process
from wmlsearch.runs.schema import RUNNING, UNFINISHED
from wmlsearch.runs.wording import plural
from wmlsearch.workflows.forecast import warn_of_load
from wmlsearch.workflows.observer import Observer, Outcome
from wmlsearch.workflows.on_end import CommandAtEnd
from wmlsearch.workflows.placement import Placement
from wmlsearch.workflows.preflight import (
    check_new_search,
    check_resumed_search,
    choose_first_trials,
    note_few_configurations,
    note_no_effect,
    plan_search,
    read_earlier_trials,
)
from wmlsearch.workflows.provenance import search_record
from wmlsearch.workflows.resume_command import resume_command, resume_note
from wmlsearch.workflows.run_search import record_broken_end, run_search
from wmlsearch.workflows.search_plan import ResumeRequest, SearchPlan, SearchRequest
from wmlsearch.workflows.stored_search import NO_STORAGE, StoredSearch, stored_search

FINISH_S = 10.0  # for the copy of the run folder, when Ray has died
ATTEMPTS, ATTEMPT_S = (
    2,
    25.0,
)  # to let the caller of a search leave a dead Ray; Ray's own shutdown takes about 10 s then


def tune(search: SearchDir, request: SearchRequest, mlflow_uri: str, observer: Observer | None = None) -> Outcome:
    """Search for a better configuration than the baseline, in a new folder, and compare both on the sealed test.

    Raises InputError for what cannot run, before a folder is made and as far as possible before Ray starts.
    """
    observer = observer or Observer()
    data = check_new_search(search, request)
    note_no_effect(request.space, data.manifest, observer.say)
    note_few_configurations(request.space, request.settings, observer.say)
    earlier = read_earlier_trials(request, data, observer.say)
    portfolio = choose_first_trials(request, earlier.taken, observer.say)
    if request.settings.forecast:
        warn_of_load(request.placement, observer.say)
    with (
        CommandAtEnd(search, request.on_end, observer.say) as at_end,
        stored_search(request.placement.storage, search, observer.say) as stored,
        contextlib.ExitStack() as stack,
    ):
        request.placement.check_storage_unused(search)  # another head may have begun it meanwhile
        stack.enter_context(_ray(search, request.placement, mlflow_uri, observer, at_end, stored))
        plan = plan_search(request, data, observer.say)
        observer.say(f"trials run {plan.slots}")
        with search.locked():
            record = search_record(search.name, plan, len(earlier.taken), earlier.left_out, portfolio)
            SearchDir.create(search.path, record.model_copy(update={"experiment": request.experiment}))
            at_end.begun = True
            search.set_earlier(earlier.taken)
            return run_search(search, plan, mlflow_uri, observer, release_ray=stack.close, stored=stored)


def resume(search: SearchDir, request: ResumeRequest, mlflow_uri: str, observer: Observer | None = None) -> Outcome:
    """Continue a search that was stopped or died, each of its unfinished trials from its last checkpoint.

    Raises InputError for what cannot run.
    """
    observer = observer or Observer()
    data, stored = check_resumed_search(search, request), request.stored
    with (
        CommandAtEnd(search, request.on_end, observer.say) as at_end,
        search.locked(),
        contextlib.ExitStack() as at_exit,
        contextlib.ExitStack() as stack,
    ):
        at_exit.callback(stored.release)  # before the command at the end, which may go on with the search
        stack.enter_context(_ray(search, request.placement, mlflow_uri, observer, at_end, stored))
        plan = plan_search(request, data, observer.say)
        placement = plan.placement
        search.change_settings(plan.settings, placement.storage_without_password, placement.given_ray_address)
        observer.say(_resume_message(search, plan))
        observer.say(f"trials run {plan.slots}")
        search.set_status(RUNNING)
        at_end.begun = True
        return run_search(search, plan, mlflow_uri, observer, release_ray=stack.close, stored=stored)


@contextlib.contextmanager
def _ray(
    search: SearchDir,
    placement: Placement,
    mlflow_uri: str,
    observer: Observer,
    at_end: CommandAtEnd,
    stored: StoredSearch = NO_STORAGE,
) -> Iterator[None]:
    """Connect to Ray and watch for a search that waits for resources, as long as the block lasts."""
    from wmlsearch.cluster.connect import ray_session
    from wmlsearch.cluster.watchdog import watchdog

    caller, is_over = threading.current_thread(), threading.Event()

    def record(early_end: EarlyEnd) -> None:
        if at_end.begun:
            record_broken_end(search, early_end.text)
            stored.finish(search, FINISH_S)
            stored.release()
            observer.say(f"to resume: {resume_command(search, mlflow_uri)}")
            if note := resume_note(search, mlflow_uri):
                observer.say(note)

    def let_caller_leave(early_end: EarlyEnd, status: int) -> None:
        """Let the caller end the search, as at Ctrl-C; end this process only if a call to Ray never returns."""
        for _ in range(ATTEMPTS):
            interrupt(caller, early_end)
            if is_over.wait(ATTEMPT_S):
                return
        try:
            observer.say(f"a call to Ray has not returned for {ATTEMPTS * ATTEMPT_S:g} s, so this process ends")
            record(early_end)
        finally:
            end_this_process(status)

    def end(early_end: EarlyEnd, status: int) -> None:
        if observer.end_process is None:  # in a thread of its own, since the watchdog's ends before Ray is left
            threading.Thread(target=let_caller_leave, args=(early_end, status), name="ray-left", daemon=True).start()
            return
        try:
            record(early_end)
            at_end.run_instead_of_this_process(status)
        finally:
            observer.end_process(status)

    say, waiting = observer.say, lambda: _waiting_runs(search)
    try:
        with ray_session(placement.ray_address, say), watchdog(say, waiting, end=end):
            yield
    finally:
        is_over.set()


def _waiting_runs(search: SearchDir) -> str:
    """Name the runs that were started and have not reported yet. A trial has no folder before it is started."""
    names = [
        run.record().name
        for run in search.trials() + search.finals()
        if run.state == RUNNING and not run.trained_rows()
    ]
    return " or ".join(names) or "the next trial"


def _resume_message(search: SearchDir, plan: SearchPlan) -> str:
    trials = search.trials()
    unfinished = [run for run in trials if run.state in UNFINISHED]
    begun = [run.record().name for run in unfinished if run.trained_rows()]
    again = [run.record().name for run in unfinished if not run.trained_rows()]
    planned = plural(plan.settings.trials, "trial")
    parts = [f"{search.name} is resumed: {len(trials) - len(unfinished)} of {planned} have ended"]
    if begun:
        whose = "continues from its last checkpoint" if len(begun) == 1 else "continue from their last checkpoints"
        parts.append(f"{', '.join(begun)} {whose}")
    if again:
        verb = "restarts" if len(again) == 1 else "restart"
        parts.append(f"{', '.join(again)} {verb} from epoch 1, because no epoch had finished")
    return "; ".join(parts)
