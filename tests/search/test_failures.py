"""What ends a trial or a search early: budgets, and each kind of failure, with its state in every place."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from processes import slots
from records import epoch_row, run_record, search_record
from rich.console import Console

import wmlsearch
from benchmarks.simulated import new_search, row, space
from wmlsearch.cli.live_display import SearchDisplay
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.errors import InputError
from wmlsearch.runs.early_end import EndCause
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.interrupts import end_by_signal
from wmlsearch.runs.schema import EpochRow
from wmlsearch.search import memory_kills, trial_worker, tune_loop
from wmlsearch.search.budget import Budget
from wmlsearch.search.checkpoint_size import most_checkpoint_bytes
from wmlsearch.search.checkpoints import CheckpointRetention
from wmlsearch.search.optuna_study import Study
from wmlsearch.search.recorder import Recorder
from wmlsearch.search.scheduler import Scheduler
from wmlsearch.search.trial_worker import TrialWorker
from wmlsearch.space import SearchSpace
from wmlsearch.tracking.uri import default_uri
from wmlsearch.workflows import tune as tune_workflow
from wmlsearch.workflows.observer import Observer, Outcome
from wmlsearch.workflows.placement import LOCAL
from wmlsearch.workflows.search_plan import SearchRequest

SMALL = {"depth": 2, "base_channels": 4, "batch_size": 4}
RATES = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
ONE_GPU = Slots(1, 1, 1, 1.0)

pytestmark = pytest.mark.usefixtures("one_ray")


def tune(prepared: Path, out: Path, values: dict[str, Any], **settings: Any) -> Outcome:
    request = SearchRequest(
        SearchSpace.from_mapping(values),
        RunSettings(**{"epochs": 3, "trials": 50, "baseline": False, "forecast": False, **settings}),
        prepared,
    )
    return tune_workflow.tune(SearchDir(out / "s"), request, default_uri(out), Observer(say=str))


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        ({"max_epochs_total": 4}, "--max-epochs-total 4 is reached"),
        ({"max_hours": 1e-6}, "--max-hours 1e-06 is reached"),
        ({"target_dice": 1e-6}, "--target-dice 1e-06 is reached"),
        ({"trials": 2}, ""),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_budget_ends_a_search_cleanly(budget: dict[str, Any], reason: str, prepared: Path, tmp_path: Path) -> None:
    outcome = tune(prepared, tmp_path, {**SMALL, **RATES}, **budget)
    assert (str(outcome.early_end or ""), outcome.run.status().state) == (reason, "completed")
    search = SearchDir(outcome.run.path)
    states = [run.status().state for run in search.trials()]
    assert "running" not in states
    assert len(states) < 50
    epochs = sum(len(run.rows()) for run in search.trials())
    if "max_epochs_total" in budget:  # as many trials as run at once may end an epoch when it is reached
        assert 4 <= epochs < 4 + len(os.sched_getaffinity(0))


def test_gpu_hours_count_what_trials_hold(tmp_path: Path) -> None:
    search = SearchDir.create(tmp_path / "s", search_record())
    search.update_usage(seconds=9000.0, gpu_seconds=7190.0)
    budget = Budget(search, RunSettings(max_gpu_hours=2.0), Slots(2, 2, 1, 0.5))
    assert not budget.stop_all()
    budget.running = 2
    budget._last -= 10  # ten seconds pass: two trials of two workers with half a GPU each
    assert budget.stop_all()
    assert budget.reason == "--max-gpu-hours 2 is reached"
    assert search.usage().gpu_seconds == pytest.approx(7190 + 2 * 10, abs=1)


def test_hours_are_reserved_for_the_final_runs(tmp_path: Path) -> None:
    """Eight final runs of ten epochs, two at a time, take as long as forty epochs of 45 s."""
    search = SearchDir.create(tmp_path / "s", search_record())
    settings = RunSettings(max_hours=1.0, epochs=10, confirm_top=1, confirm_seeds=2, final_runs=2)
    budget = Budget(search, settings, Slots(2, 1, 1, 0.0))
    for _ in range(3):
        budget.add(epoch_row({"epoch": 1, "epoch_s": 45.0, "val_dice_patients_best": 0.5}))
    budget._last -= 3600 - 4 * 10 * 45 - 10
    assert not budget.stop_all()
    budget._last -= 10
    assert budget.stop_all()
    assert budget.reason == "--max-hours 1 is reached (0.5 of it is reserved for the final runs)"


def test_a_request_to_stop_is_recorded_before_the_trials_have_ended(tmp_path: Path) -> None:
    """A process that is killed meanwhile leaves no trial "running" in a search that is not."""
    search = SearchDir.create(tmp_path / "s", search_record())
    for number, state in enumerate(("completed", "running")):
        RunDir.create(search.trial(number).path, run_record()).set_status(state)
    budget = Budget(search, RunSettings(), ONE_GPU)
    assert not budget.stop_all()
    budget.request(end_by_signal(signal.SIGHUP))
    assert (search.state, search.trial(1).state) == ("running", "running")
    assert budget.stop_all()
    assert (search.state, search.status().reason) == ("interrupted", budget.reason)
    assert (search.trial(1).state, search.trial(1).status().reason) == ("interrupted", budget.reason)
    assert search.trial(0).state == "completed"


def test_a_signal_that_comes_while_budgets_are_looked_at_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(SearchDir.create(tmp_path / "s", search_record()), RunSettings(), ONE_GPU)
    monkeypatch.setattr(budget, "_used_up", lambda: budget.request(end_by_signal(signal.SIGINT)))
    budget.stop_all()
    assert budget.stop_all()
    assert budget.reason == "stopped by Ctrl-C"


def test_time_between_sessions_does_not_count(tmp_path: Path) -> None:
    search = SearchDir.create(tmp_path / "s", search_record({"created": time.time() - 1e6}))
    search.update_usage(seconds=3500.0, gpu_seconds=0.0)
    budget = Budget(search, RunSettings(max_hours=1.0), ONE_GPU)
    assert not budget.stop_all()
    budget._last -= 101
    assert budget.stop_all()


def test_a_search_ends_when_each_configuration_has_been_tried(prepared: Path, tmp_path: Path) -> None:
    outcome = tune(prepared, tmp_path, {**SMALL, "depth": {"choices": [2, 3]}}, epochs=1, trials=20)
    search, reason = SearchDir(outcome.run.path), "all 2 configurations of the space have been tried"
    assert (str(outcome.early_end), search.state, search.status().reason) == (reason, "completed", reason)
    depths = [run.record().config.depth for run in search.trials()]
    assert (depths[0], sorted(depths[1:])) == (TrialConfig().depth, [2, 3])
    assert {run.state for run in search.trials()} == {"completed"}
    said: list[str] = []
    wmlsearch.resume(search.path, say=said.append)
    assert any("so nothing is left to do" in text for text in said)
    wmlsearch.resume(search.path, trials=30, say=said.append)  # asks for one that there is not
    assert (len(search.trials()), search.state, search.status().reason) == (3, "completed", reason)


@pytest.mark.slow
def test_checkpoints_stay_below_max_checkpoint_gb(prepared: Path, tmp_path: Path) -> None:
    space = {"depth": {"choices": [2, 3]}, "base_channels": {"choices": [2, 4]}, "batch_size": 16, **RATES}
    last, best = most_checkpoint_bytes(SearchSpace.from_mapping(space))  # of the baseline network
    cores = len(os.sched_getaffinity(0))
    needed = cores * (2 * last + best) + best
    with pytest.raises(InputError) as refused:
        tune(prepared, tmp_path, space, max_checkpoint_gb=0.9 * needed / 1e9)
    assert re.fullmatch(
        rf"--max-checkpoint-gb [\d.]+: {cores} running trials may need [\d.]+ GB and the best weights [\d.]+ GB; "
        rf"give at least {math.ceil(needed / 1e6) / 1000:g}, or search smaller networks",
        str(refused.value),
    )
    cap, most, done = 1.001 * needed, [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            most[0] = max(most[0], taken(tmp_path / "s"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    outcome = tune(prepared, tmp_path, space, max_checkpoint_gb=cap / 1e9, epochs=2, grace_epochs=1)
    done.set()
    watcher.join()
    trials = SearchDir(outcome.run.path).trials()
    assert len(trials) == 50
    assert 0 < most[0] <= cap
    kept = [run for run in trials if run.best.exists()]
    assert kept, "the best weights are kept"
    assert not any(run.last.exists() for run in trials)


def taken(folder: Path) -> int:
    """Return the bytes of all checkpoints, also of those that are being written."""
    size = 0
    for path in folder.glob("trials/*/*"):
        if ".pt" in path.name:
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
    return size


def test_gpu_hours_without_gpus_are_refused(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(InputError) as refused:
        tune(prepared, tmp_path, {**SMALL, **RATES}, max_gpu_hours=1.0)
    assert str(refused.value) == (
        "--max-gpu-hours 1: no GPU is used, so this budget would never end the search; give --max-hours instead"
    )
    assert not (tmp_path / "s").exists()


def test_the_same_error_three_times_stops_the_search(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Iterator[EpochRow]:
        raise KeyError("val_nonsense")
        yield

    class BrokenWorker(TrialWorker):  # a local class is sent to Ray's processes with its code
        def setup(self, config: dict[str, Any], job: dict[str, Any] | None = None) -> None:
            trial_worker.epochs = fail  # type: ignore[assignment]
            super().setup(config, job)

    monkeypatch.setattr(tune_loop, "TrialWorker", BrokenWorker)
    outcome = tune(prepared, tmp_path, {**SMALL, **RATES})
    search = SearchDir(outcome.run.path)
    assert outcome.early_end is not None
    assert outcome.early_end.cause is EndCause.ERROR
    assert outcome.early_end.text.startswith("3 trials failed with the same error:\nTraceback (most recent call last):")
    assert outcome.early_end.text.count("Traceback") == 1
    assert outcome.early_end.text.endswith("KeyError: 'val_nonsense'")
    assert search.status().state == "failed"
    failed = [run.status() for run in search.trials() if run.status().state == "failed"]
    assert 3 <= len(failed) <= 3 + len(os.sched_getaffinity(0))
    for status in failed:
        assert status.reason == "KeyError: 'val_nonsense'"
        assert status.traceback.startswith("Traceback")
    client = MlflowClient(default_uri(tmp_path))
    runs = client.search_runs([client.get_experiment_by_name("wmlsearch").experiment_id])
    tagged = [run.data.tags for run in runs if run.data.tags["kind"] == "trial" and run.data.tags["state"] == "failed"]
    assert len(tagged) == len(failed)
    assert all("KeyError: 'val_nonsense'" in tags["traceback"] for tags in tagged)


def test_different_errors_are_counted_separately(tmp_path: Path) -> None:
    budget = Budget(SearchDir.create(tmp_path / "s", search_record()), RunSettings(), ONE_GPU)
    trace = 'Traceback (most recent call last):\n  File "{}", line {}, in f\n{}: {}'
    for place in (("a.py", 1, "ValueError", "x"), ("a.py", 2, "ValueError", "x"), ("a.py", 1, "KeyError", "x")):
        budget.add_error(trace.format(*place))
        budget.add_error(trace.format(*place))
    assert budget.reason == ""
    budget.add_error(trace.format("a.py", 1, "ValueError", "another text"))
    assert budget.reason.startswith("3 trials failed with the same error")
    assert budget.failed


def test_only_errors_one_after_another_end_a_search_and_as_many_as_run_at_once(tmp_path: Path) -> None:
    search = SearchDir.create(tmp_path / "s", search_record())
    budget = Budget(search, RunSettings(), Slots(5, 1, 1, 0.0))
    for _ in range(100):  # a part of the space that cannot be trained
        for _ in range(4):
            budget.add_error("ValueError: x")
        budget.add_success()
    assert budget.reason == ""
    for _ in range(4):
        budget.add_error("ValueError: x")
    assert budget.reason == ""
    budget.add_error("ValueError: x")
    assert budget.reason == "5 trials failed with the same error:\nValueError: x"


OUT_OF_MEMORY = """
import json, resource, sys
from pathlib import Path
from wmlsearch.cluster.data_shipping import Shipment
from wmlsearch.search import memory_admission
from wmlsearch.search.messages import TrialAssignment, WorkerJob
from wmlsearch.search.trial_worker import TrainingSession
from wmlsearch.config import RunSettings, TrialConfig
data = Shipment(Path(sys.argv[1]), sys.argv[2])
job = WorkerJob(data, RunSettings(), threads=1)
assignment = TrialAssignment(config=TrialConfig(base_channels=512), checkpoint_location=sys.argv[3])
training = TrainingSession(job, assignment)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
memory_admission.limit_bytes = lambda *_: 2**62  # memory admission lets it through
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
print(json.dumps(training.step().as_plain("val_dice_patients_best")))
"""


def test_a_trial_that_runs_out_of_memory_ends_as_out_of_memory(prepared: Path, tmp_path: Path) -> None:
    """In a process with a limit of address space: the network alone would need 8 GB."""
    import json

    fingerprint = json.loads((prepared / "manifest.json").read_text())["fingerprint"]
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, str(prepared), fingerprint, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["done"], result["ended"]) == (True, "out_of_memory"), done.stderr
    assert "memory" in result["reason"]
    assert "\n" not in result["reason"]
    assert result["traceback"].startswith("Traceback")


def test_a_trial_that_diverges_ends_as_diverged(prepared: Path, tmp_path: Path) -> None:
    wild = {**SMALL, "optimizer": "sgd", "norm": "instance", "weight_decay": {"low": 9.0, "high": 10.0}}
    outcome = tune(prepared, tmp_path, {**wild, "learning_rate": 10.0}, trials=3)
    assert outcome.early_end is None
    trials = SearchDir(outcome.run.path).trials()[1:]  # the first is the baseline
    assert [run.status().state for run in trials] == ["diverged", "diverged"]
    assert all("loss is not finite in epoch" in run.status().reason for run in trials)


@pytest.mark.slow
def test_a_trial_whose_process_dies_repeatedly_is_lost(prepared: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wmlsearch", "tune", "quick", "--data", str(prepared), "--out", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--name", "s", "--trials", "1", "--epochs", "2000", "--no-baseline", "--no-forecast"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    search = SearchDir(tmp_path / "s")
    end = time.monotonic() + 480
    try:
        while process.poll() is None:
            assert time.monotonic() < end
            for pid in slots(process.pid):
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        output, _ = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 0, output
    (trial,) = search.trials()
    assert trial.status().state == "lost"
    assert trial.status().reason == "its process or machine died 4 times without a new epoch"
    assert "trial-0000 lost: its process or machine died 4 times without a new epoch" in output
    assert "Traceback" not in output
    assert "raylet" not in output, "what Ray prints about it is suppressed"


def test_the_group_of_a_trial_that_dies_at_once_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RunSettings(trials=1, epochs=3, baseline=False, forecast=False)
    search = new_search(tmp_path / "s", settings)
    budget = Budget(search, settings, Slots(1, 2, 1, 0.0))
    retention = CheckpointRetention(LOCAL.checkpoint_location, lambda _: 0, math.inf, settings.objective_names)
    study, scheduler = Study(search, space(), settings), Scheduler(settings)
    recorder = Recorder(
        search, settings, study, budget, LOCAL.checkpoint_location, retention, lambda _: None, scheduler
    )
    trial: Any = SimpleNamespace(
        config=recorder.begin(0).as_plain(), temporary_state=SimpleNamespace(ray_actor="group")
    )
    released: list[Any] = []
    monkeypatch.setattr(recorder.killed, "add", released.append)
    monkeypatch.setattr(recorder.memory_kills, "reason_of_loss", lambda _error: "")
    recorder.on_trial_start(0, [], trial)
    recorder.on_trial_recover(0, [], trial)
    assert released == ["group"]


def test_the_status_says_that_a_running_trial_lost_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RunSettings(trials=1, epochs=3, baseline=False, forecast=False)
    search = new_search(tmp_path / "s", settings)
    console = Console(width=120, record=True, file=io.StringIO())
    display = SearchDisplay(console, search, space(), settings)
    proposals, budget = Study(search, space(), settings), Budget(search, settings, Slots(1, 1, 1, 0.0))
    retention = CheckpointRetention(LOCAL.checkpoint_location, lambda _: 0, math.inf, settings.objective_names)
    scheduler = Scheduler(settings)
    recorder = Recorder(
        search, settings, proposals, budget, LOCAL.checkpoint_location, retention, display.update, scheduler
    )
    trial = SimpleNamespace(config=recorder.begin(0).as_plain(), run_metadata=SimpleNamespace(num_failures=0))
    trial.temporary_state = SimpleNamespace()

    def report_epoch(epoch: int, **more: Any) -> None:
        report = row(0, epoch, settings.epochs)
        recorder.on_trial_result(
            0, [], trial, {"report": report, "epoch": epoch, "val_dice_patients_best": 0.5, **more}
        )

    report_epoch(1, replayed=[])
    assert search.trial(0).status().reason == ""
    report_epoch(2, replayed=[row.as_json() for row in search.trial(0).rows()])  # another process has begun
    assert search.trial(0).status().reason == (
        "its process or machine died, so a new process continues it after epoch 1"
    )
    monkeypatch.setattr(recorder.memory_kills, "reason_of_loss", lambda _error: memory_kills.REASON)
    assert trial.config["reported_epochs"] == 0
    recorder.on_trial_recover(0, [], trial)
    assert trial.config["reported_epochs"] == 2, "the next process must not begin anew without its checkpoint"
    report_epoch(2, replayed=[row.as_json() for row in search.trial(0).rows()])
    assert search.trial(0).status().reason == (
        "the system ended its process for lack of memory, so a new process continues it after epoch 2"
    )
    report_epoch(3, done=True, ended="completed")
    assert search.trial(0).status().reason == ""
    said = console.export_text().splitlines()
    assert said[0] == "trial-0000: its process or machine died, so a new process continues it after epoch 1"
    assert said[-1].startswith("trial-0000 completed after 3 epochs")
