"""Verbs that train: `train`, `tune`; and `status`, which shows how they stand."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from wmlsearch.cli import options, remote

OBJECTIVES = ("val_dice_best", "val_dice", "val_iou", "val_soft_dice", "val_average_precision", "val_dice_patients")


@click.command(short_help="Train one configuration.")
@click.argument("point")
@options.data
@click.option(
    "--workers", type=int, default=1, show_default=True, help="Ray Train workers; 0: in this process, no Ray."
)
@options.gpus_per_worker
@options.ray_address
@options.storage
@options.epochs
@options.seed
@options.precision
@click.option("--name", help="Name of the run.  [default: train-DATE-TIME]")
@options.out
@options.uri
def train(
    point: str,
    data: Path | None,
    workers: int,
    gpus_per_worker: float | None,
    ray_address: str | None,
    storage: str | None,
    epochs: int,
    seed: int,
    precision: str,
    name: str | None,
    out: Path,
    mlflow_uri: str | None,
) -> None:
    """Train one configuration (POINT: a file of values, or `paper`) and log it to MLflow.

    Example: wmlsearch train paper --data prepared --epochs 18
    """
    from wmlsearch import study
    from wmlsearch.config import InputError
    from wmlsearch.display import TrainingDisplay, console
    from wmlsearch.runs import RunDir, check_name
    from wmlsearch.space import SearchSpace

    if workers < 0:
        raise InputError(f"--workers must be 0 (in this process) or more, but got {workers}")
    config = SearchSpace.read(point).point()
    settings = options.settings(epochs=epochs, seed=seed, precision=precision)
    run = RunDir(out / check_name(name or study.new_name("train")))
    data = options.data_or_phantom(data, out)
    options.say(f"training {point} on {data}, at most {epochs} epochs, into {run.path}")
    display = TrainingDisplay(console(), settings)
    where = study.Where(ray_address, storage, max(workers, 1), gpus_per_worker)
    outcome = study.train(
        run, config, settings, data, options.uri_of(out, mlflow_uri), display.changed, workers, where, options.say
    )
    status = run.status()
    options.say(f"{status['state'].replace('_', ' ')} {status['reason']}".rstrip())
    if run.best.exists():
        options.say(f"weights of the best epoch: {run.best}")
    options.where_next(outcome, out, mlflow_uri)
    sys.exit(options.exit_status(outcome))


@click.command(short_help="Search for a better configuration than the paper's.")
@click.argument("space", default="unet")
@options.data
@options.trials
@click.option("--max-hours", type=float, help="End the search after this time.")
@options.workers_per_trial
@options.gpus_per_worker
@remote.cluster
@options.ray_address
@options.storage
@options.epochs
@click.option("--name", help="Name of the search.  [default: search-DATE-TIME]")
@options.out
@options.seed
@options.precision
@click.option(
    "--objective", type=click.Choice(OBJECTIVES), default=OBJECTIVES[0], show_default=True, help="What is maximised."
)
@options.grace_epochs
@options.no_baseline
@options.uri
def tune(
    space: str,
    data: Path | None,
    trials: int,
    max_hours: float | None,
    workers_per_trial: int,
    gpus_per_worker: float | None,
    cluster: Path | None,
    ray_address: str | None,
    storage: str | None,
    epochs: int,
    name: str | None,
    out: Path,
    seed: int,
    precision: str,
    objective: str,
    grace_epochs: int,
    no_baseline: bool,
    mlflow_uri: str | None,
) -> None:
    """Search SPACE (a file of ranges, or `unet`, `quick`) for a better configuration than the paper's.

    The paper's point is tried first; poor trials are stopped early (ASHA); at the end the paper's configuration is
    trained once more as the baseline. Ctrl-C keeps what is finished.

    Example: wmlsearch tune quick --data prepared --trials 12 --epochs 10
    """
    from wmlsearch import study
    from wmlsearch.display import SearchDisplay, console, show_search
    from wmlsearch.runs import SearchDir, check_name, check_new

    ranges = options.space_to_search(space)
    settings = options.settings(
        epochs=epochs,
        seed=seed,
        precision=precision,
        objective=objective,
        trials=trials,
        max_hours=max_hours,
        grace_epochs=grace_epochs,
        baseline=not no_baseline,
    )
    search = SearchDir(out / check_name(name or study.new_name("search")))
    check_new(search.path)
    data = options.data_or_phantom(data, out)
    if cluster is not None:
        from wmlsearch.remote import tune as tune_there

        sys.exit(tune_there(cluster, remote.given(), data, space, search.name, out, options.say))
    options.say(f"searching {space} on {data}: {trials} trials of at most {epochs} epochs, into {search.path}")
    with SearchDisplay(console(), search, ranges, settings) as display:
        where = study.Where(ray_address, storage, workers_per_trial, gpus_per_worker)
        uri = options.uri_of(out, mlflow_uri)
        outcome = study.tune(search, ranges, settings, data, uri, display.changed, where, display.say)
    show_search(console(), search, outcome.pictures)
    options.where_next(outcome, out, mlflow_uri)
    sys.exit(options.exit_status(outcome))


@click.command(short_help="Show how a search or training stands.")
@click.argument("name", required=False)
@options.out
@remote.cluster
def status(name: str | None, out: Path, cluster: Path | None) -> None:
    """Print the leaderboard of a running or finished search (default: the latest), or how a training stands.

    Example: wmlsearch status search-20261123-201512
    """
    if cluster is not None:
        from wmlsearch.remote import status as status_there

        sys.exit(status_there(cluster, name, out, options.say))
    from wmlsearch.display import TrainingDisplay, console, show_search
    from wmlsearch.runs import SearchDir, find

    run = find(name, out)
    if isinstance(run, SearchDir):
        show_search(console(), run, sorted(run.report.glob("*.png")))
    else:
        TrainingDisplay(console(), options.settings(**run.about()["settings"])).changed(run)
        options.say(f"{run.name}: {run.status().get('state')} {run.status().get('reason', '')}".rstrip())
