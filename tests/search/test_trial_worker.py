"""What a trial worker hands to its trainings, and how its ranks end together."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from records import run_record

from wmlsearch.cluster.data_shipping import make_shipment
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.model import compiled
from wmlsearch.model.kernels import VARIABLE
from wmlsearch.runs.folders import RunDir
from wmlsearch.search import checkpoints
from wmlsearch.search.final_training import write_result
from wmlsearch.search.messages import TrialAssignment, WorkerJob
from wmlsearch.search.trial_worker import TrainingSession


def test_compiled_networks_are_kept_where_the_job_says(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler is a backend that makes no code, and pretends to have made some."""
    monkeypatch.setenv(VARIABLE, "compile")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(compiled, "count_compilations", itertools.count().__next__)
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"code", SimpleNamespace(artifacts={})))
    shipment = make_shipment(prepared, Manifest.read(prepared).fingerprint, send=False)
    job = WorkerJob(shipment, RunSettings(epochs=1), threads=1, compiled_networks=str(tmp_path / "networks"))
    config = TrialConfig(depth=1, base_channels=2, batch_size=24)  # two batches of 24 slices
    session = TrainingSession(
        WorkerJob.from_plain(job.as_plain()), TrialAssignment(config=config, checkpoint_location=str(tmp_path / "run"))
    )
    assert session.step().ended == "completed"
    session.close()
    assert [path.name for path in tmp_path.glob("networks/*/*")] == ["24-images"]
    torch.compiler.reset()


RANK = """
import errno, json, os, shutil, sys, time
from datetime import timedelta
from pathlib import Path
from torch import distributed
from wmlsearch.cluster.data_shipping import Shipment
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.runs.files import StorageError
from wmlsearch.search import checkpoints
from wmlsearch.search.checkpoints import Checkpoints
from wmlsearch.search.messages import TrialAssignment, WorkerJob
from wmlsearch.search.trial_worker import TrainingSession
prepared, fingerprint, folder, rank = *sys.argv[1:4], int(sys.argv[4])
meeting, patience = f"file://{folder}/meet", timedelta(seconds=300)
distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=patience)
job = WorkerJob(Shipment(Path(prepared), fingerprint), RunSettings(epochs=1), threads=1)
config = TrialConfig(depth=1, base_channels=1, batch_size=4)
away, damaged = StorageError(errno.EIO, "does not answer", "s3://bucket"), ValueError("damaged")
fetch, results = Checkpoints.fetch, []
for run, failing, error in [("a", 1, away), ("b", 0, damaged), ("c", None, None)]:
    def fetch_or_fail(self, reported_epochs):
        if rank == failing:
            raise error
        fetch(self, reported_epochs)
    Checkpoints.fetch = fetch_or_fail
    session = TrainingSession(job, TrialAssignment(config=config, checkpoint_location=f"{folder}/{run}"), rank)
    result = session.step()
    session.close()
    results.append([result.ended, result.reason, result.broke])
# The file system of rank 1 shows the checkpoint of "c" late, or not at all. Its epoch was not reported.
Checkpoints.fetch, stored, sleep = fetch, Path(folder, "c", "last.pt"), time.sleep
for run, patience_s in [("late", 60.0), ("missing", 0.0)]:
    shown = Path(folder, f"{run}-{rank}")
    shown.mkdir()
    if rank == 0:
        shutil.copy(stored, shown)
    checkpoints.LATE_S, time.sleep = patience_s, lambda _: shutil.copy(stored, shown)
    session = TrainingSession(job, TrialAssignment(config=config, checkpoint_location=str(shown)), rank)
    result = session.step()
    session.close()
    results.append([result.ended, result.reason, result.epoch])
time.sleep = sleep
print(json.dumps(results), flush=True)
distributed.barrier()
os._exit(0)
"""


def test_what_one_rank_cannot_begin_ends_all_and_the_next_run_begins_in_step(prepared: Path, tmp_path: Path) -> None:
    """The machine of one rank is cut off from the storage, or does not see the checkpoint that another one sees."""
    words = [sys.executable, "-c", RANK, str(prepared), Manifest.read(prepared).fingerprint, str(tmp_path)]
    ranks = [subprocess.Popen([*words, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0]
    missing = f"the checkpoint of epoch 1 is missing on {socket.gethostname()}, for 0 s: '{tmp_path}/missing-1/last.pt'"
    assert [json.loads(output) for output in outputs] == 2 * [
        [
            ["interrupted", "[Errno 5] does not answer: 's3://bucket'", False],
            ["failed", "ValueError: damaged", False],
            ["completed", "", False],
            ["completed", "", 1],
            ["interrupted", f"[Errno 2] {missing}", 0],
        ]
    ]


def test_a_training_does_not_begin_anew_without_its_checkpoint(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the checkpoint, then the search is interrupted. One without the latest epochs is taken."""
    shipment = make_shipment(prepared, Manifest.read(prepared).fingerprint, send=False)
    job = WorkerJob(shipment, RunSettings(epochs=3), threads=1)
    config = TrialConfig(depth=1, base_channels=2, batch_size=24)
    run, late, older = RunDir.create(tmp_path / "run", run_record({"name": "x"})), tmp_path / "late", tmp_path / "older"

    def training() -> TrainingSession:
        place, reported = str(run.path), len(run.rows())
        return TrainingSession(job, TrialAssignment(config=config, checkpoint_location=place, reported_epochs=reported))

    first = training()
    write_result(run, first.step(), set())
    shutil.copy(run.last, older)
    write_result(run, first.step(), set())
    lines = run.file("metrics").read_bytes()
    assert lines.count(b"\n") == 2
    run.last.rename(late)
    with monkeypatch.context() as impatient:
        impatient.setattr(checkpoints, "LATE_S", 0.0)
        result = training().step()
    assert (result.done, result.ended) == (True, "interrupted")
    assert result.reason == (
        f"[Errno 2] the checkpoint of 2 reported epochs is missing on {socket.gethostname()}, for 0 s: '{run.last}'"
    )
    write_result(run, result, set())
    assert run.file("metrics").read_bytes() == lines

    with monkeypatch.context() as waiting:
        waiting.setattr(time, "sleep", lambda _: late.exists() and late.rename(run.last))
        assert training().step().epoch == 3

    older.rename(run.last)
    result = training().step()
    assert ([row.epoch for row in result.replayed or ()], result.epoch) == ([1], 2)
    write_result(run, result, set())
    assert [row.epoch for row in run.rows()] == [1, 2]
