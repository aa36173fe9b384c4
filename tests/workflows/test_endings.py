"""What the folder and MLflow say of the end of a search or training, if something disturbs that end."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from processes import wait_for
from records import run_record, search_record

from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs import interrupts
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.interrupts import Interrupted
from wmlsearch.search import final_training
from wmlsearch.search.budget import Budget
from wmlsearch.search.checkpoints import CheckpointRetention
from wmlsearch.search.interrupts import graceful_stop
from wmlsearch.search.messages import TrialResult
from wmlsearch.space import SearchSpace
from wmlsearch.tracking.uri import default_uri
from wmlsearch.workflows import tune as tune_workflow
from wmlsearch.workflows.observer import Observer, Outcome
from wmlsearch.workflows.search_plan import SearchRequest
from wmlsearch.workflows.train import TrainRequest, train

SPACE = {
    "depth": 2, "base_channels": 4, "batch_size": 4, "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_ray")


def in_mlflow(out: Path) -> dict[str, str]:
    """Return the status of each MLflow run, by name."""
    return {run.info.run_name: run.info.status for run in MlflowClient(default_uri(out)).search_runs(["1"])}


def fake_worker_group(result: TrialResult) -> type:
    """Return a worker group whose first step is its last, with this result."""

    class FakeWorkerGroup:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def start(self, _trial: Any) -> None:
            pass

        def step(self) -> TrialResult:
            return result.with_end(result.ended, result.reason)

        def close(self) -> None:
            pass

    return FakeWorkerGroup


def tune(prepared: Path, out: Path, say: Callable[[str], None] = print) -> Outcome:
    """A search of one trial, without final runs."""
    settings = RunSettings(epochs=2, trials=1, forecast=False, baseline=False)
    request = SearchRequest(SearchSpace.from_mapping(SPACE), settings, prepared)
    return tune_workflow.tune(SearchDir(out / "s"), request, default_uri(out), Observer(say=say))


def tune_to_the_end(prepared: Path, out: Path, look: Callable[[RunDir], None]) -> Outcome:
    """A search of one trial, then a final run of the baseline; `look` is called once MLflow has that run."""

    def mirrored() -> bool:
        store = out / "mlflow.db"  # asking MLflow for it before it exists would create it
        return store.exists() and in_mlflow(out).get("paper-run0") == "RUNNING"

    def final(run: RunDir) -> None:
        if run.path.parent.name == "final" and run.state == "running":
            wait_for(mirrored)
            look(run)

    settings = RunSettings(epochs=3, trials=1, forecast=False, confirm_top=0, final_runs=1)
    request = SearchRequest(SearchSpace.from_mapping(SPACE), settings, prepared)
    return tune_workflow.tune(SearchDir(out / "s"), request, default_uri(out), Observer(on_change=final))


def test_a_full_storage_ends_the_final_runs_everywhere(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = fake_worker_group(TrialResult(ended="interrupted", reason="No space left on device: 'last.pt'"))
    monkeypatch.setattr(final_training, "WorkerGroup", group)
    outcome = tune_to_the_end(prepared, tmp_path, lambda _run: None)
    search, reason = SearchDir(outcome.run.path), "stopped, since No space left on device: 'last.pt'"
    assert (str(outcome.early_end), search.state) == (reason, "interrupted")
    (paper,) = search.finals()
    assert (paper.state, paper.status().reason) == ("interrupted", reason)
    assert in_mlflow(tmp_path) == {"s": "KILLED", "trial-0000": "FINISHED", "paper-run0": "KILLED"}


def test_mlflow_gets_an_end_after_which_the_disk_was_full(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial's folder says how it ended, and the next write of the driver fails."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "journal")

    monkeypatch.setattr(CheckpointRetention, "trial_ended", full)
    outcome = tune(prepared, tmp_path)
    assert str(outcome.early_end) == "stopped, since [Errno 28] No space left on device: 'journal'"
    assert in_mlflow(tmp_path) == {"s": "KILLED", "trial-0000": "FINISHED"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_skips_only_the_report(
    number: signal.Signals, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(
        "wmlsearch.report.examples.write_examples", lambda *_: os.kill(os.getpid(), number), raising=True
    )
    outcome = tune(prepared, tmp_path, messages.append)
    assert (outcome.early_end, outcome.pictures, outcome.run.state) == (None, (), "completed")
    (message,) = [line for line in messages if line.startswith("no report")]
    how = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    later = f"wmlsearch report s --out {tmp_path}"
    assert message == f"no report (stopped by {how}); to write it later: {later}"
    assert in_mlflow(tmp_path) == {"s": "FINISHED", "trial-0000": "FINISHED"}


@pytest.mark.parametrize(("error", "raised"), [(KeyboardInterrupt, False), (RuntimeError, True)])
def test_an_ended_training_stays_ended(
    error: type[BaseException], raised: bool, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, or an error, while the processes of Ray Train shut down."""
    finish = final_training.finish_run

    def disturbed(*arguments: Any) -> None:
        finish(*arguments)
        raise error

    monkeypatch.setattr(final_training, "WorkerGroup", fake_worker_group(TrialResult(ended="completed")))
    monkeypatch.setattr(final_training, "finish_run", disturbed)
    run = RunDir(tmp_path / "t")

    request = TrainRequest(TrialConfig(depth=2, base_channels=4, batch_size=4), RunSettings(epochs=2), prepared)
    if raised:
        with pytest.raises(error):
            train(run, request, default_uri(tmp_path))
    else:
        assert train(run, request, default_uri(tmp_path)).early_end is None
    assert run.state == "completed"
    assert in_mlflow(tmp_path) == {"t": "FINISHED"}


