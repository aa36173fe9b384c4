"""Verbs that train: `train`, `tune`; and `status`, which shows how they stand."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

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
    from wmlsearch.cli.console import console
    from wmlsearch.cli.live_display import TrainingDisplay
    from wmlsearch.config import InputError
    from wmlsearch.runs.folders import RunDir, check_name, check_new
    from wmlsearch.space import SearchSpace
    from wmlsearch.workflows.observer import Observer
    from wmlsearch.workflows.placement import Placement
    from wmlsearch.workflows.train import TrainRequest, train

    if workers < 0:
        raise InputError(f"--workers must be 0 (in this process) or more, but got {workers}")
    uri = options.uri_of(out, mlflow_uri)
    config = SearchSpace.read(point).point()
    settings = options.settings(epochs=epochs, seed=seed, precision=precision)
    run = RunDir(out / check_name(name or _new_name("train")))
    check_new(run.path)
    data = options.data_or_phantom(data, out)
    options.say(f"training {point} on {data}, at most {epochs} epochs, into {run.path}")
    display = TrainingDisplay(console(), settings)
    placement = Placement(ray_address, storage, max(workers, 1), gpus_per_worker)
    request = TrainRequest(config, settings, data, workers, placement)
    outcome = train(run, request, uri, Observer(display.changed, options.say))
    status = run.status()
    options.say(f"{status['state'].replace('_', ' ')} {status['reason']}".rstrip())
    if run.best.exists():
        options.say(f"weights of the best epoch: {run.best}")
    options.where_next(outcome, out, mlflow_uri)
    sys.exit(options.exit_status(outcome))


def _new_name(kind: str) -> str:
    """Return a name such as `search-20261123-201512`, for a search or run without --name."""
    return f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"


# What a resumed search may have otherwise than it began with; the rest is part of what it is.
MAY_CHANGE = (
    "trials", "max_hours", "max_gpu_hours", "max_epochs_total", "target_dice", "max_checkpoint_gb", "trial_timeout",
)  # fmt: skip
OF_THIS_MACHINE = ("resume", "data", "cluster", "ray_address", "storage", "out", "mlflow_uri")


@click.command(short_help="Search for a better configuration than the paper's.")
@click.argument("space", default="unet")
@options.data
@click.option("--resume", metavar="NAME", help="Go on with a search that was stopped or died.")
@options.trials
@click.option("--max-hours", type=float, help="End the trials in time for the final runs to end within so long.")
@click.option("--max-gpu-hours", type=float, help="The same for the hours that GPUs are held.")
@click.option("--max-epochs-total", type=int, help="The same for epochs, of all trials and final runs.")
@click.option("--target-dice", type=float, help="End the trials when one has reached this val_dice_best.")
@click.option("--max-checkpoint-gb", type=float, help="Most that the checkpoints of trials may take at a time.")
@click.option(
    "--trial-timeout",
    type=float,
    help="Seconds without a report (an epoch is one; the start of a process counts) after which a trial's process is "
    "ended, to go on in another.",
)
@click.option(
    "--sampler",
    type=click.Choice(["forest", "tpe", "gp", "random", "qmc", "cmaes"]),
    default="forest",
    show_default=True,
    help="What proposes configurations; all but forest are Optuna's.",
)
@click.option(
    "--scheduler",
    type=click.Choice(["asha", "hyperband", "median", "none", "pbt"]),
    default="asha",
    show_default=True,
    help="What stops poor trials early (Ray Tune); pbt: children of good ones go on in their place.",
)
@click.option("--warm-start", multiple=True, metavar="NAME", help="An earlier search to learn from; may be repeated.")
@options.workers_per_trial
@options.gpus_per_worker
@options.trials_per_gpu
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
@click.option(
    "--objectives",
    metavar="NAME,NAME",
    help="Several at once, the first a quality, without a scheduler: ends in a Pareto front.",
)
@options.grace_epochs
@options.confirm_top
@options.confirm_seeds
@options.no_baseline
@click.option("--no-forecast", is_flag=True, help="Begin at once, without timing some configurations first.")
@options.uri
def tune(
    space: str,
    data: Path | None,
    resume: str | None,
    warm_start: tuple[str, ...],
    workers_per_trial: int,
    gpus_per_worker: float | None,
    trials_per_gpu: Any,
    cluster: Path | None,
    ray_address: str | None,
    storage: str | None,
    name: str | None,
    out: Path,
    no_baseline: bool,
    no_forecast: bool,
    mlflow_uri: str | None,
    objectives: str | None,
    **settings: Any,
) -> None:
    """Search SPACE (a file of ranges, or `unet`, `quick`) for a better configuration than the paper's.

    The paper's point is tried first; poor trials are stopped early. At the end the best configurations and the paper's
    are trained anew with several seeds, and the best of them meets the paper's on the sealed test patients. Ctrl-C,
    `wmlsearch stop` or a budget end the trials cleanly; --resume goes on.

    \b
    Example: wmlsearch tune quick --data prepared --trials 12 --epochs 10
    Another: wmlsearch tune --resume search-20261123-201512 --trials 40
    Another: wmlsearch tune --data prepared --objectives val_dice_best,images_per_s
    """
    from wmlsearch.cli.console import console
    from wmlsearch.cli.live_display import SearchDisplay
    from wmlsearch.cli.tables import show_search
    from wmlsearch.runs.folders import SearchDir, check_name, check_new
    from wmlsearch.runs.objectives import objective_warnings
    from wmlsearch.runs.schema import open_search
    from wmlsearch.space import SearchSpace
    from wmlsearch.workflows.observer import Observer
    from wmlsearch.workflows.placement import Placement
    from wmlsearch.workflows.search_plan import SearchRequest
    from wmlsearch.workflows.tune import resume as resume_search
    from wmlsearch.workflows.tune import tune as run_new_search

    uri = options.uri_of(out, mlflow_uri)
    placement = Placement(ray_address, storage, workers_per_trial, gpus_per_worker, trials_per_gpu)
    if resume is not None:
        changes = _changes()
        if cluster is not None:
            from wmlsearch.cluster.remote import resume as resume_there

            _check_no_data(data)
            argv = remote.given(but=("cluster", "resume", "out"))
            sys.exit(resume_there(cluster, argv, resume, out, options.say))
        search = open_search(resume, out)
        about = search.about()
        ranges = SearchSpace.of(about["space"]["values"], about["space"]["source"])
        wanted = options.settings(**{**about["settings"], **changes})
        with SearchDisplay(console(), search, ranges, wanted) as display:
            observer = Observer(display.changed, display.say, display.progress)
            outcome = resume_search(search, uri, changes, data, placement, observer)
    else:
        ranges = options.space_to_search(space)
        if objectives is not None:
            settings = _of_several(objectives, settings)
        wanted = options.settings(**settings, baseline=not no_baseline, forecast=not no_forecast)
        search = SearchDir(out / check_name(name or _new_name("search")))
        check_new(search.path)
        earlier = [open_search(one, out) for one in warm_start]
        data = options.data_or_phantom(data, out)
        if cluster is not None:
            from wmlsearch.cluster.remote import tune as tune_there

            sys.exit(tune_there(cluster, remote.given(), data, space, search.name, out, options.say))
        if wanted.sampler in ("gp", "cmaes") and wanted.scheduler != "none":
            options.say(
                f"mind: {wanted.sampler} learns from finished trials only, and the scheduler stops most of them early; "
                "consider --scheduler none"
            )
        for note in objective_warnings(wanted, bool(earlier)):
            options.say(f"mind: {note}")
        options.say(
            f"searching {space} on {data}: {wanted.trials} trials of at most {wanted.epochs} epochs, into {search.path}"
        )
        with SearchDisplay(console(), search, ranges, wanted) as display:
            observer = Observer(display.changed, display.say, display.progress)
            request = SearchRequest(ranges, wanted, data, placement, earlier)
            outcome = run_new_search(search, request, uri, observer)
    show_search(console(), search)
    options.where_report(search)
    options.where_next(outcome, out, mlflow_uri)
    sys.exit(options.exit_status(outcome))


OF_SEVERAL = ("objective", "sampler", "scheduler")  # have other defaults then


def _of_several(objectives: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a search with several objectives, which bring their own `objective`, sampler and scheduler."""
    from wmlsearch.config import InputError

    source = click.get_current_context().get_parameter_source
    typed = {name for name in OF_SEVERAL if source(name) is ParameterSource.COMMANDLINE}
    if "objective" in typed:
        raise InputError(
            "--objective and --objectives can't be given together: the first of --objectives is what picks each "
            "trial's best epoch"
        )
    kept = {name: value for name, value in settings.items() if name not in set(OF_SEVERAL) - typed}
    return {**kept, "objectives": [name.strip() for name in objectives.split(",")]}


