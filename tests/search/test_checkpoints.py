"""Checkpoints and their storages, slots on a cluster, and trials of several workers beside another Ray."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from processes import wait_for
from pyarrow import fs
from records import run_record

from wmlsearch.cluster.connect import ray_session
from wmlsearch.cluster.data_shipping import make_shipment
from wmlsearch.cluster.resources import Request, Slots, plan_slots
from wmlsearch.config import RunSettings, TrialConfig
from wmlsearch.data.manifest import Manifest
from wmlsearch.errors import InputError
from wmlsearch.runs.folders import RunDir, SearchDir
from wmlsearch.search import checkpoints, final_training
from wmlsearch.search.checkpoints import Checkpoints, check_unused, check_writable, delete_checkpoint
from wmlsearch.search.messages import TrialAssignment, TrialResult, WorkerJob
from wmlsearch.search.trial_worker import TrainingSession, _lost_a_rank
from wmlsearch.search.worker_group import WorkerGroup
from wmlsearch.space import SearchSpace
from wmlsearch.tracking.uri import default_uri
from wmlsearch.workflows.observer import Observer
from wmlsearch.workflows.placement import Placement
from wmlsearch.workflows.search_plan import SearchRequest
from wmlsearch.workflows.tune import tune

LAPTOP = [{"CPU": 8.0, "GPU": 0.0}]
GPUS = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}]


@pytest.mark.parametrize(
    ("nodes", "request_", "trials", "memory_gb", "slots"),
    [
        (LAPTOP, Request(), 20, 64.0, Slots(8, 1, 1, 0.0)),
        (LAPTOP, Request(), 3, 64.0, Slots(3, 1, 2, 0.0)),  # few trials: more cores for each
        (LAPTOP, Request(), 20, 7.0, Slots(3, 1, 2, 0.0)),  # memory for three
        (LAPTOP, Request(workers=2), 20, 64.0, Slots(4, 2, 1, 0.0)),
        (LAPTOP, Request(workers=8), 20, None, Slots(1, 8, 1, 0.0)),
        (GPUS, Request(), 20, None, Slots(8, 1, 4, 1.0)),
        (GPUS, Request(workers=3), 20, None, Slots(2, 3, 5, 1.0)),  # three on each machine
        (GPUS, Request(gpus_per_worker=0.5), 20, None, Slots(16, 1, 2, 0.5)),
        (GPUS, Request(gpus_per_worker=0.0), 40, None, Slots(32, 1, 1, 0.0)),
        ([{"CPU": 1.0}, {"CPU": 1.0}], Request(workers=2), 5, None, Slots(1, 2, 1, 0.0)),  # over two machines
        ([{"CPU": 0.0}, {"CPU": 4.0, "GPU": 1.0}], Request(), 5, None, Slots(1, 1, 4, 1.0)),  # a head without CPUs
    ],
)
def test_planned_slots(
    nodes: list[dict[str, float]], request_: Request, trials: int, memory_gb: float | None, slots: Slots
) -> None:
    assert plan_slots(nodes, request_, trials, memory_gb) == slots


@pytest.mark.parametrize(
    ("nodes", "request_", "text"),
    [
        (
            [{"CPU": 2.0, "GPU": 0.0}],
            Request(workers=4, gpus_per_worker=1),
            "a trial of 4 workers with 1 CPU and 1 GPU each does not fit on the machines (2 CPUs and 0 GPUs); "
            "the nearest that fits: 2 workers with 1 CPU each",
        ),
        (
            GPUS,
            Request(workers=9, gpus_per_worker=1),
            "a trial of 9 workers with 1 CPU and 1 GPU each does not fit on the machines "
            "(16 CPUs and 4 GPUs, 16 CPUs and 4 GPUs); the nearest that fits: "
            "8 workers with 1 CPU and 1 GPU each",
        ),
        ([], Request(), "a trial of 1 worker with 1 CPU each does not fit on the machines (none); add a machine"),
    ],
)
def test_a_trial_that_does_not_fit_is_refused(nodes: list[dict[str, float]], request_: Request, text: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
        plan_slots(nodes, request_, 10)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wmlsearch", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_an_impossible_request_ends_before_ray_starts(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    done = run("tune", "quick", "--data", str(prepared), "--out", str(out), "--workers-per-trial", "4096")
    assert done.returncode == 2
    cpus = len(os.sched_getaffinity(0))
    assert done.stderr == (
        f"wmlsearch: a trial of 4096 workers with 1 CPU each does not fit on the machines ({cpus} CPUs"
        f" and {torch.cuda.device_count()} GPUs); the nearest that fits: {cpus} workers with 1 CPU each\n"
    )
    assert not out.exists()


def test_an_unwritable_storage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    place = tmp_path / "file" / "below"
    with pytest.raises(InputError) as refused:
        check_writable(str(place))
    assert str(refused.value) == (
        f"--storage {place}: cannot be written (Not a directory); "
        "name a folder or URI that all machines of the cluster can write"
    )
    check_writable(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_storage_with_another_runs_checkpoints_is_refused(tmp_path: Path) -> None:
    """The folder of that run was deleted, but not its storage; or it has another --out."""
    check_unused(str(tmp_path / "s"))
    left = tmp_path / "s" / "trials" / "0000"
    left.mkdir(parents=True)
    check_unused(str(tmp_path / "s"))
    (left / "last.pt").write_bytes(b"state")
    with pytest.raises(InputError) as refused:
        check_unused(str(tmp_path / "s"))
    assert str(refused.value) == (
        f"--storage: {tmp_path}/s holds 1 checkpoint of another run of this name (such as trials/0000/last.pt), "
        "and nothing is overwritten; choose another --name, or delete that folder"
    )


def test_the_checkpoint_of_another_training_is_not_reported(prepared: Path, tmp_path: Path) -> None:
    job = WorkerJob(
        make_shipment(prepared, Manifest.read(prepared).fingerprint, send=False), RunSettings(epochs=2), threads=1
    )
    small = {"depth": 2, "base_channels": 4, "batch_size": 7}

    def training(**more: Any) -> TrainingSession:
        config = TrialConfig(**small, **more)
        return TrainingSession(job, TrialAssignment(config=config, checkpoint_location=str(tmp_path)))

    one = training()
    assert one.step().epoch == 1
    one.close()
    result = training(dropout=0.3).step()
    assert (result.done, result.ended) == (True, "failed")
    assert result.reason.startswith(f"{tmp_path}/last.pt: belongs to another training; choose another name")
    assert (result.replayed, result.report) == (None, None)
    assert [row.epoch for row in training().step().replayed or ()] == [1]


def test_an_object_store_that_does_not_answer_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the URI of an S3 store lacks the region, for which Arrow asks the store."""
    away = [OSError("NETWORK_CONNECTION during HeadBucket")] * 2

    def from_uri(uri: str) -> tuple[fs.FileSystem, str]:
        if away:
            raise away.pop()
        return fs.LocalFileSystem(), uri.replace("s3:/", str(tmp_path))

    shown = {name: getattr(fs, name) for name in ("LocalFileSystem", "FileType", "copy_files")}
    monkeypatch.setattr(checkpoints, "fs", SimpleNamespace(FileSystem=SimpleNamespace(from_uri=from_uri), **shown))
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "last.pt").write_bytes(b"state")
    kept = Checkpoints("s3://bucket")
    kept.fetch()
    assert (kept.last.read_bytes(), away) == (b"state", [])
    kept.close()
    away.append(OSError("away again"))
    delete_checkpoint("s3://bucket", "last")  # the file stays, and no exception is raised
    assert (tmp_path / "bucket" / "last.pt").exists()


