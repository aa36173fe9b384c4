"""`wmlsearch train`: train one configuration, through Ray Train or in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.errors import InputError
from wmlsearch.model.checks import (
    BALANCES_NOTHING,
    MIRRORS_NOTHING,
    balances_nothing,
    check_trainable,
    check_validation_lesions,
    mirrors_nothing,
)
from wmlsearch.model.compile_cache import ArtifactStore
from wmlsearch.model.kernels import selected_kernels
from wmlsearch.model.training import epochs
from wmlsearch.runs.early_end import EarlyEnd
from wmlsearch.runs.folders import AnyDir, RunDir, check_new
from wmlsearch.runs.interrupts import end_of, signals_as_interrupts
from wmlsearch.runs.lock import folder_lock
from wmlsearch.runs.names import EXPERIMENT, TRAIN
from wmlsearch.runs.process import end_this_process
from wmlsearch.runs.schema import RUNNING
from wmlsearch.runs.wording import plural
from wmlsearch.tracking.mirror import Mirror
from wmlsearch.workflows.observer import Observer, Outcome
from wmlsearch.workflows.placement import LOCAL, Placement
from wmlsearch.workflows.provenance import certificate_record, data_record, run_record


@dataclass(frozen=True)
class TrainRequest:
    """One configuration to train."""

    config: TrialConfig
    settings: RunSettings
    data: Path  # folder of the prepared data set
    workers: int = 1  # ranks of Ray Train; 0: train in this process, without Ray
    placement: Placement = LOCAL  # its `workers_per_trial` is not used
    fold: int = 0  # of the development patients: it is validated, the others are trained
    experiment: str = EXPERIMENT  # of MLflow


def train(run: RunDir, request: TrainRequest, mlflow_uri: str, observer: Observer | None = None) -> Outcome:
    """Train one configuration into a new run folder, mirrored in MLflow. Raises InputError for what cannot run."""
    observer = observer or Observer()
    prepared, placement = _check(run, request)
    if mirrors_nothing(request.config, prepared.manifest.axis):
        observer.say(f"warning: {MIRRORS_NOTHING}")
    if balances_nothing(request.config, prepared.manifest):
        observer.say(f"warning: {BALANCES_NOTHING}")
    record = run_record(run.name, TRAIN, request.config, request.settings, data_record(request.data, prepared))
    record = record.model_copy(
        update={
            "data_path": str(request.data.resolve()),
            "certificate": certificate_record(prepared.manifest),
            "fold": prepared.fold,
            "experiment": request.experiment,
        }
    )
    run.path.mkdir(parents=True, exist_ok=True)
    early_end: EarlyEnd | None = None
    with folder_lock(run.path):
        RunDir.create(run.path, record)
        mirror = Mirror(run, mlflow_uri)

        def on_change(part: AnyDir) -> None:
            mirror.notify(part)
            observer.on_change(part)

        try:
            if request.workers:
                _train_on_ray(
                    run, request, prepared.manifest.fingerprint, placement, replace(observer, on_change=on_change)
                )
            else:
                with signals_as_interrupts():
                    _train_here(run, request, prepared, on_change)
        except KeyboardInterrupt as interrupt:
            if run.state == RUNNING:  # else the training has ended, and only Ray was shutting down
                early_end = end_of(interrupt)
                run.set_status("interrupted", early_end.text)
        except Exception as error:
            if run.state == RUNNING:
                run.set_status("failed", str(error))
            raise
        finally:
            mlflow_problem = mirror.close()
    return Outcome(run, early_end, mlflow_problem)


def _check(run: RunDir, request: TrainRequest) -> tuple[PreparedData, Placement]:
    """Refuse what cannot run. Return the data and the placement of as many workers as the request has."""
    prepared = PreparedData.open(request.data, fold=request.fold)
    if prepared.fold != request.fold:
        raise InputError(
            f"--fold {request.fold}: must be from 0 to {prepared.manifest.fold_count - 1}, since {request.data} has "
            f"{plural(prepared.manifest.fold_count, 'fold')}"
        )
    prepared.manifest.verify(request.data)
    ranks = max(request.workers, 1)
    check_trainable(request.config, prepared, ranks)
    check_validation_lesions(prepared.manifest, request.data, [prepared.fold])
    placement = replace(request.placement, workers_per_trial=ranks)
    check_new(run.path)
    if request.workers:
        placement.check_before_ray(1)
        placement.check_storage_unused(run)
    return prepared, placement


def _train_on_ray(
    run: RunDir, request: TrainRequest, fingerprint: str, placement: Placement, observer: Observer
) -> None:
    """Train through Ray Train; the run folder says how it ended."""
    from wmlsearch.cluster.connect import ray_session
    from wmlsearch.cluster.data_shipping import make_shipment
    from wmlsearch.cluster.watchdog import watchdog
    from wmlsearch.search.final_training import RunRequest, RunTrainer

    def end(early_end: EarlyEnd, status: int) -> None:
        try:
            if run.state == RUNNING:
                run.set_status("interrupted", early_end.text)
        finally:
            end_this_process(status)

    settings = request.settings
    with (
        ray_session(placement.ray_address, observer.say),
        signals_as_interrupts(),
        watchdog(observer.say, lambda: run.name, end=end),
    ):
        shipment = make_shipment(request.data, fingerprint, send=placement.on_cluster)
        training = RunRequest(run, run.record(), placement.checkpoint_location(run))
        reserved = placement.reserved()
        slots = placement.slots(1, reserved)
        placement.wait_for_machines(slots, reserved, observer.say)
        with RunTrainer(
            settings,
            shipment,
            elastic=placement.on_cluster,
            say=observer.say,
            compiled_networks=placement.compiled_networks(run),
        ) as trainer:
            trainer.train([training], slots, observer.on_change)


def _compiled_networks(run: RunDir) -> ArtifactStore | None:
    """Return where this process keeps compiled networks, if they are selected."""
    if selected_kernels() != "compile":
        return None
    from wmlsearch.cluster.compiled_networks import CompiledNetworks

    return CompiledNetworks(LOCAL.compiled_networks(run))


def _train_here(
    run: RunDir, request: TrainRequest, prepared: PreparedData, on_change: Callable[[RunDir], None]
) -> None:
    """Train in this process; the run folder says how it ended."""
    from wmlsearch.model.steps import Diverged

    settings = request.settings
    try:
        for row in epochs(
            request.config,
            prepared,
            max_epochs=settings.epochs,
            seed=settings.seed,
            precision=settings.precision,
            objective=settings.objective,
            last=run.last,
            best=run.best,
            compiled=_compiled_networks(run),
        ):
            run.append(row)
            on_change(run)
        run.set_status(row.ended or "completed")
    except Diverged as error:
        run.set_status("diverged", str(error))
