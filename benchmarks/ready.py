"""Trials that train nothing: each step returns a prepared row at once. Imports as little as possible."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from ray import tune


class Ready(tune.Trainable):
    """A replacement of `search.trial_worker.TrialWorker` that gives the driver the same kind of results.

    The metrics are those of `row` in the job's `shipment`, except for the objective: later trials are better, so that
    no scheduler stops one. A trial with a `checkpoint_location` writes checkpoints of one byte there.
    """

    def setup(self, config: dict[str, Any], job: dict[str, Any] | None = None) -> None:
        self.job = job or {}
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.trial, self.epoch = new_config, 0
        return True

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        settings = self.job["settings"]
        result: dict[str, Any] = {"replayed": []} if self.epoch == 1 else {}
        if self.epoch == 1 and "checkpoint_location" in self.trial:
            for name in ("last.pt", "best.pt"):
                (Path(self.trial["checkpoint_location"]) / name).write_bytes(b"0")
        ended = "completed" if self.epoch >= settings["epochs"] else None
        value = (1 - 1 / (self.trial["number"] + 2)) * (1 - math.exp(-self.epoch / 4))
        about = {"epoch": self.epoch, "time": time.time(), "ended": ended}
        row = {**self.job["shipment"]["row"], settings["objective"]: value, **about}
        result |= {"report": row, "epoch": self.epoch, settings["objective"]: value}
        return result | ({"done": True, "ended": ended} if ended else {})
