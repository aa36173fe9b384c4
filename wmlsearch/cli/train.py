"""The verb `train`: one configuration."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from wmlsearch.cli import options
from wmlsearch.errors import InputError
from wmlsearch.runs.wording import plural

_OF_RAY = ("gpus_per_worker", "ray_address", "storage")  # options that have no effect without Ray


@click.command(short_help="Train one configuration.")
@click.argument("point")
@options.data
@click.option(
    "--workers",
    type=int,
    default=1,
    show_default=True,
    help="Ray Train workers; 0: train in this process, without Ray and its options.",
)
@options.gpus_per_worker
@options.ray_address
@options.storage
@options.epochs
@options.seed
@click.option(
    "--fold",
    type=int,
    default=0,
    show_default=True,
    help="Fold of the patients to validate on; the others are trained.",
)
@options.precision
@options.objective
@click.option("--name", help="Name of the run.  [default: train-DATE-TIME]")
@options.out
@options.uri
@options.experiment
def train(
    point: str,
    data: Path | None,
    workers: int,
    gpus_per_worker: float | None,
    ray_address: str | None,
    storage: str | None,
    epochs: int | None,
    seed: int,
    fold: int,
    precision: str,
    objective: str,
    name: str | None,
    out: Path,
    mlflow_uri: str | None,
    experiment: str,
) -> None:
    """Train one configuration and log it to MLflow.

    POINT is a file of hyperparameter values, or `paper` for the baseline configuration.

    Example: wmlsearch train paper --data prepared --epochs 18
    """
    from wmlsearch.cli.console import console
    from wmlsearch.cli.live_display import TrainingDisplay
    from wmlsearch.runs.folders import RunDir, check_name, check_new
    from wmlsearch.runs.names import TRAIN, default_name
    from wmlsearch.space import SearchSpace
    from wmlsearch.tracking.experiments import check_experiment_name
    from wmlsearch.workflows.epochs import default_epochs, settings_before_data
    from wmlsearch.workflows.mlflow_store import store_uri
    from wmlsearch.workflows.observer import Observer
    from wmlsearch.workflows.placement import Placement
    from wmlsearch.workflows.train import TrainRequest, train

    if workers < 0:
        raise InputError(f"--workers must be 0 (in this process) or more, but got {workers}")
    if workers == 0 and (unused := [option.opts[0] for name, option in options.given().items() if name in _OF_RAY]):
        raise InputError(
            f"--workers 0 trains in this process, without Ray, so {' and '.join(unused)} cannot be given with it; "
            f"leave {'them' if len(unused) > 1 else 'it'} out, or give --workers 1"
        )
    uri, experiment = store_uri(out, mlflow_uri), check_experiment_name(experiment)
    config = SearchSpace.read(point).single_configuration()
    values = {"epochs": epochs, "seed": seed, "precision": precision, "objective": objective}
    settings_before_data(values, options.settings)
    run = RunDir(out / check_name(name or default_name(TRAIN)))
    check_new(run.path)
    placement = Placement(ray_address, storage, max(workers, 1), gpus_per_worker)
    if workers and data is None:
        placement.check_before_ray(1)  # before the phantom is made
    data = options.data_or_phantom(data, out)
    if epochs is None:
        values["epochs"] = default_epochs(data, options.say)
    settings = options.settings(values)
    options.say(f"training {point} on {data} for at most {plural(settings.epochs, 'epoch')}, in {run.path}")
    display = TrainingDisplay(console(), settings)
    request = TrainRequest(config, settings, data, workers, placement, fold, experiment)
    outcome = train(run, request, uri, Observer(display.update, options.say))
    status = run.status()
    options.say(f"{status.state.replace('_', ' ')} {status.reason}".rstrip())
    if run.best.exists():
        options.say(f"weights of the best epoch: {run.best}")
    options.show_next_steps(outcome, mlflow_uri)
    sys.exit(options.exit_status(outcome))
