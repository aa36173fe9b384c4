"""The verb `plan`: forecast what a search would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wmlsearch.cli import json_output, options
from wmlsearch.cli.tune import tune, with_objectives

# Options of `tune`, without a line of their own in `options`, that change what a search costs, or whether it can run.
OPTIONS_OF_TUNE = (
    "max_hours", "max_gpu_hours", "max_epochs_total", "target_dice", "max_checkpoint_gb", "sampler", "scheduler",
    "no_experience", "portfolio", "warm_start", "objectives",
)  # fmt: skip


@options.same_as(tune, *OPTIONS_OF_TUNE)
@click.command(short_help="Forecast what a search would cost.")
@click.argument("space", default="unet")
@options.data
@options.trials
@options.workers_per_trial
@options.gpus_per_worker
@options.trials_per_gpu
@options.ray_address
@options.storage
@options.epochs
@options.seed
@options.precision
@options.objective
@options.grace_epochs
@options.reduction_factor
@options.confirm_top
@options.confirm_seeds
@options.final_runs
@options.no_baseline
@options.postprocessing
@options.out
@json_output.option
def plan(
    space: str,
    data: Path | None,
    workers_per_trial: int,
    gpus_per_worker: float | None,
    trials_per_gpu: Any,
    ray_address: str | None,
    storage: str | None,
    warm_start: tuple[str, ...],
    objectives: str | None,
    no_baseline: bool,
    no_experience: bool,
    out: Path,
    as_json: bool,
    **settings: Any,
) -> None:
    """Forecast trials, time, disk space and memory of `wmlsearch tune SPACE` with the same options.

    `plan` trains the smallest network of the space, the baseline and the largest network for some seconds each, in as
    many processes as trials would run at once. It also estimates the smallest difference that the verdict could find,
    from the variation in earlier searches on the same data below --out. Nothing is written, except the built-in phantom
    if --data is not given.

    Example: wmlsearch plan quick --data prepared --trials 12 --epochs 10
    """
    from wmlsearch.cli.console import console
    from wmlsearch.cli.forecast_tables import show_forecast
    from wmlsearch.data.manifest import Manifest
    from wmlsearch.runs.checks import open_search
    from wmlsearch.workflows.expected_power import expected_power
    from wmlsearch.workflows.forecast import forecast_search
    from wmlsearch.workflows.new_search import SearchChoices, request_search, space_to_search
    from wmlsearch.workflows.placement import Placement

    with json_output.only_json(as_json) as show:
        settings = settings if objectives is None else with_objectives(objectives, settings)
        choices = SearchChoices(
            space=space_to_search(space),
            settings={**settings, "baseline": not no_baseline, "experience": not no_experience},
            data=data,
            placement=Placement(ray_address, storage, workers_per_trial, gpus_per_worker, trials_per_gpu),
            warm_start=[open_search(name, out) for name in warm_start],
        )
        request = request_search(
            choices,
            lambda: options.data_or_phantom(None, out),
            options.say,
            options.settings,
        )
        forecast = forecast_search(request, options.say)
        power = expected_power(request.settings, Manifest.read(request.data), out)
        if as_json:
            from wmlsearch.workflows.json_results import PlanSummary

            show(PlanSummary.of(forecast, power))
        else:
            show_forecast(console(), forecast, power)