def _changes() -> dict[str, Any]:
    """The budgets given with --resume. Raises InputError for options that a resumed search can't have otherwise."""
    from wmlsearch.config import InputError

    context = click.get_current_context()
    given = [
        parameter
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]
    wrong = [p.opts[0] if isinstance(p, click.Option) else "SPACE" for p in given if p.name not in MAY_CHANGE]
    known = {"--" + name.replace("_", "-") for name in OF_THIS_MACHINE}
    if wrong := [name for name in wrong if name not in known]:
        raise InputError(
            f"--resume: {', '.join(wrong)} can't be given with it, since a search goes on as it began; "
            f"what may be changed: {', '.join('--' + name.replace('_', '-') for name in MAY_CHANGE)}"
        )
    return {p.name: context.params[p.name] for p in given if p.name in MAY_CHANGE}


def _check_no_data(data: Path | None) -> None:
    from wmlsearch.config import InputError

    if data is not None:
        raise InputError(f"--data {data}: can't be given with --resume and --cluster, the data are on the head already")


@click.command(short_help="End a running search cleanly.")
@click.argument("name", required=False)
@options.out
@remote.cluster
def stop(name: str | None, out: Path, cluster: Path | None) -> None:
    """End a running search (default: the latest) cleanly, from another terminal; `tune --resume` goes on with it.

    Example: wmlsearch stop search-20261123-201512
    """
    if cluster is not None:
        from wmlsearch.cluster.remote import stop as stop_there

        sys.exit(stop_there(cluster, name, options.say))
    from wmlsearch.config import InputError
    from wmlsearch.report.commands import resume_command
    from wmlsearch.runs.folders import find_search

    search = find_search(name, out)
    if not search.is_running():
        raise InputError(f"{search.name}: is not running (state: {search.status().get('state')}), nothing to stop")
    search.request_stop()
    options.say(f"{search.name} is asked to stop; its trials end after seconds ...")
    while search.is_running():
        time.sleep(0.2)
    status = search.status()
    options.say(f"{search.name}: {status.get('state')} ({status.get('reason') or 'it had ended by itself'})")
    options.say(f"to go on with it: {resume_command(search)}")


@click.command(short_help="Show how a search or training stands.")
@click.argument("name", required=False)
@options.out
@remote.cluster
def status(name: str | None, out: Path, cluster: Path | None) -> None:
    """Print the leaderboard of a running or finished search (default: the latest), or how a training stands.

    Example: wmlsearch status search-20261123-201512
    """
    if cluster is not None:
        from wmlsearch.cluster.remote import status as status_there

        sys.exit(status_there(cluster, name, out, options.say))
    from wmlsearch.cli.console import console
    from wmlsearch.cli.live_display import TrainingDisplay
    from wmlsearch.cli.tables import show_search
    from wmlsearch.runs.folders import SearchDir
    from wmlsearch.runs.schema import open_run

    run = open_run(name, out)
    if isinstance(run, SearchDir):
        show_search(console(), run)
        options.where_report(run)
    else:
        TrainingDisplay(console(), options.settings(**run.about()["settings"])).changed(run)
        options.say(f"{run.name}: {run.status().get('state')} {run.status().get('reason', '')}".rstrip())
