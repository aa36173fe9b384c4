"""The worker of a trial: a warm process that trains one trial after another and keeps its libraries and data."""

from __future__ import annotations

import traceback
from typing import Any, cast

import torch
from ray import tune
from torch import distributed

from wmlsearch.cluster.compiled_networks import CompiledNetworks
from wmlsearch.cluster.data_shipping import Shipment, receive_shipment
from wmlsearch.data.slices import PreparedData
from wmlsearch.errors import InputError
from wmlsearch.model.checkpoint import TrainingIdentity, check_same_training, load_checkpoint
from wmlsearch.model.ranks import in_process_group
from wmlsearch.model.steps import Diverged
from wmlsearch.model.training import epochs
from wmlsearch.runs.files import StorageError
from wmlsearch.runs.schema import EpochRow
from wmlsearch.search.checkpoints import Checkpoints
from wmlsearch.search.machine_health import MachineError, as_machine_error, check_gpu
from wmlsearch.search.memory_admission import limit_to_share, predict_peak_memory
from wmlsearch.search.messages import TrialAssignment, TrialResult, WorkerJob

_open_data: dict[tuple[str, str], PreparedData] = {}  # of this process, by the shipment's checksum and device
_STATES_OF_ERRORS: tuple[tuple[type[Exception], str], ...] = (
    (StorageError, "interrupted"),
    (Diverged, "diverged"),
    (InputError, "failed"),
)


class TrainingSession:
    """The training of one trial or run in this process, an epoch per step.

    A session continues from the checkpoint at its location, if there is one. It first returns the epochs of the
    checkpoint that the driver has no report of, one per step, so that the scheduler decides about each. A run that
    does not fit into memory ends as "out_of_memory" before its first epoch. What goes wrong when a session begins
    (a full disk, damaged data) is the result of its first step: Ray would only say that the process died. It is the
    result of all ranks, whichever of them it happened to.
    """

    def __init__(self, job: WorkerJob, assignment: TrialAssignment, rank: int = 0) -> None:
        torch.set_num_threads(job.threads)
        self.job, self.rank, self.config = job, rank, assignment.config
        # Asked now: when another rank dies, Ray Train may take the group away before this rank notices the death.
        self.in_group = in_process_group()
        self.checkpoints = Checkpoints(assignment.checkpoint_location)
        self.started, self.reported_epochs = False, assignment.reported_epochs
        self.unreported: list[EpochRow] = []  # rows of the checkpoint
        self.fault: Exception | None = None  # of the beginning
        try:
            self._begin(assignment)
        except Exception as error:
            self.fault = error

    def _begin(self, assignment: TrialAssignment) -> None:
        """Check the GPU, and open the data and the training."""
        job, settings = self.job, self.job.settings
        check_gpu(job.slots.gpus if job.slots else 0)
        self.data = open_data(job.shipment, assignment.fold)
        limit_to_share(self.data.train.images.device, job.slots)
        self.identity = TrainingIdentity(
            config=self.config,
            data=self.data,
            max_epochs=settings.epochs,
            seed=settings.seed if assignment.seed is None else assignment.seed,
            rate_factors=assignment.rate_factors,
        )
        self.reports = epochs(
            self.config,
            self.data,
            max_epochs=self.identity.max_epochs,
            seed=self.identity.seed,
            rate_factors=self.identity.rate_factors,
            precision=settings.precision,
            objective=settings.objective,
            last=self.checkpoints.last,
            best=self.checkpoints.best,
            compiled=CompiledNetworks(job.compiled_networks) if job.compiled_networks else None,
        )

    def step(self) -> TrialResult:
        """Train an epoch. An error is a result, not an exception, unless another rank has died.

        Raises MachineError if the machine failed: this process must end, and the run goes on in another one.
        """
        result = TrialResult()
        try:
            if not self.started:
                self.started = True
                result = self._open_checkpoint()
                if not result.done and not result.replayed:  # a run with a checkpoint has passed memory admission
                    result = self._admit_to_memory(result)
                if result.done:
                    return result
            row = self._next_row()
        except StopIteration:  # the last epoch is in the checkpoint, and was reported
            last = cast(list[EpochRow], result.replayed)[-1]
            return result.with_end(cast(str, last.ended))
        except Exception as error:
            return self._end_by(error, result)
        result = result.model_copy(update={"report": row})
        return result.with_end(row.ended) if row.ended else result

    def _end_by(self, error: Exception, result: TrialResult) -> TrialResult:
        """Return a result as the last one of a run that an error ends.

        Raises MachineError, or the error itself if another rank has died.
        """
        if isinstance(error, MachineError):
            raise error
        if fault := as_machine_error(error):
            raise fault from error
        for kind, state in _STATES_OF_ERRORS:
            if isinstance(error, kind):
                return result.with_end(state, str(error))
        if self.in_group and _lost_a_rank(error):  # a new group continues this run from its checkpoint
            raise error
        state = "out_of_memory" if _is_out_of_memory(error) else "failed"
        trace = "".join(traceback.format_exception(error))
        return result.with_end(state, _last_line(error), traceback=trace, broke=True)

    def _open_checkpoint(self) -> TrialResult:
        """Return the rows of the checkpoint that all ranks continue from, or an error of any of them as the end of all.

        A network file system may show the machine of one rank an older checkpoint, or none: it waits for the one that
        another rank has. Ranks that continued from different epochs would sum the gradients of different steps.
        """
        opened, epochs = self._agree(self._read_checkpoint())
        if not opened.done and len(set(epochs)) > 1:
            opened, _ = self._agree(self._read_checkpoint(written_epochs=max(epochs)))
        self.unreported = (opened.replayed or [])[self.reported_epochs :]
        return opened

    def _read_checkpoint(self, written_epochs: int = 0) -> TrialResult:
        """Fetch the checkpoint, if there is one, and check that it is of this training before anything is reported.

        One with fewer epochs than were reported is taken, and trained from there: a power cut may lose the latest.
        An error, also of the beginning before it, is the result.

        Args:
            written_epochs: How many epochs the checkpoint has that another rank sees. An older one is waited for.
        """
        rows: list[EpochRow] = []

        def read() -> bool:
            if self.checkpoints.last.exists():
                state = load_checkpoint(self.checkpoints.last)
                check_same_training(self.checkpoints.last, state, self.identity)
                rows[:] = [EpochRow.from_json(row) for row in state["reports"]]
            return len(rows) >= written_epochs

        try:
            if self.fault is not None:
                raise self.fault
            self.checkpoints.fetch(self.reported_epochs)
            if not read():
                self.checkpoints.wait_until(read, f"the checkpoint of epoch {written_epochs}")
        except Exception as error:
            return self._end_by(error, TrialResult())
        return TrialResult(replayed=rows)

    def _agree(self, opened: TrialResult) -> tuple[TrialResult, list[int]]:
        """Return what this rank has opened, or for all ranks the end of the first one that could not.

        The machine of one rank may be cut off from the storage, or have damaged data. From here on the ranks wait for
        each other: what one of them cannot train, none begins.

        Returns:
            The result, and how many epochs the checkpoint of each rank has.
        """
        epochs = len(opened.replayed or ())
        if not in_process_group():
            return opened, [epochs]
        ranks: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(ranks, (opened if opened.done else None, epochs))
        end = next((end for end, _ in ranks if end is not None), None)
        return end.model_copy(update={"broke": False}) if end else opened, [epochs for _, epochs in ranks]

    def _admit_to_memory(self, result: TrialResult) -> TrialResult:
        """Add the predicted peak memory to the first result, which is the last one where it does not fit."""
        fit = predict_peak_memory(self.config, self.data, self.job.settings.precision, self.job.slots)
        result = result.model_copy(update={"predicted_memory_mb": fit.peak_mb})
        return result.with_end("out_of_memory", f"{fit.refusal}: not run") if fit.refusal else result

    def _next_row(self) -> EpochRow:
        """Return the next epoch of the checkpoint, or train one. Raises StopIteration after the last epoch."""
        if self.unreported:
            row = self.unreported.pop(0)
        else:
            row = next(self.reports)
            if self.rank == 0:
                self.checkpoints.push()
        every = self.job.snapshot_every
        # The scheduler may choose a parent as soon as it has the report, so the snapshot is kept before.
        if every and row.epoch % every == 0 and not row.ended and self.rank == 0 and not self.unreported:
            self.checkpoints.save_snapshot(row.epoch)
        return row

    def close(self) -> None:
        """Release the network and its memory."""
        if self.fault is None:
            self.reports.close()
        self.checkpoints.close()


