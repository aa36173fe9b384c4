"""`wmlsearch plan`, and the forecast that `tune` makes before its first trial."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import SearchDir
from wmlsearch.runs.schema import ForecastRecord
from wmlsearch.space import different_configurations
from wmlsearch.workflows.expected_power import expected_power
from wmlsearch.workflows.placement import Placement
from wmlsearch.workflows.preflight import (
    check_forecast,
    note_few_configurations,
    note_no_effect,
    plan_search,
    read_earlier_trials,
)
from wmlsearch.workflows.search_plan import SearchPlan, SearchRequest

if TYPE_CHECKING:
    from wmlsearch.cluster.data_shipping import Shipment
    from wmlsearch.forecast.cost import Forecast

TIMING_LIMIT_S = 2.0  # for each configuration that is timed before a search
RESOURCES_PATIENCE_S = (
    180.0  # other programs may hold the resources; after this time a search starts without its forecast
)


def forecast_search(request: SearchRequest, say: Callable[[str], None] = print) -> Forecast:
    """Forecast what `tune` would spend on this request. Nothing is written. Raises InputError as `tune` does."""
    from wmlsearch.cluster.connect import ray_session
    from wmlsearch.cluster.data_shipping import make_shipment
    from wmlsearch.cluster.watchdog import watchdog
    from wmlsearch.forecast.cost import forecast
    from wmlsearch.forecast.measurement import measure_space

    data = check_forecast(request)
    note_no_effect(request.space, data.manifest, say)
    note_few_configurations(request.space, request.settings, say)
    read_earlier_trials(request, data, say)
    warn_of_load(request.placement, say)
    started = time.monotonic()
    with ray_session(request.placement.ray_address, say), watchdog(say, lambda: "the measurement"):
        plan = plan_search(request, data, say)
        say(f"trials would run {plan.slots}; timing three configurations ...")
        ray_s = time.monotonic() - started
        shipment = make_shipment(plan.data, plan.manifest.fingerprint, send=plan.placement.on_cluster)
        measurement = measure_space(plan.space, plan.settings, plan.manifest, shipment, plan.slots)
    made = forecast(_with_possible_trials(plan), plan.slots, plan.forecast_final_slots, measurement)
    return dataclasses.replace(made, start_s=made.start_s + ray_s)


def record_forecast(search: SearchDir, plan: SearchPlan, shipment: Shipment, say: Callable[[str], None]) -> None:
    """Write the forecast of a search into its folder. If it cannot be made, say so and return."""
    from wmlsearch.forecast.cost import forecast
    from wmlsearch.forecast.measurement import measure_space

    say("forecast: timing three configurations for some seconds ...")
    try:
        measurement = measure_space(
            plan.space,
            plan.settings,
            plan.manifest,
            shipment,
            plan.slots,
            limit_s=TIMING_LIMIT_S,
            patience_s=RESOURCES_PATIENCE_S,
        )
        made = forecast(_with_possible_trials(plan), plan.slots, plan.forecast_final_slots, measurement)
        search.set_forecast(ForecastRecord(**made.as_dict()))
        if power := expected_power(plan.settings, plan.manifest, search.path.parent):
            say(f"verdict: {power}")
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        say(f"no forecast ({reason}); the search continues without it")


def _with_possible_trials(plan: SearchPlan) -> RunSettings:
    """Return the settings without the trials that the space has no configurations for."""
    settings = plan.settings
    configurations = different_configurations(plan.space, settings.trials)
    if configurations is None or settings.scheduler == "pbt":
        return settings
    outside = 1 if plan.space.mismatches(TrialConfig()) else 0  # the baseline, which is tried too
    return settings.model_copy(update={"trials": min(settings.trials, len(configurations) + outside)})


def warn_of_load(placement: Placement, say: Callable[[str], None]) -> None:
    """Warn if other programs use the cores of this machine that are about to be timed."""
    from wmlsearch.forecast.measurement import load_warning

    if not placement.on_cluster and (warning := load_warning()):
        say(warning)
