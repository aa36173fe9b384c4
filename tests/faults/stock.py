"""Inject the same faults into Tune with OptunaSearch and MLflowLoggerCallback, used as in Ray's documentation.

`PYTHONPATH=tests python tests/faults/stock.py` prints a table. This search and wmlsearch's use the same training
function. They differ in how they record epochs, checkpoints and reports.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from processes import descendants, kill, kill_everything, wait_for
from proxy import Server

EPOCHS, TRIALS = 30, 4
EXPERIMENT = "stock"
LIMIT_S = 420.0


def drive(folder: Path, uri: str, restore: bool) -> None:
    """Run the search in this process."""
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    ray.init(address="local", num_cpus=1, include_dashboard=False)
    data, reports = str(folder / "prepared"), str(folder / "reports.jsonl")

    def train(config: dict[str, float]) -> None:
        from wmlsearch.config import TrialConfig
        from wmlsearch.data.slices import PreparedData
        from wmlsearch.model.training import epochs

        trial_config = TrialConfig(depth=2, base_channels=4, batch_size=4, early_stop_patience=1000, **config)
        trial_id = tune.get_context().get_trial_id()
        with tempfile.TemporaryDirectory() as scratch:
            last = Path(scratch) / "last.pt"
            if (checkpoint := tune.get_checkpoint()) is not None:
                with checkpoint.as_directory() as checkpoint_folder:
                    last.write_bytes((Path(checkpoint_folder) / "last.pt").read_bytes())
            for report in epochs(trial_config, PreparedData.open(Path(data)), max_epochs=EPOCHS, last=last):
                with open(reports, "a") as file:  # records which trial has trained which epoch
                    file.write(json.dumps([trial_id, report.epoch]) + "\n")
                metrics = {"epoch": report.epoch, "val_dice_best": report.metrics["val_dice_best"] or 0.0}
                tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(scratch))

    storage = str(folder / "results")
    if restore:
        tuner = tune.Tuner.restore(f"{storage}/{EXPERIMENT}", train, resume_errored=True)
    else:
        tuner = tune.Tuner(
            train,
            param_space={"learning_rate": tune.loguniform(1e-4, 1e-3)},
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearch(), metric="val_dice_best", mode="max", num_samples=TRIALS
            ),
            run_config=tune.RunConfig(
                name=EXPERIMENT,
                storage_path=storage,
                callbacks=[MLflowLoggerCallback(tracking_uri=uri, experiment_name=EXPERIMENT)],
                failure_config=tune.FailureConfig(max_failures=3),
            ),
        )
    tuner.fit()


class Stock:
    """A folder in which the search runs, and the reports of its trials."""

    def __init__(self, folder: Path, prepared: Path, uri: str) -> None:
        self.folder, self.uri = folder, uri
        folder.mkdir()
        (folder / "prepared").symlink_to(prepared)

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        log = open(self.folder / "driver.log", "ab")  # noqa: SIM115 - the process writes there
        command = [sys.executable, __file__, "drive", str(self.folder), self.uri, *more]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def reports(self) -> list[tuple[str, int]]:
        path = self.folder / "reports.jsonl"
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []

    def completed(self) -> int:
        return len({trial for trial, epoch in self.reports() if epoch == EPOCHS})


def end(process: subprocess.Popen[bytes]) -> None:
    kill_everything(process.pid)
    process.wait()


def mlflow_rows(store: Path) -> tuple[int, Counter[str], int, int]:
    """Return the number of runs in MLflow, runs by status, epochs, and how many of these are duplicates."""
    with sqlite3.connect(store) as database:
        query = (
            "select run_uuid, status from runs join experiments using (experiment_id) where experiments.name = ? "
            "and runs.lifecycle_stage = 'active'"
        )
        runs = dict(database.execute(query, (EXPERIMENT,)).fetchall())
        query = "select run_uuid, step, value from metrics where key = 'epoch'"
        rows = [row for row in database.execute(query).fetchall() if row[0] in runs]
    once = {(run, value) for run, _, value in rows}
    return len(runs), Counter(runs.values()), len(once), len(rows) - len(once)


def wait_until_over(process: subprocess.Popen[bytes], limit_s: float = LIMIT_S) -> str:
    try:
        return f"ended with {process.wait(limit_s)}"
    except subprocess.TimeoutExpired:
        end(process)
        return f"not ended after {limit_s:.0f} s"


def main() -> None:
    from wmlsearch.data.phantom import write_phantom
    from wmlsearch.data.prepare import PrepareOptions, prepare

    with tempfile.TemporaryDirectory(prefix="wmlsearch-stock-") as name:
        folder = Path(name)
        raw = write_phantom(folder / "raw", patients=8, timepoints=1, shape=(48, 48, 12))
        prepare(raw, folder / "prepared", PrepareOptions(size=32, fit="resize", val_patients=("04",), jobs=1))
        print("| fault | how it ended | s after the fault | trials completed | epochs trained again | "
              "MLflow: runs | epochs missing | doubled |")  # fmt: skip
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for fault in ("trial's process killed", "driver killed, Tuner.restore", "MLflow's server killed for good"):
            place = folder / fault.split("'")[0].split(",")[0].replace(" ", "-").lower()
            place.mkdir()
            server = Server(place)
            server.up()
            stock = Stock(place / "stock", folder / "prepared", f"http://127.0.0.1:{server.port}")
            process = stock.start()
            try:
                wait_for(lambda p=process, s=stock: p.poll() is not None or len(s.reports()) > EPOCHS * 1.5, 240)
                began = time.monotonic()
                if fault.startswith("trial"):
                    inject_into_trial(process)
                elif fault.startswith("driver"):
                    end(process)
                    process = stock.start("--restore")
                else:
                    server.kill()
                over = wait_until_over(process)
            finally:
                end(process)
            row(fault, over, time.monotonic() - began, stock, server)


def inject_into_trial(process: subprocess.Popen[bytes]) -> None:
    """Kill the process that Tune started for a trial, and no other process of Ray."""
    killed = 0
    for pid in descendants(process.pid):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if title.startswith("ray::ImplicitFunc"):
            killed += kill(pid)
    assert killed == 1, f"{killed} processes of trials"


def row(fault: str, over: str, seconds: float, stock: Stock, server: Server) -> None:
    server.kill()
    trained = stock.reports()
    runs, statuses, logged, doubled = mlflow_rows(server.store)
    ends = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    again = len(trained) - len(set(trained))
    print(
        f"| {fault} | {over} | {seconds:.0f} | {stock.completed()} of {TRIALS} | {again} | {runs} ({ends}) | "
        f"{max(0, len(set(trained)) - logged)} | {doubled} |",
        flush=True,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["drive"]:
        drive(Path(sys.argv[2]), sys.argv[3], "--restore" in sys.argv)
    else:
        main()
