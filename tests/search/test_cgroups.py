"""Searches in real control groups of version 1: slots follow the group's limits, and a kill for memory is told.

tests/runs/test_machine.py covers the files of version 2. These tests need root and a writable /sys/fs/cgroup.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import wait_for

from wmlsearch.runs.folders import SearchDir

HIERARCHIES = {name: Path(f"/sys/fs/cgroup/{name}") for name in ("memory", "cpu")}
SLOTS = """
from wmlsearch.cluster.resources import Request, available_cpus, free_memory_gb, plan_slots, this_machine
from wmlsearch.runs.machine import machine_bytes
print(available_cpus(), f"{free_memory_gb():.0f}", machine_bytes() / 2**30, "|",
      plan_slots(this_machine(), Request(), 20, free_memory_gb()))
"""
# As a container has it: a namespace of groups, in which its own one is the root.
IN_CONTAINER = (
    "mount -t tmpfs none /sys/fs/cgroup && mkdir /sys/fs/cgroup/memory /sys/fs/cgroup/cpu && "
    "mount -t cgroup -o memory none /sys/fs/cgroup/memory && mount -t cgroup -o cpu none /sys/fs/cgroup/cpu && "
)
# For every Python process: a worker that trains takes more memory than its group has.
GREEDY = """
import sys, threading, time
def eat():
    while "wmlsearch.search.trial_worker" not in sys.modules:
        time.sleep(0.1)
    time.sleep(3)
    taken = b"x" * (4 * 2**30)
    time.sleep(60)
if sys.argv and "default_worker" in " ".join(sys.orig_argv):
    threading.Thread(target=eat, daemon=True).start()
"""


@pytest.fixture
def groups() -> Iterator[list[Path]]:
    """Make a group of 1 CPU and 3 GiB in each hierarchy."""
    made = []
    try:
        for name, hierarchy in HIERARCHIES.items():
            group = hierarchy / f"wmlsearch-test-{os.getpid()}"
            try:
                group.mkdir()
            except OSError as error:
                pytest.skip(f"no control group of version 1 can be made in {hierarchy} ({error.strerror})")
            made.append(group)
            if name == "memory":
                (group / "memory.limit_in_bytes").write_text(str(3 * 2**30))
            else:
                (group / "cpu.cfs_quota_us").write_text("100000")
                (group / "cpu.cfs_period_us").write_text("100000")
        yield made
    finally:
        for group in made:
            end = time.monotonic() + 60
            while (group / "cgroup.procs").read_text() and time.monotonic() < end:
                time.sleep(0.2)
            group.rmdir()


def run_in(groups: list[Path], command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in the groups."""
    enter = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
    return subprocess.run(
        ["bash", "-c", enter + command], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )


def test_slots_in_a_nested_group_and_as_in_a_container(groups: list[Path]) -> None:
    expected = "1 3 3.0 | 1 at a time, each 1 worker with 1 CPU each\n"
    nested = run_in(groups, f'exec "{sys.executable}" -c "$CODE"', CODE=SLOTS)
    assert nested.stdout == expected, nested.stderr
    inside = f"""exec unshare -m -C bash -c '{IN_CONTAINER} "{sys.executable}" -c "$CODE"'"""
    contained = run_in(groups, inside, CODE=SLOTS)
    if "unshare" in contained.stderr:
        pytest.skip(contained.stderr)
    assert contained.stdout == expected, contained.stderr


def kills(groups: list[Path]) -> int:
    """Return how many processes the kernel has ended in the groups for lack of memory."""
    counted = re.search(r"^oom_kill (\d+)", (groups[0] / "memory.oom_control").read_text(), re.MULTILINE)
    assert counted is not None
    return int(counted[1])


def tune(prepared: Path, out: Path, *options: str) -> str:
    command = [sys.executable, "-m", "wmlsearch", "tune", "quick", "--data", str(prepared), "--out", str(out)]
    return "exec " + " ".join([*command, "--name", "s", "--no-forecast", *options])


@pytest.mark.slow
def test_a_search_ends_well_in_one_cpu_and_three_gib(groups: list[Path], prepared: Path, tmp_path: Path) -> None:
    command = tune(prepared, tmp_path, "--trials", "4", "--epochs", "2", "--confirm-top", "1", "--final-runs", "2")
    done = run_in(groups, command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trials run 1 at a time, each 1 worker with 1 CPU each" in done.stdout
    search = SearchDir(tmp_path / "s")
    assert search.status().state == "completed"
    assert not {run.status().state for run in search.all_runs()} & {"lost", "failed", "out_of_memory", "interrupted"}


@pytest.mark.slow
def test_a_trial_that_the_kernel_ends_for_memory_says_so(groups: list[Path], prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(GREEDY)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    for attempt in range(3):
        runs, before = tmp_path / str(attempt), kills(groups)
        command = tune(prepared, runs, "--trials", "1", "--epochs", "5000", "--no-baseline")
        done = run_in(groups, command, PYTHONPATH=paths)
        if kills(groups) == before:
            pytest.skip("the kernel has ended nothing")
        if done.returncode != -signal.SIGKILL:
            break
        # Now and then the kernel also ends the search itself, before it has freed the memory of the trial's process.
        wait_for(lambda: not (groups[0] / "cgroup.procs").read_text(), 120, "processes of the killed search are left")
    else:
        pytest.skip("the kernel has ended the search itself, three times")
    (trial,) = SearchDir(runs / "s").trials()
    assert trial.status().state == "out_of_memory", done.stdout + done.stderr
    assert trial.status().reason.startswith(
        "the system ended its process for lack of memory; run fewer trials at a time (more --workers-per-trial), "
    )
    said = " ".join(done.stdout.split())
    assert "trial-0000 out of memory after" in said
    assert "the system ended its process for lack of memory; run fewer trials at a time" in said
