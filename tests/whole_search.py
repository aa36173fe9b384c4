"""Searches as processes of their own on one core, and what two that went the same way have in common."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
from processes import kill_everything, own_cores

from wmlsearch.runs.folders import SearchDir

CLOCK = ("time", "epoch_s", "images_per_s", "peak_memory_mb")  # what no two runs have in common
SPACE = """
depth: 2
base_channels: {choices: [4, 8]}
batch_size: {choices: [4, 8]}
learning_rate: {low: 1e-4, high: 1e-2, log: true}
schedule: {choices: [plateau, cosine]}
warmup_fraction: {low: 0.0, high: 0.2, when: {schedule: cosine}}
"""
TRIALS, EPOCHS = 8, 4


def tune(out: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "wmlsearch", "tune", *words, "--out", str(out)]


def begin(out: Path, prepared: Path, trials: int = TRIALS) -> list[str]:
    (out / "space.yaml").write_text(SPACE)
    sizes = ["--trials", str(trials), "--epochs", str(EPOCHS), "--grace-epochs", "2", "--no-forecast"]
    sizes += ["--confirm-top", "1", "--confirm-seeds", "1"]
    return tune(out, str(out / "space.yaml"), "--data", str(prepared), "--name", "s", *sizes)


def begin_population(out: Path, prepared: Path) -> list[str]:
    (out / "space.yaml").write_text(SPACE)
    sizes = ["--trials", "6", "--epochs", "3", "--grace-epochs", "1", "--no-forecast", "--no-baseline"]
    sizes += ["--sampler", "tpe", "--scheduler", "pbt"]
    return tune(out, str(out / "space.yaml"), "--data", str(prepared), "--name", "s", *sizes)


def start(command: list[str]) -> subprocess.Popen[str]:
    """On one core, so that one trial runs at a time."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, own_cores(1)),
    )


def run(command: list[str]) -> str:
    process = start(command)
    try:
        output, _ = process.communicate(timeout=500)
    except subprocess.TimeoutExpired:
        end(process)
        raise
    assert process.returncode == 0, output
    return output


def end(process: subprocess.Popen[str]) -> None:
    kill_everything(process.pid)
    process.communicate(timeout=60)


def facts(search: SearchDir) -> list[dict[str, Any]]:
    """What a search decided and found, without clocks."""
    return [
        {
            "config": run.record().config,
            "state": run.status().state,
            "rows": [{key: value for key, value in row.as_json().items() if key not in CLOCK} for row in run.rows()],
        }
        for run in search.trials() + search.finals()
    ]


def told(search: SearchDir) -> list[tuple[Any, ...]]:
    """The study, without clocks."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(search.journal)))
    trials = optuna.load_study(study_name=search.name, storage=storage).trials
    return [
        (t.number, t.state, t.params, t.distributions, t.values, t.intermediate_values, t.user_attrs["trial"])
        for t in trials
    ]
