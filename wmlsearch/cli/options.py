"""Options, checks and messages that several verbs share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click.core import ParameterSource

from wmlsearch.errors import InputError
from wmlsearch.runs.names import EXPERIMENT

if TYPE_CHECKING:
    from wmlsearch.config import RunSettings
    from wmlsearch.runs.folders import SearchDir
    from wmlsearch.workflows.observer import Outcome


class SettingChoice(click.Choice[str]):
    """The values that a setting of `RunSettings` allows, read when they are needed: pydantic is slow to import."""

    def __init__(self, setting: str) -> None:
        self.setting = setting
        super().__init__(())

    @property
    def choices(self) -> tuple[str, ...]:
        from wmlsearch.config import QUALITY_METRICS, RunSettings

        if self.setting == "objective":
            return QUALITY_METRICS
        return get_args(RunSettings.model_fields[self.setting].annotation)

    @choices.setter
    def choices(self, _: tuple[str, ...]) -> None:
        """Ignore the values that click.Choice sets."""


# ------------------------------------------------------------------------------------------------------------ options

out = click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of all runs."
)
runs = click.option(
    "--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of all runs."
)
uri = click.option(
    "--mlflow-uri",
    envvar="MLFLOW_TRACKING_URI",
    help="MLflow tracking server or store; or set MLFLOW_TRACKING_URI.  [default: sqlite:///OUT/mlflow.db]",
)
uri_of_named_run = click.option(
    "--mlflow-uri",
    envvar="MLFLOW_TRACKING_URI",
    help="MLflow tracking server or store; or set MLFLOW_TRACKING_URI.  [default: sqlite:///OUT/mlflow.db; for a "
    "search or run that is given by its path, mlflow.db beside its folder]",
)
experiment = click.option(
    "--experiment",
    envvar="MLFLOW_EXPERIMENT_NAME",
    metavar="NAME",
    default=EXPERIMENT,
    show_default=True,
    help="MLflow experiment of a new search or run; or set MLFLOW_EXPERIMENT_NAME.",
)
model_uri = click.option(
    "--mlflow-uri",
    envvar="MLFLOW_TRACKING_URI",
    help="MLflow server or store that resolves models:/ names; or set MLFLOW_TRACKING_URI.  [default: "
    "sqlite:///RUNS/mlflow.db]",
)
data = click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder of a prepared data set.  [default: the built-in phantom, prepared in OUT]",
)
epochs = click.option(
    "--epochs",
    type=int,
    help="Maximum number of epochs of each training.  [default: enough to match the paper's number of training steps "
    "on your data, from 18 to 200; the command prints the number]",
)
seed = click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
ray_address = click.option(
    "--ray-address",
    envvar="RAY_ADDRESS",
    help="Address of a running Ray cluster; or set RAY_ADDRESS.  [default: start an embedded Ray]",
)
storage = click.option(
    "--storage",
    envvar="WMLSEARCH_STORAGE",
    help="Folder or URI that all machines can reach, for checkpoints and a copy of the run folder; or set "
    "WMLSEARCH_STORAGE.  [default: no copy; checkpoints are in the run folders]",
)
gpus_per_worker = click.option("--gpus-per-worker", type=float, help="GPUs of each worker.  [default: 1 if available]")
trials_per_gpu = click.option(
    "--trials-per-gpu",
    metavar="N|auto",
    default="1",
    show_default=True,
    callback=lambda _context, _option, given: int(given) if re.fullmatch("[0-9]{1,9}", given) else given,
    help="Number of trials that share a GPU. auto: measure which number is fastest and fits into the GPU's memory.",
)
precision = click.option(
    "--precision",
    default="auto",
    show_default=True,
    type=SettingChoice("precision"),
    help="Floating-point format of the training. auto: bfloat16 if the hardware supports it.",
)
objective = click.option(
    "--objective",
    type=SettingChoice("objective"),
    default="val_dice_patients_best",
    show_default=True,
    metavar="METRIC",
    help="Validation metric to maximise. It also selects the epoch whose weights are kept. One of "
    "val_dice_patients_best, val_dice_best (pooled over pixels), val_dice, val_iou, val_soft_dice, "
    "val_average_precision and val_dice_patients.",
)
trials = click.option("--trials", type=int, default=20, show_default=True, help="Number of configurations to try.")
workers_per_trial = click.option(
    "--workers-per-trial", type=int, default=1, show_default=True, help="Ray Train workers of each trial."
)
grace_epochs = click.option(
    "--grace-epochs",
    type=int,
    help="No trial is stopped early before this epoch. With pbt, trials are compared at each multiple of this number.  "
    "[default: a third of the epochs, at least 2; predictive and pbt: 2]",
)
reduction_factor = click.option(
    "--reduction-factor",
    metavar="N",
    type=int,
    default=3,
    show_default=True,
    help="At each rung, about the best 1/N of the trials continue. The next rung is at N times the epoch of this rung. "
    "For asha, hyperband and predictive.",
)
no_baseline = click.option(
    "--no-baseline", is_flag=True, help="Search only: no final runs, no sealed test, no verdict."
)
confirm_top = click.option(
    "--confirm-top",
    type=int,
    default=3,
    show_default=True,
    help="Number of best configurations that are trained again, in addition to the baseline, to select the champion.",
)
confirm_seeds = click.option(
    "--confirm-seeds",
    type=int,
    default=2,
    show_default=True,
    help="Selection runs per configuration (see --confirm-top), each with another seed and fold.",
)
final_runs = click.option(
    "--final-runs",
    type=int,
    default=5,
    show_default=True,
    help="Number of new runs of the champion and of the baseline, each on the next fold. Their models are compared on "
    "the sealed test patients.",
)

postprocessing = click.option(
    "--postprocessing",
    type=click.Choice(["auto", "none"]),
    default="auto",
    show_default=True,
    help="auto: use mirror averaging and remove small lesions in the final models, each only if it raises Dice on "
    "patients that a network was not trained on. none: never.",
)


def same_as(verb: click.Command, *names: str) -> Callable[[click.Command], click.Command]:
    """Add the options of another verb that have these names."""

    def add(command: click.Command) -> click.Command:
        command.params += [parameter for parameter in verb.params if parameter.name in names]
        return command

    return add


# ----------------------------------------------------------------------------------------------------- values, checks


def given() -> dict[str, click.Parameter]:
    """Return the options and arguments that stand on the command line, by name: no defaults, no environment."""
    context = click.get_current_context()
    return {
        parameter.name: parameter
        for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    }


def settings(values: Mapping[str, Any]) -> RunSettings:
    """Return the validated settings. Raises InputError that names the options."""
    from wmlsearch.config import RunSettings

    try:
        return RunSettings.from_mapping(values)
    except InputError as error:
        faults = [re.sub(r"^(\w+)", lambda m: "--" + m[1].replace("_", "-"), fault) for fault in error.faults]
        raise InputError("these options cannot be used", faults) from None


def data_or_phantom(data: Path | None, out: Path) -> Path:
    """Return the given prepared data set, or else the built-in phantom, prepared in `out`."""
    if data is not None:
        return data
    from wmlsearch.cli.console import console, progress_bar
    from wmlsearch.workflows.builtin_phantom import ensure_builtin_phantom

    say("note: no --data given, so the built-in phantom is used")
    bar, advance = progress_bar(console())
    with bar:
        return ensure_builtin_phantom(out, advance)


# ------------------------------------------------------------------------------------------------- messages, end


def say(text: str, fg: str | None = None) -> None:
    """Print a line, in a colour if the output is a terminal."""
    click.secho(text.encode(errors="backslashreplace").decode(), fg=fg)  # file names may not be valid text


def show_report_path(search: SearchDir) -> None:
    """Print where the report of a search is, if there is one."""
    page = search.report_page
    if page.is_file():
        say(f"report: {page}")


def show_next_steps(outcome: Outcome, mlflow_uri: str | None) -> None:
    """Print where the results of a search or training are, and the commands that come next."""
    from wmlsearch.runs.folders import SearchDir, folder_of_all_runs
    from wmlsearch.runs.wording import DEFAULT_OUT, command
    from wmlsearch.workflows.mlflow_store import missing_results_warning, uri_words
    from wmlsearch.workflows.resume_command import resume_command, resume_note

    if isinstance(outcome.run, SearchDir) and outcome.interrupted:
        say(f"{outcome.early_end}; to resume: {resume_command(outcome.run, mlflow_uri)}")
        if note := resume_note(outcome.run, mlflow_uri):
            say(note)
    say(f"results: {outcome.run.path}")
    if outcome.mlflow_problem:
        say(missing_results_warning(outcome.run, outcome.mlflow_problem, mlflow_uri))
    else:
        out = folder_of_all_runs(outcome.run)
        folder = () if out == DEFAULT_OUT else ("--out", out)
        say(f"compare in MLflow: {command('ui', *folder, *uri_words(mlflow_uri))}")


def exit_status(outcome: Outcome) -> int:
    """Return the exit status of `tune` and `train`: 128 + signal or 130 if interrupted, 0 if completed, else 1."""
    from wmlsearch.runs import interrupts
    from wmlsearch.runs.early_end import EndCause

    if outcome.early_end is not None and outcome.early_end.cause is EndCause.REQUEST:
        return interrupts.exit_status(outcome.early_end)
    return 0 if outcome.run.status().state in ("completed", "early_stopped") else 1
