"""Run a search in a subprocess, and compare its run folder with MLflow and with earlier observations."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from processes import descendants, kill_everything, own_cores, wait_for

from wmlsearch.errors import InputError
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.runs.leaderboard import leaderboard
from wmlsearch.runs.schema import EpochRow
from wmlsearch.tracking.client import connect

Record = Callable[..., None]  # (fault, times injected, epochs lost, duplicates, observed): a row of the table

# Trials with many short epochs and no early stop.
SPACE = {
    "depth": 2,
    "base_channels": 4,
    "batch_size": 4,
    "early_stop_patience": 1000,
    "learning_rate": {"low": 1e-4, "high": 1e-3, "log": True},
}


# MLflow's status for each state that a run may have after a fault.
STATUSES = {"completed": "FINISHED", "early_stopped": "FINISHED", "interrupted": "KILLED", "lost": "FAILED"}


class Running:
    """`wmlsearch tune` in a subprocess that writes its output to a file. On exit all its processes are killed."""

    def __init__(
        self,
        out: Path,
        *words: Any,
        cores: int = 0,
        env: Mapping[str, str] | None = None,
        name: str = "s",
        log: Path | None = None,
    ) -> None:
        """Start the command. `words` follow `wmlsearch tune`; `cores` limits the trials at once (0: all cores)."""
        self.out, self.search = out, SearchDir(out / name)
        affinity = own_cores(cores or len(os.sched_getaffinity(0)))
        self.log = log or out.parent / f"{name}-{len(list(out.parent.glob('*.log')))}.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "wmlsearch", "tune", *(str(word) for word in words), "--out", str(out)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
                start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, affinity),
            )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        kill_everything(self.process.pid)
        self.process.wait()

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, condition: Callable[[], bool], timeout_s: float = 180) -> None:
        """Wait for a condition while the search runs. Fail with the search's output if the search ends before."""
        wait_for(lambda: self.ended or condition(), timeout_s)
        assert condition() or not self.ended, f"ended with {self.process.returncode}\n{self.text()}"

    def end(self, timeout_s: float = 300) -> int:
        """Wait for the end of the search, and return its exit status."""
        wait_for(lambda: self.ended, timeout_s)
        return int(self.process.wait())

    def processes(self, *titles: str) -> list[int]:
        """Return the process ids of descendants whose command line contains one of the titles."""
        pids = []
        for pid in descendants(self.process.pid):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if any(title in command for title in titles):
                pids.append(pid)
        return pids


def tune_arguments(
    out: Path, data: Path, *words: Any, trials: int = 3, epochs: int = 40, name: str = "s", baseline: bool = False
) -> list[Any]:
    """Return the arguments of a search without forecast and scheduler: each trial runs all its epochs.

    Without `baseline` it has no final runs.
    """
    space = out / "space.yaml"
    space.write_text(yaml.safe_dump(SPACE))
    sizes = ["--trials", trials, "--epochs", epochs, "--scheduler", "none", "--no-forecast"]
    sizes += [] if baseline else ["--no-baseline"]
    return [space, "--data", data, "--name", name, "--sampler", "random", *sizes, *words]


class Lines:
    """Every metric row of every trial that a search folder has shown, read repeatedly while the search runs."""

    def __init__(self, search: SearchDir) -> None:
        self.search = search
        self.seen: dict[tuple[str, int], EpochRow] = {}
        self.changed: set[tuple[str, int]] = set()  # epochs whose row changed, because they were trained again
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Lines:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def count(self) -> int:
        return sum(rows_now(run) for run in self.search.trials())

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.look()

    def look(self) -> None:
        for run in self.search.trials():
            try:
                rows = run.rows()
            except InputError:  # a damaged line must never be visible
                self.changed.add((run.name, -1))
                continue
            for row in rows:
                key = (run.name, row.epoch)
                if self.seen.setdefault(key, row) != row:
                    self.changed.add(key)
                    self.seen[key] = row

    def lost_and_doubled(self) -> tuple[int, int]:
        """Return how many observed epochs are missing or changed in the folder, and how many are in it twice."""
        now: dict[tuple[str, int], list[EpochRow]] = {}
        for run in self.search.trials():
            for row in run.rows():
                now.setdefault((run.name, row.epoch), []).append(row)
        lost = sum(now.get(key, [None])[0] != row for key, row in self.seen.items()) + len(self.changed)
        return lost, sum(len(rows) - 1 for rows in now.values())


def rows_now(run: RunDir) -> int:
    return len(run.rows())


def check_whole(search: SearchDir, trials: int, epochs: int) -> None:
    """Check that each trial is completed, has each epoch once, and is on the leaderboard once."""
    for run in search.trials():
        assert [row.epoch for row in run.rows()] == list(range(1, len(run.rows()) + 1)), run.path
        assert run.state in ("completed", "early_stopped"), run.status()
    names = [entry.name for entry in leaderboard(search).trials]
    assert sorted(names) == [f"trial-{number:04d}" for number in range(trials)]
    assert [len(run.rows()) for run in search.trials()[1:]] == [epochs] * (
        trials - 1
    )  # the first trial is the baseline
    assert search.state == "completed", search.status()


def sync(out: Path, uri: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wmlsearch", "sync", "s", "--out", str(out), "--mlflow-uri", uri]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def differences(search: SearchDir, store: Path) -> tuple[int, int, list[str]]:
    """Return how many metric rows are missing in MLflow, how many it has twice, and a line per other difference."""
    client, faults, missing, doubled = connect(f"sqlite:///{store}"), [], 0, 0
    experiment = client.get_experiment_by_name("wmlsearch")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    by_key: dict[str, list[Any]] = {}
    for run in runs:
        by_key.setdefault(run.data.tags["wmlsearch.key"], []).append(run)
    with sqlite3.connect(store) as database:
        for part in [search, *search.trials()]:
            mlflow_runs = by_key.pop(part.record().key, [])
            if len(mlflow_runs) != 1:
                faults.append(f"{part.path.name}: {len(mlflow_runs)} runs")
                continue
            (run,) = mlflow_runs
            if (run.info.status, run.data.tags["state"]) != (STATUSES[part.state], part.state):
                faults.append(
                    f"{part.path.name}: {run.info.status}, {run.data.tags['state']}, in the folder {part.state}"
                )
            expected = [] if isinstance(part, SearchDir) else rows_of(part)
            query = "select key, step, timestamp, value from metrics where run_uuid = ? and key != 'best_dice'"
            rows = database.execute(query, (run.info.run_id,)).fetchall()
            missing += len(set(expected) - set(rows))
            doubled += len(rows) - len({(name, step) for name, step, *_ in rows})
            faults += [f"{part.path.name}: {row} is in no folder" for row in set(rows) - set(expected)]
    return missing, doubled, faults + [f"a run without a folder: {key}" for key in by_key]


def rows_of(run: RunDir) -> list[tuple[str, int, int, float]]:
    return [
        (name, row.epoch, int(row.time * 1000), float(value))
        for row in run.rows()
        for name, value in row.as_json().items()
        if name not in ("epoch", "time", "ended", "received") and value is not None
    ]