@pytest.fixture
def time_between_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "SAME_REQUEST_S", -1.0)


@pytest.mark.usefixtures("time_between_signals")
def test_the_first_ctrl_c_ends_cleanly_even_if_a_budget_is_reached(tmp_path: Path) -> None:
    budget = Budget(SearchDir.create(tmp_path / "s", search_record()), RunSettings(max_hours=1e-9), Slots(1, 1, 1, 0.0))
    assert budget.stop_all()
    assert budget.reason.startswith("--max-hours 1e-09 is reached")
    exits: list[int] = []

    def stop_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert (budget.reason, exits) == ("stopped by Ctrl-C", [])
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted), graceful_stop(budget, exits.append):
        stop_twice()
    assert exits == [130]


def a_budget(folder: Path) -> Budget:
    return Budget(SearchDir.create(folder / "s", search_record()), RunSettings(), Slots(1, 1, 1, 0.0))


@pytest.mark.usefixtures("time_between_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_repeated_signal_ends_no_process(number: signal.Signals, tmp_path: Path) -> None:
    """`timeout` sends SIGTERM twice; after a logout come SIGHUP and SIGTERM."""
    budget = a_budget(tmp_path)
    with graceful_stop(budget, lambda _: pytest.fail("the process was ended")):
        for one in (number, number, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), one)
    assert budget.early_end == interrupts.end_by_signal(number)


def test_two_at_once_end_no_process(tmp_path: Path) -> None:
    budget = a_budget(tmp_path)
    with graceful_stop(budget, lambda _: pytest.fail("the process was ended")):
        for number in (signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert budget.reason == "stopped by Ctrl-C"


@pytest.mark.usefixtures("time_between_signals")
def test_a_notebook_survives_its_second_stop(tmp_path: Path) -> None:
    steps = []

    def stop_twice() -> None:
        for step in ("first", "second"):
            os.kill(os.getpid(), signal.SIGINT)
            steps.append(step)

    with pytest.raises(Interrupted, match="stopped by Ctrl-C"), graceful_stop(a_budget(tmp_path)):
        stop_twice()
    assert steps == ["first"]


def test_sigterm_in_the_final_runs_acts_like_ctrl_c(prepared: Path, tmp_path: Path) -> None:
    """The last test of this file: Ray keeps the resources of killed workers for a minute."""
    search = SearchDir(tmp_path / "s")

    def look(run: RunDir) -> None:
        left = search.judgement_run("trial-0099", 0)  # from an earlier session; not needed any more
        if not left.exists():
            RunDir.create(left.path, run_record({**run.record().as_json(), "key": "99", "name": "trial-0099-run0"}))
            os.kill(os.getpid(), signal.SIGTERM)

    outcome = tune_to_the_end(prepared, tmp_path, look)
    assert (outcome.early_end, search.state) == (interrupts.end_by_signal(signal.SIGTERM), "interrupted")
    assert {run.name: run.state for run in search.finals()} == {
        "paper-run0": "interrupted",
        "trial-0099-run0": "interrupted",
    }
    assert set(in_mlflow(tmp_path).values()) == {"FINISHED", "KILLED"}
