"""Where trials run, one after another: a warm process that keeps its libraries and its data between them."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ray import tune

from wmlsearch.config import InputError, RunSettings, TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.model.training import Diverged, EpochReport, epochs, load_checkpoint
from wmlsearch.runs import RunDir, SearchDir

_opened: dict[tuple[str, str], PreparedData] = {}  # of this process: mapped once, however many trials it runs


class Slot(tune.Trainable):
    """A Tune class trainable that steps `training.epochs` itself, so that a new trial costs no process and no import.

    A result holds `report` (a row of EpochReport) with `epoch` and the objective beside it for the scheduler; the first
    also `replayed` (the reports of the checkpoint that a trial goes on from); the last also `done` and `ended` (a state
    of `runs.ENDED`), with a `reason` if it went wrong.
    """

    def setup(self, config: dict[str, Any], job: dict[str, Any] | None = None) -> None:
        self.job = job or {}
        self._open(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._open(new_config)
        return True

    def _open(self, trial: dict[str, Any]) -> None:
        torch.set_num_threads(self.job["threads"])
        run = SearchDir(Path(self.job["search"])).trial(trial["number"])
        self.reports = start(self.job, trial["config"], run)
        self.replayed = load_checkpoint(run.last)["reports"] if run.last.exists() else []

    def step(self) -> dict[str, Any]:
        replayed, self.replayed = self.replayed, []
        result: dict[str, Any] = {"replayed": replayed} if replayed else {}
        try:
            report = next(self.reports)
        except StopIteration:  # the checkpoint was its last epoch
            return {**result, "done": True, "ended": replayed[-1]["ended"]}
        except Diverged as error:
            return {**result, "done": True, "ended": "diverged", "reason": str(error)}
        except InputError as error:
            return {**result, "done": True, "ended": "failed", "reason": str(error)}
        except Exception:
            return {**result, "done": True, "ended": "failed", "reason": traceback.format_exc()}
        # for the scheduler a metric that is not a number is as bad as none can be
        value = report.metrics[self.job["settings"]["objective"]]
        result |= {"report": report.row(), "epoch": report.epoch, self.job["settings"]["objective"]: value or 0.0}
        return result | ({"done": True, "ended": report.ended} if report.ended else {})


def start(job: dict[str, Any], config: dict[str, Any], run: RunDir) -> Iterator[EpochReport]:
    """The reports of one training, as a `job` (plain values: data, settings) describes it, in this process."""
    settings = RunSettings(**job["settings"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    key = (job["data"], device)
    if key not in _opened:
        _opened[key] = PreparedData.open(Path(job["data"]), device)
    return epochs(
        TrialConfig(**config),
        _opened[key],
        max_epochs=settings.epochs,
        seed=settings.seed,
        precision=settings.precision,
        objective=settings.objective,
        last=run.last,
        best=run.best,
    )
