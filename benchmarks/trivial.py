"""The same trivial trials run in several ways, each on two cores, to measure the time beside the training.

Each way returns the time at which its trials began, how many ran at once, and for each trial its start, its end and the
seconds of training, measured by the training function.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.slices import PreparedData
from wmlsearch.model.training import epochs

CORES = 2
EPOCHS = 2
LOW, HIGH = 1e-4, 1e-2  # range of the learning rate, the only searched hyperparameter
FIXED = {"depth": 2, "base_channels": 4, "batch_size": 8}
Measurement = dict[str, Any]


def make_data(folder: Path) -> str:
    """Make a tiny prepared phantom (slices of 32 x 32 pixels of five patients), and return its path."""
    from wmlsearch.data.phantom import write_phantom
    from wmlsearch.data.prepare import PrepareOptions, prepare

    raw = write_phantom(folder / "raw", patients=5, timepoints=1, shape=(48, 48, 12))
    prepare(raw, folder / "prepared", PrepareOptions(size=32, fit="resize", jobs=1))
    return str(folder / "prepared")


def train(data: str, learning_rate: float) -> float:
    """Run a trial, a training of two epochs on one core, and return its seconds."""
    torch.set_num_threads(1)
    config = TrialConfig.from_mapping({**FIXED, "learning_rate": learning_rate})
    reports = epochs(config, PreparedData.open(Path(data)), max_epochs=EPOCHS)
    return sum(report.metrics["epoch_s"] or 0.0 for report in reports)


def make_store(folder: str) -> None:
    """Create MLflow's tables beside the run folders of `search`, as they exist after a user's first search."""
    from wmlsearch.tracking.client import connect
    from wmlsearch.tracking.uri import default_uri

    connect(default_uri(Path(folder))).search_experiments()


def search(data: str, folder: str, trials: int, workers: int) -> Measurement:
    """Run `wmlsearch tune` without scheduler, forecast and final runs, which are not part of a trial."""
    from wmlsearch.runs.folders import SearchDir
    from wmlsearch.space import SearchSpace
    from wmlsearch.tracking.uri import default_uri
    from wmlsearch.workflows.placement import Placement
    from wmlsearch.workflows.search_plan import SearchRequest
    from wmlsearch.workflows.tune import tune

    _on_two_cores()
    space = SearchSpace.from_mapping(
        {**FIXED, "learning_rate": {"low": LOW, "high": HIGH, "log": True}}, "trivial.yaml"
    )
    settings = RunSettings(epochs=EPOCHS, trials=trials, scheduler="none", baseline=False, forecast=False)
    out, placement = Path(folder), Placement(workers_per_trial=workers)
    result = SearchDir(out / f"workers-{workers}")
    outcome = tune(result, SearchRequest(space, settings, Path(data), placement), default_uri(out))
    states = {run.state for run in result.trials()}
    if outcome.early_end or outcome.mlflow_problem or states != {"completed"}:
        raise RuntimeError(f"{outcome.early_end} {outcome.mlflow_problem} {states}")
    times = []
    for run in result.trials():
        status = run.status()
        times.append((status.started, status.ended, sum(row.metrics["epoch_s"] or 0.0 for row in run.rows())))
    return {"begun": min(times)[0], "at_once": placement.slots(trials).count, "trials": times}


def tune_function(data: str, folder: str, trials: int) -> Measurement:
    """Run a function trainable of Ray Tune with Tune's random search."""
    return _tune(partial(_report, data), {"CPU": 1}, folder, trials, at_once=CORES)


def torch_trainer(data: str, folder: str, trials: int, workers: int) -> Measurement:
    """Run a TorchTrainer in a function trainable, as in Ray's documentation, one trial at a time.

    The function reserves a tenth of a core, so that its workers fit on two cores.
    """
    return _tune(partial(_train_by_ray, data, folder, workers), {"CPU": 0.1}, folder, trials, at_once=1)


def optuna_alone(data: str, trials: int) -> Measurement:
    """Run Optuna with a fresh process for each trial, two at a time."""
    import optuna

    _on_two_cores()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    times, lock = [], threading.Lock()

    def objective(trial: optuna.Trial) -> float:
        started = time.time()
        rate = trial.suggest_float("learning_rate", LOW, HIGH, log=True)
        code = f"from benchmarks.trivial import train; print(train({data!r}, {rate!r}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)  # noqa: S603 - our own code
        with lock:
            times.append((started, time.time(), float(done.stdout)))
        return 0.0

    begun = time.time()
    optuna.create_study().optimize(objective, trials, n_jobs=CORES)
    return {"begun": begun, "at_once": CORES, "trials": times}


def _on_two_cores() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def _report(data: str, config: dict[str, Any]) -> None:
    from ray import tune

    tune.report({"trained_s": train(data, config["learning_rate"])})


def _train_by_ray(data: str, folder: str, workers: int, config: dict[str, Any]) -> None:
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    name = tune.get_context().get_trial_name()
    answer = Path(folder) / name
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"data": data, "learning_rate": config["learning_rate"], "answer": str(answer)},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=False, resources_per_worker={"CPU": 0.9}),
        run_config=RunConfig(name=name, storage_path=f"{folder}/train"),
    )
    trainer.fit()
    tune.report({"trained_s": float(answer.read_text())})


def _rank(config: dict[str, Any]) -> None:
    from torch import distributed

    seconds = train(config["data"], config["learning_rate"])
    if distributed.get_rank() == 0:
        Path(config["answer"]).write_text(str(seconds))


def _tune(function: Any, resources: dict[str, float], folder: str, trials: int, at_once: int) -> Measurement:
    from ray import tune

    from wmlsearch.cluster.connect import ray_session

    class Clock(tune.Callback):
        def __init__(self) -> None:
            self.begun = 0.0
            self.started: dict[str, float] = {}
            self.times: list[tuple[float, float, float]] = []

        def setup(self, *args: Any, **info: Any) -> None:
            self.begun = time.time()

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.started[trial.trial_id] = time.time()

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            now = time.time()
            self.times.append((self.started[trial.trial_id], now, trial.last_result["trained_s"]))

    _on_two_cores()
    clock = Clock()
    with ray_session(None):
        tuner = tune.Tuner(
            tune.with_resources(function, resources),
            param_space={"learning_rate": tune.loguniform(LOW, HIGH)},
            tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=at_once),
            run_config=tune.RunConfig(storage_path=f"{folder}/tune", callbacks=[clock], verbose=0),
        )
        results = tuner.fit()
    if results.num_errors:
        raise RuntimeError(str(results.errors[0]))
    return {"begun": clock.begun, "at_once": at_once, "trials": clock.times}
