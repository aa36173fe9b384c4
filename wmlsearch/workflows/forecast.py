"""What a search finds out before its first trial: how many trials share a GPU, and a forecast.

And what of the forecast only shows while the search runs.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wmlsearch.config import RunSettings
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.space import SearchSpace
from wmlsearch.workflows.placement import LOCAL, Placement
from wmlsearch.workflows.preflight import check_baseline_fits, check_budgets, check_data, check_settings

if TYPE_CHECKING:
    from wmlsearch.cluster.data_shipping import Shipment
    from wmlsearch.cluster.resources import Slots
    from wmlsearch.forecast.cost import Forecast

LIMIT_S = 2.0  # for each configuration that is timed
PATIENCE_S = 180.0  # then a search begins without its forecast: others may hold what it would be measured on


def warn_of_load(where: Placement, say: Callable[[str], None]) -> None:
    """Say when others use the cores that are about to be timed. Of another machine than this one nothing is known."""
    from wmlsearch.forecast.measurement import load_warning

    if not where.ray_address and (warning := load_warning()):
        say(warning)


def record_forecast(
    search: SearchDir,
    space: SearchSpace,
    settings: RunSettings,
    data: Shipment,
    slots: Slots,
    final: Slots,
    say: Callable[[str], None],
) -> None:
    """Forecast a search before its first trial, into its folder. Whatever goes wrong with that, the search goes on."""
    from wmlsearch.forecast.cost import forecast

    say("forecast: three configurations are timed for some seconds ...")
    try:
        made = forecast(space, settings, data, slots, final, LIMIT_S, PATIENCE_S)
        search.set_forecast(made.as_dict())
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        say(f"no forecast ({reason}); the search goes on without")


def resolve_trials_per_gpu(
    where: Placement, space: SearchSpace, settings: RunSettings, data: Path, say: Callable[[str], None]
) -> tuple[Placement, dict[str, Any]]:
    """`where` with the number of trials that share a GPU, tried where it is "auto", and what was found in trying.

    Whatever goes wrong with that, the search goes on with one trial on each GPU.
    """
    from wmlsearch.cluster.data_shipping import make_shipment
    from wmlsearch.forecast.gpu_sharing import choose_trials_per_gpu
    from wmlsearch.model.throughput import mps_is_on

    if where.trials_per_gpu == 1:
        return where, {}
    alone = where.slots(settings.trials)  # whatever was wished, a wish that can't be is refused here
    if where.trials_per_gpu != "auto":
        say(f"{where.trials_per_gpu} trials share a GPU; NVIDIA MPS is {'on' if mps_is_on() else 'off'}")
        return where, {}
    say("trials per GPU: the paper's point is timed with one trial, two at once, and so on ...")
    try:
        found = choose_trials_per_gpu(space, settings, make_shipment(data, send=bool(where.ray_address)), alone)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        say(f"1 trial has a GPU, since no other number could be tried ({reason})")
        return dataclasses.replace(where, trials_per_gpu=1), {}
    say(str(found))
    return dataclasses.replace(where, trials_per_gpu=found.trials_per_gpu), found.as_dict()


class CheckpointBytes:
    """What the checkpoints of a search take at most, where they are kept in its folder."""

    def __init__(self, search: SearchDir, where: Placement) -> None:
        self.search, self.here = search, not where.storage
        self.there: set[RunDir] = set()
        self.most = search.used()["checkpoint_bytes"]

    def look(self, run: RunDir) -> None:
        """At a run that has changed, and at those that had checkpoints when they were looked at last."""
        if self.here and not isinstance(run, SearchDir):
            sizes = {it: it.checkpoint_bytes() for it in (*self.there, run)}
            self.there = {it for it, size in sizes.items() if size}
            if sum(sizes.values()) > self.most:
                self.most = sum(sizes.values())
                self.search.set_used({"checkpoint_bytes": self.most})


def plan(
    space: SearchSpace, settings: RunSettings, data: Path, where: Placement = LOCAL, say: Callable[[str], None] = print
) -> Forecast:
    """Forecast what `tune` would spend with these arguments; nothing is kept. Raises InputError as it does."""
    from wmlsearch.cluster.connect import ray_session
    from wmlsearch.cluster.data_shipping import make_shipment
    from wmlsearch.cluster.watchdog import watchdog
    from wmlsearch.forecast.cost import forecast

    check_settings(space, settings, where)
    check_data(space, data, where.workers_per_trial)
    warn_of_load(where, say)
    started = time.monotonic()
    with ray_session(where.ray_address), watchdog(say, lambda: "the measurement"):
        where, _ = resolve_trials_per_gpu(where, space, settings, data, say)
        slots = where.slots(settings.trials)
        check_budgets(space, settings, slots)
        check_baseline_fits(settings, data, where, slots)
        say(f"trials would run {slots}; timing three configurations ...")
        ray_s = time.monotonic() - started
        final = where.slots(max(settings.final_runs, 1))
        made = forecast(space, settings, make_shipment(data, send=bool(where.ray_address)), slots, final)
    return dataclasses.replace(made, start_s=made.start_s + ray_s)