class TrialWorker(tune.Trainable):
    """A Tune class trainable that steps a TrainingSession. A new trial starts no process and imports nothing."""

    def setup(self, config: dict[str, Any], job: dict[str, Any] | None = None) -> None:
        self.job = WorkerJob.from_plain(job or {})
        self.session = TrainingSession(self.job, TrialAssignment.from_plain(config))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.session.close()
        self.session = TrainingSession(self.job, TrialAssignment.from_plain(new_config))
        return True

    def step(self) -> dict[str, Any]:
        return self.session.step().as_plain(self.job.settings.objective)

    def cleanup(self) -> None:
        self.session.close()


def _is_out_of_memory(error: Exception) -> bool:
    """PyTorch has an exception class for a full GPU. On CPUs only the text of a RuntimeError says it."""
    phrases = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)
    )


def _lost_a_rank(error: Exception) -> bool:
    """Whether another rank of the group does not answer. With gloo, only the text of a RuntimeError says it."""
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and any(name in str(error).lower() for name in ("gloo", "nccl"))
    )


def _last_line(error: Exception) -> str:
    return traceback.format_exception_only(error)[-1].strip().splitlines()[0]


def open_data(shipment: Shipment, fold: int = 0) -> PreparedData:
    """Return the prepared data set of a shipment, on the GPU of this process if it has one. It is mapped once.

    Args:
        shipment: The data set.
        fold: The patients of this fold are for validation, modulo the number of folds.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    key = (shipment.checksum, device)
    if key not in _open_data:
        _open_data[key] = PreparedData.open(receive_shipment(shipment), device)
    return _open_data[key].with_fold(fold)
