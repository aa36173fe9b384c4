"""What to type to get a search and its champion again, from what its folder says."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import RunDir
from wmlsearch.space import SearchSpace, shipped

if TYPE_CHECKING:
    pass

# Settings that are options of `wmlsearch tune` by their own name.
_OPTIONS = (
    "trials", "epochs", "seed", "precision", "objective", "sampler", "scheduler", "grace_epochs", "confirm_top",
    "confirm_seeds", "max_hours", "max_gpu_hours", "max_epochs_total", "target_dice", "max_checkpoint_gb",
    "trial_timeout",
)  # fmt: skip


def tune_command(about: Mapping[str, Any]) -> str:
    """`wmlsearch tune quick --data prepared --trials 6`: with the options that are not at their default.

    A space that is not shipped is named as the report's own copy, `space.yaml`.
    """
    settings = about["settings"]
    source = about["space"]["source"]
    words = [source if (shipped() / f"{source}.yaml").is_file() else "space.yaml", *_data(about)]
    objectives = settings.get("objectives") or []
    brought = {"objectives": objectives} if objectives else {}
    defaults = RunSettings.of(brought).model_dump()  # several objectives bring their own sampler and scheduler
    if objectives:
        words += ["--objectives", ",".join(objectives)]
    for name in _OPTIONS:
        if settings.get(name, defaults[name]) != defaults[name]:
            words += ["--" + name.replace("_", "-"), f"{settings[name]}"]
    words += _shape(about, "--workers-per-trial")
    if (shared := about.get("shape", {}).get("trials_per_gpu", 1)) != 1:
        words += ["--trials-per-gpu", str(shared)]
    words += [] if settings.get("baseline", True) else ["--no-baseline"]
    words += [] if settings.get("forecast", True) else ["--no-forecast"]
    return shlex.join(["wmlsearch", "tune", *words])


def train_commands(about: Mapping[str, Any], seeds: list[int]) -> list[str]:
    """`wmlsearch train champion.yaml --data prepared --epochs 9 --seed 1`, one for each seed."""
    settings, defaults = about["settings"], RunSettings().model_dump()
    words = ["wmlsearch", "train", "champion.yaml", *_data(about), "--epochs", str(settings["epochs"])]
    if settings.get("precision", "auto") != defaults["precision"]:
        words += ["--precision", settings["precision"]]
    words += _shape(about, "--workers")
    return [shlex.join([*words, "--seed", str(seed)]) for seed in seeds]


def _data(about: Mapping[str, Any]) -> list[str]:
    """The data by their folder's name: where it lies may name people, and a report is handed on."""
    return ["--data", about["data"]["name"]]


def _shape(about: Mapping[str, Any], workers: str) -> list[str]:
    shape = about.get("shape", {})
    words = [workers, str(shape["workers_per_trial"])] if shape.get("workers_per_trial", 1) != 1 else []
    return words + (["--gpus-per-worker", f"{shape['gpus_per_worker']:g}"] if shape.get("gpus_per_worker") else [])


def point_yaml(config: Mapping[str, Any]) -> str:
    """A configuration as a hyperparameter file; what differs from the paper's says so."""
    paper = TrialConfig().model_dump()
    lines = [(_line(name, value), _line(name, paper[name]).split(": ", 1)[1]) for name, value in config.items()]
    wide = max(len(line) for line, _ in lines)
    changed = [config[name] != paper[name] for name in config]
    return "".join(
        (f"{line:<{wide}}  # the paper's: {theirs}" if differs else line) + "\n"
        for (line, theirs), differs in zip(lines, changed, strict=True)
    )


def space_yaml(space: SearchSpace) -> str:
    """A search space as a hyperparameter file."""
    return "".join(_line(name, entry) + "\n" for name, entry in space.mapping().items())


def _line(name: str, entry: Any) -> str:
    return yaml.safe_dump({name: entry}, default_flow_style=True, sort_keys=False, width=10_000).strip()[1:-1]


def resume_command(search: RunDir) -> str:
    """What goes on with a search, wherever it lies."""
    out = search.path.parent
    words = ["wmlsearch", "tune", "--resume", search.name, *([] if out == Path("runs") else ["--out", str(out)])]
    return shlex.join(words)
