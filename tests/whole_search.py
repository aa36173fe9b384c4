"""Run whole searches as processes on one core, and compare their results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
from processes import kill_everything, own_cores

from wmlsearch.runs.folders import SearchDir

CLOCK = ("time", "received", "epoch_s", "images_per_s", "peak_memory_mb")  # measured values, which differ between runs
# With the baseline's norm_momentum, networks learn nothing in so few steps.
SPACE = """
depth: 2
norm_momentum: 0.1
base_channels: {choices: [4, 8]}
batch_size: {choices: [2, 3]}
dropout: 0.0
loss: bce_dice
learning_rate: {low: 3e-3, high: 1e-2, log: true}
schedule: {choices: [plateau, cosine]}
warmup_fraction: {low: 0.0, high: 0.2, when: {schedule: cosine}}
"""
TRIALS, EPOCHS = 8, 4


def tune(out: Path, *words: str) -> list[str]:
    """Return the command `wmlsearch tune`."""
    return [sys.executable, "-m", "wmlsearch", "tune", *words, "--out", str(out)]


def search_command(out: Path, prepared: Path, trials: int = TRIALS) -> list[str]:
    """Return the command of a search with final runs, whose best trial learns more in four epochs than the baseline."""
    (out / "space.yaml").write_text(SPACE)
    sizes = ["--trials", str(trials), "--epochs", str(EPOCHS), "--grace-epochs", "2", "--no-forecast"]
    sizes += ["--seed", "1", "--confirm-top", "1", "--confirm-seeds", "1", "--final-runs", "1"]
    return tune(out, str(out / "space.yaml"), "--data", str(prepared), "--name", "s", *sizes)


def population_command(out: Path, prepared: Path) -> list[str]:
    """Return the command of a search by population based training, without final runs."""
    (out / "space.yaml").write_text(SPACE)
    sizes = ["--trials", "6", "--epochs", "3", "--grace-epochs", "1", "--no-forecast", "--no-baseline"]
    sizes += ["--sampler", "tpe", "--scheduler", "pbt"]
    return tune(out, str(out / "space.yaml"), "--data", str(prepared), "--name", "s", *sizes)


def start(command: list[str]) -> subprocess.Popen[str]:
    """Start a command on one core, so that one trial runs at a time."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, own_cores(1)),
    )


def run(command: list[str]) -> str:
    """Return the output of a command, which must succeed."""
    process = start(command)
    try:
        output, _ = process.communicate(timeout=500)
    except subprocess.TimeoutExpired:
        end(process)
        raise
    assert process.returncode == 0, output
    return output


def end(process: subprocess.Popen[str]) -> None:
    """Kill a command and all its descendants."""
    kill_everything(process.pid)
    process.communicate(timeout=60)


def facts(search: SearchDir) -> list[dict[str, Any]]:
    """Return configuration, state and metrics of each run, without measured times and memory."""
    return [
        {
            "config": run.record().config,
            "state": run.status().state,
            "rows": [{key: value for key, value in row.as_json().items() if key not in CLOCK} for row in run.rows()],
        }
        for run in search.trials() + search.finals()
    ]


def study_trials(search: SearchDir) -> list[tuple[Any, ...]]:
    """Return the trials of the Optuna study, without times."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(search.journal)))
    trials = optuna.load_study(study_name=search.name, storage=storage).trials
    return [
        (t.number, t.state, t.params, t.distributions, t.values, t.intermediate_values, t.user_attrs["trial"])
        for t in trials
    ]
