"""The verb `plan`: forecast what a search would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wmlsearch.cli import json_output, options
from wmlsearch.cli.tune import tune

# Options of `tune`, without a line of their own in `options`, that change what a search costs.
OPTIONS_OF_TUNE = ("max_hours", "max_gpu_hours", "max_epochs_total", "target_dice", "max_checkpoint_gb", "scheduler")


@options.same_as(tune, *OPTIONS_OF_TUNE)
@click.command(short_help="Forecast what a search would cost.")
@click.argument("space")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A prepared data set.")
@options.trials
@options.workers_per_trial
@options.gpus_per_worker
@options.trials_per_gpu
@options.ray_address
@options.storage
@options.epochs
@options.seed
@options.precision
@options.grace_epochs
@options.confirm_top
@options.confirm_seeds
@options.final_runs
@options.no_baseline
@options.out
@json_output.option
def plan(
    space: str,
    data: Path,
    trials: int,
    workers_per_trial: int,
    gpus_per_worker: float | None,
    trials_per_gpu: Any,
    ray_address: str | None,
    storage: str | None,
    epochs: int | None,
    seed: int,
    precision: str,
    grace_epochs: int,
    no_baseline: bool,
    out: Path,
    as_json: bool,
    **options_of_tune: Any,
) -> None:
    """Forecast trials, time, disk space and memory of `wmlsearch tune SPACE` with the same options.

    The smallest network of the space, the baseline and the largest network are timed for some seconds each, as the
    trials would run. The smallest difference that the verdict could find is computed from how much results varied in
    earlier searches on the same data below --out. Nothing is written.

    Example: wmlsearch plan quick --data prepared --trials 12 --epochs 10
    """
    from wmlsearch.cli.console import console
    from wmlsearch.cli.forecast_tables import show_forecast
    from wmlsearch.data.manifest import Manifest
    from wmlsearch.workflows.expected_power import expected_power
    from wmlsearch.workflows.forecast import forecast_search
    from wmlsearch.workflows.placement import Placement
    from wmlsearch.workflows.search_plan import SearchRequest

    with json_output.only_json(as_json) as show:
        search_space = options.space_to_search(space)
        settings = options.settings(
            epochs=options.epochs_for(data, epochs),
            seed=seed,
            precision=precision,
            trials=trials,
            grace_epochs=grace_epochs,
            baseline=not no_baseline,
            **options_of_tune,
        )
        placement = Placement(ray_address, storage, workers_per_trial, gpus_per_worker, trials_per_gpu)
        request = SearchRequest(search_space, settings, data, placement)
        forecast = forecast_search(request, options.say)
        power = expected_power(settings, Manifest.read(data), out)
        if as_json:
            from wmlsearch.workflows.json_results import PlanSummary

            show(PlanSummary.of(forecast, power))
        else:
            show_forecast(console(), forecast, power)
