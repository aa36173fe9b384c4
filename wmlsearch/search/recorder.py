"""Records the results of trials: in the run folder first, then in the study and the budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from wmlsearch.config import RunSettings
from wmlsearch.errors import InputError
from wmlsearch.runs.early_end import EarlyEnd, EndCause
from wmlsearch.runs.files import StorageError
from wmlsearch.runs.folders import AnyDir, RunDir, SearchDir
from wmlsearch.runs.objectives import objective_values
from wmlsearch.runs.schema import GOOD, RUNNING, UNFINISHED, RunRecord, Successor
from wmlsearch.search.budget import Budget
from wmlsearch.search.checkpoints import CheckpointRetention
from wmlsearch.search.final_training import LOST_PROCESS_RETRIES, write_result
from wmlsearch.search.group_resources import KilledGroups, Machines
from wmlsearch.search.machine_health import MachineFailures, machine_error
from wmlsearch.search.memory_kills import ADVICE, REASON, MemoryKills, is_death, was_preempted
from wmlsearch.search.messages import TrialAssignment, TrialResult, note_reported_epochs, trial_number
from wmlsearch.search.optuna_study import SpaceExhaustedError, Study
from wmlsearch.search.pbt import Snapshots, Takeover, child_record, trial_record
from wmlsearch.search.scheduler import Scheduler
from wmlsearch.search.tune_patches import actor_of, failure_of, reset_failures

WAITING_AFTER_S = 15.0  # after a trial was begun: a process of a worker takes some seconds to start
TRIAL_CHECK_INTERVAL_S = 1.0  # between two checks that trials have their machines and do not hang


class Recorder(tune.Callback):
    """Begins trials, and records each result that Tune receives. After a failed write it records nothing more."""

    def __init__(
        self,
        search: SearchDir,
        settings: RunSettings,
        study: Study,
        budget: Budget,
        location: Callable[[AnyDir], str],
        retention: CheckpointRetention,
        on_change: Callable[[AnyDir], None],
        scheduler: Scheduler,
    ) -> None:
        self.several_workers = budget.slots.workers > 1  # of each trial: another process drives them
        self.looked = 0.0  # time.monotonic() of the latest look at the running trials
        self.search, self.settings, self.study, self.budget = search, settings, study, budget
        self.location, self.retention, self.on_change, self.scheduler = location, retention, on_change, scheduler
        self.search_record = search.record()
        self.snapshots = (
            Snapshots(scheduler.population, search, location, retention.delete) if scheduler.population else None
        )
        self.started: dict[int, Trial] = {}  # Tune's trials that run, or did at the last look
        self.begun: set[int] = set()  # trials that have not ended
        self.holding: set[int] = set()  # those of them that have their machines
        self.waits_since: dict[int, float] = {}  # by trial without: time.monotonic()
        self.seen: set[Path] = set()  # folders of trials of which a process has reported in this session
        self.epochs: dict[int, int] = {}  # by trial: the last epoch that study and budget have
        self.last_report: dict[int, float] = {}  # by running trial: time.monotonic() of its report or start
        self.groups: dict[int, Any] = {}  # by running trial of several workers: the actor that drives them
        self.killed = KilledGroups()
        self.machines = MachineFailures(self._note_machine)
        self.losses: dict[int, str] = {}  # by trial whose process was ended: why (no report, or memory)
        self.memory_kills = MemoryKills()
        self.exhausted = ""  # why no trial is left to begin, though fewer than --trials have begun
        ended, self.received = [], 0.0  # the latest `received` of all rows
        for run in search.trials():
            rows = run.rows()
            self.received = max([self.received, *(row.order for row in rows)])
            if run.state not in UNFINISHED:
                ended.append((run, objective_values(rows, settings.objective_names)))
        self.retention.search_resumed(search, ended)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for Tuner.restore, which is not used

    def begin(self, number: int) -> TrialAssignment | None:
        """Begin or continue a trial, whose folder exists before it runs. Returns None if no more are to begin."""
        if self.budget.stop_all():
            return None
        try:
            run = self.search.trial(number)
            if run.exists():
                run.set_status(RUNNING)
            else:
                self._create(run, number)
            return self._assign(run, number)
        except OSError as error:
            self.budget.abort(error)
            return None
        except SpaceExhaustedError as end:  # the trials that run go on
            self.exhausted = str(end)
            return None
        except InputError as error:  # older versions took spaces with configurations that contradict themselves
            self.budget.end(f"trial {number} cannot begin: {'; '.join([error.headline, *error.faults])}")
            return None

    def _create(self, run: RunDir, number: int) -> None:
        """Create the folder of a trial: of a pending child, or of a configuration that the study proposes."""
        takeover = self.snapshots.begin_child(number) if self.snapshots else None
        RunDir.create(run.path, self._new_record(number, takeover))
        if takeover and self.snapshots:
            self.snapshots.child_begun(takeover)

    def _new_record(self, number: int, takeover: Takeover | None) -> RunRecord:
        if takeover:
            self.study.add_child(number)
            parent = self.search.trial(takeover.parent).record()
            return child_record(self.search_record, parent, takeover, number, self.settings.seed)
        record = trial_record(self.search_record, number, self.study.ask(number))
        origin = self.study.origin(number)
        return record.model_copy(update={"origin": origin}) if origin else record

    def _assign(self, run: RunDir, number: int) -> TrialAssignment:
        record = run.record()
        if record.parent is not None and len(run.rows()) < record.parent_epoch:
            run.reconcile(self.search.trial(record.parent).rows()[: record.parent_epoch])
        self.epochs[number] = len(run.rows())
        self.begun.add(number)
        self.on_change(run)
        return TrialAssignment(
            number=number,
            checkpoint_location=self.location(run),
            reported_epochs=self.epochs[number],
            config=record.config,
            rate_factors=record.rate_factors,
        )

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self.last_report[trial_number(trial)] = time.monotonic()
        if self.budget.storage_error is None:
            try:
                self._record(trial, TrialResult.from_plain(result))
            except OSError as error:
                self.budget.abort(error)

    def _record(self, trial: Trial, result: TrialResult) -> None:
        number = trial_number(trial)
        run = self.search.trial(number)
        # It rises though a clock can be set back. A resumed search replays the reports in this order: the clocks of the
        # workers' machines may differ.
        self.received = max(time.time(), math.nextafter(self.received, math.inf))
        rows = write_result(run, result, self.seen, self.losses.get(number, ""), self.received)
        for row in rows[self.epochs[number] : result.epoch]:
            self.study.report(number, row.epoch, row.metrics[self.settings.objective] or 0.0)
            self.budget.add(row)
            self.epochs[number] = row.epoch
            self.machines.epoch_trained()
            reset_failures(trial)  # only failures without an epoch in between count
            self.losses.pop(number, None)
        if result.ended == "interrupted":  # the storage failed, so the whole search is interrupted
            self.budget.abort(StorageError(result.reason))
        elif result.ended:
            self._end(number, result.ended, result.reason, result.traceback)
        elif result.done:
            reason, successor = self.scheduler.stop_reason(number, result.epoch)
            self._end(number, "stopped", reason, successor=successor)
            if self.scheduler.population:
                self.scheduler.population.add_pending(number)
        else:
            self.on_change(run)
        if self.snapshots and result.report is not None:
            self.snapshots.reported(number, result.epoch)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._process_lost(trial)
        note_reported_epochs(trial, self.epochs[trial_number(trial)])
        if was_preempted(failure_of(trial)):
            reset_failures(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        number = trial_number(trial)
        self._process_lost(trial)
        state, reason, trace = describe_failure(failure_of(trial), self.losses.get(number, ""))
        try:
            self._end(number, state, reason, trace)
        except OSError as error:
            self.budget.abort(error)

    def _process_lost(self, trial: Trial) -> None:
        """Release what its workers hold. Remember if the system ended it for lack of memory, and not we."""
        number = trial_number(trial)
        if group := self.groups.pop(number, None):
            self.killed.add(group)
        if error := machine_error(failure_of(trial)):
            self.losses[number] = str(error)
            if not self.machines.note(error, self.budget.slots):
                text = f"stopped, since {error}, and no other machine has a slot for trials"
                self.budget.fail(EarlyEnd(EndCause.MACHINES, text))
        self._count_machines_of(self.holding - {number})
        ended_by_us = self.last_report.get(number) == math.inf
        if not ended_by_us and (reason := self.memory_kills.reason_of_loss(failure_of(trial))):
            self.losses[number] = reason

    def _note_machine(self, text: str) -> None:
        """Let the status and the display say what became of a machine."""
        self.search.set_status(RUNNING, text)
        self.on_change(self.search)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        number = trial_number(trial)
        self.last_report[number] = time.monotonic()
        self.started[number] = trial
        if self.several_workers:
            self.groups[number] = actor_of(trial)  # it may be killed before the next look
        else:  # a single worker has its machine when it runs
            self._count_machines_of(self.holding | {number})

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Look once a second which trials have their machines, and which hang. `trials` are all of the search."""
        self.memory_kills.look()
        self.killed.release()
        if time.monotonic() - self.looked < TRIAL_CHECK_INTERVAL_S:
            return
        self.looked = time.monotonic()
        self.started = {number: trial for number, trial in self.started.items() if not trial.is_finished()}
        actors = {n: actor_of(trial) for n, trial in self.started.items() if trial.status == Trial.RUNNING}
        running = {number: actor for number, actor in actors.items() if actor is not None}
        if self.several_workers:
            self._look_for_machines(running)
        self._count_waiting()
        for number, actor in running.items():
            self._end_if_it_hangs(number, actor)

    def _look_for_machines(self, running: dict[int, Any]) -> None:
        """Count the machines of trials while they have them. Without them a trial does not hang.

        The processes that drive several workers run while these wait, at first or after the loss of a machine.
        """
        machines = Machines()
        self.groups |= running
        placed = {number for number, actor in running.items() if machines.workers_of(actor)}
        for number in running.keys() - placed:
            if self.last_report.get(number) != math.inf:
                self.last_report[number] = time.monotonic()
        self._count_machines_of(placed)

    def _count_waiting(self) -> None:
        """Count the trials that have waited for machines longer than a process takes to start."""
        now = time.monotonic()
        self.waits_since = {n: self.waits_since.get(n, now) for n in self.begun - self.holding}
        self.budget.waiting = sum(now - since > WAITING_AFTER_S for since in self.waits_since.values())

    def _count_machines_of(self, holding: set[int]) -> None:
        self.budget.count()
        self.holding = holding
        self.budget.running = len(holding)

    def _end_if_it_hangs(self, number: int, actor: Any) -> None:
        """End the process of a trial that has not reported for --trial-timeout. Tune continues it in a new one."""
        limit = self.settings.trial_timeout or math.inf
        if time.monotonic() - self.last_report.setdefault(number, time.monotonic()) > limit:
            self.losses[number] = f"no report for {limit:g} s (--trial-timeout)"
            self.last_report[number] = math.inf  # until it starts again
            ray.kill(actor)

    def interrupt_unfinished(self) -> None:
        """Record the trials that have not ended as "interrupted", whether they ran in this session or not."""
        reason = (self.budget.reason or "the search ended").splitlines()[0]
        for run in self.search.trials():
            if run.state in UNFINISHED:
                try:
                    self._end(int(run.name), "interrupted", reason)
                except OSError as error:  # its status stays "running", as after a kill
                    self.budget.abort(error)
        if self.snapshots and all(
            self.search.trial(number).state not in UNFINISHED for number in range(self.settings.trials)
        ):
            self.snapshots.clear()

    def _end(self, number: int, state: str, reason: str, trace: str = "", successor: Successor | None = None) -> None:
        self.groups.pop(number, None)
        self.begun.discard(number)
        self._count_machines_of(self.holding - {number})
        run = self.search.trial(number)
        run.set_status(state, reason, trace, successor)
        best = self._best(run)
        self.study.tell(number, state, best)
        if state == "failed":
            self.budget.add_error(trace or reason)
        elif state in GOOD:
            self.budget.add_success()
        self.on_change(run)  # before the deletions, which wait for the copy of this change
        if state != "interrupted":
            self.retention.trial_ended(run, best)

    def _best(self, run: RunDir) -> list[float] | None:
        """Return a trial's value of each objective, or None if it has none."""
        return objective_values(run.rows(), self.settings.objective_names)


def describe_failure(error: Exception | None, loss: str = "") -> tuple[str, str, str]:
    """Return state, reason and traceback of a trial that Tune gave up; `loss` is why its process was ended."""
    text = str(error or "").strip() or "its process died"
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "out_of_memory", f"Ray ended its process, since the machine ran low on memory; {ADVICE}", text
    if error is None or is_death(error):
        if loss == REASON:
            return "out_of_memory", f"{REASON}; {ADVICE}", text
        times = f"{LOST_PROCESS_RETRIES + 1} times without a new epoch"
        return "lost", f"{loss or 'its process or machine died'} {times}", text
    return "failed", text.splitlines()[-1], text
