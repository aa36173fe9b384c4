"""Final runs on Ray Train, one batch after another."""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
from pathlib import Path

import pytest
from processes import descendants, kill, wait_for
from records import epoch_row, run_record

from wmlsearch.cluster.connect import ray_session
from wmlsearch.cluster.data_shipping import make_shipment
from wmlsearch.cluster.ray_patches import placed_groups
from wmlsearch.cluster.resources import Slots
from wmlsearch.config import RunSettings
from wmlsearch.data.manifest import Manifest
from wmlsearch.data.phantom import write_phantom
from wmlsearch.data.prepare import PrepareOptions, prepare
from wmlsearch.runs.folders import RunDir
from wmlsearch.search.final_training import LOST_PROCESS_RETRIES, RunRequest, RunTrainer
from wmlsearch.search.worker_group import WorkersDiedError

SETTINGS = RunSettings(epochs=1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_phantom(tmp_path / "raw", patients=6, timepoints=1, shape=(32, 32, 8))
    prepare(tmp_path / "raw", tmp_path / "data", PrepareOptions(size=32, fit="resize", jobs=1))
    return tmp_path / "data"


def request(folder: Path, name: str, settings: RunSettings = SETTINGS) -> RunRequest:
    run = RunDir(folder / name)
    record = run_record({"name": name, "config": {"depth": 1, "base_channels": 1}, "settings": settings})
    return RunRequest(run, record, str(run.path))


@pytest.mark.timeout(300)
def test_the_workers_are_kept_for_the_next_batch_of_equal_slots(data: Path, tmp_path: Path) -> None:
    """Between selection and judgement no process is started: that takes as long as many small epochs."""
    one, two = Slots(1, 1, 1, 0.0), Slots(2, 1, 1, 0.0)
    changed: list[str] = []
    with ray_session(None):
        shipment = make_shipment(data, Manifest.read(data).fingerprint, send=False)
        with RunTrainer(SETTINGS, shipment) as trainer:
            trainer.train([request(tmp_path, "first")], one, lambda run: changed.append(run.name))
            groups = list(trainer.idle)
            trainer.train([request(tmp_path, "second")], one, lambda run: changed.append(run.name))
            assert trainer.idle == groups
            assert len(groups) == 1
            trainer.train([request(tmp_path, "third")], two, lambda run: changed.append(run.name))
            assert len(trainer.idle) == 1
            assert trainer.idle != groups, "its threads follow from the slots"
    assert [RunDir(tmp_path / name).state for name in ("first", "second", "third")] == ["completed"] * 3
    assert list(dict.fromkeys(changed)) == ["first", "second", "third"]


@pytest.mark.timeout(300)
def test_a_group_that_is_killed_while_it_starts_leaves_nothing_and_its_run_is_trained(
    data: Path, tmp_path: Path
) -> None:
    """The placement group of a killed group would hold its CPU for ever, and each later run would wait for it."""
    killed: list[int] = []

    def kill_when_placed() -> None:
        wait_for(lambda: bool(placed_groups()), 120, "no placement group")
        groups = [pid for pid in descendants(os.getpid()) if "ray::WorkerGroup" in title(pid)]
        killed.extend(pid for pid in groups if kill(pid))

    one = Slots(1, 1, len(os.sched_getaffinity(0)), 0.0)  # all CPUs, so nothing fits beside what is left behind
    with ray_session(None):
        shipment = make_shipment(data, Manifest.read(data).fingerprint, send=False)
        killer = threading.Thread(target=kill_when_placed)
        killer.start()
        with RunTrainer(SETTINGS, shipment) as trainer:
            trainer.train([request(tmp_path, "first")], one, lambda _: None)
            killer.join()
            assert len(placed_groups()) == 1, "that of the group that trained it"
        assert placed_groups() == {}
    assert len(killed) == 1
    assert RunDir(tmp_path / "first").state == "completed"


@pytest.mark.timeout(300)
def test_runs_go_on_in_fewer_groups_than_planned(data: Path, tmp_path: Path) -> None:
    """Two groups are planned, and one fits, as after the loss of a machine: the second run gets the first one's."""
    cpus = len(os.sched_getaffinity(0))
    with ray_session(None):
        shipment = make_shipment(data, Manifest.read(data).fingerprint, send=False)
        with RunTrainer(SETTINGS, shipment) as trainer:
            requests = [request(tmp_path, name) for name in ("first", "second")]
            trainer.train(requests, Slots(2, 1, cpus, 0.0), lambda _: None)
    assert [RunDir(tmp_path / name).state for name in ("first", "second")] == ["completed"] * 2


def title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def test_lost_processes_count_only_without_an_epoch_in_between_and_preemptions_never(tmp_path: Path) -> None:
    trainer = RunTrainer(RunSettings(epochs=9), shipment=None)  # type: ignore[arg-type] - nothing is trained
    one = request(tmp_path, "one")
    RunDir.create(one.run.path, one.record)
    lost, preempted = WorkersDiedError("a node died"), WorkersDiedError("a node was taken away", preempted=True)
    for epoch in range(1, 4):
        assert all(trainer._retry(one, lost) for _ in range(LOST_PROCESS_RETRIES))
        one.run.append(epoch_row({"epoch": epoch}))
    assert all(trainer._retry(one, lost) for _ in range(LOST_PROCESS_RETRIES))
    assert all(trainer._retry(one, preempted) for _ in range(20))
    assert len(trainer.waiting) == 4 * LOST_PROCESS_RETRIES + 20
    assert not trainer._retry(one, lost)
    assert (one.run.state, one.run.status().reason) == ("lost", "a node died")
    assert not trainer._retry(one, RuntimeError("an error in the program"))
    assert (one.run.state, one.run.status().reason) == ("failed", "an error in the program")


def test_the_error_of_dead_workers_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(WorkersDiedError("a node died", preempted=True)))  # noqa: S301 - made here
    assert (str(copy), copy.preempted) == ("a node died", True)
