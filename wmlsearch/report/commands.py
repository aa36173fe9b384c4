"""Commands and hyperparameter files that reproduce a search and its champion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.schema import SearchRecord, TrialShape
from wmlsearch.runs.wording import command
from wmlsearch.space import SearchSpace, is_shipped

# Settings whose option of `wmlsearch tune` has the same name.
_OPTIONS = (
    "trials", "epochs", "seed", "precision", "objective", "sampler", "scheduler", "grace_epochs", "reduction_factor",
    "confirm_top", "confirm_seeds", "final_runs", "postprocessing", "max_hours", "max_gpu_hours", "max_epochs_total",
    "target_dice", "max_checkpoint_gb", "trial_timeout", "portfolio",
)  # fmt: skip


def tune_command(record: SearchRecord) -> str:
    """Return the command with all options that differ from their default: `wmlsearch tune quick --data prepared ...`.

    A space of the user's own is named as the report's copy, `space.yaml`, and so is one that this version ships with
    other ranges.
    """
    settings = record.settings
    words = [record.space.source if is_shipped(record.space.space()) else "space.yaml", *_data(record)]
    objectives = settings.objectives
    # Several objectives have another default sampler and scheduler.
    defaults = RunSettings.from_mapping({"objectives": objectives} if objectives else {})
    if objectives:
        words += ["--objectives", ",".join(objectives)]
    for name in _OPTIONS:
        # The default number of epochs depends on the data.
        if (value := getattr(settings, name)) != getattr(defaults, name) or name == "epochs":
            words += ["--" + name.replace("_", "-"), f"{value}"]
    words += _shape(record.shape, "--workers-per-trial")
    if record.shape and record.shape.trials_per_gpu != 1:
        words += ["--trials-per-gpu", str(record.shape.trials_per_gpu)]
    words += [] if settings.baseline else ["--no-baseline"]
    words += [] if settings.experience else ["--no-experience"]
    words += [] if settings.forecast else ["--no-forecast"]
    return command("tune", *words)


def train_commands(record: SearchRecord, trainings: Sequence[tuple[int, int]]) -> list[str]:
    """Return the command for each seed and fold: `wmlsearch train champion.yaml --data prepared --seed 4 --fold 1`."""
    settings = record.settings
    words = ["train", "champion.yaml", *_data(record), "--epochs", str(settings.epochs)]
    if settings.precision != RunSettings().precision:
        words += ["--precision", settings.precision]
    if settings.objective != RunSettings().objective:
        words += ["--objective", settings.objective]
    words += _shape(record.shape, "--workers")
    return [command(*words, "--seed", str(seed), *(["--fold", str(fold)] if fold else [])) for seed, fold in trainings]


def _data(record: SearchRecord) -> list[str]:
    """Return the data option with the folder's name only: its path may contain names of people."""
    return ["--data", record.data.name]


def _shape(shape: TrialShape | None, workers: str) -> list[str]:
    if shape is None:
        return []
    words = [workers, str(shape.workers_per_trial)] if shape.workers_per_trial != 1 else []
    return words + (["--gpus-per-worker", f"{shape.gpus_per_worker:g}"] if shape.gpus_per_worker else [])


def config_yaml(config: TrialConfig, baseline: TrialConfig) -> str:
    """Return a configuration as a hyperparameter file, with the baseline's value beside each that differs."""
    values, of_baseline = config.model_dump(), baseline.model_dump()
    lines = {name: _line(name, value) for name, value in values.items()}
    width = max(len(line) for line in lines.values())
    text = ""
    for name, line in lines.items():
        differs = values[name] != of_baseline[name]
        note = f"  # baseline: {_line(name, of_baseline[name]).split(': ', 1)[1]}" if differs else ""
        text += (f"{line:<{width}}{note}" if differs else line) + "\n"
    return text


def space_yaml(space: SearchSpace) -> str:
    """Return a search space as a hyperparameter file."""
    return "".join(_line(name, entry) + "\n" for name, entry in space.to_mapping().items())


def _line(name: str, entry: Any) -> str:
    return yaml.safe_dump({name: entry}, default_flow_style=True, sort_keys=False, width=10_000).strip()[1:-1]
