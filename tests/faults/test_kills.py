"""SIGKILL of each process of a search at random times: every reported epoch is kept once, and the search goes on."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from processes import descendants, kill
from search import Lines, Record, Running, check_whole, differences, tune_arguments

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
KILLS, HUNG_S = 5, 30
SLOT = ("ray::TrialWorker", "ray::ImplicitFunc", "Trainable")
CONTROLLER = ("ray::GroupController",)
HEAD = ("gcs_server", "raylet/raylet")


def check_messages(running: Running, injected: int) -> None:
    """Check that the output names each killed trial; one without a reported epoch may go unmentioned."""
    assert running.text().count("so a new process continues it") >= injected - 1, running.text()
    assert "raylet" not in running.text(), running.text()
    assert "Traceback" not in running.text(), running.text()


def more_lines(running: Running, lines: Lines, chance: random.Random, max_lines: int) -> int:
    """Wait for some new epochs and a random part of the next one, and return the number of epochs."""
    wanted = lines.count() + chance.randint(1, max_lines)
    running.until(lambda: lines.count() >= wanted)
    time.sleep(chance.uniform(0, 0.3))  # a random time within the next epoch
    lines.look()
    return lines.count()


def test_killed_trial_process(prepared: Path, out: Path, chance: random.Random, record: Record) -> None:
    words = tune_arguments(out, prepared, "--trial-timeout", HUNG_S, trials=2, epochs=50)
    with Running(out, *words, cores=1) as running, Lines(running.search) as lines:
        for _ in range(KILLS):
            more_lines(running, lines, chance, 5)
            (slot,) = running.processes(*SLOT)
            assert kill(slot)
            running.until(lambda slot=slot: bool(set(running.processes(*SLOT)) - {slot}))
        more_lines(running, lines, chance, 5)
        (slot,) = running.processes(*SLOT)
        assert kill(slot, signal.SIGSTOP)  # the process hangs, and none of its threads can end it
        running.until(lambda: slot not in running.processes(*SLOT))
        assert running.end() == 0, running.text()
    lost, doubled = lines.lost_and_doubled()
    record("kill -9 of a trial's process", KILLS, lost, doubled)
    record("a trial's process that hangs (SIGSTOP)", 1, lost, doubled, f"ended by --trial-timeout {HUNG_S}")
    assert (lost, doubled) == (0, 0)
    check_whole(running.search, trials=2, epochs=50)
    assert differences(running.search, out / "mlflow.db") == (0, 0, []), "in MLflow"
    check_messages(running, KILLS + 1)


def test_killed_rank(prepared: Path, out: Path, chance: random.Random, record: Record) -> None:
    words = tune_arguments(out, prepared, "--workers-per-trial", 2, trials=2, epochs=40)
    with Running(out, *words, cores=2) as running, Lines(running.search) as lines:
        for _ in range(KILLS):
            more_lines(running, lines, chance, 6)
            ranks = running.processes("RayTrainWorker")
            assert len(ranks) == 2, ranks
            assert kill(chance.choice(ranks))
        assert running.end() == 0, running.text()
    lost, doubled = lines.lost_and_doubled()
    record("kill -9 of one rank of two", KILLS, lost, doubled)
    assert (lost, doubled) == (0, 0)
    check_whole(running.search, trials=2, epochs=40)
    assert differences(running.search, out / "mlflow.db") == (0, 0, []), "in MLflow"
    check_messages(running, KILLS)


def test_killed_process_that_drives_a_worker_group(
    prepared: Path, out: Path, chance: random.Random, record: Record
) -> None:
    """Of a trial and of a final run: ours and Ray Train's. Its placement group would hold the CPUs, and what comes next
    would wait for it."""
    ending = ("--confirm-top", 0, "--final-runs", 1)
    words = tune_arguments(out, prepared, "--workers-per-trial", 2, *ending, trials=2, epochs=20, baseline=True)
    with Running(out, *words, cores=2) as running, Lines(running.search) as lines:
        for drivers in (SLOT, CONTROLLER):
            more_lines(running, lines, chance, 6)
            (driver,) = running.processes(*drivers)
            assert kill(driver)
        running.until(lambda: bool(running.processes("ray::WorkerGroup")), 400)
        time.sleep(chance.uniform(0, 3))  # a random time within its start
        (group,) = running.processes("ray::WorkerGroup")
        assert kill(group)
        running.until(lambda: bool(running.processes(*CONTROLLER)), 400)
        (controller,) = running.processes(*CONTROLLER)
        assert kill(controller)
        assert running.end() == 0, running.text()
    lost, doubled = lines.lost_and_doubled()
    record("kill -9 of a process that drives the ranks of a trial or final run", 4, lost, doubled)
    assert (lost, doubled) == (0, 0)
    assert {run.state for run in running.search.finals()} == {"completed"}
    check_messages(running, 2)


@pytest.mark.parametrize("victim", ["driver", "head"])
def test_killed_driver_or_head(victim: str, prepared: Path, out: Path, chance: random.Random, record: Record) -> None:
    """Kill a search five times, in each session at another point, then resume it once more."""
    words, lines = tune_arguments(out, prepared, trials=2, epochs=40), None
    ends = []
    for _ in range(KILLS):
        with Running(out, *words, cores=1) as running:
            lines = lines or Lines(running.search).__enter__()
            if lines.count() or chance.random() < 0.7:
                more_lines(running, lines, chance, 6)
            else:  # before the first epoch: between the start of a trial's process and its first report
                running.until(lambda: bool(running.processes(*SLOT)))
                time.sleep(chance.uniform(0, 3))  # a random time within the next epoch
            if victim == "driver":
                running.process.kill()
                running.process.wait()
            else:
                head = running.processes(*HEAD)
                assert len(head) == len(HEAD), running.text()
                for pid in head:
                    assert kill(pid)
                began = time.monotonic()
                assert running.end(120) != 0, running.text()
                ends.append(time.monotonic() - began)
                assert f"--resume {running.search.name}" in running.text(), running.text()
        words = ["--resume", "s"]
    assert lines is not None
    with Running(out, *words, cores=1) as running:
        assert running.end() == 0, running.text()
    lines.__exit__()
    lost, doubled = lines.lost_and_doubled()
    what = "the driver" if victim == "driver" else "Ray's head (GCS and raylet)"
    record(f"kill -9 of {what}", KILLS, lost, doubled, f"the driver ends after {max(ends):.0f} s" if ends else "")
    assert (lost, doubled) == (0, 0)
    check_whole(running.search, trials=2, epochs=40)
    assert differences(running.search, out / "mlflow.db") == (0, 0, []), "in MLflow"


def test_head_killed_while_starting(prepared: Path, out: Path, chance: random.Random, record: Record) -> None:
    """Ray's servers are started once more if they end while they start."""
    words = tune_arguments(out, prepared, trials=2, epochs=3)
    with Running(out, *words, cores=1) as running:
        running.until(lambda: len(running.processes(*HEAD)) >= len(HEAD))
        time.sleep(chance.uniform(0, 0.5))  # a random time within the next epoch
        head = running.processes(*HEAD)
        assert all(kill(pid) for pid in head)
        running.until(lambda: bool(set(running.processes(*HEAD)) - set(head)))
        assert running.end() == 0, running.text()
    record("kill -9 of Ray's head while it starts", 1, 0, 0, "started again")
    check_whole(running.search, trials=2, epochs=3)
    assert "Traceback" not in running.text(), running.text()


def test_sigterm_to_all_processes(prepared: Path, out: Path, chance: random.Random, record: Record) -> None:
    """As `timeout` and batch systems send it: Ray's servers and the workers may end before the search does."""
    words = tune_arguments(out, prepared, trials=2, epochs=40)
    with Running(out, *words, cores=1) as running, Lines(running.search) as lines:
        more_lines(running, lines, chance, 5)
        for pid in [*descendants(running.process.pid), running.process.pid]:
            kill(pid, signal.SIGTERM)
        assert running.end(60) == 128 + signal.SIGTERM, running.text()
        status = running.search.status()
        assert (status.state, status.reason) == ("interrupted", "stopped by SIGTERM"), running.text()
        assert f"--resume {running.search.name}" in running.text()
        assert "Traceback" not in running.text(), running.text()
    with Running(out, "--resume", "s", cores=1) as running:
        assert running.end() == 0, running.text()
    lost, doubled = lines.lost_and_doubled()
    record("SIGTERM to all processes of a search, `--resume`", 1, lost, doubled)
    assert (lost, doubled) == (0, 0)
    check_whole(running.search, trials=2, epochs=40)
