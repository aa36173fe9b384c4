"""Options and words that several verbs share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from wmlsearch.config import RunSettings
    from wmlsearch.runs.folders import SearchDir
    from wmlsearch.space import SearchSpace
    from wmlsearch.workflows.observer import Outcome

out = click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Folder of the runs."
)
uri = click.option(
    "--mlflow-uri",
    envvar="MLFLOW_TRACKING_URI",
    help="MLflow tracking server or store; also MLFLOW_TRACKING_URI.  [default: sqlite:///OUT/mlflow.db]",
)
data = click.option(
    "--data", type=click.Path(path_type=Path), help="A prepared data set.  [default: the phantom, made in OUT]"
)
epochs = click.option("--epochs", type=int, default=18, show_default=True, help="At most so many epochs a training.")
seed = click.option("--seed", type=int, default=0, show_default=True, help="Seed of all chance.")
ray_address = click.option(
    "--ray-address",
    envvar="RAY_ADDRESS",
    help="A Ray cluster that is there already; also RAY_ADDRESS.  [default: an embedded Ray]",
)
storage = click.option(
    "--storage",
    envvar="WMLSEARCH_STORAGE",
    help="Folder or URI for checkpoints that all machines reach; also WMLSEARCH_STORAGE.  [default: the run folders]",
)
gpus_per_worker = click.option(
    "--gpus-per-worker", type=float, help="GPUs of each worker.  [default: 1 where there are GPUs]"
)
trials_per_gpu = click.option(
    "--trials-per-gpu",
    metavar="N|auto",
    default="1",
    show_default=True,
    callback=lambda _context, _option, given: int(given) if re.fullmatch("[0-9]{1,9}", given) else given,
    help="Trials that share a GPU. auto: as many as make the search faster and fit into its memory.",
)
precision = click.option(
    "--precision",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "bfloat16", "float32"]),
    help="auto: bfloat16 where the hardware has it.",
)


trials = click.option("--trials", type=int, default=20, show_default=True, help="Configurations to try.")
workers_per_trial = click.option(
    "--workers-per-trial", type=int, default=1, show_default=True, help="Ray Train workers of each trial."
)
grace_epochs = click.option(
    "--grace-epochs",
    type=int,
    default=2,
    show_default=True,
    help="No trial is stopped early before this. pbt: nor between its multiples.",
)
no_baseline = click.option(
    "--no-baseline", is_flag=True, help="Search only: no final runs, no sealed test, no verdict."
)
confirm_top = click.option(
    "--confirm-top",
    type=int,
    default=3,
    show_default=True,
    help="So many of the best configurations are trained anew beside the paper's.",
)
confirm_seeds = click.option(
    "--confirm-seeds",
    type=int,
    default=3,
    show_default=True,
    help="With so many seeds each, from --seed on.",
)


def of(verb: click.Command, *names: str) -> Callable[[click.Command], click.Command]:
    """The very options of another verb."""

    def add(command: click.Command) -> click.Command:
        command.params += [parameter for parameter in verb.params if parameter.name in names]
        return command

    return add


def say(text: str) -> None:
    click.echo(text.encode(errors="backslashreplace").decode())  # names of files need not be text


def settings(**values: Any) -> RunSettings:
    from wmlsearch.config import InputError, RunSettings

    try:
        return RunSettings.of(values)
    except InputError as error:
        faults = [re.sub(r"^(\w+)", lambda m: "--" + m[1].replace("_", "-"), fault) for fault in error.faults]
        raise InputError("these options can't be used", faults) from None


def space_to_search(space: str) -> SearchSpace:
    from wmlsearch.config import InputError
    from wmlsearch.space import SearchSpace

    ranges = SearchSpace.read(space)
    if ranges.is_point:
        raise InputError(
            f"{space}: holds values only, so there is nothing to search; train it with `wmlsearch train {space}`"
        )
    return ranges


def uri_of(out: Path, given: str | None) -> str:
    """The address of MLflow's store. Raises InputError for what can be none."""
    from wmlsearch.tracking.client import check_uri
    from wmlsearch.tracking.sync import default_uri

    uri = given or default_uri(out)
    if given or out.is_dir():
        check_uri(uri)
    return uri


def data_or_phantom(data: Path | None, out: Path) -> Path:
    if data is not None:
        return data
    from wmlsearch.cli.console import console, progress_bar
    from wmlsearch.workflows.builtin_phantom import ensure_builtin_phantom

    say("no --data given: the built-in phantom is used")
    bar, advance = progress_bar(console())
    with bar:
        return ensure_builtin_phantom(out, advance)


def where_report(search: SearchDir) -> None:
    page = search.report / "index.html"
    if page.is_file():
        say(f"report: {page}")


def where_next(outcome: Outcome, out: Path, mlflow_uri: str | None) -> None:
    from wmlsearch.report.commands import resume_command
    from wmlsearch.runs.folders import SearchDir
    from wmlsearch.runs.redaction import without_password

    uri = f" --mlflow-uri {without_password(mlflow_uri)}" if mlflow_uri else ""
    options = ("" if out == Path("runs") else f" --out {out}") + uri
    if isinstance(outcome.run, SearchDir) and outcome.early.startswith("stopped"):
        say(f"{outcome.early}; to go on with it: {resume_command(outcome.run)}{uri}")
    say(f"everything is in {outcome.run.path}")
    if outcome.mlflow_problem:
        say(f"MLflow lacks some of it ({outcome.mlflow_problem}); later: wmlsearch sync {outcome.run.name}{options}")
    else:
        say(f"compare in MLflow: wmlsearch ui{options}")


def exit_status(outcome: Outcome) -> int:
    if outcome.early.startswith("stopped by"):
        return 130
    return 0 if outcome.run.status()["state"] in ("completed", "early_stopped") else 1
