"""Which trials are stopped early: Ray's schedulers, made to remember an interrupted search."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from wmlsearch.config import RunSettings
from wmlsearch.runs.names import trial_name
from wmlsearch.runs.schema import Successor
from wmlsearch.search.pbt import Population
from wmlsearch.search.rungs import hyperband_brackets


class Scheduler(FIFOScheduler):
    """One of Ray's schedulers, or our population, which knows trials by the search's own numbers.

    Tune gives a trial another name in each session, and forgets rungs when it dies. Here a trial stays who it was, and
    a resumed search first lets the scheduler hear all that its run folder holds (`hear`).
    """

    def __init__(self, settings: RunSettings) -> None:
        super().__init__()
        self.settings = settings
        self.population = Population(settings) if settings.scheduler == "pbt" else None
        self.inner: Any = _of_ray(settings)  # none of them asks the controller for anything, so it gets none
        self._known: dict[int, Trial] = {}
        self._epochs: dict[int, int] = {}
        self._best: dict[int, float] = {}

    def hear(self, number: int, epoch: int, value: float, ended: bool = False) -> bool:
        """A trial's value after an epoch, and whether training ended by itself; returns whether it is to be stopped.

        What was heard before changes nothing: a trial that lost its process reports some epochs again.
        """
        trial = self._trial(number)
        if epoch <= self._epochs.get(number, 0):
            return False
        self._epochs[number] = epoch
        if self.population is not None:  # who has ended is no parent: there is nothing to go on with
            return not ended and self.population.hear(number, epoch, value)
        if self.settings.scheduler in ("asha", "hyperband"):
            # Rungs compare best epochs so far, since that is what a trial ends with: a single epoch's value is noisy.
            value = self._best[number] = max(value, self._best.get(number, value))
        result = {"epoch": epoch, self.settings.objective: value}
        if ended:
            self.inner.on_trial_complete(None, trial, result)
            return False
        return bool(self.inner.on_trial_result(None, trial, result) == TrialScheduler.STOP)

    def why(self, number: int, epoch: int) -> tuple[str, Successor | None]:
        """Return why a trial is stopped, and its successor in population based training."""
        if self.population is None:
            return f"behind the best of its rung at epoch {epoch}", None
        takeover = self.population.successors[number]
        reason = f"in the worst quarter at epoch {epoch}: a child of {trial_name(takeover.parent)} takes its place"
        return reason, Successor(parent=takeover.parent, epoch=takeover.epoch)

    def _trial(self, number: int) -> Trial:
        if number not in self._known:
            self._known[number] = Trial("stand-in", trial_id=f"{number:04d}", stub=True)
            # Hyperband draws a bracket from NumPy's global state: by (seed, number), whatever happened before.
            before = np.random.get_state()
            np.random.seed(np.random.SeedSequence((self.settings.seed, number)).generate_state(1))
            self.inner.on_trial_add(None, self._known[number])
            np.random.set_state(before)
        return self._known[number]

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True  # the metric is the settings' objective

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._trial(trial.config["number"])

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        stop = self.hear(trial.config["number"], result["epoch"], result[self.settings.objective])
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if "epoch" in result:
            self.hear(trial.config["number"], result["epoch"], result[self.settings.objective], ended=True)


def _of_ray(settings: RunSettings) -> TrialScheduler:
    shared: dict[str, Any] = {"time_attr": "epoch", "metric": settings.objective, "mode": "max"}
    grace = min(settings.grace_epochs, settings.epochs)
    if settings.scheduler in ("none", "pbt"):
        return FIFOScheduler()
    if settings.scheduler == "median":
        never: Any = math.inf  # it would pause trials while it knows little; our slots run each to its end
        return MedianStoppingRule(**shared, grace_period=grace, min_time_slice=never)
    brackets = hyperband_brackets(settings.epochs, grace, settings.reduction_factor)
    return AsyncHyperBandScheduler(
        **shared,
        max_t=settings.epochs,
        grace_period=grace,
        reduction_factor=settings.reduction_factor,
        brackets=brackets if settings.scheduler == "hyperband" else 1,
    )