@pytest.mark.parametrize("given", ["ckpts", "./ckpts/", "file://CWD/ckpts"])
def test_a_relative_storage_is_the_same_folder_in_all_processes(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's workers have another working folder than the command line."""
    monkeypatch.chdir(tmp_path)
    placement, search = Placement(storage=given.replace("CWD", str(tmp_path))), SearchDir(tmp_path / "runs" / "s")
    placement.prepare_storage(search)
    monkeypatch.chdir("/")
    assert placement.checkpoint_location(search.trial(3)) == str(tmp_path / "ckpts/s/trials/0003")
    Checkpoints(placement.checkpoint_location(search.trial(3))).fetch()
    assert (tmp_path / "ckpts/s/trials/0003").is_dir()


def test_a_final_run_killed_at_its_end_resumes_or_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, kept = (
        RunDir.create(tmp_path / "run", run_record({"name": "paper-seed0"})),
        Checkpoints(str(tmp_path / "kept" / "run")),
    )
    order = final_training.RunRequest(run, run.record(), str(tmp_path / "kept" / "run"))
    (tmp_path / "kept").mkdir()
    kept.fetch()
    for path in (kept.best, kept.last):
        path.write_bytes(path.name.encode())

    def killed(*_: object) -> None:
        raise SystemExit

    def end() -> None:
        final_training.finish_run(order, TrialResult(done=True, ended="completed"))
        final_training.delete_unneeded(order)

    for owner, word, state in (
        (final_training, "fetch_best_weights", "running"),
        (RunDir, "set_status", "running"),
        (final_training, "delete_checkpoint", "completed"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, word, killed)
            with pytest.raises(SystemExit):
                end()
        assert (run.state, kept.last.exists()) == (state, True), "the run resumes, or has ended"
    end()
    assert (run.best.read_bytes(), kept.last.exists(), kept.best.exists()) == (b"best.pt", False, True)


@pytest.mark.parametrize("place", ["run", "kept/run"])
def test_of_a_selection_run_only_the_metrics_are_kept(place: str, tmp_path: Path) -> None:
    """In the run folder, or in a storage beside it. A run that failed keeps its checkpoint and is tried again."""
    record = run_record({"name": "paper-seed1"}, purpose="selection")
    run, kept = RunDir.create(tmp_path / "run", record), RunDir(tmp_path / place)
    order = final_training.RunRequest(run, record, str(kept.path))
    kept.path.mkdir(parents=True, exist_ok=True)
    for path in (kept.best, kept.last):
        path.write_bytes(b"")
    final_training.finish_run(order, TrialResult(done=True, ended="failed", reason="no luck"))
    final_training.delete_unneeded(order)
    assert (run.state, kept.last.exists(), kept.best.exists()) == ("failed", True, True)
    final_training.finish_run(order, TrialResult(done=True, ended="early_stopped"))
    final_training.delete_unneeded(order)
    assert (run.state, kept.last.exists(), kept.best.exists()) == ("early_stopped", False, False)
    assert not run.best.exists()


def test_an_unreachable_cluster_is_reported_in_bounded_time(prepared: Path, tmp_path: Path) -> None:
    address = "127.0.0.1:1"  # nobody listens there
    done = run("tune", "quick", "--data", str(prepared), "--out", str(tmp_path / "runs"), "--ray-address", address)
    assert done.returncode == 2
    assert done.stderr == (
        "wmlsearch: 127.0.0.1:1: no Ray cluster answers there (Connection refused); start it with `ray "
        "up cluster.yaml` (`wmlsearch cluster-file` writes one), or correct the address (--ray-address or "
        "RAY_ADDRESS)\n"
    )
    assert not (tmp_path / "runs").exists()


def test_checkpoints_in_a_folder_are_the_files_themselves(tmp_path: Path) -> None:
    kept = Checkpoints(str(tmp_path))
    kept.fetch()
    kept.last.write_bytes(b"state")
    kept.push()
    kept.close()
    assert (tmp_path / "last.pt").read_bytes() == b"state"


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs 2 CPU cores")
def test_a_failed_worker_group_releases_its_resources(prepared: Path, tmp_path: Path) -> None:
    """Ray Train keeps the placement group of a run that failed, and the next trial would wait for ever."""
    with ray_session(None):
        whole = ray.cluster_resources()
        shipment = make_shipment(prepared, Manifest.read(prepared).fingerprint, send=False)
        job = WorkerJob(shipment, RunSettings(), threads="none", slots=Slots(1, 2, 1, 0.0))  # no rank can start
        group = WorkerGroup(job, retries=0)
        group.start(TrialAssignment(config=TrialConfig(), checkpoint_location=str(tmp_path)))
        with pytest.raises(RuntimeError, match=r"set_num_threads"):
            group.step()
        group.close()
        wait_for(lambda: all(ray.available_resources().get(name) == whole[name] for name in ("CPU", "memory")), 30)


@pytest.fixture(scope="module")
def other_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Another Ray on this machine, which the search must not touch."""
    code = (
        "import ray, sys; ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False); "
        "print('up', flush=True); sys.stdin.read(); print(len(ray.nodes()), ray.available_resources()['CPU'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    while "up" not in process.stdout.readline():
        assert process.poll() is None
    yield
    output, _ = process.communicate("", timeout=60)
    assert output.strip() == "1 1.0"  # no process has joined it or used its CPU


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs 2 CPU cores")
def test_trials_of_two_workers_on_an_embedded_ray_beside_another(
    other_ray: None, prepared: Path, tmp_path: Path
) -> None:
    """Without a dashboard and beside another Ray, plain Tune and Train freeze when ASHA stops a trial."""
    space = SearchSpace.from_mapping(
        {"depth": 2, "base_channels": 4, "batch_size": 4, "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    )
    settings = RunSettings(epochs=4, trials=8, grace_epochs=1, reduction_factor=2, baseline=False, forecast=False)
    search = SearchDir(tmp_path / "s")
    request = SearchRequest(space, settings, prepared, Placement(workers_per_trial=2))
    said: list[str] = []
    outcome = tune(search, request, default_uri(tmp_path), Observer(say=said.append))
    assert outcome.early_end is None
    assert said == ["trials run 1 at a time, each 2 workers with 1 CPU each"]
    states = [run.status().state for run in search.trials()]
    assert len(states) == 8
    assert set(states) == {"completed", "stopped"}


@pytest.mark.parametrize(
    "text",
    ["[../gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:25249: Connection reset by peer.", "NCCL error in: x"],
)
def test_the_death_of_another_rank_does_not_fail_the_trial(
    text: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _lost_a_rank(RuntimeError(text))
    assert _lost_a_rank(torch.distributed.DistNetworkError("the store is gone"))
    assert not _lost_a_rank(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not _lost_a_rank(KeyError("gloo"))

    def step(in_group: bool) -> TrialResult:
        """A step that ends by the error after Ray Train has taken the group away."""
        job = WorkerJob(
            make_shipment(prepared, Manifest.read(prepared).fingerprint, send=False), RunSettings(), threads=1
        )
        config = TrialConfig(depth=2, base_channels=4, batch_size=4)
        session = TrainingSession(job, TrialAssignment(config=config, checkpoint_location=str(tmp_path)))
        session.in_group = in_group

        def failing() -> None:
            raise RuntimeError(text)

        monkeypatch.setattr(session, "_next_row", failing)
        return session.step()

    assert step(in_group=False).ended == "failed", "no other rank can have died"
    with pytest.raises(RuntimeError, match=re.escape(text)):
        step(in_group=True)
