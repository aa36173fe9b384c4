"""The verb `tune`: a whole search, or the rest of one that was stopped."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from wmlsearch.cli import options, remote
from wmlsearch.errors import InputError
from wmlsearch.runs.names import EXPERIMENT
from wmlsearch.runs.wording import plural

if TYPE_CHECKING:
    from wmlsearch.runs.folders import SearchDir
    from wmlsearch.runs.schema import SearchRecord
    from wmlsearch.workflows.observer import Outcome
    from wmlsearch.workflows.placement import Placement
    from wmlsearch.workflows.search_plan import ResumeRequest
    from wmlsearch.workflows.stored_search import StoredSearch

# With --resume: the budgets may change; the others say where the search runs on this machine.
CHANGEABLE_ON_RESUME = (
    "trials", "max_hours", "max_gpu_hours", "max_epochs_total", "target_dice", "max_checkpoint_gb", "trial_timeout",
)  # fmt: skip
ALLOWED_ON_RESUME = ("resume", "data", "cluster", "ray_address", "storage", "out", "mlflow_uri", "experiment", "on_end")
SET_BY_OBJECTIVES = {"objective", "sampler", "scheduler"}  # have other defaults with --objectives


@click.command(short_help="Search for a better configuration than the baseline.")
@click.argument("space", default="unet")
@options.data
@click.option(
    "--resume",
    metavar="NAME",
    help="Resume a search that was stopped or whose process died. With --storage, this also works on another machine.",
)
@click.option(
    "--continue",
    "continue_",
    is_flag=True,
    help="Resume the search --name if it exists, otherwise start it. For batch jobs that may run more than once.",
)
@options.trials
@click.option("--max-hours", type=float, help="Time budget in hours, including the final runs.")
@click.option("--max-gpu-hours", type=float, help="Budget in GPU hours, including the final runs.")
@click.option("--max-epochs-total", type=int, help="Budget of epochs: the sum over all trials and final runs.")
@click.option(
    "--target-dice", type=float, help="End the trials when one of them reaches this Dice on the validation patients."
)
@click.option("--max-checkpoint-gb", type=float, help="Maximum disk space of the trials' checkpoints, in GB.")
@click.option(
    "--trial-timeout",
    type=float,
    help="Replace the process of a trial that has not reported for this many seconds. A report is the end of an epoch, "
    "or the start of the process.",
)
@click.option(
    "--sampler",
    type=options.SettingChoice("sampler"),
    default="forest",
    show_default=True,
    help="Algorithm that proposes configurations. forest is part of wmlsearch, the others are Optuna's.",
)
@click.option(
    "--scheduler",
    type=options.SettingChoice("scheduler"),
    default="asha",
    show_default=True,
    help="Algorithm that stops poor trials early (Ray Tune). predictive: compares predicted results. pbt: replaces "
    "poor trials by children of good trials.",
)
@click.option(
    "--portfolio",
    type=int,
    help="Number of trials after the baseline that use configurations that did well on recorded tasks. Applies to "
    "every --sampler.  [default: 3]",
)
@click.option(
    "--no-experience",
    is_flag=True,
    help="Do not use the recorded trainings of other tasks, neither for the first trials nor for --scheduler "
    "predictive.",
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
@options.objective
@click.option(
    "--objectives",
    metavar="NAME,NAME",
    help="Several metrics to optimise at once, which gives a Pareto front. The first must be a quality such as "
    "val_dice_patients_best. Changes the defaults to --scheduler none and --sampler tpe.",
)
@options.grace_epochs
@options.reduction_factor
@options.confirm_top
@options.confirm_seeds
@options.final_runs
@options.postprocessing
@options.no_baseline
@click.option("--no-forecast", is_flag=True, help="Start at once, without timing some configurations first.")
@options.uri_of_named_run
@options.experiment
@click.option(
    "--on-end",
    metavar="COMMAND",
    help="Run this shell command when the search ends, whatever the reason. The command gets the JSON of `wmlsearch "
    "status --json` on its standard input. It is ended after 60 seconds.",
)
def tune(
    space: str,
    data: Path | None,
    resume: str | None,
    continue_: bool,
    warm_start: tuple[str, ...],
    workers_per_trial: int,
    gpus_per_worker: float | None,
    trials_per_gpu: Any,
    cluster: str | None,
    ray_address: str | None,
    storage: str | None,
    name: str | None,
    out: Path,
    no_baseline: bool,
    no_experience: bool,
    no_forecast: bool,
    mlflow_uri: str | None,
    experiment: str,
    on_end: str | None,
    objectives: str | None,
    **settings: Any,
) -> None:
    """Search SPACE (a file of ranges, or `unet`, `quick`) for a better configuration than the baseline.

    The baseline configuration is tried first, and poor trials are stopped early. The best configurations and the
    baseline are then trained again to choose the champion, using only validation patients. If the champion is not the
    baseline, new runs of both are compared on the sealed test patients. Ctrl-C, `wmlsearch stop` or a budget end the
    trials cleanly; --resume continues the search.

    \b
    Example: wmlsearch tune quick --data prepared --trials 12 --epochs 10
    Example: wmlsearch tune --resume search-20261123-201512 --trials 40
    Example: wmlsearch tune --continue --name mine --data prepared
    Example: wmlsearch tune --data prepared --objectives val_dice_patients_best,images_per_s
    """
    from wmlsearch.cli.console import console
    from wmlsearch.cli.search_summary import show_search
    from wmlsearch.tracking.experiments import check_experiment_name
    from wmlsearch.workflows.mlflow_store import store_uri
    from wmlsearch.workflows.placement import Placement

    experiment = check_experiment_name(experiment)
    placement = Placement(ray_address, storage, workers_per_trial, gpus_per_worker, trials_per_gpu)
    if continue_:
        resume = _begun(name, resume, cluster, out, placement.storage)
    elif resume is not None:
        _check_only_budgets_change()
    if resume is not None:
        search, outcome = _resume(
            resume,
            data=data,
            placement=placement,
            cluster=cluster,
            out=out,
            mlflow_uri=mlflow_uri,
            on_end=on_end,
        )
    else:
        uri = store_uri(out, mlflow_uri)
        settings = settings if objectives is None else with_objectives(objectives, settings)
        settings |= {"baseline": not no_baseline, "experience": not no_experience, "forecast": not no_forecast}
        search, outcome = _start(
            space=space,
            values=settings,
            warm_start=warm_start,
            data=data,
            placement=placement,
            cluster=cluster,
            name=name,
            out=out,
            uri=uri,
            experiment=experiment,
            on_end=on_end,
        )
    show_search(console(), search)
    options.show_report_path(search)
    options.show_next_steps(outcome, mlflow_uri)
    sys.exit(options.exit_status(outcome))


def _begun(name: str | None, resume: str | None, cluster: str | None, out: Path, storage: str | None) -> str | None:
    """Return the name of the search that `--continue` goes on with, or None if it has not begun, here or elsewhere."""
    from wmlsearch.runs.folders import SearchDir, check_name
    from wmlsearch.workflows.stored_search import is_in_storage

    if name is None or resume is not None or cluster is not None:
        raise InputError("--continue: needs --name, and cannot be combined with --resume or --cluster")
    begun = SearchDir(out / check_name(name)).exists() or (storage is not None and is_in_storage(name, storage))
    return name if begun else None


def _start(
    *,
    space: str,
    values: dict[str, Any],
    warm_start: tuple[str, ...],
    data: Path | None,
    placement: Placement,
    cluster: str | None,
    name: str | None,
    out: Path,
    uri: str,
    experiment: str,
    on_end: str | None,
) -> tuple[SearchDir, Outcome]:
    """Run a new search, here or on a cluster."""
    from wmlsearch.cli.console import console
    from wmlsearch.cli.live_display import SearchDisplay
    from wmlsearch.runs.checks import open_search
    from wmlsearch.runs.folders import SearchDir, check_name, check_new
    from wmlsearch.runs.names import SEARCH, default_name
    from wmlsearch.runs.process import end_this_process
    from wmlsearch.workflows.epochs import settings_before_data
    from wmlsearch.workflows.new_search import SearchChoices, request_search, space_to_search
    from wmlsearch.workflows.observer import Observer
    from wmlsearch.workflows.tune import tune as run_search

    ranges = space_to_search(space)
    search = SearchDir(out / check_name(name or default_name(SEARCH)))
    earlier = [open_search(name, out) for name in warm_start]
    check_new(search.path)
    if cluster is not None:
        settings_before_data(values, options.settings)
        _start_on_cluster(cluster, data, space, search.name, out, placement.storage)
    choices = SearchChoices(
        space=ranges,
        settings=values,
        data=data,
        placement=placement,
        warm_start=earlier,
        experiment=experiment,
        on_end=on_end,
    )
    request = request_search(
        choices,
        lambda: options.data_or_phantom(None, out),
        options.say,
        options.settings,
    )
    settings = request.settings
    options.say(
        f"searching {space} on {request.data}: {plural(settings.trials, 'trial')} of at most "
        f"{plural(settings.epochs, 'epoch')}, in {search.path}"
    )
    with SearchDisplay(console(), search, request.space, settings) as display:
        observer = Observer(display.update, display.say, display.progress, end_this_process)
        try:
            return search, run_search(search, request, uri, observer)
        except KeyboardInterrupt:
            if not search.exists():
                display.say(f"nothing was started: {search.path} does not exist yet, so there is nothing to resume")
            raise


def _start_on_cluster(
    cluster: str, data: Path | None, space: str, name: str, out: Path, storage: str | None
) -> NoReturn:
    """Run a new search on a cluster, and exit with its status. Raises InputError."""
    from wmlsearch.cluster.dashboard import Dashboard
    from wmlsearch.cluster.remote import storage_of
    from wmlsearch.cluster.remote import tune as tune_on_cluster

    dashboard = Dashboard(cluster)
    given, of_environment = remote.storages_for(dashboard, storage)
    storage = storage_of(dashboard, given or of_environment)
    data = options.data_or_phantom(data, out)  # after the checks, since it may make the phantom
    sys.exit(tune_on_cluster(cluster, remote.given(), data, space, name, out, storage, options.say))


def _resume(
    name: str,
    *,
    data: Path | None,
    placement: Placement,
    cluster: str | None,
    out: Path,
    mlflow_uri: str | None,
    on_end: str | None,
) -> tuple[SearchDir, Outcome]:
    """Run the rest of a search, here or on a cluster. Exits with status 0 if there is none."""
    from wmlsearch.cli.console import console
    from wmlsearch.cli.live_display import SearchDisplay
    from wmlsearch.runs.checks import validate_folder
    from wmlsearch.runs.process import end_this_process
    from wmlsearch.workflows.mlflow_store import store_uri, store_uri_of
    from wmlsearch.workflows.observer import Observer
    from wmlsearch.workflows.stored_search import search_to_resume
    from wmlsearch.workflows.tune import resume as resume_search

    if mlflow_uri:
        store_uri(out, mlflow_uri)  # refuses it before a cluster or a storage is asked
    if cluster is not None:
        from wmlsearch.cluster.dashboard import Dashboard
        from wmlsearch.cluster.remote import resume as resume_on_cluster

        argv = remote.given(but=("cluster", "resume", "out", "data", "storage"))
        storage, of_environment = remote.storages_for(Dashboard(cluster), placement.storage)
        sys.exit(resume_on_cluster(cluster, argv, data, name, out, storage, options.say, of_environment))
    with search_to_resume(name, out, placement.storage, options.say) as stored:
        search = stored.search
        validate_folder(search)
        uri = store_uri_of(search, mlflow_uri)
        request = _request_to_resume(data, placement, uri, mlflow_uri, stored)
        request = dataclasses.replace(request, on_end=on_end)
        with SearchDisplay(console(), search, request.space, request.settings) as display:
            stored.say = display.say
            observer = Observer(display.update, display.say, display.progress, end_this_process)
            return search, resume_search(search, request, uri, observer)


def _request_to_resume(
    data: Path | None, placement: Placement, uri: str, mlflow_uri: str | None, stored: StoredSearch
) -> ResumeRequest:
    """Return the request to run the rest of a search, checked. Exits with status 0 if there is none.

    Args:
        uri: URI of the search's MLflow store.
        mlflow_uri: URI given on the command line, or by MLFLOW_TRACKING_URI.
    """
    from wmlsearch.workflows.mlflow_store import check_store_of_resumed
    from wmlsearch.workflows.remaining_work import nothing_left
    from wmlsearch.workflows.search_plan import ResumeRequest

    search = stored.search
    if click.get_current_context().params["continue_"]:
        from wmlsearch.cli.continuation import check_same_search

        check_same_search(search, CHANGEABLE_ON_RESUME)
    check_store_of_resumed(search, mlflow_uri)
    record = search.record()
    _note_experiment(record)
    settings = options.settings({**record.settings.model_dump(), **_budgets()})
    if complete := nothing_left(search, settings, uri):
        stored.complete(search)
        options.say(complete)
        sys.exit(0)
    return ResumeRequest.of(search, record, settings, data, placement, stored)


def _note_experiment(record: SearchRecord) -> None:
    """Say that a resumed search stays in its MLflow experiment, if another one was given."""
    given, kept = click.get_current_context().params["experiment"], record.experiment or EXPERIMENT
    if "experiment" in options.given() and given != kept:
        options.say(
            f"note: the runs of {record.name} stay in the MLflow experiment {kept!r}, where they began, so "
            f"--experiment {given!r} is not used"
        )


def with_objectives(objectives: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with several objectives, which bring their own objective, sampler and scheduler."""
    given = options.given().keys() & SET_BY_OBJECTIVES
    if "objective" in given:
        raise InputError(
            "--objective and --objectives cannot be given together: the first of --objectives selects each trial's "
            "best epoch"
        )
    kept = {name: value for name, value in settings.items() if name not in SET_BY_OBJECTIVES - given}
    return {**kept, "objectives": [name.strip() for name in objectives.split(",")]}


def _budgets() -> dict[str, Any]:
    """Return the budgets that were given: what a search may change when it goes on."""
    values = click.get_current_context().params
    return {name: values[name] for name in options.given() if name in CHANGEABLE_ON_RESUME}


def _check_only_budgets_change() -> None:
    """Refuse options that cannot be given with --resume. Raises InputError."""
    refused = [
        parameter.opts[0] if isinstance(parameter, click.Option) else "SPACE"
        for name, parameter in options.given().items()
        if name not in (*CHANGEABLE_ON_RESUME, *ALLOWED_ON_RESUME)
    ]
    if refused:
        budgets = ", ".join("--" + name.replace("_", "-") for name in CHANGEABLE_ON_RESUME)
        raise InputError(
            f"--resume: {', '.join(refused)} cannot be given with it, since a search keeps its settings; "
            f"only budgets may change: {budgets}"
        )
