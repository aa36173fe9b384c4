"""The cost of having a search in MLflow: this project's mirror compared with Ray's MLflowLoggerCallback.

python -m benchmarks.tracking

Both send the same reports of 25 metrics to the same server (`mlflow server` on 127.0.0.1, SQLite), 5 trials of 10
epochs, which counts the calls by its own access log. The callback is called as Tune calls it (log_trial_start,
log_trial_result, log_trial_end), with stand-ins for the trials: between these calls a search does nothing for MLflow.
The mirror gets the same reports one after another, as fast as they come; then again with a wait after each until
the server has it, so that no two are sent as one. Both have talked to the server before.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.experiment import Trial

from benchmarks.simulated import METRICS, new_search, new_trial, row
from benchmarks.table import Row, show
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.folders import AnyDir, RunDir
from wmlsearch.runs.schema import EpochRow
from wmlsearch.tracking.mirror import Mirror

TRIALS, EPOCHS = 5, 10
START_S = 120.0
WORK = 100_000  # additions of a loop that shares its process with the mirror
TURNS = 40


class Server:
    """An MLflow server of our own, and how often it was called."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.uri, self.log = f"http://127.0.0.1:{port}", folder / "server.log"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        command += ["--artifacts-destination", str(folder / "artifacts"), "--uvicorn-opts", "--log-level info"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own command
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,
            )
        end = time.monotonic() + START_S
        while not self._answers():
            if time.monotonic() > end or self.process.poll() is not None:
                self.end()
                raise SystemExit(
                    f"the MLflow server has not started; the end of its log:\n{self.log.read_text()[-2000:]}"
                )
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:  # noqa: S310 - our own server
                return bool(answer.read() == b"OK")
        except OSError:
            return False

    def calls(self) -> list[str]:
        """Method and path of each call so far."""
        return re.findall(r'"((?:GET|POST|PUT|PATCH|DELETE) /api/[^ ?"]+)', self.log.read_text())

    def end(self) -> None:
        """With the workers that it has started, which are in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextlib.contextmanager
def server() -> Iterator[Server]:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # not without ending the server
    with tempfile.TemporaryDirectory(prefix="wmlsearch-bench-") as folder:
        made = Server(Path(folder))
        try:
            yield made
        finally:
            made.end()


def of_ray(at: Server) -> tuple[list[float], float, int]:
    """Seconds that each report takes in the driver, seconds until the server has everything, and calls."""
    callback = MLflowLoggerCallback(tracking_uri=at.uri, experiment_name="ray")
    callback.setup()
    trials = [Trial("stand-in", config=TrialConfig().model_dump(), stub=True) for _ in range(TRIALS)]
    before, started, reports = len(at.calls()), time.monotonic(), []
    for trial in trials:
        callback.log_trial_start(trial)
    for epoch in range(1, EPOCHS + 1):
        for number, trial in enumerate(trials):
            metrics = {name: row(number, epoch, EPOCHS, len(METRICS))[name] for name in METRICS[1:]}
            begun = time.perf_counter()
            callback.log_trial_result(epoch, trial, {**metrics, "training_iteration": epoch})
            reports.append(time.perf_counter() - begun)
    for trial in trials:
        callback.log_trial_end(trial)
    return reports, time.monotonic() - started, len(at.calls()) - before


def of_mirror(at: Server, folder: Path, one_by_one: bool) -> tuple[list[float], float, list[str]]:
    """As `of_ray`, but with the calls themselves."""
    search = new_search(folder, RunSettings(trials=TRIALS, epochs=EPOCHS))
    mirror = Mirror(search, at.uri)
    _wait(search, "files", ["certificate"])
    before, started, reports = len(at.calls()), time.monotonic(), []

    def tell(run: RunDir) -> None:
        begun = time.perf_counter()
        mirror.notify(run)
        reports.append(time.perf_counter() - begun)

    trials = [new_trial(search, number) for number in range(TRIALS)]
    for trial in trials:
        mirror.notify(trial)
    if one_by_one:
        for trial in trials:
            _wait(trial, "files", ["certificate"])
    for epoch in range(1, EPOCHS + 1):
        for number, trial in enumerate(trials):
            trial.append(EpochRow.from_json(row(number, epoch, EPOCHS, len(METRICS))))
            if epoch == EPOCHS:
                trial.set_status("completed")
            tell(trial)
            if one_by_one:
                _wait(trial, "rows", epoch)
    if problem := mirror.close():
        raise SystemExit(f"the mirror: {problem}")
    return reports, time.monotonic() - started, at.calls()[before:]


def _wait(run: AnyDir, name: str, value: Any) -> None:
    """Until the mirror has noted something."""
    end = time.monotonic() + START_S
    while getattr(run.ledger(), name) != value:
        if time.monotonic() > end:
            raise SystemExit(f"the mirror has not sent {name} of {run.path} within {START_S:g} s")
        time.sleep(0.002)


def beside(at: Server, folder: Path) -> float:
    """Seconds that a turn of a loop takes longer in a process whose mirror gets a report each turn, and sends it."""
    search = new_search(folder, RunSettings(trials=1, epochs=10 * TURNS))
    mirror = Mirror(search, at.uri)
    trial = new_trial(search, 0)
    mirror.notify(trial)
    _wait(trial, "files", ["certificate"])
    plain, mirrored = list[float](), list[float]()
    for turn in range(1, TURNS + 1):
        for times in (plain, mirrored) if turn % 2 else (mirrored, plain):
            trial.append(EpochRow.from_json(row(0, turn, 10 * TURNS, len(METRICS))))
            begun = time.perf_counter()
            if times is mirrored:
                mirror.notify(trial)
            sum(range(WORK))
            times.append(time.perf_counter() - begun)
            if times is mirrored:
                _wait(trial, "rows", len(trial.rows()))
    mirror.close()
    return statistics.median(mirrored) - statistics.median(plain)


def measure() -> list[Row]:
    with server() as at, tempfile.TemporaryDirectory(prefix="wmlsearch-bench-") as out:
        callback_times, their_s, their_calls = of_ray(at)
        ours, our_s, calls = of_mirror(at, Path(out) / "fast", one_by_one=False)
        _, single_s, single_calls = of_mirror(at, Path(out) / "single", one_by_one=True)
        extra_s = beside(at, Path(out) / "beside")
    notify_s, callback_s = statistics.median(ours), statistics.median(callback_times)
    reports = TRIALS * EPOCHS
    of_reports = sum(call.endswith("log-batch") for call in single_calls) - TRIALS
    return [
        Row(
            "tracking: a report of 25 metrics, in the driver's event loop",
            f"{1000 * notify_s:.3f} ms (worst {1000 * max(ours):.3f})",
            f"MLflowLoggerCallback {1000 * callback_s:.0f} ms",
            callback_s / notify_s,
            "at most 1 ms",
            max(ours) <= 1e-3,
        ),
        Row(
            "tracking: a turn of a training loop in the same process takes longer by",
            f"{1000 * extra_s:.2f} ms",
            aim="at most 1 ms",
            met=extra_s <= 1e-3,
        ),
        Row(
            f"tracking: until the server has {reports} reports",
            f"{our_s:.1f} s",
            f"MLflowLoggerCallback {their_s:.1f} s",
            their_s / our_s,
            "30",
            their_s / our_s >= 30,
        ),
        Row(
            "tracking: the same, each report sent by itself",
            f"{single_s:.1f} s",
            f"MLflowLoggerCallback {their_s:.1f} s",
            their_s / single_s,
        ),
        Row(
            "tracking: calls per trial and epoch, all calls",
            f"{len(calls) / reports:.2f}",
            f"MLflowLoggerCallback {their_calls / reports:.1f}",
            their_calls / len(calls),
            "at most 1",
            len(calls) <= reports,
        ),
        Row(
            "tracking: the same, each report sent by itself",
            f"{of_reports / reports:.2f}, and {(len(single_calls) - of_reports) / TRIALS:.1f} per trial",
            f"MLflowLoggerCallback {their_calls / reports:.1f}",
            their_calls / len(single_calls),
        ),
    ]


if __name__ == "__main__":
    show(__doc__, measure)
