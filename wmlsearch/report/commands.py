"""Commands and hyperparameter files that reproduce a search and its champion."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import RunDir
from wmlsearch.space import SearchSpace, shipped

# Settings whose option of `wmlsearch tune` has the same name.
_OPTIONS = (
    "trials", "epochs", "seed", "precision", "objective", "sampler", "scheduler", "grace_epochs", "confirm_top",
    "confirm_seeds", "max_hours", "max_gpu_hours", "max_epochs_total", "target_dice", "max_checkpoint_gb",
    "trial_timeout",
)  # fmt: skip


def tune_command(about: Mapping[str, Any]) -> str:
    """Return the command with all options that differ from their default: `wmlsearch tune quick --data prepared ...`.

    A space of the user's own is named as the report's copy, `space.yaml`.
    """
    settings = about["settings"]
    source = about["space"]["source"]
    words = [source if (shipped() / f"{source}.yaml").is_file() else "space.yaml", *_data(about)]
    objectives = settings.get("objectives") or []
    # Several objectives have another default sampler and scheduler.
    defaults = RunSettings.of({"objectives": objectives} if objectives else {}).model_dump()
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
    """Return the command for each seed: `wmlsearch train champion.yaml --data prepared --epochs 9 --seed 1`."""
    settings, defaults = about["settings"], RunSettings().model_dump()
    words = ["wmlsearch", "train", "champion.yaml", *_data(about), "--epochs", str(settings["epochs"])]
    if settings.get("precision", "auto") != defaults["precision"]:
        words += ["--precision", settings["precision"]]
    words += _shape(about, "--workers")
    return [shlex.join([*words, "--seed", str(seed)]) for seed in seeds]


def _data(about: Mapping[str, Any]) -> list[str]:
    """Return the data option with the folder's name only: its path may contain names of people."""
    return ["--data", about["data"]["name"]]


def _shape(about: Mapping[str, Any], workers: str) -> list[str]:
    shape = about.get("shape", {})
    words = [workers, str(shape["workers_per_trial"])] if shape.get("workers_per_trial", 1) != 1 else []
    return words + (["--gpus-per-worker", f"{shape['gpus_per_worker']:g}"] if shape.get("gpus_per_worker") else [])


def config_yaml(config: Mapping[str, Any]) -> str:
    """Return a configuration as a hyperparameter file, with the baseline's value beside each that differs."""
    baseline = TrialConfig().model_dump()
    lines = {name: _line(name, value) for name, value in config.items()}
    width = max(len(line) for line in lines.values())
    text = ""
    for name, line in lines.items():
        differs = config[name] != baseline[name]
        note = f"  # baseline: {_line(name, baseline[name]).split(': ', 1)[1]}" if differs else ""
        text += (f"{line:<{width}}{note}" if differs else line) + "\n"
    return text


def space_yaml(space: SearchSpace) -> str:
    """Return a search space as a hyperparameter file."""
    return "".join(_line(name, entry) + "\n" for name, entry in space.mapping().items())


def _line(name: str, entry: Any) -> str:
    return yaml.safe_dump({name: entry}, default_flow_style=True, sort_keys=False, width=10_000).strip()[1:-1]


def resume_command(search: RunDir) -> str:
    """Return the command that resumes a search."""
    out = search.path.parent
    words = ["wmlsearch", "tune", "--resume", search.name, *([] if out == Path("runs") else ["--out", str(out)])]
    return shlex.join(words)
