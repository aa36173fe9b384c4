"""The names and kinds of runs, in run folders and in MLflow. All are built in this module.

| MLflow run                                  | name                                      | kind          |
|---------------------------------------------|-------------------------------------------|---------------|
| a search                                    | its folder's, or `search-20261123-201512` | search        |
| - a trial                                   | `trial-0007`                              | trial         |
| - a selection run of the baseline           | `paper-seed1`                             | selection run |
| - a selection run of a trial's configuration | `trial-0003-seed1`                       | selection run |
| - a judgement run of the baseline           | `paper-run0`                              | judgement run |
| - a judgement run of the champion           | `trial-0003-run0`                         | judgement run |
| - the baseline, exported                    | `baseline (paper)`                        | baseline      |
| - the champion, exported                    | `champion (trial-0003)`                   | champion      |
| a run of `wmlsearch train`                  | its folder's, or `train-20261123-201512`  | train         |

Runs marked `-` are children of the search's run (tag `mlflow.parentRunId`). The kind is the tag `kind`;
`tracking/sync.py` lists all tags. Selection runs choose the champion, judgement runs are judged on the sealed test.
Older versions had one kind of final runs for both, with names like `paper-seed0` and the kinds `baseline run` and
`confirmation`.
"""

from __future__ import annotations

import re
import time

PAPER = "paper"  # the baseline configuration, in names of folders and MLflow runs

SEARCH, TRIAL, TRAIN = "search", "trial", "train"
SELECTION_RUN, JUDGEMENT_RUN = "selection run", "judgement run"
BASELINE, CHAMPION = "baseline", "champion"
ROLES = (BASELINE, CHAMPION)  # kinds of exported models, and their aliases in MLflow's registry

# Metrics of a run in MLflow: the Dice of the best epoch so far, and the models' Dice on the sealed test.
BEST_DICE, TEST_DICE = "best_dice", "test_dice"

EXPERIMENT = "wmlsearch"  # the MLflow experiment where --experiment is not given


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Return a sort key that orders numbers by value: slice 9 before slice 10, trial-9999 before trial-10000."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def default_name(kind: str) -> str:
    """Return `search-20261123-201512` or `train-...`: the name where --name is not given."""
    return f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"


def trial_name(number: int) -> str:
    """Return `trial-0007`, which is also the name of the trial's configuration."""
    return f"trial-{number:04d}"


def selection_run_name(configuration: str, seed: int) -> str:
    """Return `paper-seed1` or `trial-0003-seed1`; `configuration` is PAPER or a trial's name."""
    return f"{configuration}-seed{seed}"


def judgement_run_name(configuration: str, number: int) -> str:
    """Return `paper-run0` or `trial-0003-run0`; `configuration` is PAPER or a trial's name."""
    return f"{configuration}-run{number}"


def configuration_of(final_run: str) -> str:
    """Return the name of the configuration that a final run of this name trains."""
    return re.sub(r"-(seed|run)\d+$", "", final_run)


def model_name(role: str, configuration: str) -> str:
    """Return `baseline (paper)` or `champion (trial-0003)`."""
    return f"{role} ({configuration})"
