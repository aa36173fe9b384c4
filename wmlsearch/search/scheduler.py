"""When a trial is stopped early (`--scheduler`).

asha (the default): trials are compared at rungs. The first rung is after `grace_epochs` epochs (by default a third
of `epochs`), each later one after `reduction_factor` (3) times as many, below `epochs`: with 18 epochs, the only rung
is at 6; with `grace_epochs` 2, rungs are at 2 and 6. A trial that reaches a rung is stopped there if its best epoch so
far is not among the best third (1 / `reduction_factor`) of those that reached this rung before. The first trial at a
rung is not stopped, and no trial is stopped between rungs.

hyperband: asha in up to three brackets, to which trials are assigned at random. The first bracket has all rungs, the
second begins at the second rung, the third at the third. With 18 epochs they begin at 6 and 18, so the second stops no
trial; with `grace_epochs` 2, at 2, 6 and 18.
median: from `grace_epochs` on, a trial is stopped if its best epoch is worse than the median of the mean values of the
other trials from `grace_epochs` to the same epoch. At least three other trials must have come as far.
pbt: at each multiple of `grace_epochs`, a trial in the worst quarter of those that have reached it is stopped, and a
child of one in the best quarter takes its place (see `pbt.py`).
predictive: asha, but rungs compare what the outcome model predicts (see `predictive.py`).
none: no trial is stopped.

The compared value is the settings' objective.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.names import trial_name
from wmlsearch.runs.schema import Successor
from wmlsearch.search.messages import trial_number
from wmlsearch.search.pbt import Population
from wmlsearch.search.predictive import PredictiveHalving
from wmlsearch.search.rungs import hyperband_brackets
from wmlsearch.search.tune_patches import named_trial
from wmlsearch.space import SearchSpace


class Scheduler(FIFOScheduler):
    """One of Ray's schedulers, a Population or PredictiveHalving, by the search's own trial numbers.

    Tune gives a trial another name in each session, and loses the rungs when it dies. Here a trial keeps its number,
    and `tune_loop.replay_reports` gives the reports of the run folder to the scheduler of a resumed search.
    """

    def __init__(
        self,
        settings: RunSettings,
        space: SearchSpace | None = None,
        configuration: Callable[[int], TrialConfig] | None = None,
    ) -> None:
        """Make a scheduler that has heard nothing.

        Args:
            settings: The settings of the search.
            space: The search space, required by `predictive`.
            configuration: Returns the configuration of a trial; required by `predictive`.
        """
        super().__init__()
        self.settings = settings
        self.population = Population(settings) if settings.scheduler == "pbt" else None
        self.predictive: PredictiveHalving | None = None
        if settings.scheduler == "predictive":
            if space is None or configuration is None:
                raise ValueError("predictive needs the space and the configurations of the search")
            self.predictive = PredictiveHalving(
                settings, space, lambda number: space.active_values(configuration(number))
            )
        self.ray_scheduler: Any = _make_ray_scheduler(settings)  # none of them uses Tune's controller, so it gets None
        self._trials: dict[int, Trial] = {}
        self._epochs: dict[int, int] = {}  # the last reported one, by trial
        self._best: dict[int, float] = {}

    def report(self, number: int, epoch: int, value: float, ended: bool = False) -> bool:
        """Add a trial's value after an epoch, and return whether the trial is to be stopped.

        An epoch that was reported before is ignored: a trial that lost its process repeats some.

        Args:
            ended: Whether the training ended by itself with this epoch.
        """
        trial = self._trial(number)
        if epoch <= self._epochs.get(number, 0):
            return False
        self._epochs[number] = epoch
        if self.population is not None:  # an ended trial cannot be a parent: its checkpoint is deleted
            return not ended and self.population.report(number, epoch, value)
        if self.predictive is not None:
            return self.predictive.report(number, epoch, value, ended)
        if self.settings.scheduler in ("asha", "hyperband"):
            # A trial is ranked by its best epoch at the end, so rungs compare that too. Single epochs are noisy.
            value = self._best[number] = max(value, self._best.get(number, value))
        result = {"epoch": epoch, self.settings.objective: value}
        if ended:
            self.ray_scheduler.on_trial_complete(None, trial, result)
            return False
        return bool(self.ray_scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP)

    def stop_reason(self, number: int, epoch: int) -> tuple[str, Successor | None]:
        """Return why a trial is stopped, and its successor in population based training."""
        if self.settings.scheduler == "median":
            return f"worse than the median of the other trials at epoch {epoch}", None
        if self.predictive is not None:
            return self.predictive.stop_reason(number), None
        if self.population is None:
            return f"behind the best of its rung at epoch {epoch}", None
        takeover = self.population.successors[number]
        reason = f"in the worst quarter at epoch {epoch}: a child of {trial_name(takeover.parent)} takes its place"
        return reason, Successor(parent=takeover.parent, epoch=takeover.epoch)

    def _trial(self, number: int) -> Trial:
        """Return the stand-in for a trial, by which Ray's scheduler knows it."""
        if number not in self._trials:
            self._trials[number] = named_trial(f"{number:04d}")
            # Hyperband draws a bracket from NumPy's global state. Seed it by (seed, number), so that a resumed search
            # draws the same one.
            state = np.random.get_state()
            np.random.seed(np.random.SeedSequence((self.settings.seed, number)).generate_state(1))
            self.ray_scheduler.on_trial_add(None, self._trials[number])
            np.random.set_state(state)
        return self._trials[number]

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True  # the metric is the settings' objective

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._trial(trial_number(trial))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        stop = self.report(trial_number(trial), result["epoch"], result[self.settings.objective])
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if "epoch" in result:
            self.report(trial_number(trial), result["epoch"], result[self.settings.objective], ended=True)


def _make_ray_scheduler(settings: RunSettings) -> TrialScheduler:
    shared: dict[str, Any] = {"time_attr": "epoch", "metric": settings.objective, "mode": "max"}
    grace = min(settings.grace, settings.epochs)
    if settings.scheduler in ("none", "pbt", "predictive"):
        return FIFOScheduler()
    if settings.scheduler == "median":
        never: Any = math.inf  # it would pause trials while there are few to compare; a slot runs each to its end
        return MedianStoppingRule(**shared, grace_period=grace, min_time_slice=never)
    brackets = hyperband_brackets(settings.epochs, grace, settings.reduction_factor)
    return AsyncHyperBandScheduler(
        **shared,
        max_t=settings.epochs,
        grace_period=grace,
        reduction_factor=settings.reduction_factor,
        brackets=brackets if settings.scheduler == "hyperband" else 1,
    )
