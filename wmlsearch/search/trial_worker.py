"""Where trials of one worker run, one after another: a warm process that keeps its libraries and data between them."""

from __future__ import annotations

import traceback
from typing import Any

import torch
from ray import tune
from torch import distributed

from wmlsearch.cluster.data_shipping import Shipment, receive_shipment
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import InputError, RunSettings, TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.model.checkpoint import check_same_training, load_checkpoint
from wmlsearch.model.steps import Diverged
from wmlsearch.model.training import epochs
from wmlsearch.runs.files import StorageError
from wmlsearch.search.checkpoints import Checkpoints
from wmlsearch.search.memory_admission import limit_to_share, predict_peak_memory

_opened: dict[tuple[str, str], PreparedData] = {}  # of this process: mapped once, however many trials it runs


class Training:
    """One training in this process, an epoch a step, as plain results that may cross to other processes.

    `job` is the same for all trainings of a run: `data` (a Shipment), `settings`, `threads`, and the `slots` of which
    this process is one; without them it has the machine or the GPU for itself. `trial` says which one:
    `config` (with `rate_factors`, if any), `place`, where its checkpoints are, and `heard`, how many epochs of it are
    known already. With `keep_every` in `job`, a snapshot is kept of each epoch that is a multiple of it. A result holds
    `report` (a row of EpochReport) with `epoch` and the objective beside it for the scheduler; the first also
    `replayed` (all reports of the checkpoint that it goes on from) and, of a training from its beginning,
    `predicted_memory_mb` (what `peak_memory_mb` should be); the last also `done` and `ended` (a state of
    `runs.ENDED`), with a `reason` and `traceback` if it went wrong. Epochs that the checkpoint has and nobody has heard
    of come first, one at a time, so that the scheduler decides about each. What finds no room in memory is not begun.
    """

    def __init__(self, job: dict[str, Any], trial: dict[str, Any], rank: int = 0) -> None:
        torch.set_num_threads(job["threads"])
        self.objective, self.rank = job["settings"]["objective"], rank
        self.keep_every = job.get("keep_every", 0)
        self.checkpoints = Checkpoints(trial["place"])
        self.fresh, self.heard = True, int(trial.get("heard", 0))
        self.unheard: list[dict[str, Any]] = []
        settings = RunSettings(**job["settings"])
        self.config, self.precision = TrialConfig(**trial["config"]), settings.precision
        self.data = open_data(job["data"])
        self.slots = Slots(**job["slots"]) if "slots" in job else None
        limit_to_share(self.data.train.images.device, self.slots)
        self.which: dict[str, Any] = {
            "config": self.config,
            "data": self.data,
            "max_epochs": settings.epochs,
            "seed": trial.get("seed", settings.seed),
            "rate_factors": {int(epoch): factor for epoch, factor in trial.get("rate_factors", {}).items()},
        }
        self.reports = epochs(
            **self.which,
            precision=settings.precision,
            objective=settings.objective,
            last=self.checkpoints.last,
            best=self.checkpoints.best,
        )

    def step(self) -> dict[str, Any]:
        """Train an epoch. What goes wrong in it is a result, not an exception, unless another rank has died."""
        result: dict[str, Any] = {}
        try:
            if self.fresh:
                self.checkpoints.fetch()
                there = self.checkpoints.last.exists()
                state = load_checkpoint(self.checkpoints.last) if there else {"reports": []}
                if there:  # before anybody hears of its epochs
                    check_same_training(self.checkpoints.last, state, **self.which)
                result["replayed"] = state["reports"]
                self.unheard = list(result["replayed"][self.heard :])
                self.fresh = False
                if not there:  # what trained before has found its room
                    result |= self._foretell()
                    if "done" in result:
                        return result
            if self.unheard:
                row = self.unheard.pop(0)
            else:
                row = next(self.reports).row()
                if self.rank == 0:
                    self.checkpoints.push()
            kept = self.keep_every and row["epoch"] % self.keep_every == 0 and not row["ended"]
            if kept and self.rank == 0 and not self.unheard:  # before the epoch is heard, so that who hears has it
                self.checkpoints.keep(row["epoch"])
        except StopIteration:  # the checkpoint was its last epoch, and that is known
            return {**result, "done": True, "ended": result["replayed"][-1]["ended"]}
        except StorageError as error:  # no fault of the trial, and the next one would have the same
            return {**result, "done": True, "ended": "interrupted", "reason": str(error)}
        except Diverged as error:
            return {**result, "done": True, "ended": "diverged", "reason": str(error)}
        except InputError as error:
            return {**result, "done": True, "ended": "failed", "reason": str(error)}
        except Exception as error:
            if _lost_a_rank(error):  # no fault of this one: the group is set up again, and goes on from the checkpoint
                raise
            told = {"ended": "out_of_memory" if _is_out_of_memory(error) else "failed", "reason": _last_line(error)}
            return {**result, **told, "done": True, "traceback": traceback.format_exc(), "broke": True}
        # for the scheduler a metric that is not a number is as bad as none can be
        result |= {"report": row, "epoch": row["epoch"], self.objective: row[self.objective] or 0.0}
        return result | ({"done": True, "ended": row["ended"]} if row["ended"] else {})

    def _foretell(self) -> dict[str, Any]:
        """What it will take at its peak; where that is more than there is, it ends here."""
        fit = predict_peak_memory(self.config, self.data, self.precision, self.slots)
        told: dict[str, Any] = {"predicted_memory_mb": fit.peak_mb}
        if fit.refusal:
            told |= {"done": True, "ended": "out_of_memory", "reason": f"{fit.refusal}: not run"}
        return told

    def close(self) -> None:
        """Forget the network: the next one finds its memory free."""
        self.reports.close()
        self.checkpoints.close()


class TrialWorker(tune.Trainable):
    """A Tune class trainable that steps a `Training` itself, so that a new trial costs no process and no import."""

    def setup(self, config: dict[str, Any], job: dict[str, Any] | None = None) -> None:
        self.job = job or {}
        self.training = Training(self.job, config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.training.close()
        self.training = Training(self.job, new_config)
        return True

    def step(self) -> dict[str, Any]:
        return self.training.step()

    def cleanup(self) -> None:
        self.training.close()


def _is_out_of_memory(error: Exception) -> bool:
    """PyTorch has a class of its own for a GPU without room; on CPUs only the text of a RuntimeError says so."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _lost_a_rank(error: Exception) -> bool:
    """Whether another rank of the group does not answer any more; of gloo, only the text of a RuntimeError says so."""
    return distributed.is_initialized() and (
        isinstance(error, distributed.DistError)
        or (isinstance(error, RuntimeError) and any(word in str(error).lower() for word in ("gloo", "nccl")))
    )


def _last_line(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip().splitlines()[0]


def open_data(shipment: Shipment) -> PreparedData:
    """Open the shipped data set where this process trains: on its GPU, if it has one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    key = (shipment.fingerprint, device)
    if key not in _opened:
        _opened[key] = PreparedData.open(receive_shipment(shipment), device)
    return _opened[key]
