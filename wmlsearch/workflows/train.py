"""`wmlsearch train`: one configuration, through Ray Train or in this process."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.model.checks import check_trainable
from wmlsearch.model.training import epochs
from wmlsearch.runs.folders import RUNNING, RunDir, check_new
from wmlsearch.runs.lock import folder_lock
from wmlsearch.search.interrupts import sigterm_as_interrupt
from wmlsearch.tracking.mirror import Mirror
from wmlsearch.workflows.placement import LOCAL, Outcome, Placement
from wmlsearch.workflows.provenance import data_record, run_record
from wmlsearch.workflows.tune import OnChange, Say

if TYPE_CHECKING:
    pass


def train(
    run: RunDir,
    config: TrialConfig,
    settings: RunSettings,
    data: Path,
    mlflow_uri: str,
    on_change: OnChange,
    workers: int = 1,
    where: Placement = LOCAL,
    say: Say = print,
) -> Outcome:
    """Train one configuration: through Ray Train with `workers` ranks, or with 0 in this process. Raises InputError."""
    prepared = PreparedData.open(data)
    prepared.manifest.verify(data)
    check_trainable(config, prepared, max(workers, 1))
    where = dataclasses.replace(where, workers_per_trial=max(workers, 1))
    check_new(run.path)
    if workers:
        where.check_before_ray(1)
        where.check_unused(run)
    about = run_record(run.name, "train", config, settings, data_record(data, prepared))
    certificate = dataclasses.asdict(prepared.manifest.certificate)
    about |= {"data_path": str(data.resolve()), "certificate": certificate}
    run.path.mkdir(parents=True, exist_ok=True)
    early = ""
    with folder_lock(run.path):
        RunDir.create(run.path, about)
        mirror = Mirror(run, mlflow_uri)

        def changed(part: RunDir) -> None:
            mirror.notify(part)
            on_change(part)

        try:
            if workers:
                from wmlsearch.cluster.connect import ray_session
                from wmlsearch.cluster.data_shipping import make_shipment
                from wmlsearch.cluster.watchdog import watchdog
                from wmlsearch.search.final_training import TrainingRequest, train_runs

                on_cluster = bool(where.ray_address)
                with ray_session(where.ray_address), sigterm_as_interrupt(), watchdog(say, lambda: run.name):
                    shipment = make_shipment(data, send=on_cluster)
                    order = TrainingRequest(run, run.about(), settings.seed, where.place(run))
                    train_runs([order], settings, shipment, where.slots(1), changed, elastic=on_cluster)
            else:
                with sigterm_as_interrupt():
                    _train_here(run, config, settings, prepared, changed)
        except KeyboardInterrupt as stopped:
            if run.state == RUNNING:  # else it has come to its end, and only Ray was to be shut down
                early = str(stopped) or "stopped by Ctrl-C"
                run.set_status("interrupted", early)
        except Exception as error:
            if run.state == RUNNING:
                run.set_status("failed", str(error))
            raise
        finally:
            problem = mirror.close()
    return Outcome(run, early, problem)


def _train_here(run: RunDir, config: TrialConfig, settings: RunSettings, data: PreparedData, changed: OnChange) -> None:
    from wmlsearch.model.steps import Diverged

    try:
        for report in epochs(
            config,
            data,
            max_epochs=settings.epochs,
            seed=settings.seed,
            precision=settings.precision,
            objective=settings.objective,
            last=run.last,
            best=run.best,
        ):
            run.append(report.row())
            changed(run)
        run.set_status(report.ended or "completed")
    except Diverged as error:
        run.set_status("diverged", str(error))
